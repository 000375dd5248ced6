"""Checkpoints for the tests of reports and commands, and the norms that NumPy finds for them."""

import numpy as np
from safetensors.numpy import save_file

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>.weight"
FORMULA = "=HYPERLINK(1).weight"


def tensors():
    rng = np.random.default_rng(0)
    return {
        "layer.0.weight": rng.standard_normal((30, 20)).astype(np.float32),
        "layer.0.bias": np.ones(30, dtype=np.float32),
        "layer.1.weight": rng.standard_normal((6, 4, 3, 3)).astype(np.float32),
        "layer.2.weight": np.full((3, 4), np.nan, dtype=np.float32),
        "layer.3.weight": np.zeros((3, 5), dtype=np.float32),
        "layer.4.weight": (1e-3 * rng.standard_normal((8, 8))).astype(np.float16),
        HOSTILE: np.diag([3.0, 1.0]).astype(np.float32),
        FORMULA: np.diag([2.0, 1.0, 0.5]).astype(np.float32),
    }


def write(path, values=None):
    save_file(tensors() if values is None else values, path)
    return path


def norm(matrix):
    return float(np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False)[0])


def grid_norm(kernel, points=64):
    """Return the largest norm of the symbol of (out, in, height, width) on a grid: at most the operator's norm."""
    symbols = np.fft.fft2(np.asarray(kernel, dtype=np.float64), (points, points)).transpose(2, 3, 0, 1)
    return float(np.linalg.svd(symbols, compute_uv=False).max())
