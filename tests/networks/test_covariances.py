"""The recursion in covariance form: its gradient by differences, its proof against the recursion, what it refuses."""

import numpy as np
import pytest
from explicit import explicit_matrix

from opnorm.bounds.deadlines import NEVER
from opnorm.networks.covariance_proofs import NotProvedError, proved_norm
from opnorm.networks.covariances import Bend, covariance, quick_multipliers, square_and_gradient
from opnorm.networks.descent import descended
from opnorm.networks.programs import Function, Map, NotStationaryError, Part, Run, Shorter, compiled
from opnorm.networks.run_tensors import convolved
from opnorm.networks.torus import Taps, half
from opnorm.operators.convolution import Convolution


def still(W, axes=0):
    return Taps(W[None], np.zeros((1, axes), np.int64))


def sliding(rng, outputs, inputs):
    shifts = np.indices((3, 2)).reshape(2, -1).T - 1
    return Taps(rng.standard_normal((6, outputs, inputs)), shifts.astype(np.int64))


def vectors(rng):
    """Return `x + V phi(W x)`, then a layer that reads the function's result too; slopes differ per neuron."""
    W, V, U = rng.standard_normal((5, 4)), rng.standard_normal((4, 5)), rng.standard_normal((3, 9))
    low, high = rng.uniform(-0.5, 0.5, 5), rng.uniform(0.6, 1.5, 5)
    steps = (
        Map("h", 5, (Part("x", still(W)),)),
        Function("z", "h", low, high),
        Map("s", 4, (Part("x", still(np.eye(4))), Part("z", still(V)))),
        Map("both", 9, (Part("s", still(np.eye(4))), Part("z", still(np.eye(5)), 4))),
        Function("u", "both"),
        Map("y", 3, (Part("u", still(U)),)),
    )
    return Run("x", 4, steps, "y", ())


def images(rng):
    """Return two sliding maps, the second with stride, a third that lands."""
    steps = (
        Map("h", 3, (Part("x", sliding(rng, 3, 2)),)),
        Function("z", "h"),
        Map("g", 2, (Part("z", sliding(rng, 2, 3)), Part("x", sliding(rng, 2, 2))), strides=(2, 1)),
        Function("u", "g", -0.1, 1.1),
        Map("y", 4, (Part("u", sliding(rng, 4, 2)),), lands=True),
        Function("v", "y"),
        Map("w", 2, (Part("v", still(rng.standard_normal((2, 4)))),)),
    )
    return Run("x", 2, steps, "w", (4, 5))


def capped(rng):
    """Return a sliding map, maxima over windows of two pixels an axis, and a function with slopes in [-1, 1]."""
    steps = (
        Map("h", 3, (Part("x", sliding(rng, 3, 2)),)),
        Shorter("z", "h", 2.0, (2, 1)),
        Map("g", 2, (Part("z", sliding(rng, 2, 3)),)),
        Function("u", "g", -1.0, 1.0),
        Map("y", 4, (Part("u", sliding(rng, 4, 2)),)),
    )
    return Run("x", 2, steps, "y", (4, 5))


@pytest.fixture(params=[vectors, images, capped])
def program(request):
    run = request.param(np.random.default_rng(0))
    return compiled(run, *half(run.size))


def test_the_gradient_is_that_of_differences(program):
    rng = np.random.default_rng(3)
    multipliers = [t * rng.uniform(0.7, 1.0, len(t)) for t in quick_multipliers(program)]
    _, gradients = square_and_gradient(program, multipliers, 15.0)
    for k, (t, gradient) in enumerate(zip(multipliers, gradients, strict=True)):
        for i in range(len(t)):
            values = []
            for sign in (1, -1):
                moved = [s.copy() for s in multipliers]
                moved[k][i] *= 1 + sign * 1e-5
                values.append(square_and_gradient(program, moved, 15.0)[0])
            assert gradient[i] * t[i] == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-8)


def test_the_proof_is_above_the_recursion_and_close(program):
    multipliers = quick_multipliers(program)
    computed = np.sqrt(np.linalg.eigvalsh(covariance(program, multipliers)).max())
    assert computed * (1 - 1e-12) <= proved_norm(program, multipliers) <= computed * (1 + 1e-8)


def test_multipliers_that_are_too_large_are_not_proved(program):
    if not any(isinstance(step, Bend) for step in program.steps):
        return  # a cap takes only the proportion of its multipliers
    multipliers = [3 * t for t in quick_multipliers(program)]
    with pytest.raises(NotProvedError):
        proved_norm(program, multipliers)
    with pytest.raises(np.linalg.LinAlgError):
        covariance(program, multipliers)


def test_opposite_frequencies_need_no_second_look():
    run = images(np.random.default_rng(1))
    every = half(run.size)[0]
    both = every.__class__(np.concatenate([every.places, -every.places % np.array(run.size)]), run.size)
    twice = compiled(run, both, np.concatenate([half(run.size)[1], half(run.size)[1]]))
    once = compiled(run, *half(run.size))
    multipliers = quick_multipliers(once)
    assert np.allclose(covariance(twice, multipliers), covariance(once, multipliers), rtol=1e-10)


def test_what_is_needed_on_two_tori_has_no_program():
    rng = np.random.default_rng(2)
    strided = Map("a", 2, (Part("x", sliding(rng, 2, 2)),), strides=(2, 2))
    late = Map("c", 2, (Part("b", sliding(rng, 2, 2)), Part("x", sliding(rng, 2, 2))), lands=True)
    run = Run("x", 2, (strided, Function("b", "a"), late), "c", (4, 4))
    with pytest.raises(NotStationaryError):
        compiled(run, *half(run.size))


def test_the_descent_passes_by_points_where_the_function_is_none():
    def function(x):
        if np.abs(x).max() > 2:
            raise np.linalg.LinAlgError
        return float(100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2), np.array(
            [-400 * x[0] * (x[1] - x[0] ** 2) - 2 * (1 - x[0]), 200 * (x[1] - x[0] ** 2)]
        )

    assert np.allclose(descended(function, np.array([-1.2, 1.0]), 200, NEVER), 1, atol=1e-2)


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (-0.3, 1.1)])
@pytest.mark.parametrize("padding", ["same", "valid", ((2, 0), (1, 3))])
@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
def test_the_condition_of_the_torus_implies_that_of_the_image(padding, strides, slopes):
    """With the same multipliers at all pixels, the image's explicit matrices give less than the torus."""
    rng = np.random.default_rng(4)
    sizes, pieces, dense, source, need = (10, 5), [], [], "x", np.ones(2, int)
    for i, (inputs, outputs) in enumerate([(2, 3), (3, 2), (2, 3)]):
        K, step = rng.standard_normal((3, 2, inputs, outputs)), strides if i == 1 else (1, 1)
        sized = Convolution(K, sizes, strides=step, padding=padding)
        matrix = explicit_matrix(K, sizes, step, padding, (1, 1), 1)
        taps = convolved(K, [pad[0] for pad in sized.pads], (1, 1))
        pieces += [Map(f"c{i}", outputs, (Part(source, taps),), step), Function(f"r{i}", f"c{i}", *slopes)]
        dense += [Map(f"c{i}", len(matrix), (Part(source, still(matrix)),)), Function(f"r{i}", f"c{i}", *slopes)]
        level = np.array([2, 1] if strides == (2, 1) and i < 2 else [1, 1])
        wide = np.array(sizes) + 3  # of which no window reaches around
        need = np.maximum(need, -(-wide // level))
        source, sizes = f"r{i}", sized.output_shape
    torus = compiled(Run("x", 2, tuple(pieces[:-1]), "c2", ()), *half(tuple(int(n) for n in need)))
    image = compiled(Run("x", 100, tuple(dense[:-1]), "c2", ()), *half(()))
    for share in (0.3, 0.8, 1.2):
        multipliers = [share * t * rng.uniform(0.5, 1, len(t)) for t in quick_multipliers(torus)]
        pixels = [count // len(t) for count, t in zip(image.counts, multipliers, strict=True)]
        repeated = [np.tile(t, n) for t, n in zip(multipliers, pixels, strict=True)]
        above, exact = (covariance(*pair) for pair in ((torus, multipliers), (image, repeated)))
        assert np.linalg.eigvalsh(exact).max() <= np.linalg.eigvalsh(above).max() * (1 + 1e-12)
