"""The logits of a Keras model as the model computes them, a softmax at its end taken off."""

from typing import Any

import keras
import numpy as np

from opnorm.checks import Array
from opnorm.keras.jacobian import fits

_BATCH = 256  # examples at a time
# Keras multiplies matrices of float64 in float32 on PyTorch, and JAX knows no float64 unless told to.
_FINEST = 2.0**-53 if keras.backend.backend() == "tensorflow" else 2.0**-24
_UNITS = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24, "float64": _FINEST}


def checked(model: keras.Model, points: Array) -> Array:
    """Return `points`.

    Raises:
        ValueError: Unless they are a batch of what the model takes.
    """
    if points.ndim < 2 or not fits(points, model):
        must = f"must hold examples, batch first, of the model's shape {getattr(model, 'input_shape', None)}"
        raise ValueError(f"Argument `x` {must}. Received: shape={points.shape}")
    return points


def logits(model: keras.Model, points: Array, is_shortened: bool) -> tuple[Array, float]:
    """Return the logits, (examples, classes), and the unit roundoff of the coarsest numbers the model computes with.

    Args:
        model: A built model.
        points: The examples.
        is_shortened: Whether the softmax at the model's end is to be taken off.

    Raises:
        ValueError: When it cannot be: neither a layer of its own nor the activation of a dense one.
    """
    last = model.layers[-1]
    unit = max(_UNITS.get(str(layer.compute_dtype), 2.0**-8) for layer in model.layers)
    if not is_shortened:
        return _computed(model, points), unit
    before = keras.Model(model.inputs, last.input)  # of the same layers, none of which is called or changed
    if isinstance(last, keras.layers.Softmax | keras.layers.Activation):
        return _computed(before, points), unit
    if not isinstance(last, keras.layers.Dense):
        raise ValueError(f"Argument `model` must end in logits, or a softmax after a dense layer. Received: {last!r}")
    kernel, bias = (np.asarray(keras.ops.convert_to_numpy(v), float) for v in (last.kernel, _bias(last)))
    return _computed(before, points) @ kernel + bias, unit


def _bias(layer: keras.layers.Dense) -> Any:
    return layer.bias if layer.use_bias else np.zeros(layer.units)


def _computed(model: keras.Model, points: Array) -> Array:
    batches = [points[start : start + _BATCH] for start in range(0, len(points), _BATCH)]
    dtype = model.inputs[0].dtype
    outputs = [model(keras.ops.convert_to_tensor(batch, dtype=dtype), training=False) for batch in batches]
    return np.concatenate([np.asarray(keras.ops.convert_to_numpy(y), dtype=np.float64) for y in outputs])
