"""Brackets whose Gram matrix is in float32: as true as those in float64, whatever the matrix and the vectors."""

from fractions import Fraction

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from opnorm.bounds import matrices, singles
from opnorm.bounds.certificates import frobenius_above
from opnorm.bounds.deadlines import NEVER, Deadline, OutOfTimeError

ROUNDING = 1e-12  # LAPACK's own relative error on these matrices stays below 1e-13
TOLERANCE = 1e-6


def _values(rows, columns, values, seed):
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((rows, columns)))[0]
    right = np.linalg.qr(rng.standard_normal((columns, columns)))[0]
    return left * values @ right


def _orthogonal(seed):
    return _values(150, 150, np.ones(150), seed)


KINDS = {  # (rows, short); the largest entry within a factor of 2**32 of 1
    "normal": lambda rng, seed: rng.standard_normal((300, 200)) / 5,
    "square": lambda rng, seed: rng.standard_normal((256, 256)) / 5,
    "tall": lambda rng, seed: rng.standard_normal((1500, 130)) / 5,
    "positive": lambda rng, seed: rng.random((300, 200)),
    "one outlier": lambda rng, seed: _values(200, 150, np.r_[1, np.full(149, 0.01)], seed),
    "a pair": lambda rng, seed: _values(200, 150, np.r_[1, 1, np.linspace(0.9, 0, 148)], seed),
    "a near pair": lambda rng, seed: _values(200, 150, np.r_[1, 1 - 1e-7, np.linspace(0.9, 0, 148)], seed),
    "decaying": lambda rng, seed: _values(200, 150, 0.9 ** np.arange(150), seed),
    "a cluster of thirty": lambda rng, seed: _values(200, 150, np.r_[np.ones(30), np.full(120, 0.1)], seed),
    "two clusters": lambda rng, seed: _values(150, 150, np.r_[np.ones(75), np.full(75, 0.999)], seed),
    "orthogonal": lambda rng, seed: _orthogonal(seed),
    "a heavy row": lambda rng, seed: rng.standard_normal((200, 150)) * np.r_[1, np.full(199, 1e-3)][:, None],
    "graded": lambda rng, seed: rng.standard_normal((200, 150)) * np.logspace(0, -60, 150),
    "a zero column": lambda rng, seed: rng.standard_normal((200, 150)) * np.r_[0, np.ones(149)],
    "large": lambda rng, seed: rng.standard_normal((200, 150)) * 2.0**30,
    "small": lambda rng, seed: rng.standard_normal((200, 150)) * 2.0**-32,
    "below float32": lambda rng, seed: np.where(np.eye(200, 150), 1.0, 1e-50) * rng.standard_normal((200, 150)),
    "equal entries": lambda rng, seed: np.full((200, 150), 1 / 3),
    "cancelling": lambda rng, seed: np.full((150, 150), 1 / 3) + np.eye(150) / 3,
    "signs": lambda rng, seed: np.sign(rng.standard_normal((200, 150))) * (1 - 2.0**-25),
}
PROVED = ("normal", "square", "tall", "positive", "one outlier", "decaying", "a heavy row", "large", "small")


@pytest.fixture(autouse=True)
def _alone():
    with threadpool_limits(1, user_api="blas"):
        yield


def matrix_of(kind, seed=0):
    return KINDS[kind](np.random.default_rng(seed), seed)


def in_single(A):
    return singles.bracket_in_single(A, TOLERANCE, frobenius_above(A), NEVER)


def proof_of(A, vectors, tau):
    """Return whether `tau` is proved from these vectors, whatever they are."""
    frobenius = frobenius_above(A)
    together = min(frobenius**2, singles._absolute_norm(A))
    top = singles._settle(A, vectors, frobenius)
    e = singles._shift(top, tau, together, singles._gram_error(*A.shape, together, frobenius))
    return e is not None and singles._completes(singles._negative_gram(A), top, tau**2 - e)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_proved_is_true_and_narrow(kind):
    for seed in range(3):
        A = matrix_of(kind, seed)
        found, truth = in_single(A), np.linalg.svd(A, compute_uv=False)[0]
        assert found is not None or kind not in PROVED
        if found is not None:
            assert found[0] <= truth * (1 + ROUNDING)
            assert truth <= found[1] * (1 + ROUNDING)
            assert found[1] <= found[0] * (1 + TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bound_below_the_norm_is_never_proved_whatever_the_vectors(kind):
    A = matrix_of(kind)
    _, values, right = np.linalg.svd(A)
    others = np.linalg.qr(np.random.default_rng(1).standard_normal((A.shape[1], 5)))[0]
    tilted = [(right[:1] + tilt * right[20:21]).T / np.hypot(1, tilt) for tilt in (1e-4, 1e-3, 1e-2, 0.1)]
    for vectors in (*tilted, right[:5].T, right[1:6].T, right[5:10].T, right[:1].T, others, 1.01 * right[:3].T):
        for gap in (1e-11, 1e-7, 1e-4, 1e-2):
            assert not proof_of(A, vectors, values[0] * (1 - gap)), gap


def test_a_norm_that_is_exactly_known_is_not_proved_less():
    for entry, n in ((1 / 3, 100), (0.7, 131), (1 - 2.0**-25, 128), (0.3, 300)):
        A = np.full((n, n), entry)
        tau = float(Fraction(entry) * n) * (1 - 1e-14)
        assert not proof_of(A, np.full((n, 1), n**-0.5), tau)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gram_matrix_errs_by_less_than_is_counted(kind):
    A = matrix_of(kind)
    frobenius = frobenius_above(A)
    absolute = singles._absolute_norm(A)
    assert absolute * (1 + ROUNDING) >= np.linalg.norm(np.abs(A), 2) ** 2
    lower = np.tril(singles._negative_gram(A).astype(np.float64))
    error = np.linalg.norm(lower + np.tril(lower, -1).T + A.T @ A, 2)  # float64 errs 1e8 times less
    assert error <= singles._gram_error(*A.shape, min(absolute, frobenius**2), frobenius)


@pytest.mark.parametrize("shape", [(64, 64), (577, 333), (512, 256), (1025, 65)])
def test_the_gram_matrix_is_whole_where_chunks_and_panels_do_not_divide_it(shape):
    A = np.random.default_rng(0).integers(-3, 4, shape).astype(np.float64)  # every sum is exact
    for columns in (A, np.asfortranarray(A)):
        np.testing.assert_array_equal(np.tril(singles._negative_gram(columns)), np.tril(-(A.T @ A)))


@pytest.mark.parametrize("kind", ["normal", "two clusters", "orthogonal", "a cluster of thirty"])
@pytest.mark.parametrize("wide", [False, True])
def test_where_it_leads_to_none_the_other_way_is_taken(monkeypatch, kind, wide):
    monkeypatch.setattr(matrices, "LEAST", 2)
    A = matrix_of(kind).T if wide else matrix_of(kind)
    lower, upper = matrices.bracket_matrix(A, TOLERANCE)
    truth = np.linalg.svd(A, compute_uv=False)[0]
    assert lower <= truth * (1 + ROUNDING)
    assert truth <= upper * (1 + ROUNDING)
    assert upper <= lower * (1 + TOLERANCE)


def test_narrower_brackets_are_left_to_float64():
    A = matrix_of("normal")
    assert singles.bracket_in_single(A, 1e-9, frobenius_above(A), NEVER) is None


def test_the_deadline_ends_it():
    A = matrix_of("normal")
    with pytest.raises(OutOfTimeError):
        singles.bracket_in_single(A, TOLERANCE, frobenius_above(A), Deadline(0.0))
