"""The constants of activations, found again: derivatives on a fine grid, and what can lie between its points."""

import numpy as np
import pytest
from scipy.special import erf, expit

from opnorm.networks.activations import activation, parse
from opnorm.networks.effects import Unbounded

H = 1e-3
X = np.arange(-40, 40, H)
BETWEEN = H**2 / 8 * 3  # linear interpolation of f', |f'''| <= 3 for each function here
TIGHT = 2e-6  # the table's constants are rounded up in the sixth digit


def gelu_tanh(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def gelu_slope(x):
    return (1 + erf(x / np.sqrt(2))) / 2 + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


def silu_slope(x):
    return expit(x) * (1 + x * expit(-x))


def mish_slope(x):
    t = np.tanh(np.logaddexp(0, x))
    return t + x * (1 - t**2) * expit(x)


def gelu_tanh_slope(x):
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    outer = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    return (1 + np.tanh(inner)) / 2 + x * outer / np.cosh(np.clip(inner, -300, 300)) ** 2 / 2


@pytest.mark.parametrize(
    ("name", "slope", "tight"),
    [
        ("gelu", gelu_slope, False),  # the table has the larger constant of the two forms
        ("gelu", gelu_tanh_slope, True),
        ("silu", silu_slope, True),
        ("mish", mish_slope, True),
        ("sigmoid", lambda x: expit(x) * expit(-x), True),
        ("tanh", lambda x: 1 / np.cosh(x) ** 2, True),
        ("softplus", expit, True),
        ("Erf", lambda x: 2 / np.sqrt(np.pi) * np.exp(-(x**2)), True),
    ],
)
def test_a_smooth_activation_is_nowhere_steeper_than_its_constant(name, slope, tight):
    low, high = activation(name, {}).slopes
    values = slope(X)
    assert low <= values.min() - BETWEEN * (low < 0)  # zero and one are limits, approached but not crossed
    assert values.max() + BETWEEN * (high not in (0.25, 1.0)) <= high + BETWEEN * (name == "Erf")  # maximum on the grid
    assert not tight or values.max() >= high - TIGHT
    assert not tight or values.min() <= low + TIGHT


PLAIN = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "selu": lambda x: 1.05070098 * np.where(x > 0, x, 1.67326324 * np.expm1(np.minimum(x, 0))),
    "celu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x),
    "softsign": lambda x: x / (1 + abs(x)),
    "soft_shrink": lambda x: np.sign(x) * np.maximum(abs(x) - 0.5, 0),
    "tanh_shrink": lambda x: x - np.tanh(x),
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard_silu": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "log_sigmoid": lambda x: -np.logaddexp(0, -x),
    "squareplus": lambda x: (x + np.sqrt(x**2 + 4)) / 2,
    "sparse_plus": lambda x: np.where(x <= -1, 0, np.where(x >= 1, x, (x + 1) ** 2 / 4)),
    "sparse_sigmoid": lambda x: np.clip((x + 1) / 2, 0, 1),
    "gelu": gelu_tanh,
    "Abs": abs,
    "Neg": lambda x: -x,
    "Sin": np.sin,
    "Atan": np.arctan,
}


@pytest.mark.parametrize("name", PLAIN)
def test_difference_quotients_lie_in_the_slopes_and_reach_their_ends(name):
    low, high = activation(name, {"keras": 3}).slopes
    quotients = np.diff(PLAIN[name](X)) / H
    rounding = 1e-11  # of a difference quotient: 40 u / h
    assert low - rounding <= quotients.min()
    assert quotients.max() <= high + rounding
    assert quotients.min() <= low + 1e-3  # of H: the end may lie inside a step
    assert quotients.max() >= high - 1e-3 - 2e-2 * (name in ("softsign", "squareplus"))  # slow to reach their limits


@pytest.mark.parametrize(
    ("name", "options", "slopes"),
    [
        ("ReLU", {"negative_slope": 0.3, "max_value": None, "threshold": 0.0}, (0.3, 1)),
        ("ReLU", {"negative_slope": 0.3, "max_value": 6.0, "threshold": 0.0}, (0, 1)),
        ("LeakyReLU", {"negative_slope": 3.0}, (1, 3)),
        ("LeakyReLU", {"negative_slope": -0.5}, (-0.5, 1)),
        ("LeakyRelu", {}, (0.01, 1)),
        ("ELU", {"alpha": 2.5}, (0, 2.5)),
        ("HardSigmoid", {"alpha": 0.7}, (0, 0.7)),
        ("hard_sigmoid", {"keras": 2}, (0, 0.2)),
        ("hard_sigmoid", {}, (0, 0.2)),  # of an unknown version: the larger
    ],
)
def test_options_move_the_slopes(name, options, slopes):
    assert activation(name, options).slopes == slopes


def test_softmax_moves_by_at_most_half():
    rng, constant = np.random.default_rng(0), activation("softmax", {}).constant
    logits = [rng.standard_normal(n) * 3 for n in (2, 3, 10) for _ in range(300)]
    softmaxes = [np.exp(z) / np.exp(z).sum() for z in [*logits, np.zeros(2)]]
    norms = [np.linalg.norm(np.diag(p) - np.outer(p, p), 2) for p in softmaxes]
    assert constant - 1e-12 <= max(norms) <= constant + 1e-12  # attained by two equal logits, but for roundoff


@pytest.mark.parametrize("name", ["exponential", "threshold", "hard_shrink", "log_softmax", "glu", "made_up"])
def test_what_has_no_constant_says_so(name):
    with pytest.raises(Unbounded):
        activation(name, {})


def test_a_relu_with_a_threshold_jumps():
    with pytest.raises(Unbounded, match="jumps"):
        activation("ReLU", {"threshold": 1.0})


@pytest.mark.parametrize(
    ("specification", "parsed"),
    [
        (None, ("linear", {})),
        ("relu", ("relu", {})),
        ({"class_name": "function", "config": "gelu", "module": "builtins"}, ("gelu", {})),
        ({"class_name": "function", "config": "gelu", "module": "mine"}, ("mine>gelu", {})),
        ({"class_name": "function", "config": "gelu", "registered_name": "mine>gelu"}, ("mine>gelu", {})),
        ({"class_name": "LeakyReLU", "config": {"negative_slope": 2.0}}, ("LeakyReLU", {"negative_slope": 2.0})),
    ],
)
def test_activations_are_read_from_configs(specification, parsed):
    assert parse(specification) == parsed
