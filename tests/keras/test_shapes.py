"""The shapes of a Keras network's values, worked out from its config, against those that Keras itself works out."""

import keras
import pytest

from opnorm.checkpoints.keras_layers import serialized_layer
from opnorm.checkpoints.keras_shapes import input_shape, output_shape

L = keras.layers
IMAGE, ROW = (11, 9, 2), (7, 3)
CASES = [
    *(
        (kind(4, 3, strides=strides, padding=padding), IMAGE)
        for kind in (L.Conv2D, L.SeparableConv2D, L.Conv2DTranspose)
        for strides in (1, 2, 3)
        for padding in ("same", "valid")
    ),
    (L.Conv2DTranspose(4, 2, strides=3, padding="valid"), IMAGE),
    (L.Conv2D(4, (3, 2), dilation_rate=(2, 3)), IMAGE),
    (L.Conv2D(4, 3, data_format="channels_first"), (2, 11, 9)),
    (L.DepthwiseConv2D(3, strides=2, depth_multiplier=3), IMAGE),
    (L.Conv1D(4, 3, padding="causal", dilation_rate=2), ROW),
    (L.Conv1D(4, 3, strides=2), ROW),
    (L.Conv3D(2, 2, strides=2), (5, 6, 7, 1)),
    *((L.MaxPooling2D(3, strides=2, padding=padding), IMAGE) for padding in ("same", "valid")),
    *((L.AveragePooling2D(3, strides=2, padding=padding), IMAGE) for padding in ("same", "valid")),
    (L.MaxPooling2D((2, 3)), IMAGE),
    (L.AveragePooling1D(2), ROW),
    *((L.GlobalAveragePooling2D(keepdims=keepdims), IMAGE) for keepdims in (False, True)),
    (L.GlobalMaxPooling1D(data_format="channels_first"), ROW),
    (L.UpSampling2D((2, 3)), IMAGE),
    (L.UpSampling1D(2), ROW),
    (L.ZeroPadding2D(((1, 2), (0, 3))), IMAGE),
    (L.ZeroPadding1D((1, 2)), ROW),
    (L.Cropping2D(2), IMAGE),
    (L.Cropping1D(1), ROW),
    (L.Flatten(), IMAGE),
    (L.Reshape((9, -1)), IMAGE),
    (L.Permute((2, 3, 1)), IMAGE),
    (L.RepeatVector(4), (5,)),
    (L.Dense(5), IMAGE),
    (L.TimeDistributed(L.Conv1D(4, 3, strides=2)), IMAGE),
    (L.BatchNormalization(), IMAGE),
    (L.Activation("gelu"), IMAGE),
    (L.Softmax(), ROW),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "shape"), CASES)
def test_the_shape_of_a_layer_s_result_is_keras_s(layer, shape):
    config = serialized_layer(keras.saving.serialize_keras_object(layer))
    truth = layer(keras.Input(shape)).shape
    assert output_shape(config, [("batch", *shape)]) == ("batch", *truth[1:])


@pytest.mark.parametrize(("layer", "shape"), CASES)
def test_open_sizes_have_names_where_keras_has_none(layer, shape):
    config = serialized_layer(keras.saving.serialize_keras_object(layer))
    opened = ("batch", *(f"size {axis}" for axis in range(len(shape) - 1)), shape[-1])
    found = output_shape(config, [opened])
    assert found is None or len(found) == len(layer(keras.Input(shape)).shape)


@pytest.mark.parametrize("merge", [L.Add(), L.Concatenate(axis=1), L.Concatenate()])
def test_branches_that_meet_have_keras_s_shape(merge):
    config = serialized_layer(keras.saving.serialize_keras_object(merge))
    truth = merge([keras.Input(IMAGE), keras.Input(IMAGE)]).shape
    assert output_shape(config, [("batch", *IMAGE)] * 2) == ("batch", *truth[1:])
    other = 1, *IMAGE[1:]
    try:
        mixed = (
            "batch",
            *type(merge).from_config(merge.get_config())([keras.Input(IMAGE), keras.Input(other)]).shape[1:],
        )
    except ValueError:
        mixed = None
    assert (mixed is None) == (getattr(merge, "axis", None) == -1)
    assert output_shape(config, [("batch", *IMAGE), ("batch", *other)]) == mixed


def test_the_shape_of_an_input_is_what_its_config_says():
    config = serialized_layer(keras.saving.serialize_keras_object(keras.Input((None, 3), name="x")._keras_history[0]))
    assert input_shape(config) == ("batch", "size 1 of x", 3)
