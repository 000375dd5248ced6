"""The truth: singular values by NumPy in float64 of the explicit matrix."""

import numpy as np


def array(x):
    """Return a tensor, variable or array of any backend as a NumPy array."""
    from keras import ops

    return np.asarray(ops.convert_to_numpy(x))


def norm(kernel):
    """Return the spectral norm of `kernel` reshaped to `(-1, kernel.shape[-1])`."""
    matrix = array(kernel).astype("float64")
    return np.linalg.svd(matrix.reshape(-1, matrix.shape[-1]), compute_uv=False)[0]


def with_values(kernel, change):
    """Return `kernel`, reshaped as in `norm`, with its singular values s, largest first, replaced by `change(s)`."""
    matrix = array(kernel).astype("float64")
    u, s, vt = np.linalg.svd(matrix.reshape(-1, matrix.shape[-1]), full_matrices=False)
    return (u * change(s) @ vt).reshape(matrix.shape)


def matrix_of(layer, input_shape):
    """Return the matrix of a linear layer, one row for each entry of an input of `input_shape`, from its own calls."""
    size = int(np.prod(input_shape))
    basis = np.eye(size, dtype="float32").reshape(size, *input_shape)
    return array(layer(basis)).reshape(size, -1).astype("float64")
