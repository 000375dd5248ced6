from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opnorm.bounds.cells import tiling
from opnorm.bounds.certificates import Gram, proved
from opnorm.bounds.symbols import symbol_of
from opnorm.operators.convolution import Convolution


def _random(seed, rows, columns, is_complex):
    rng = np.random.default_rng(seed)
    real = rng.uniform(-1, 1, (rows, columns))
    return real + 1j * rng.uniform(-1, 1, (rows, columns)) if is_complex else real


@given(st.integers(0, 999), st.integers(1, 60), st.integers(1, 60), st.booleans())
def test_a_bound_below_the_norm_is_never_proved_and_one_above_always_is(seed, rows, columns, is_complex):
    A = _random(seed, rows, columns, is_complex)
    truth = np.linalg.svd(A, compute_uv=False)[0]
    gram = Gram.of(A)
    for gap in (1e-12, 1e-9, 1e-3, 0.5):
        assert not gram.proves(truth * (1 - gap))
    assert gram.proves(truth * (1 + 1e-7))  # the shift costs less than 1e-9 here


@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_a_stack_is_judged_one_matrix_at_a_time(seed, rows, columns, is_complex):
    stack = np.stack([_random(seed + i, rows, columns, is_complex) for i in range(5)])
    truth = np.linalg.svd(stack, compute_uv=False)[:, 0]
    above = np.random.default_rng(seed).random(5) < 0.5
    np.testing.assert_array_equal(proved(stack, truth * np.where(above, 1 + 1e-7, 1 - 1e-9)), above)


@pytest.mark.parametrize("entry", [1 / 3, 0.7, 0.9, 0.3])
def test_a_bound_two_roundings_below_an_exactly_known_norm_is_not_proved(entry):
    for n in range(2, 120, 3):  # without the shift, more than a third of these pass the factorization
        tau = float(Fraction(entry) * n) * (1 - 2**-52)
        assert Fraction(tau) < Fraction(entry) * n
        assert not Gram.of(np.full((n, n), entry)).proves(tau)


def test_cancellation_in_the_gram_matrix_does_not_fool_the_proof():
    n = 300
    ties = np.full((n, n), 1.0) + np.eye(n)  # norm n + 1, and a Gram matrix whose entries all round
    assert not Gram.of(ties * (1 / 3)).proves((n + 1) / 3 * (1 - 1e-13))


@pytest.mark.parametrize("degrees", [(1.0,), (0.5,), (1.0, 1.0), (2.0, 0.5), (1.0, 1.5, 0.5), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("halvings", [0, 1, 2])
def test_the_cells_cover_the_torus_up_to_sign(degrees, halvings):
    cells = tiling(np.array([0]), np.array(degrees), 0.9)
    for _ in range(halvings):
        cells = cells.halved()
    assert cells.slack <= 0.9 / 2**halvings * (1 + 1e-6)
    points = np.random.default_rng(0).uniform(0, 2 * np.pi, (400, len(degrees)))
    for point in points:
        both = np.stack([point, -point])[:, None]
        away = np.abs((both - cells.centres + np.pi) % (2 * np.pi) - np.pi) * degrees
        assert np.min(np.sum(away, axis=-1)) <= cells.slack  # the distance that the cosine speaks of


@given(st.integers(0, 999), st.integers(2, 5), st.floats(0, np.pi / 2), st.floats(0, 2 * np.pi))
def test_the_norm_of_a_symbol_falls_no_faster_than_the_cosine(seed, taps, reach, angle):
    kernel = np.random.default_rng(seed).standard_normal((taps, taps, 2, 2))
    symbol = symbol_of(kernel[None], (1, 1), (1, 1))
    line = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    norms = np.linalg.norm(symbol.at(np.zeros(len(grid), int), grid), 2, axis=(1, 2))
    peak = np.max(norms)
    supremum = peak / np.cos(symbol.degrees[0] * np.pi / 64) ** 2  # the Riesz factor of this grid, once an axis
    direction = np.array([np.cos(angle), np.sin(angle)])
    shift = direction * reach / np.sum(np.abs(direction) * symbol.degrees)
    moved = np.linalg.norm(symbol.at(np.array([0]), (grid[np.argmax(norms)] + shift)[None])[0], 2)
    # supremum * cos(arccos(peak / supremum) + reach): the peak of the grid may lie beside the true one
    assert moved >= peak * np.cos(reach) - np.sqrt(supremum**2 - peak**2) * np.sin(reach) - 1e-12 * peak


def test_the_symbol_of_a_strided_convolution_has_the_taps_of_one_step():
    symbol = symbol_of(Convolution(np.ones((5, 4, 2, 3))).blocks, (2, 3), (1, 1))
    assert symbol.taps.shape == (1, 3 * 2, 2 * 2 * 3, 3)
    np.testing.assert_array_equal(symbol.degrees, [1.0, 0.5])
