"""Norms of Jacobians of Keras models, which bounds are held against."""

import numpy as np

from opnorm.keras.jacobian import linearize


def jacobian(model, x):
    """Return the norm of the Jacobian of a model with one output at one example, in float32."""
    outputs = int(np.prod(model.output_shape[1:]))
    linear = linearize(model, np.repeat(x[None].astype("float32"), outputs, axis=0))
    rows = linear.backward(np.eye(outputs, dtype="float32").reshape(outputs, *model.output_shape[1:]))
    return np.linalg.norm(np.asarray(rows).reshape(outputs, -1), 2)
