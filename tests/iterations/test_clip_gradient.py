"""The gradient of clipping against finite differences."""

import numpy as np
import pytest

from opnorm.iterations.clipping import clip_gradient


def clipped(matrix, target):
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return u * np.minimum(s, target) @ vt


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (1, 4), (4, 1)])
@pytest.mark.parametrize("target", [0.5, 2.0, 100.0])
def test_it_is_that_of_finite_differences(shape, target):
    rng = np.random.default_rng(0)
    matrix, cotangent = rng.standard_normal(shape), rng.standard_normal(shape)
    expected = np.zeros(shape)
    for index in np.ndindex(shape):
        step = np.zeros(shape)
        step[index] = 1e-6
        difference = clipped(matrix + step, target) - clipped(matrix - step, target)
        expected[index] = np.sum(difference * cotangent) / 2e-6
    np.testing.assert_allclose(clip_gradient(matrix, target, cotangent), expected, atol=1e-7)  # differences of 1e-6


def test_it_is_finite_for_equal_singular_values_and_for_zero():
    cotangent = np.random.default_rng(0).standard_normal((4, 4))
    np.testing.assert_allclose(clip_gradient(np.eye(4) / 2, 1.0, cotangent), cotangent, atol=1e-12)  # inside: identity
    np.testing.assert_allclose(clip_gradient(np.zeros((4, 4)), 1.0, cotangent), cotangent, atol=1e-12)
    skew = (cotangent - cotangent.T) / 2
    np.testing.assert_allclose(clip_gradient(2 * np.eye(4), 1.0, cotangent), skew / 2, atol=1e-12)  # a ball's corner
