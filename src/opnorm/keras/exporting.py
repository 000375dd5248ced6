"""`model.export` of a model with wrappers: what is exported is what `opnorm.bake` makes of it, in every format.

A wrapper's own search for sigma does not travel. Its eigenvectors of small matrices are LAPACK's, which TensorFlow does
not serve for JAX, and which TFLite and ONNX have not; on PyTorch the number of steps depends on numbers. What it finds
is the same in every call once training has ended, so the kernels are exported as it would make them. To that end this
module wraps one public method of `keras.Model`, once, on import.
"""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

import keras

from opnorm.keras.baking import bake
from opnorm.keras.sites import walk
from opnorm.keras.wrappers import SpectralNormalization


def _exporting(original: Callable[..., Any]) -> Callable[..., Any]:
    names = signature(original)

    @wraps(original)
    def export(self: keras.Model, *args: Any, **kwargs: Any) -> Any:
        given = names.bind(self, *args, **kwargs)
        given.apply_defaults()
        return original(_baked(self, given.arguments.get("format")), *args, **kwargs)

    return export


def _baked(model: keras.Model, form: Any) -> Any:
    """Return the model without wrappers, or `model` itself where it has none or goes into the format as it is.

    Raises:
        ValueError: When the model cannot be baked, and the format cannot hold it otherwise.
    """
    if not model.built or not any(isinstance(part, SpectralNormalization) for _, part, _ in walk(model)):
        return model
    try:
        return bake(model)
    except ValueError as error:
        if (keras.config.backend(), form) == ("tensorflow", "tf_saved_model"):
            return model
        raise ValueError(
            f"A model with `opnorm.SpectralNormalization` is exported to {form!r} as `opnorm.bake(model)` makes it, "
            f"which failed: {error}"
        ) from error


keras.Model.export = _exporting(keras.Model.export)
