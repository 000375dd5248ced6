"""The bound of a dense chain as a whole: above every network it stands for, and never without its proof."""

import numpy as np
import pytest
from scipy.optimize import minimize

from opnorm.bounds.deadlines import Deadline
from opnorm.networks import multipliers, sector_bounds
from opnorm.networks.sector_bounds import bound_chain

RNG = np.random.default_rng(0)
CHAINS = [
    [RNG.standard_normal(shape) for shape in shapes]
    for shapes in (
        [(6, 4), (3, 6)],
        [(8, 5), (8, 8), (2, 8)],
        [(30, 10), (30, 30), (30, 30), (30, 30), (5, 30)],
        [(1, 7), (9, 1), (4, 9)],
    )
]


def closed_form(matrices, slopes):
    """Return the published recursion in plain float64."""
    X = np.eye(matrices[0].shape[1])
    for W, (low, high) in zip(matrices, slopes, strict=False):
        m = (low + high) / 2
        M = W @ np.linalg.solve(X, W.T)
        step = 1 / (2 * m**2 * np.linalg.eigvalsh(M)[-1])
        X = step * np.eye(len(W)) - step**2 * m**2 * M
    return np.sqrt(np.linalg.eigvalsh(matrices[-1] @ np.linalg.solve(X, matrices[-1].T))[-1])


def largest_jacobian(matrices, slopes, draws=200):
    """Return the largest norm of a Jacobian with random slopes at the ends of their intervals."""
    found = 0.0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        J = matrices[0]
        for W, ends in zip(matrices[1:], slopes, strict=True):
            J = W @ (rng.choice(ends, len(J))[:, None] * J)
        found = max(found, np.linalg.norm(J, 2))
    return found


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.2, 1.0), (0.0, 0.25), (-1.0, -1.0), (0.0, 1.7580994)])
@pytest.mark.parametrize("matrices", CHAINS)
def test_the_bound_is_below_the_closed_form_and_above_every_jacobian(matrices, slopes):
    between = [slopes] * (len(matrices) - 1)
    bound = bound_chain(matrices, between)
    assert bound <= closed_form(matrices, between) * (1 + 1e-4)  # what may be given away to rounding
    assert bound >= largest_jacobian(matrices, between) * (1 - 1e-12)  # roundoff of the product


@pytest.mark.parametrize("slopes", [(-0.128994, 1.128994), (-1.0, 1.0), (-0.5, 1.5), (-1.0, -0.25)])
@pytest.mark.parametrize("matrices", CHAINS)
def test_slopes_of_both_signs_are_bounded_too(matrices, slopes):
    between = [slopes] * (len(matrices) - 1)
    bound = bound_chain(matrices, between)
    assert bound >= largest_jacobian(matrices, between) * (1 - 1e-12)
    product = np.prod([np.linalg.norm(W, 2) for W in matrices]) * max(map(abs, slopes)) ** len(between)
    assert bound < 0.95 * product


@pytest.mark.parametrize("outputs", [1, 3])
def test_one_hidden_layer_has_the_best_multipliers(outputs):
    rng = np.random.default_rng(outputs)
    first, last = rng.standard_normal((6, 4)), rng.standard_normal((outputs, 6))

    def square(log_t):
        T = np.diag(np.exp(log_t))
        inner = 2 * T - last.T @ last
        if np.linalg.eigvalsh(inner)[0] <= 0:
            return 1e6
        return np.linalg.eigvalsh(first.T @ T @ np.linalg.solve(inner, T @ first))[-1]

    start = np.log(np.full(6, 2 * np.linalg.norm(last, 2) ** 2))
    least = minimize(square, start, method="Powell", options={"maxiter": 500, "ftol": 1e-10}).fun
    bound = bound_chain([first, last], [(0.0, 1.0)])
    assert bound <= np.sqrt(least) * (1 + 1e-3)  # a search without derivatives stays above the minimum
    assert bound >= largest_jacobian([first, last], [(0.0, 1.0)])


@pytest.mark.parametrize("largest", [24, 400])
def test_a_long_chain_is_improved_window_by_window(monkeypatch, largest):
    monkeypatch.setattr(multipliers, "_LARGEST", largest)
    rng = np.random.default_rng(4)
    matrices = [rng.standard_normal((8, 8)) / 2 for _ in range(20)]
    slopes = [(0.0, 1.0), (0.1, 1.0), (-0.1, 1.0)] * 6 + [(0.0, 1.0)]
    bound = bound_chain(matrices, slopes)
    assert bound < 0.1 * bound_chain(matrices, slopes, Deadline.after(0))
    assert bound >= largest_jacobian(matrices, slopes) * (1 - 1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_the_scale_of_kernels_changes_nothing(scale):
    matrices = CHAINS[1]
    scaled = [scale * matrices[0], *matrices[1:]]
    slopes = [(0.0, 1.0)] * 2
    assert bound_chain(scaled, slopes) == pytest.approx(scale * bound_chain(matrices, slopes), rel=1e-6)


def test_twenty_layers_are_still_proved():
    rng = np.random.default_rng(1)
    matrices = [rng.standard_normal((16, 16)) / 3.5 for _ in range(20)]
    bound = bound_chain(matrices, [(0.0, 1.0)] * 19)
    assert bound is not None
    assert bound < 0.1 * np.prod([np.linalg.norm(W, 2) for W in matrices])


def test_a_layer_that_lets_nothing_pass_is_no_chain():
    assert bound_chain(CHAINS[0], [(0.0, 0.0)]) is None


def test_a_zero_kernel_has_no_proof():
    assert bound_chain([np.zeros((3, 3)), np.eye(3)], [(0.0, 1.0)]) is None


@pytest.mark.parametrize(("gap", "proved"), [(1e-9, True), (-1e-9, False)])
def test_semidefiniteness_is_proved_where_it_holds_and_nowhere_else(gap, proved):
    B = np.random.default_rng(2).standard_normal((20, 30))
    C = B @ B.T + gap * np.eye(20)
    assert sector_bounds.is_semidefinite(np.eye(30), B, C) is proved
