"""Matrices whose singular values are equal or nearly so, of every size: LAPACK and ARPACK find none, we do."""

import numpy as np
import pytest
from scipy.linalg import hadamard
from threadpoolctl import threadpool_limits

from opnorm.bounds.brackets import spectral_norm
from opnorm.bounds.certificates import Gram
from opnorm.bounds.eigenvectors import top_eigenpair
from opnorm.bounds.matrices import _proved_above, bracket_matrix
from opnorm.networks.sector_bounds import bound_chain

ROUNDING = 1e-12  # LAPACK's own relative error on these matrices stays below 1e-13
SIZES = range(1, 201)


def _orthogonal(n, seed):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def _householder(n, seed):
    v = np.random.default_rng(seed).standard_normal(n)
    return np.eye(n) - 2 * np.outer(v, v) / (v @ v)


KINDS = {
    "orthogonal": _orthogonal,
    "householder": _householder,
    "wide": lambda n, seed: _orthogonal(n + 7, seed)[:n],
    "two clusters": lambda n, seed: _orthogonal(n, seed) * np.where(np.arange(n) < (n + 1) // 2, 1.0, 0.5),
    "near": lambda n, seed: _orthogonal(n, seed) * (1 + 1e-14 * np.arange(n)) @ _orthogonal(n, seed + 1),
}


@pytest.fixture(autouse=True)
def _alone():
    with threadpool_limits(1, user_api="blas"):  # hundreds of small matrices, for which threads only wait
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_equal_and_clustered_singular_values_are_bracketed_at_every_size(kind):
    for n in SIZES:
        matrix = KINDS[kind](n, n)
        truth = np.linalg.svd(matrix, compute_uv=False)[0]
        lower, upper = bracket_matrix(matrix, 1e-6)
        assert lower <= truth * (1 + ROUNDING), n
        assert truth <= upper * (1 + ROUNDING), n
        assert upper <= lower * (1 + 1e-6), n


def test_a_hadamard_matrix_has_norm_one():
    lower, upper = spectral_norm(hadamard(128) / 128**0.5)
    assert lower <= 1 + ROUNDING
    assert upper * (1 + ROUNDING) >= 1
    assert upper <= lower * (1 + 1e-6)


def test_the_largest_eigenvalue_is_numpys_at_every_size():
    for n in SIZES:
        for matrix in (np.eye(n), _householder(n, n) @ _householder(n, n).T):
            value, vector = top_eigenpair(matrix)
            assert value == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=ROUNDING)
            assert np.linalg.norm(matrix @ vector - value * vector) <= 1e-12 * n  # roundoff


def test_a_chain_of_orthogonal_matrices_is_bounded():
    for n in (23, 64, 98, 128, 148):
        chain = [_householder(n, seed) for seed in range(3)]
        bound = bound_chain(chain, [(0.0, 1.0)] * 2)
        assert 1 - ROUNDING <= bound <= 1 + 1e-3  # what may be given away to rounding, three times


def test_a_search_for_an_upper_end_ends_wherever_it_starts():
    matrix = np.random.default_rng(0).standard_normal((8, 5)) / 4
    truth = np.linalg.svd(matrix, compute_uv=False)[0]
    for lower in (0.0, 1e-300, truth / 2):
        assert truth <= _proved_above(Gram.of(matrix), lower, 2e-6) < np.inf
