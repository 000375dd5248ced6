"""Networks evaluated with their rounding errors: exact rational arithmetic stays inside them."""

from fractions import Fraction

import numpy as np
from graphs import chain, dense, plain

from opnorm.networks.folding import split
from opnorm.networks.forward import evaluate

RNG = np.random.default_rng(0)


def exact(kernels, x):
    """Return a ReLU network's output in rational arithmetic; every bias is one."""
    v = [Fraction(float(entry)) for entry in x]
    for k, kernel in enumerate(kernels):
        columns = [[Fraction(float(w)) for w in column] for column in kernel.T]
        v = [sum((w * a for w, a in zip(column, v, strict=True)), Fraction(1)) for column in columns]
        v = v if k == len(kernels) - 1 else [max(a, Fraction(0)) for a in v]
    return v


def test_real_arithmetic_is_inside_the_errors_which_are_of_the_size_of_rounding():
    kernels = [RNG.standard_normal(shape) * 10.0**k for k, shape in enumerate([(9, 20), (20, 20), (20, 4)])]
    names = ["x", "a", "r", "b", "s", "c"]
    nodes = [dense(names[2 * k + 1], names[2 * k], kernel) for k, kernel in enumerate(kernels)]
    network = chain(nodes[0], plain("r", "ReLU", "a"), nodes[1], plain("s", "ReLU", "b"), nodes[2])
    points = RNG.standard_normal((5, 9)) / 3
    values, errors = evaluate(split(network), points)
    for n, point in enumerate(points):
        for value, error, truth in zip(values[n], errors[n], exact(kernels, point), strict=True):
            assert abs(Fraction(float(value)) - truth) <= Fraction(float(error))
    assert errors.max() <= 1e-12 * np.abs(values).max()
    assert errors.min() > 0


def test_sums_of_branches_carry_both_errors():
    a, b = RNG.standard_normal((6, 3)), RNG.standard_normal((6, 3))
    network = chain(dense("a", "x", a), dense("b", "x", b), plain("sum", "Add", "a", "b"))
    points = RNG.standard_normal((4, 6))
    values, errors = evaluate(network, points)
    truth = points.astype(np.longdouble) @ (a.astype(np.longdouble) + b) + 2
    assert np.all(np.abs(values - truth) <= errors)


def test_parts_maxima_and_minima_are_exact_and_keep_the_larger_error():
    kernel = RNG.standard_normal((6, 8))
    parts = [plain(f"p{i}", "Split", "a", axis=-1, part=i, parts=2, input_shapes=[("batch", 8)]) for i in (0, 1)]
    both = [plain(kind, kind, "p0", "p1") for kind in ("Maximum", "Minimum")]
    network = chain(dense("a", "x", kernel), *parts, *both, plain("y", "Concatenate", "Maximum", "Minimum", axis=-1))
    points = RNG.standard_normal((5, 6))
    before = evaluate(split(chain(dense("a", "x", kernel))), points)
    values, errors = evaluate(split(network), points)
    pairs = before.values.reshape(5, 2, 4)
    np.testing.assert_array_equal(values, np.concatenate([pairs.max(axis=1), pairs.min(axis=1)], axis=1))
    np.testing.assert_array_equal(errors, np.tile(before.errors.reshape(5, 2, 4).max(axis=1), 2))
