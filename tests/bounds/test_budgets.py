"""Time and memory: convolutions that would take hours or gigabytes get a wider bracket, just as true."""

import resource
from time import monotonic

import numpy as np
import pytest
from scipy.sparse import eye_array
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from opnorm.auditing.norms import norms
from opnorm.bounds import brackets, convolutions
from opnorm.bounds.brackets import bracket, spectral_norm
from opnorm.bounds.deadlines import Deadline
from opnorm.bounds.matrices import bracket_blocks, bracket_matrix
from opnorm.bounds.memory import Memory, machine_memory
from opnorm.operators.convolution import Convolution
from opnorm.operators.sizes import Adjoint

ROUNDING = 1e-12
RNG = np.random.default_rng(0)
K = RNG.standard_normal((3, 3, 2, 4))
MATRIX = np.linalg.svd(K.reshape(-1, 4), compute_uv=False)[0]  # the norm where windows do not overlap


def contains(bounds, truth):
    assert bounds[0] <= truth * (1 + ROUNDING)
    assert truth <= bounds[1] * (1 + ROUNDING)


@pytest.mark.parametrize("stride", [3, 20_000, 2**40])
def test_a_stride_beyond_the_kernel_has_the_norm_of_the_kernels_matrix(stride):
    lower, upper = spectral_norm(Convolution(K, strides=stride))
    contains((lower, upper), MATRIX)
    assert upper <= lower * (1 + 1e-6)


def test_a_pixel_of_a_wide_stride_is_a_matrix():
    kernel = RNG.standard_normal((1, 1, 8, 8))
    contains(spectral_norm(Convolution(kernel, strides=3000)), np.linalg.svd(kernel[0, 0], compute_uv=False)[0])


@pytest.mark.parametrize(("stride", "dilation"), [(2, 3), (4, 6), (3, 2), (6, 4), (2, 2), (5, 1)])
def test_stride_and_dilation_together_have_the_norm_of_a_large_image(stride, dilation):
    kernel = RNG.standard_normal((4, 2, 2))
    lower, upper = spectral_norm(Convolution(kernel, strides=stride, dilation_rate=dilation), tolerance=1e-3)
    image = Convolution(kernel, 400, strides=stride, dilation_rate=dilation)
    truth = np.linalg.svd(image.matmat(np.eye(800)), compute_uv=False)[0]
    assert truth <= upper * (1 + ROUNDING)
    assert lower <= truth * 1.002  # 400 pixels are that near to infinitely many


def test_zeros_around_an_image_cost_nothing():
    far = Convolution(K, (8, 8), dilation_rate=2**30)  # only the tap in the middle meets the image
    contains(spectral_norm(far), np.linalg.svd(K[1, 1], compute_uv=False)[0])
    padded = Convolution(K, (8, 8), padding=((10**9, 10**9), (0, 0)), strides=(10**9, 1))
    assert padded.output_shape == (3, 6)
    assert spectral_norm(padded).upper <= spectral_norm(Convolution(K)).upper * (1 + ROUNDING)


@pytest.mark.parametrize("size", [None, (128, 128, 128)])
def test_a_million_taps_are_bounded_within_the_time_limit_and_little_memory(size):
    kernel = np.ones((100, 100, 100, 1, 1), dtype=np.float32)
    operator = Convolution(kernel, size)
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, monotonic()
    found = norms(operator, time_limit=1)
    assert monotonic() - begin < 30  # generous: a second and what one step takes; without a budget many minutes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 * 1024  # KiB; it was 7 GB
    if size is None:
        contains(found, 1e6)
    else:  # one window from below, all taps from above
        assert found.lower * (1 + 1e-6) >= 1e3
        assert found.upper <= 1e6 * (1 + 1e-5)


@pytest.mark.parametrize("limit", [2e4, 1e5, 1e6, 1e8])
@pytest.mark.parametrize("geometry", [{}, {"strides": 2}, {"input_shape": (7, 9)}, {"input_shape": (40, 40)}])
def test_a_bracket_with_little_memory_holds(limit, geometry):
    operator = Convolution(K, **geometry)
    truth, found = bracket(operator, 1e-2), norms(operator, memory_limit=limit)
    assert found.lower <= truth[1] * (1 + ROUNDING)
    assert truth[0] <= found.upper * (1 + ROUNDING) < np.inf
    assert found.crowded <= (limit < 1e8)


def test_what_memory_a_bracket_wanted_is_said():
    matrix = RNG.standard_normal((300, 200))
    found = norms(aslinearoperator(matrix), memory_limit=10_000)
    contains(found, np.linalg.svd(matrix, compute_uv=False)[0])
    assert (found.limited, found.crowded) == (False, True)
    assert "memory limit" in found.method
    with pytest.raises(MemoryError, match="limit"):
        norms(Convolution(K), memory_limit=100)
    assert machine_memory() > 2**20


def test_a_matrix_with_little_memory_is_bracketed_by_its_sums():
    matrix = RNG.standard_normal((300, 200))
    memory = Memory(1000)
    contains(bracket_matrix(matrix, 1e-6, memory=memory), np.linalg.svd(matrix, compute_uv=False)[0])
    assert memory.refused


def test_many_blocks_have_the_largest_norm_with_time_and_without():
    blocks = RNG.standard_normal((50, 6, 4)) * RNG.uniform(0.1, 3, (50, 1, 1))
    truth = np.linalg.svd(blocks, compute_uv=False).max()
    lower, upper = bracket_blocks(blocks, 1e-6)
    contains((lower, upper), truth)
    assert upper <= lower * (1 + 1e-6)
    contains(bracket_blocks(blocks, 1e-6, Deadline(at=0.0)), truth)
    assert bracket_blocks(np.zeros((3, 2, 2)), 1e-6) == (0.0, 0.0)


@pytest.mark.parametrize("shape", [(1, 2**22), (2**22, 1)])
def test_a_long_operator_of_unknown_kind_is_written_out_from_its_short_side(shape):
    row = RNG.standard_normal(2**22)
    times, back = (lambda x: row @ x), (lambda y: row * y.ravel()[0])
    if shape[0] > 1:
        times, back = back, times
    unknown = LinearOperator(shape, matvec=times, rmatvec=back, dtype=float)
    contains(spectral_norm(unknown), np.linalg.norm(row))


def test_a_sparse_matrix_that_does_not_fit_is_not_bounded_from_above():
    lower, upper = bracket(aslinearoperator(eye_array(5000, format="csr")), None, memory=Memory(2**20))
    assert 1 - 1e-5 < lower <= 1
    assert upper == np.inf


@pytest.mark.parametrize("geometry", [{}, {"strides": 2, "padding": "valid"}, {"dilation_rate": 3}, {"groups": 2}])
def test_one_window_in_the_image_is_below_the_norm(geometry):
    kernel = RNG.standard_normal((3, 3, 2, 4))
    for size in ((7, 8), (9, 30)):
        operator = Convolution(kernel, size, **geometry)
        truth = np.linalg.svd(operator.matmat(np.eye(operator.shape[1])), compute_uv=False)[0]
        lower = convolutions._from_window(operator, 0, Deadline(), Memory())
        assert 0 < lower <= truth * (1 + ROUNDING)
        upper = convolutions._by_matrix(operator, 0, Deadline(), Memory())[1]
        assert truth <= upper * (1 + ROUNDING)


def test_an_adjoint_in_a_hurry_keeps_its_bracket():
    operator = Convolution(RNG.standard_normal((64, 64, 2, 2)), strides=3000)
    truth = np.linalg.svd(operator.kernel.reshape(-1, 2), compute_uv=False)[0]
    contains(norms(Adjoint(operator), time_limit=0), truth)
    assert not brackets.is_written_out(operator, Memory())
