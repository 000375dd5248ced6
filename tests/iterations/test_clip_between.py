"""Singular values raised to a least one, on every framework, against the SVD in float64."""

import numpy as np
import pytest
from frameworks import FRAMEWORKS, array, tensor

from opnorm.iterations.clipping import clip_between, clip_gradient

MOST, LEAST = 0.8, 0.2
EXACT = 1e-3 * LEAST  # what `clip_between` documents, of values above a thousandth of the largest
SPECTRA = {
    "both ends": np.geomspace(40.0, 0.05, 12),
    "far below": np.geomspace(0.8, 1e-3, 12),
    "all below, tiny": 1e-30 * np.linspace(3, 1, 12),
    "crowded at the least": LEAST * (1 + 1e-4 * np.linspace(3, -3, 12)),
}
every_framework = pytest.mark.parametrize("framework", FRAMEWORKS)


def random_vectors(rows, count, seed=0):
    return np.linalg.qr(np.random.default_rng((seed, rows)).standard_normal((rows, count)))[0]


def with_values(shape, s, seed=0):
    """Return a matrix with these singular values."""
    return random_vectors(shape[0], len(s), seed) * s @ random_vectors(shape[1], len(s), seed + 1).T


def raised(framework, matrix):
    kind = "float64" if framework == "numpy" else "float32"
    return array(clip_between(tensor(framework, matrix.astype(kind)), MOST, LEAST)).astype("float64")


@every_framework
def test_values_below_the_least_rise_to_it_and_those_above_the_largest_fall(framework):
    for shape in ((12, 12), (30, 12), (12, 30)):
        matrices = np.stack([with_values(shape, s) for s in SPECTRA.values()])
        truth = [with_values(shape, np.clip(s, LEAST, MOST)) for s in SPECTRA.values()]
        result = raised(framework, matrices)  # together: each is what it would be alone
        assert max(np.linalg.norm(result - truth, 2, axis=(1, 2))) <= EXACT


@every_framework
def test_zero_stays_zero_and_null_directions_stay_within_the_least(framework):
    assert not np.any(raised(framework, np.zeros((6, 4))))
    values = np.linalg.svd(raised(framework, with_values((9, 6), np.r_[0.5, 0.01])), compute_uv=False)
    np.testing.assert_allclose(values[:2], [0.5, LEAST], rtol=1e-3)
    assert max(values[2:]) <= LEAST * (1 + 1e-3)


@every_framework
def test_what_is_inside_both_ends_or_not_finite_is_left_bit_for_bit(framework):
    kind = "float64" if framework == "numpy" else "float32"
    inside = with_values((9, 6), np.linspace(0.79, 0.21, 6)).astype(kind)
    spoilt = np.where(np.arange(6) == 2, np.nan, inside)
    for matrix in (inside, np.stack([inside, spoilt])):
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(array(clip_between(tensor(framework, matrix), MOST, LEAST)), matrix)


@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
def test_its_gradient_is_that_of_finite_differences(shape):
    rng = np.random.default_rng(0)
    matrix, cotangent = with_values(shape, np.r_[2.0, 0.5, 0.1, 0.05]), rng.standard_normal(shape)
    expected = np.zeros(shape)
    for index in np.ndindex(shape):
        step = np.zeros(shape)
        step[index] = 1e-6
        difference = clipped(matrix + step) - clipped(matrix - step)
        expected[index] = np.sum(difference * cotangent) / 2e-6
    np.testing.assert_allclose(clip_gradient(matrix, MOST, cotangent, LEAST), expected, atol=1e-7)  # as of `clip`


def clipped(matrix):
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return u * np.clip(s, LEAST, MOST) @ vt
