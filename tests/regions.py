"""The linear regions of a ReLU network of two inputs, one by one: its Lipschitz constant without any bound."""

import numpy as np

_EMPTY = 1e-9  # of an area: what two lines leave between them by rounding


def regions(matrices, biases, slope=0.0, half=100.0):
    """Yield the Jacobian on every region that meets the square `[-half, half]^2`.

    Args:
        matrices: (outputs, inputs) each.
        biases: One vector for each matrix.
        slope: Of the activation below zero; above it is 1.
        half: Outside of it regions only go on.
    """
    square = half * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    yield from _within(square, np.eye(2), np.zeros(2), list(zip(matrices, biases, strict=True)), slope)


def lipschitz_constant(matrices, biases, slope=0.0):
    """Return the largest norm of a Jacobian, and the number of regions."""
    norms = [np.linalg.norm(J, 2) for J in regions(matrices, biases, slope)]
    return max(norms), len(norms)


def _within(polygon, J, offset, layers, slope):
    """Yield the Jacobians of the regions inside a polygon, on which the layers so far are `x -> J x + offset`."""
    (W, bias), rest = layers[0], layers[1:]
    J, offset = W @ J, W @ offset + bias
    if not rest:
        yield J
        return
    for part, signs in _cells(polygon, J, offset):
        slopes = np.where(signs, 1.0, slope)
        yield from _within(part, slopes[:, None] * J, slopes * offset, rest, slope)


def _cells(polygon, J, offset):
    """Return the parts into which the lines of one layer cut a polygon, each with the signs of the layer there."""
    parts = [(polygon, [])]
    for normal, shift in zip(J, offset, strict=True):
        halves = []
        for corners, signs in parts:
            heights = corners @ normal + shift
            halves += [(_above(corners, side * heights), [*signs, side > 0]) for side in (1, -1)]
        parts = [(corners, signs) for corners, signs in halves if _area(corners) > _EMPTY]
    return [(corners, np.array(signs)) for corners, signs in parts]


def _above(corners, heights):
    """Return what of a convex polygon lies where a linear function, given at its corners, is not negative."""
    kept = []
    for (a, height), (b, other) in zip(
        zip(corners, heights, strict=True), zip(np.roll(corners, -1, 0), np.roll(heights, -1), strict=True), strict=True
    ):
        if height >= 0:
            kept.append(a)
        if (height < 0) != (other < 0):
            kept.append(a + (b - a) * height / (height - other))
    return np.array(kept).reshape(-1, 2)


def _area(corners):
    x, y = corners.T if len(corners) > 2 else np.zeros((2, 1))
    return abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2
