import numpy as np
import pytest
from explicit import explicit_matrix, norm
from hypothesis import given
from hypothesis import strategies as st
from registry import all_cases
from scipy.signal import correlate

from opnorm.bounds import convolutions as convolution_bounds
from opnorm.bounds import suprema as symbol_bounds
from opnorm.bounds.brackets import spectral_norm
from opnorm.bounds.convolutions import bracket_convolution
from opnorm.bounds.deadlines import Deadline
from opnorm.operators.convolution import Convolution

ROUNDING = 1e-12  # LAPACK's own error on these matrices (sides to 600) stays below 1e-13

CASES = pytest.mark.parametrize("case", all_cases(), ids=str)


def test_the_registry_holds_more_than_five_hundred_operators():
    assert len(set(all_cases())) >= 500


@CASES
def test_the_operator_is_the_explicit_matrix(case):
    np.testing.assert_allclose(case.operator.matmat(np.eye(case.matrix.shape[1])), case.matrix, atol=1e-14)


@CASES
def test_the_adjoint_moves_to_the_other_side_of_the_product(case):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(case.matrix.shape[1]), rng.standard_normal(case.matrix.shape[0])
    scale = case.truth * np.linalg.norm(x) * np.linalg.norm(y) + 1e-300
    for adjoint in (case.operator.H, case.operator.T):
        assert abs((case.operator @ x) @ y - x @ (adjoint @ y)) <= 1e-10 * scale  # T6


@CASES
def test_the_symbol_brackets_the_norm(case):
    lower, upper = bracket_convolution(case.operator, 1e-2)
    assert lower <= case.truth * (1 + ROUNDING)
    assert case.truth <= upper * (1 + ROUNDING)


@CASES
def test_a_convolution_without_size_bounds_this_size(case):
    bounds = spectral_norm(Convolution(case.kernel, **case.geometry))
    assert case.truth <= bounds.upper * (1 + ROUNDING)
    assert bounds.upper <= bounds.lower * (1 + 1e-2 + 1e-9) or case.truth == 0  # the default tolerance, and rounding


@CASES
def test_a_small_convolution_is_bracketed_to_a_millionth(case):
    lower, upper = spectral_norm(case.operator)
    assert lower <= case.truth * (1 + ROUNDING)
    assert case.truth <= upper * (1 + ROUNDING)
    assert upper <= lower * (1 + 1e-6)


@CASES
def test_a_bracket_cut_short_still_contains_the_norm(case, monkeypatch):
    monkeypatch.setattr(symbol_bounds, "_CELLS", 30)  # a few cells on the coarsest levels
    lower, upper = bracket_convolution(case.operator, 1e-6)
    assert lower <= case.truth * (1 + ROUNDING)
    assert case.truth <= upper * (1 + ROUNDING) < np.inf


@CASES
def test_a_corner_of_the_image_has_no_larger_norm(case, monkeypatch):
    monkeypatch.setattr(convolution_bounds, "_PRODUCTS", 1.0)  # every image is too big now
    corner = convolution_bounds._corner(case.operator, 0)
    assert norm(corner.matmat(np.eye(corner.shape[1]))) <= case.truth * (1 + ROUNDING)


@CASES
def test_the_reshaped_matrix_is_below_the_sliding_operator(case):
    reshaped = np.moveaxis(case.operator.blocks, 0, -1).reshape(-1, *case.operator.blocks.shape[-1:], case.groups)
    largest = max(norm(reshaped[..., g]) for g in range(case.groups))
    lower, upper = spectral_norm(Convolution(case.kernel, **case.geometry))
    windows = np.prod([-(-k // s) for k, s in zip(case.spans, case.strides, strict=True)])
    assert largest <= upper * (1 + ROUNDING)
    if max(case.dilation_rate) == 1:
        assert lower <= np.sqrt(windows) * largest * (1 + ROUNDING)


@st.composite
def convolutions(draw):
    """Return the arguments of a convolution with at most 3 axes, and sizes at which it can be written out."""
    rank = draw(st.integers(1, 3))
    per_axis = st.tuples(*[st.integers(1, 3)] * rank)
    groups = draw(st.integers(1, 3))
    spans = draw(st.tuples(*[st.integers(1, (6, 4, 3)[rank - 1])] * rank))
    dilation = draw(per_axis)
    reach = [(k - 1) * d + 1 for k, d in zip(spans, dilation, strict=True)]
    sizes = tuple(draw(st.integers(r, r + (12, 4, 2)[rank - 1])) for r in reach)
    pairs = st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * rank)
    padding = draw(st.one_of(st.sampled_from(["same", "valid"] + ["causal"] * (rank == 1)), pairs))
    shape = (*spans, draw(st.integers(1, 3)), groups * draw(st.integers(1, 3)))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64, np.int8]))
    kernel = (np.random.default_rng(draw(st.integers(0, 99))).standard_normal(shape) * 9).astype(dtype)
    geometry = {"strides": draw(per_axis), "padding": padding, "dilation_rate": dilation, "groups": groups}
    return kernel, sizes, geometry


@given(convolutions())
def test_every_drawn_convolution_is_bracketed_with_and_without_its_size(drawn):
    kernel, sizes, geometry = drawn
    truth = norm(explicit_matrix(kernel.astype(np.float64), sizes, **geometry))
    operator = Convolution(kernel, sizes, **geometry)
    for lower, upper in (spectral_norm(operator), bracket_convolution(operator, 1e-2)):
        assert lower <= truth * (1 + ROUNDING)
        assert truth <= upper * (1 + ROUNDING)
    assert truth <= spectral_norm(Convolution(kernel, **geometry)).upper * (1 + ROUNDING)


@pytest.mark.parametrize("span", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("channels", [(1, 1), (2, 3), (4, 2)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_from_size_sixteen_on_the_bracket_is_tight(span, channels, padding):
    kernel = np.random.default_rng(span).standard_normal((span, span, *channels))
    lower, upper = spectral_norm(Convolution(kernel, (16, 17), padding=padding))
    assert upper <= 1.02 * lower  # T3


def test_an_image_too_big_to_write_out_is_bracketed_tightly():
    kernel = np.random.default_rng(0).standard_normal((3, 3, 24, 24))
    operator = Convolution(kernel, (32, 32))
    assert operator.shape[0] > 2**14  # no explicit matrix: its symbol from above, its products from below
    lower, upper = spectral_norm(operator)
    assert upper <= 1.02 * lower  # T3


def test_a_million_pixels_are_bounded_from_a_corner_of_the_image():
    kernel = np.random.default_rng(0).standard_normal((3, 3, 2, 2))
    lower, upper = spectral_norm(Convolution(kernel, (1024, 1024), strides=2))
    free = spectral_norm(Convolution(kernel, strides=2))
    assert free.lower / 1.02 <= lower <= free.upper  # a corner of some hundred pixels is within 2 % of infinity
    assert upper <= free.upper * (1 + 1e-12)


@pytest.mark.parametrize(("span", "stride"), [(2, 1), (3, 1), (5, 1), (3, 2), (4, 3)])
def test_without_size_the_bracket_contains_the_supremum_over_all_sizes(span, stride):
    kernel = np.random.default_rng(span).standard_normal((span, span, 2, 3))
    lower, upper = spectral_norm(Convolution(kernel, strides=stride))
    # a periodic image of 24 x 24 steps is below the supremum by at most the Riesz factor of its grid
    windows = -(-span // stride)
    riesz = np.cos(np.pi * (windows - 1) / (2 * 24)) ** 2
    periodic = _periodic_norm(kernel, stride, 24)
    assert periodic <= upper * (1 + ROUNDING)
    assert lower <= periodic / riesz * (1 + ROUNDING)


def _periodic_norm(kernel, stride, steps):
    """Return the norm of the circular convolution with stride, by the discrete Fourier transform of its phases."""
    span, _, cin, cout = kernel.shape
    place = np.zeros((steps * stride, steps * stride, cin, cout))
    place[:span, :span] = kernel
    phases = place.reshape(steps, stride, steps, stride, cin, cout).transpose(0, 2, 1, 3, 4, 5)
    symbol = np.fft.fft2(phases.reshape(steps, steps, -1, cout), axes=(0, 1))
    return float(np.linalg.svd(symbol, compute_uv=False).max())


def test_a_grid_of_the_kernels_size_is_no_bound_and_opnorm_does_not_take_it_for_one():
    kernel = np.array([1.0, 1.0, 1.0, -1.0, -1.0]).reshape(5, 1, 1)
    grid = np.abs(np.fft.fft(kernel[:, 0, 0])).max()
    truth = norm(explicit_matrix(kernel, (64,), (1,), "same", (1,), 1))
    assert grid < truth  # what published code reports as an upper bound
    assert truth <= spectral_norm(Convolution(kernel)).upper


def test_the_operator_agrees_with_scipys_correlation():
    rng = np.random.default_rng(0)
    kernel, image = rng.standard_normal((3, 3, 2, 1)), rng.standard_normal((7, 6, 2))
    expected = sum(correlate(image[..., c], kernel[..., c, 0], mode="same") for c in range(2))
    got = Convolution(kernel, (7, 6)) @ image.ravel()
    np.testing.assert_allclose(got.reshape(7, 6), expected, atol=1e-12)


def test_an_asked_tolerance_is_met():
    kernel = np.random.default_rng(1).standard_normal((3, 3, 4, 4))
    coarse, fine = (spectral_norm(Convolution(kernel), tolerance=t) for t in (0.1, 1e-4))
    assert fine.upper <= fine.lower * (1 + 1e-4 + 1e-9)  # rounding of the last step
    assert fine.upper < coarse.upper <= coarse.lower * (1.1 + 1e-9)


@pytest.mark.parametrize("exponent", [-300, -30, 30, 300])
def test_tiny_and_huge_kernels_are_bounded_like_others(exponent):
    kernel = np.random.default_rng(1).standard_normal((3, 2, 2))
    one, scaled = spectral_norm(Convolution(kernel)), spectral_norm(Convolution(kernel * 10.0**exponent))
    np.testing.assert_allclose(np.array(scaled) / 10.0**exponent, one, rtol=1e-12)


def test_a_zero_kernel_has_norm_zero():
    assert spectral_norm(Convolution(np.zeros((3, 3, 2, 2)))) == (0.0, 0.0)
    assert spectral_norm(Convolution(np.zeros((3, 3, 2, 2)), (4, 4))) == (0.0, 0.0)


def test_the_norm_of_an_adjoint_is_the_operators():
    operator = Convolution(np.random.default_rng(1).standard_normal((3, 3, 2, 4)), strides=2)
    assert spectral_norm(operator.T) == spectral_norm(operator) == spectral_norm(operator.H.H)


def test_many_groups_are_bounded_by_the_largest():
    kernel = np.random.default_rng(1).standard_normal((3, 3, 1, 64))
    each = [spectral_norm(Convolution(kernel[..., g : g + 1])) for g in range(64)]
    together = spectral_norm(Convolution(kernel, groups=64))
    assert max(b.lower for b in each) <= together.upper
    assert together.lower <= max(b.upper for b in each)


def test_a_group_of_zeros_costs_nothing_and_changes_nothing():
    kernel = np.random.default_rng(1).standard_normal((3, 3, 40, 80))
    kernel[..., :40] = 0
    alone, both = spectral_norm(Convolution(kernel[..., 40:])), spectral_norm(Convolution(kernel, groups=2))
    assert both == alone
    kernel[..., :40] = 1e-300
    assert spectral_norm(Convolution(kernel, groups=2)) == alone


def test_wide_groups_are_bounded_by_the_largest():
    kernel = np.random.default_rng(1).standard_normal((3, 3, 40, 80))
    each = [spectral_norm(Convolution(kernel[..., g * 40 : g * 40 + 40])) for g in range(2)]
    together = spectral_norm(Convolution(kernel, groups=2))
    assert max(b.lower for b in each) <= together.upper
    assert together.lower <= max(b.upper for b in each)


@pytest.mark.parametrize("product", ["matvec", "matmat", "rmatvec", "rmatmat", "__matmul__"])
def test_applying_an_operator_without_size_says_what_is_missing(product):
    operator = Convolution(np.ones((3, 1, 1)))
    for one in (operator, operator.T):
        with pytest.raises(ValueError, match="input_shape"):
            getattr(one, product)(np.ones((3, 2)))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"kernel": np.full((3, 3, 1, 1), np.nan)}, "kernel"),
        ({"kernel": np.full((3, 3, 1, 1), np.inf)}, "kernel"),
        ({"kernel": np.ones((3, 3, 1, 1), dtype=complex)}, "kernel"),
        ({"kernel": np.ones((3, 3, 0, 1))}, "kernel"),
        ({"kernel": np.array(1.0)}, "kernel"),
        ({"kernel": np.ones(3)}, "kernel"),
        ({"kernel": np.ones((3, 3))}, "kernel"),
        ({"kernel": "kernel"}, "kernel"),
        ({"strides": 0}, "strides"),
        ({"strides": (1, 2, 3)}, "strides"),
        ({"strides": 1.5}, "strides"),
        ({"dilation_rate": -1}, "dilation_rate"),
        ({"groups": 3}, "groups"),
        ({"groups": 0}, "groups"),
        ({"padding": "reflect"}, "padding"),
        ({"padding": "circular"}, "padding"),
        ({"padding": "causal"}, "padding"),
        ({"padding": ((1, 1),)}, "padding"),
        ({"padding": ((1, 1), (-1, 0))}, "padding"),
        ({"padding": 1}, "padding"),
        ({"input_shape": (8, 8, 1)}, "input_shape"),
        ({"input_shape": (2, 8), "padding": "valid"}, "input_shape"),
        ({"input_shape": (0, 8)}, "input_shape"),
    ],
)
def test_a_bad_argument_is_named_with_what_was_received(changed, named):
    good = {"kernel": np.ones((3, 3, 2, 4)), "input_shape": (8, 8)}
    with pytest.raises(ValueError, match=f"`{named}`.* Received: "):
        Convolution(**(good | changed))


@pytest.fixture(scope="module")
def flat():
    """Return a kernel of nearly one norm at all frequencies, and its largest on a grid, at most 0.5 % too small."""
    kernel = np.random.default_rng(8).standard_normal((3, 3, 40, 40))
    symbols = np.fft.fft2(kernel, (64, 64), axes=(0, 1))[:33]  # conjugate pairs; slack of a cell: 2 pi / 64, cos 0.995
    return kernel, float(np.linalg.svd(symbols, compute_uv=False).max())


@pytest.mark.parametrize(
    ("stopped", "at_least", "at_most"),
    [(0, 9, 10), (1, 9, 10), (3, 9, 10), (8, 2, 2.1), (14, 1.03, 1.05), (30, 1, 1.017)],
)
def test_the_bracket_holds_wherever_time_runs_out_and_narrows_with_it(monkeypatch, flat, stopped, at_least, at_most):
    kernel, truth = flat
    ticks = iter(range(1000))
    monkeypatch.setattr("opnorm.bounds.deadlines.monotonic", lambda: next(ticks))
    lower, upper = bracket_convolution(Convolution(kernel), 1e-2, Deadline(at=stopped))
    assert lower <= truth * 1.006
    assert at_least * truth <= upper <= at_most * truth


@pytest.mark.parametrize("stopped", [-0.5, 0.5, 1.5, 2.5, 3.5, 4.5])
def test_the_bracket_of_equal_taps_holds_wherever_time_runs_out(monkeypatch, stopped):
    ticks = iter(range(1000))
    monkeypatch.setattr("opnorm.bounds.deadlines.monotonic", lambda: next(ticks))
    lower, upper = bracket_convolution(Convolution(np.ones((3, 3, 1, 1))), 1e-2, Deadline(at=stopped))
    assert lower <= 9 <= upper <= 9.1  # nine equal taps: the triangle inequality is the norm
