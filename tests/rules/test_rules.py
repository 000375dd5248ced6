"""Every rule on every framework against the dense truth, alone and among many kernels."""

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from frameworks import FRAMEWORKS, array, tensor

from opnorm.backends import of
from opnorm.iterations.matrices import matrix_maps
from opnorm.iterations.power import Search, random_directions
from opnorm.iterations.subspace import settled_subspace_iteration
from opnorm.rules import Clip, Operator, Orthogonalize, Scale, overwrite, updated

C = 0.7  # the target of every rule
SEARCH = Search(steps=1, extra_steps=100, tolerance=1e-4, perturbation=1e-3)
every_framework = pytest.mark.parametrize("framework", FRAMEWORKS)


def gaussian(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def clustered(rows, columns):
    """Return a matrix with leading singular values that nearly agree."""
    u, _, vt = np.linalg.svd(gaussian(rows, columns), full_matrices=False)
    return u * np.r_[2.0, 1.998, 1.998, np.linspace(1, 0.1, min(rows, columns) - 3)] @ vt


class Case(NamedTuple):
    rule: object
    kernel: np.ndarray
    blocks: object  # of the kernel: the matrices (blocks, rows, columns)
    values: object  # what becomes of the singular values (blocks, r), largest first


def whole(kernel):
    return kernel.reshape(1, -1, kernel.shape[-1])


def last_axes(groups):
    return lambda kernel: kernel.reshape(-1, groups, kernel[0].size // groups).swapaxes(0, 1)


def depthwise(kernel):
    return kernel.reshape(-1, *kernel.shape[-2:]).transpose(1, 0, 2)


def stacked(kernel):
    return kernel


def by_largest(s):
    return C * s / s.max()


def by_own(s):
    return C * s / s[:, :1]


def capped(s):
    return s / max(1, s.max() / C)


def capped_each(s):
    return s / np.maximum(1, s[:, :1] / C)


def clipped(s):
    return np.minimum(s, C)


def clipped_below(s):
    return np.where(s[:, :1] > C, np.minimum(s, 0.9 * C), s)


def scale(cap=False, blockwise=False, **operator):
    return Scale(C, cap, Operator(**operator), SEARCH, blockwise=blockwise)


DEPTHWISE = {"axis": (-2, -1), "groups": 4}
STACK = {"axis": (0, -1), "groups": 3}
CASES = {
    "normalized": Case(scale(), gaussian(20, 12), whole, by_largest),
    "normalized, wide": Case(scale(), gaussian(5, 40), whole, by_largest),
    "normalized, clustered": Case(scale(), clustered(30, 20), whole, by_largest),
    "normalized from below": Case(scale(), 0.01 * gaussian(20, 12), whole, by_largest),
    "normalized convolution kernel": Case(scale(), gaussian(3, 3, 4, 6), whole, by_largest),
    "normalized row": Case(scale(), gaussian(9), whole, by_largest),
    "normalized column": Case(scale(), gaussian(9, 1), whole, by_largest),
    "normalized, tiny": Case(scale(), 1e-30 * gaussian(20, 12), whole, by_largest),
    "normalized, huge": Case(scale(), 1e30 * gaussian(20, 12), whole, by_largest),
    "normalized depthwise": Case(scale(**DEPTHWISE), gaussian(3, 3, 4, 2), depthwise, by_largest),
    "normalized depthwise, multiplier 1": Case(scale(**DEPTHWISE), gaussian(3, 3, 4, 1), depthwise, by_largest),
    "normalized groups": Case(scale(groups=3), gaussian(7, 12), last_axes(3), by_largest),
    "normalized groups, each": Case(scale(groups=3, blockwise=True), gaussian(7, 12), last_axes(3), by_own),
    "normalized stack, each": Case(scale(blockwise=True, **STACK), gaussian(3, 8, 5), stacked, by_own),
    "capped": Case(scale(True), gaussian(20, 12), whole, capped),
    "capped, inside": Case(scale(True), 0.01 * gaussian(20, 12), whole, capped),
    "capped stack, each": Case(
        scale(True, True, **STACK), gaussian(3, 8, 5) * np.r_[0.01, 1, 9][:, None, None], stacked, capped_each
    ),
    "clipped": Case(Clip(C, Operator()), gaussian(20, 12), whole, clipped),
    "clipped, clustered": Case(Clip(C, Operator()), clustered(30, 20), whole, clipped),
    "clipped stack": Case(Clip(C, Operator(**STACK)), gaussian(3, 8, 5), stacked, clipped),
    "clipped, margin": Case(Clip(C, Operator(), 0.1), gaussian(20, 12), whole, clipped_below),
    "clipped, margin, inside": Case(Clip(C, Operator(), 0.1), 0.08 * gaussian(20, 12), whole, clipped_below),
    "clipped stack, margin": Case(
        Clip(C, Operator(**STACK), 0.1),
        gaussian(3, 8, 5) * np.r_[0.01, 0.125, 9][:, None, None],
        stacked,
        clipped_below,
    ),
    "normalized, rms": Case(replace(scale(), rms=True), gaussian(20, 12), whole, lambda s: 0.6**0.5 * by_largest(s)),
    "capped stack, rms, each": Case(
        replace(scale(True, True, **STACK), rms=True),
        gaussian(3, 8, 5) * np.r_[0.01, 1, 9][:, None, None],
        stacked,
        lambda s: s / np.maximum(1, s[:, :1] / (C * (5 / 8) ** 0.5)),
    ),
    "raised stack, rms": Case(
        Clip(C, Operator(**STACK), min_value=0.4, rms=True),
        gaussian(3, 8, 5) * np.r_[0.1, 1, 9][:, None, None],
        stacked,
        lambda s: np.clip(s, 0.4 * (5 / 8) ** 0.5, C * (5 / 8) ** 0.5),
    ),
    "orthogonal": Case(Orthogonalize(Operator()), gaussian(12, 20), whole, np.ones_like),
    "orthogonal stack": Case(Orthogonalize(Operator(**STACK)), gaussian(3, 8, 5), stacked, np.ones_like),
}
# Of each way in which kernels share a loop, or do not, one: alone each takes JAX seconds to compile.
SHARING = ("normalized", "normalized, clustered", "normalized groups", "normalized stack, each", "clipped stack")
every_case = pytest.mark.parametrize("name", CASES)


def starts(names):
    return [CASES[name].rule.start(CASES[name].kernel.shape, (3, i)) for i, name in enumerate(names)]


def kernels(names, dtype="float32"):
    return [CASES[name].kernel.astype(dtype) for name in names]


def run(framework, rules, kernels, states):
    """Return kernels and states after one update, as NumPy arrays."""
    made = [[tensor(framework, x) for x in several] for several in (kernels, states)]
    return tuple([None if x is None else array(x) for x in several] for several in updated(rules, *made))


def truth(case):
    """Return the blocks of what the rule should make of the case's kernel."""
    u, s, vt = np.linalg.svd(case.blocks(case.kernel), full_matrices=False)
    return u * case.values(s)[:, None, :] @ vt


def error(case, result):
    """Return how far the result is from the truth, relative, in the spectral norms of the blocks."""
    expected = truth(case)
    return max(
        np.linalg.norm(case.blocks(result.astype("float64")) - expected, 2, axis=(1, 2))
        / np.linalg.norm(expected, 2, axis=(1, 2))
    )


@cache
def converged(framework):
    """Return what the converged rules make of all cases' kernels, together: one compilation serves them."""
    results, _ = run(framework, [case.rule.converged for case in CASES.values()], kernels(CASES), starts(CASES))
    return dict(zip(CASES, results, strict=True))


@every_framework
@every_case
def test_a_converged_rule_is_the_dense_truth(name, framework):
    result = converged(framework)[name]
    assert result.dtype == "float32"
    assert error(CASES[name], result) <= 1e-3  # what `project` documents


@every_framework
def test_many_kernels_together_are_what_each_would_be_alone(framework):
    rules = [CASES[name].rule for name in CASES]
    states = starts(CASES)
    together = kernels(CASES)
    alone = {name: ([kernel], [state]) for name, kernel, state in zip(CASES, together, states, strict=True)}
    for _ in range(3):  # the state goes along
        together, states = run(framework, rules, together, states)
    for name, result in zip(CASES, together, strict=True):
        if name in SHARING:
            kernel, state = alone[name]
            for _ in range(3):
                kernel, state = run(framework, [CASES[name].rule], kernel, state)
            rounding = 1e-5 * abs(result).max()  # three updates of some hundred float32 operations each
            np.testing.assert_allclose(result, kernel[0], rtol=0, atol=rounding, err_msg=name)


@pytest.mark.parametrize("framework", FRAMEWORKS[1:])
def test_every_framework_makes_the_same_of_a_kernel(framework):
    rules = [CASES[name].rule for name in CASES]
    expected, _ = run(
        "numpy", rules, kernels(CASES, "float64"), [s if s is None else s.astype("float64") for s in starts(CASES)]
    )
    result, _ = run(framework, rules, kernels(CASES), starts(CASES))
    for name, one, other in zip(CASES, result, expected, strict=True):
        # Searches stop when sigma gains less than 1e-4: rounding may decide when.
        np.testing.assert_allclose(one, other, rtol=3e-3, atol=3e-4 * abs(other).max(), err_msg=name)


@every_framework
def test_a_kernel_that_is_not_finite_leaves_the_others_and_its_own_vectors_alone(framework):
    good, bad = gaussian(8, 6).astype("float32"), gaussian(8, 5).astype("float32")
    bad[2, 3] = np.nan
    rules, start = [scale(), scale()], [scale().start(shape, (1,)) for shape in ((8, 6), (8, 5))]
    with np.errstate(invalid="ignore"):
        (result, _), (_, kept) = run(framework, rules, [good, bad], start)
    assert abs(np.linalg.norm(result.astype("float64"), 2) / C - 1) <= 0.02  # a first update, C5
    np.testing.assert_allclose(np.linalg.norm(kept, axis=1), 1, rtol=1e-5)
    assert np.all(np.isfinite(kept))


@every_framework
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_together_have_the_norms_of_their_symbols(framework, groups):
    sizes = [(3, 3, 4, 6), (1, 5, 3, 8), (2, 2, 4, 4)]
    rule = scale(operator="convolution", groups=groups).converged
    made = [gaussian(*shape).astype("float32") for shape in sizes]
    results, _ = run(framework, [rule] * 3, made, [rule.start(shape, (1,)) for shape in sizes])
    for result in results:
        assert abs(symbol_norm(result.astype("float64"), groups) / C - 1) <= 5e-3  # what `SpectralNorm` documents


def symbol_norm(kernel, groups):
    """Return the largest norm of the symbol of any group on a grid of 64 points an axis."""
    blocks = np.split(np.fft.fft2(kernel, (64, 64), axes=(0, 1)), groups, axis=-1)
    return max(np.linalg.norm(block, 2, axis=(-2, -1)).max() for block in blocks)


@every_framework
def test_groups_of_a_convolution_are_scaled_each_by_its_own_norm(framework):
    kernel = gaussian(3, 3, 4, 6).astype("float32") * np.float32([1, 1, 1, 5, 5, 5])
    rule = scale(operator="convolution", groups=2, blockwise=True).converged
    (result,), _ = run(framework, [rule], [kernel], [rule.start(kernel.shape, (1,))])
    for half in np.split(result.astype("float64"), 2, axis=-1):
        assert abs(symbol_norm(half, 1) / C - 1) <= 5e-3  # as above


@every_framework
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_kernels_keep_their_dtype_and_float32_vectors(framework, dtype):
    if framework == "numpy" and dtype == "bfloat16":
        pytest.skip("NumPy has no bfloat16 of its own")
    kernel = tensor(framework, 100 * gaussian(40, 30).astype("float32"))
    xp = of(kernel)
    state = tensor(framework, scale().start((40, 30), (1,)))
    (result,), (following,) = updated([scale().converged], [xp.cast(kernel, dtype)], [state])
    assert (xp.dtype(result), xp.dtype(following)) == (dtype, "float32")
    result = array(xp.cast(result, "float32")).astype("float64")
    assert abs(np.linalg.norm(result, 2) / C - 1) <= 5e-3  # eight bits, averaged over 1,200 entries


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_overwriting_a_torch_tensor_gives_what_the_rule_returns(dtype):
    import torch

    for rule in (scale(blockwise=True, groups=3), Clip(C, Operator())):
        kernel = torch.tensor(gaussian(8, 6)).to(getattr(torch, dtype))
        state = None if rule.start((8, 6), (1,)) is None else torch.tensor(rule.start((8, 6), (1,)))
        (expected,), _ = updated([rule], [kernel], [state])
        (found,), _ = type(rule).find([rule], [kernel], [state])
        place = kernel.data_ptr()
        overwrite(rule, kernel, found)
        assert kernel.data_ptr() == place
        torch.testing.assert_close(kernel, expected, rtol=1e-7 if dtype == "float32" else 0, atol=0)


@every_framework
@pytest.mark.parametrize("shape", [(1, 200), (20, 1), (3, 40)])
def test_with_a_margin_flat_kernels_stay_in_the_ball_for_hundreds_of_updates(framework, shape):
    rule, random = Clip(1.0, Operator(), 0.1), np.random.default_rng(3)
    kernel, state = random.standard_normal(shape) * 0.3, rule.start(shape, (0, 0))
    for _ in range(200):
        moved = (kernel + 0.02 * random.standard_normal(shape)).astype("float32")
        (kernel,), (state,) = run(framework, [rule], [moved], [state])
        assert np.linalg.norm(kernel, 2) <= 1 + 1e-6
        assert np.isfinite(state).all()


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_more_vectors_than_a_kernel_has_singular_values_do_no_harm(framework):
    random = np.random.default_rng(3)
    kernel, vectors = random.standard_normal((1, 200)), random_directions((8, 1, 200), (0,))
    for _ in range(400):  # the surplus ones shrink to numbers that LAPACK loses its way in
        kernel = kernel + 0.02 * random.standard_normal(kernel.shape)
        maps = matrix_maps(tensor(framework, kernel[:, None].astype("float32")))
        found = settled_subspace_iteration(maps, tensor(framework, vectors), SEARCH)
        vectors = array(found.vectors)
        assert array(found.sigma).item() == pytest.approx(np.linalg.norm(kernel, 2), rel=1e-3)
        assert np.isfinite(vectors).all()


@every_framework
def test_a_level_multiplies_the_targets_of_the_kernels_that_have_one(framework):
    rules = [scale(), scale(True), Clip(C, Operator()), Clip(C, Operator(), 0.1), Clip(C, Operator("convolution"))]
    made = [gaussian(3, 3, 4, 6, seed=i).astype("float32") for i in range(len(rules))]
    starts = [rule.start((3, 3, 4, 6), (1,)) for rule in rules]
    several = [[tensor(framework, x) for x in xs] for xs in (made, starts, [np.float32(0.5)] * 5)]
    results, _ = updated([rule.converged for rule in rules], *several[:2], [None, *several[2][1:]])
    wide = [array(x).astype("float64") for x in results]
    norms = [*(np.linalg.norm(x.reshape(-1, 6), 2) for x in wide[:4]), symbol_norm(wide[4], 1)]
    np.testing.assert_allclose(norms, C * np.r_[1, 0.5, 0.5, 0.45, 0.5], rtol=2e-2)  # a convolution's margin is 1 %
    np.testing.assert_allclose(norms[:4], C * np.r_[1, 0.5, 0.5, 0.45], rtol=1e-3)  # what `project` documents
