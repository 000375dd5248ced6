"""ConvLSTM layers: both kernels of their cells are known, as matrices and as the convolutions that they are."""

import dense
import keras
import numpy as np
import pytest
from cases import built_optimizer, gaussian, op_by_op, take_steps

import opnorm

L = keras.layers
EXACT = 1e-3  # what `project` documents
project = op_by_op(opnorm.project)

LAYERS = {  # the layer, and the shape of a film
    "1-D": (L.ConvLSTM1D(2, 3, padding="same"), (2, 24, 3)),
    "1-D, strided": (L.ConvLSTM1D(2, 4, strides=2), (2, 30, 3)),
    "2-D": (L.ConvLSTM2D(2, 3, padding="same"), (2, 9, 8, 2)),
    "2-D, dilated": (L.ConvLSTM2D(1, 2, dilation_rate=2), (2, 7, 8, 2)),
    "3-D": (L.ConvLSTM3D(1, 2, padding="same"), (2, 4, 5, 4, 1)),
}
BOTH = {"kernel", "recurrent_kernel"}


def built(name):
    layer, shape = LAYERS[name]
    model = keras.Sequential([keras.Input(shape), type(layer).from_config(layer.get_config())])
    for index, weight in enumerate(model.trainable_weights):
        weight.assign(gaussian(*weight.shape, seed=index))
    return model


def applied(cell):
    """Return the matrices that the cell multiplies images with, column by column from the cell itself."""
    sizes = cell.spatial_dims
    kernels = {"kernel": (cell.kernel, (*sizes, cell.input_dim))}
    state = tuple(cell.compute_output_shape((None, *sizes, cell.input_dim))[0][1:])
    kernels["recurrent_kernel"] = cell.recurrent_kernel, state
    found = {}
    for name, (kernel, shape) in kernels.items():
        images = np.eye(int(np.prod(shape)), dtype="float32").reshape(-1, *shape)
        recurrent = name == "recurrent_kernel"
        values = (
            cell.recurrent_conv(images, kernel) if recurrent else cell.input_conv(images, kernel, None, cell.padding)
        )
        found[name] = dense.array(values).reshape(len(images), -1).T
    return found


def norm(matrix):
    return np.linalg.svd(matrix.astype("float64"), compute_uv=False)[0]


@pytest.mark.parametrize("name", LAYERS)
def test_the_operators_are_what_the_cell_multiplies_its_input_and_its_state_with(name):
    [layer] = (model := built(name)).layers
    truth = applied(layer.cell)
    for maps in (opnorm.linear_operators(layer), opnorm.linear_operators(layer.cell)):
        assert set(maps) == BOTH
        for key, operator in maps.items():
            np.testing.assert_allclose(operator.matmat(np.eye(operator.shape[1])), truth[key], atol=1e-5)  # float32
            lower, upper = opnorm.spectral_norm(operator)
            assert lower * (1 - 1e-6) <= norm(truth[key]) <= upper * (1 + 1e-6)  # errors of float32 average out
    assert set(opnorm.linear_operators(model)) == {f"{layer.name}/{key}" for key in BOTH}


def test_gates_are_blocks_of_the_last_axis():
    [layer] = built("2-D").layers
    joint, each = opnorm.linear_operators(layer), opnorm.linear_operators(layer, gates=True)
    assert set(each) == {f"{key}/{gate}" for key in BOTH for gate in range(4)}
    for key in BOTH:
        whole = np.concatenate([each[f"{key}/{gate}"].kernel for gate in range(4)], axis=-1)
        np.testing.assert_array_equal(whole, joint[key].kernel)


@pytest.mark.parametrize("name", LAYERS)
def test_both_kernels_get_the_norm_asked_for_as_matrices(name):
    [layer] = (model := built(name)).layers
    table = opnorm.constrain(model, opnorm.SpectralNorm(0.9, seed=1))
    assert [row.path for row in table] == [
        f"{layer.name}/{layer.cell.name}/{key}" for key in ("kernel", "recurrent_kernel")
    ]
    kernels = layer.cell.kernel, layer.cell.recurrent_kernel
    project(model)
    for kernel in kernels:
        assert norm(dense.array(kernel).reshape(-1, kernel.shape[-1])) == pytest.approx(0.9, rel=EXACT)
        kernel.assign(3 * dense.array(kernel))
    take_steps(built_optimizer(model.trainable_variables), model.trainable_variables, 2)
    for kernel in kernels:
        assert norm(dense.array(kernel).reshape(-1, kernel.shape[-1])) == pytest.approx(0.9, rel=EXACT)


@pytest.mark.parametrize("name", LAYERS)
def test_both_kernels_get_the_norm_asked_for_as_convolutions(name):
    [layer] = (model := built(name)).layers
    table = opnorm.constrain(model, opnorm.SpectralNorm(0.9, operator="convolution", seed=1))
    assert [row.operator for row in table] == ["convolution"] * 2
    opnorm.project(model)
    for key, matrix in applied(layer.cell).items():
        assert norm(matrix) <= 0.9 * (1 + 1e-2)  # case T7
        kernel = dense.array(getattr(layer.cell, key))
        strides = layer.cell.strides if key == "kernel" else 1
        every_size = opnorm.spectral_norm(opnorm.Convolution(kernel, strides=strides))
        assert every_size.upper >= 0.9 * (1 - EXACT)  # a small image's norm is below it


def test_what_was_attached_is_saved_loaded_and_trained(tmp_path):
    model = keras.Sequential([keras.Input((2, 6, 6, 1)), L.ConvLSTM2D(2, 3), L.Flatten(), L.Dense(1)])
    opnorm.constrain(model, opnorm.MaxSpectralNorm(0.5), exclude="dense*")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.compile(keras.optimizers.SGD(1.0), "mse")
    loaded.fit(gaussian(8, 2, 6, 6, 1), gaussian(8, 1), verbose=0, epochs=2)
    for kernel in (loaded.layers[0].cell.kernel, loaded.layers[0].cell.recurrent_kernel):
        assert norm(dense.array(kernel).reshape(-1, kernel.shape[-1])) <= 0.5 * (1 + EXACT)


@pytest.mark.parametrize("operator", ["matrix", "convolution"])
def test_a_wrapper_normalizes_both_kernels(operator):
    model = built("2-D")
    layer = opnorm.SpectralNormalization(model.layers[0], value=0.7, operator=operator)
    layer.build((None, 2, 9, 8, 2))
    assert len(layer.non_trainable_weights) == 2
    maps = op_by_op(opnorm.linear_operators)(layer)
    for key in BOTH:
        kernel = maps[key].kernel
        if operator == "matrix":
            assert norm(kernel.reshape(-1, kernel.shape[-1])) == pytest.approx(0.7, rel=EXACT)
        else:
            bounds = opnorm.spectral_norm(opnorm.Convolution(kernel))
            assert bounds.lower <= 0.7 * (1 + 1e-2)  # case T7
            assert bounds.upper >= 0.7 * (1 - EXACT)


def test_a_cell_of_ones_own_that_derives_from_it_is_known_too():
    class Own(type(L.ConvLSTM2D(1, 1).cell)):
        pass

    cell = Own(2, 2, 3)
    cell.build((None, 6, 6, 1))
    assert [one.name for one in opnorm.kernels(cell)] == ["kernel", "recurrent_kernel"]
    assert set(opnorm.linear_operators(cell)) == BOTH
