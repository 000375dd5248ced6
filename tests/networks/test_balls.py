"""Bounds on a ball: never below a Jacobian inside it, the Jacobian itself at radius 0, never above the bound of all."""

from itertools import pairwise

import numpy as np
import pytest
from graphs import batch_normalization, chain, conv, dense, plain, relu, weight

import opnorm
from opnorm.bounds.deadlines import NEVER
from opnorm.checkpoints.records import Node
from opnorm.networks.balls.bound import ball_bound
from opnorm.networks.balls.open_neurons import OpenNeurons
from opnorm.networks.balls.walk import Network
from opnorm.networks.balls.whole import best_norm
from opnorm.networks.bound import network_bound
from opnorm.networks.linear_rules import bound_weight
from opnorm.networks.sector_bounds import bound_chain

RNG = np.random.default_rng(0)
KERNELS = [RNG.standard_normal(shape) / np.sqrt(shape[0]) for shape in ((10, 16), (16, 16), (16, 3))]
POINT = RNG.standard_normal((1, 10))


def perceptron(kind="ReLU"):
    a, b, c = KERNELS
    return chain(
        dense("a", "x", a), plain("r", kind, "a"), dense("b", "r", b), plain("s", kind, "b"), dense("c", "s", c)
    )


def jacobian(function, x, step=1e-6):
    """Return the Jacobian by central differences in float64."""
    columns = [(function(x + step * e) - function(x - step * e)) / (2 * step) for e in np.eye(x.size)]
    return np.array(columns).T


def inside(centre, radius, count, seed=1):
    """Return points of a ball, most of them near its surface."""
    rng = np.random.default_rng(seed)
    moves = rng.standard_normal((count, centre.size))
    moves *= (radius * rng.uniform(size=(count, 1)) ** 0.1) / np.linalg.norm(moves, axis=1, keepdims=True)
    return centre.ravel() + moves


def steepest(function, centre, radius, count=60):
    return max(np.linalg.norm(jacobian(function, x), 2) for x in inside(centre, radius, count))


ACTIVATIONS = {
    "ReLU": relu,
    "tanh": np.tanh,
    "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    "silu": lambda v: v / (1 + np.exp(-v)),
    "softplus": lambda v: np.log1p(np.exp(v)),
    "leaky_relu": lambda v: np.where(v > 0, v, 0.2 * v),
    "elu": lambda v: np.where(v > 0, v, np.expm1(np.minimum(v, 0))),
}


def computed(phi):
    a, b, c = KERNELS
    return lambda x: phi(phi(x @ a + 1) @ b + 1) @ c + 1


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_no_jacobian_on_the_ball_is_above_the_bound_which_grows_to_that_of_all_inputs(name):
    network, function = perceptron(name), computed(ACTIVATIONS[name])
    everywhere = network_bound(network).upper
    bounds = [ball_bound(network, [POINT], radius).upper for radius in (0.0, 0.03, 0.3, 3.0, 300.0)]
    assert all(before <= after * (1 + 5e-3) for before, after in pairwise(bounds))
    assert bounds[-1] <= everywhere
    for radius, bound in zip((0.0, 0.03, 0.3, 3.0), bounds, strict=False):
        assert steepest(function, POINT, radius, 40) <= bound * (1 + 1e-7)  # of differences


def test_at_radius_zero_both_ends_are_the_norm_of_the_jacobian():
    a, b, c = KERNELS
    z = POINT[0] @ a + 1
    y = relu(z) @ b + 1
    truth = np.linalg.norm((a * (z > 0)) @ (b * (y > 0)) @ c, 2)
    bound = ball_bound(perceptron(), [POINT], 0.0)
    assert bound.lower <= truth * (1 + 1e-12)
    assert truth <= bound.upper * (1 + 1e-12)
    assert bound.upper <= bound.lower * (1 + 1e-6)


def test_a_small_ball_is_better_than_all_inputs_by_far():
    assert ball_bound(perceptron(), [POINT], 0.05).upper < 0.7 * network_bound(perceptron()).upper


def test_slopes_that_differ_from_neuron_to_neuron_bound_every_choice_of_them():
    matrices = [kernel.T for kernel in KERNELS]
    rng = np.random.default_rng(5)
    low = [rng.choice([0.0, 0.0, 0.5], 16), rng.choice([-0.5, 0.0, 1.0], 16)]
    high = [low[0] + rng.choice([0.0, 1.0], 16), low[1] + rng.choice([0.0, 0.5], 16)]
    bound = bound_chain(matrices, list(zip(low, high, strict=True)))
    ends = [np.where(rng.uniform(size=(400, 16)) < 0.5, a, b) for a, b in zip(low, high, strict=True)]
    norms = [
        np.linalg.norm(matrices[2] @ (d[:, None] * matrices[1]) @ (e[:, None] * matrices[0]), 2)
        for e, d in zip(*ends, strict=True)
    ]
    assert max(norms) <= bound
    whole = bound_chain(matrices, [(float(a.min()), float(b.max())) for a, b in zip(low, high, strict=True)])
    assert bound < 0.5 * whole


def test_neurons_without_a_slope_are_as_if_left_out_and_fixed_ones_as_if_multiplied():
    matrices = [kernel.T for kernel in KERNELS]
    slopes = [np.arange(16) % 2 * 1.0, np.full(16, 0.5)]
    bound = bound_chain(matrices, [(s, s) for s in slopes])
    exact = np.linalg.norm(matrices[2] @ (slopes[1][:, None] * matrices[1]) @ (slopes[0][:, None] * matrices[0]), 2)
    assert exact <= bound <= exact * 1.01


def test_multipliers_of_open_neurons_bound_every_choice_of_their_slopes():
    neurons = OpenNeurons(6, 50)
    first = RNG.standard_normal((6, 7))
    neurons.add(first, np.zeros(7), np.linalg.norm(first, axis=0))
    second = RNG.standard_normal((13, 5))
    neurons.add(second, np.full(5, 0.1), neurons.sizes(second) + 0.1)
    result = RNG.standard_normal((18, 4))
    bound, quick = best_norm(neurons, result, NEVER), neurons.norm(result)
    rows = neurons.norms(result)
    for _ in range(300):
        s, t = RNG.uniform(-1, 1, 7).round(), RNG.uniform(-1, 1, 5).round()
        rest = RNG.standard_normal((6, 5))
        rest *= 0.1 / np.linalg.norm(rest, axis=0)
        v = first * s
        w = (second[:6] + v @ second[6:] + rest) * t
        J = result[:6] + v @ result[6:13] + w @ result[13:]
        assert np.linalg.norm(J, 2) <= min(bound, quick)
        assert np.all(np.linalg.norm(J, axis=0) <= rows)
    assert bound < quick


def test_neurons_that_nothing_reaches_cost_nothing():
    alive, dead = RNG.standard_normal((6, 4)), np.zeros((6, 3))
    result = RNG.standard_normal((6 + 7, 4))
    bounds = []
    for rows, left in ((alive, result[:10]), (np.hstack([alive, dead]), result)):
        neurons = OpenNeurons(6, 50)
        neurons.add(rows, np.zeros(rows.shape[1]), np.linalg.norm(rows, axis=0))
        bounds.append(best_norm(neurons, left, NEVER))
    assert bounds[1] == pytest.approx(bounds[0], rel=1e-3)
    nobody = OpenNeurons(6, 50)
    nobody.add(dead, np.zeros(3), np.zeros(3))
    assert best_norm(nobody, result[:9], NEVER) is None
    exact = np.linalg.norm(result[:6], 2)
    assert exact <= nobody.norm(result[:9]) <= exact * (1 + 1e-2)


def images():
    kernel = RNG.standard_normal((3, 3, 1, 3))
    gamma, variance = RNG.uniform(0.5, 2, 3), RNG.uniform(0.5, 2, 3)
    normalization = batch_normalization("bn", "a", gamma, variance)
    weights = {
        **normalization.weights,
        "moving_mean": weight("m", np.full(3, 0.1)),
        "beta": weight("b", np.full(3, 0.2)),
    }
    pool = plain("p", "MaxPooling2D", "r", pool_size=2, strides=2, padding="valid", data_format="channels_last")
    network = chain(
        conv("a", "x", kernel), normalization._replace(weights=weights), plain("r", "ReLU", "bn"), pool,
        plain("f", "Flatten", "p"), dense("d", "f", RNG.standard_normal((27, 2))),
    )  # fmt: skip
    return network, kernel, (gamma / np.sqrt(variance + 1e-3), 0.1, 0.2)


def test_convolution_normalization_and_pooling_are_followed():
    network, kernel, (scale, mean, beta) = images()
    last = network.nodes[-1].weights["kernel"].read()

    def function(x):
        padded = np.pad(x.reshape(6, 6), 1)
        z = sum(padded[i : i + 6, j : j + 6, None] * kernel[i, j, 0] for i in range(3) for j in range(3))
        z = relu((z - mean) * scale + beta)
        return z.reshape(3, 2, 3, 2, 3).max(axis=(1, 3)).ravel() @ last + 1

    point = RNG.standard_normal((1, 6, 6, 1))
    met = Network(network, bound_weight, 100, 100).meet([point], 0.0)
    np.testing.assert_allclose(met.values["d"].centre[0], function(point.ravel()), rtol=1e-12)
    for radius in (0.0, 0.05, 0.5):
        bound = ball_bound(network, [point], radius)
        assert bound.method == "the Jacobian on the ball" or radius > 0.1
        assert steepest(function, point, radius, 20) <= bound.upper * (1 + 1e-7)
    zero = ball_bound(network, [point], 0.0)
    assert zero.upper <= zero.lower * (1 + 1e-6)


def layer_norm(centred=True, **options):
    kind = "LayerNormalization" if centred else "RMSNormalization"
    roles = {"gamma" if centred else "scale": weight("g", np.linspace(0.5, 1.5, 6))}
    return Node("n", kind, ("x",), {"axis": -1, "epsilon": 1e-3, "trainable": True, **options}, roles)


def normalized(centred):
    def function(x):
        rows = x.reshape(-1, 6)
        u = rows - rows.mean(axis=1, keepdims=True) if centred else rows
        return (u / np.sqrt((u**2).mean(axis=1, keepdims=True) + 1e-3) * np.linspace(0.5, 1.5, 6)).ravel()

    return function


ROWS = {
    "random": RNG.standard_normal((1, 2, 6)),
    "nearly constant": 3 + 1e-3 * RNG.standard_normal((1, 2, 6)),
    "constant": np.full((1, 2, 6), 2.0),
}


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("tangents", [100, 0])
def test_a_normalization_is_bounded_where_its_deviation_is(centred, rows, tangents):
    point, function = ROWS[rows], normalized(centred)
    network = Network(chain(layer_norm(centred)), bound_weight, tangents, 100)
    for radius in (0.0, 1e-3, 0.1, 1.0):
        met = network.meet([point], radius)
        bound = met.space.norm(met.values["n"])
        assert steepest(function, point, radius, 60) <= bound * (1 + 1e-6)
        moved = np.array([function(x) for x in inside(point, radius, 60)]) - met.values["n"].centre.ravel()
        assert np.all(np.abs(moved) <= met.values["n"].reach.ravel())
        assert bound <= 1.5 / np.sqrt(1e-3) * (1 + 1e-6) or tangents  # max |gamma| / sqrt(epsilon), whatever the radius
    if tangents:
        exact = np.linalg.norm(jacobian(function, point.ravel(), 1e-5), 2)
        met = network.meet([point], 0.0)
        assert met.space.norm(met.values["n"]) <= exact * 1.002  # a thousandth of which is the quick proof's


@pytest.mark.parametrize("tangents", [100, 0])
def test_products_and_softmax_are_bounded_by_their_values(tangents):
    a, b = RNG.standard_normal((5, 6)), RNG.standard_normal((5, 6))
    network = chain(
        dense("a", "x", a), dense("b", "x", b), plain("p", "Softmax", "a"), plain("m", "Multiply", "p", "b")
    )

    def function(x):
        e = np.exp(x @ a)
        return e / e.sum() * (x @ b + 1)

    point = RNG.standard_normal((1, 5))
    for radius in (0.0, 0.01, 0.3, 3.0):
        met = Network(network, bound_weight, tangents, 100).meet([point], radius)
        bound = met.space.norm(met.values["m"])
        assert steepest(function, point, radius) <= bound * (1 + 1e-6)
        moved = np.array([function(x) for x in inside(point, radius, 60)]) - met.values["m"].centre.ravel()
        assert np.all(np.abs(moved) <= met.values["m"].reach.ravel())
    assert ball_bound(network, [point], 0.3).upper < np.inf
    assert network_bound(network).upper is None


def test_a_network_that_is_not_followed_throughout_keeps_its_other_bounds():
    network = chain(dense("a", "x", KERNELS[0]), plain("p", "tanh_shrink", "a"))
    bound = ball_bound(network, [POINT], 0.1)
    assert bound.upper == network_bound(network).upper
    assert bound.lower is None


def test_what_a_ball_tells_of_a_product_counts_where_what_is_behind_is_not_followed():
    """Neither the whole is followed there, nor has the product a constant for all inputs."""
    network = chain(
        dense("a", "x", KERNELS[0]), dense("b", "x", KERNELS[0]), plain("m", "Multiply", "a", "b"),
        plain("p", "tanh_shrink", "m"),
    )  # fmt: skip
    bound = ball_bound(network, [POINT], 0.1)
    assert bound.unknown == ()
    assert bound.upper is not None
    jacobians = [np.diag(z @ KERNELS[0] + 1) for z in inside(POINT, 0.1, 10)]  # of the product, half of it
    assert bound.upper >= max(np.linalg.norm(2 * KERNELS[0] @ D, 2) for D in jacobians) * (1 - 1e-9)


@pytest.mark.parametrize(
    ("around", "radius", "match"),
    [
        (np.ones(3), None, "`around` and `radius` must be given together"),
        (None, 1.0, "`around` and `radius` must be given together"),
        (np.ones(3), -1.0, "`radius`"),
        (np.ones(3), float("nan"), "`radius`"),
        (np.ones(3), "1", "`radius`"),
    ],
)
def test_half_a_ball_is_refused_by_name(around, radius, match):
    with pytest.raises(ValueError, match=match):
        opnorm.lipschitz_bound("model.onnx", around=around, radius=radius)


def sorted_network():
    """Return a network of maxima beside minima, twice, and the function."""
    a, b, c = KERNELS

    def extremes(source, name):
        shapes = [(1, 16)]
        halves = [plain(f"{name}{i}", "Split", source, axis=1, part=i, parts=2, input_shapes=shapes) for i in (0, 1)]
        both = [
            plain(f"{name}{kind}", kind, f"{name}0", f"{name}1", input_shapes=[(1, 8)] * 2) for kind in ("Max", "Min")
        ]
        return [*halves, *both, plain(name, "Concat", f"{name}Max", f"{name}Min", axis=1, input_shapes=[(1, 8)] * 2)]

    def sorted_(z):
        return np.concatenate([np.maximum(z[..., :8], z[..., 8:]), np.minimum(z[..., :8], z[..., 8:])], axis=-1)

    network = chain(
        dense("a", "x", a), *extremes("a", "m"), dense("b", "m", b), *extremes("b", "n"), dense("c", "n", c)
    )
    return network, lambda x: sorted_(sorted_(x @ a + 1) @ b + 1) @ c + 1


def test_maxima_and_minima_of_two_are_followed():
    network, function = sorted_network()
    everywhere = network_bound(network).upper
    for radius in (0.0, 0.03, 0.3, 3.0):
        bound = ball_bound(network, [POINT], radius)
        assert steepest(function, POINT, radius, 40) <= bound.upper * (1 + 1e-7)  # of differences
        assert bound.upper <= everywhere * (1 + 1e-9)
        assert not bound.unknown
    truth = np.linalg.norm(jacobian(function, POINT[0]), 2)
    assert ball_bound(network, [POINT], 0.0).upper <= truth * (1 + 1e-6)
    assert ball_bound(network, [POINT], 0.03).upper < 0.9 * everywhere
