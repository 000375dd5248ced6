"""Pooling, upsampling and padding against their explicit matrices, border and all."""

from itertools import product

import graphs as n
import numpy as np
import pytest

from opnorm.networks.bound import network_bound
from opnorm.networks.pooling import Window, average_pooling, linear_upsampling, max_pooling, nearest_upsampling

ROUNDING = 1e-12  # the bounds are rounded up by 2**-40
WINDOWS = [
    Window(k, s, d, pads, ceil_mode)
    for k, s, d, pads, ceil_mode in product((1, 2, 3, 5), (1, 2, 3), (1, 2), ((0, 0), (1, 0), "same"), (False, True))
    if pads != (1, 0) or k > 1
]


def reads(window, n):
    """Return for each window the pixels it covers, those outside included, and the zeros around the image."""
    reach = (window.size - 1) * window.dilation + 1
    if window.pads == "same":
        count = -(-n // window.stride)
        total = max((count - 1) * window.stride + reach - n, 0)
        low, high = total // 2, total - total // 2
    else:
        low, high = window.pads
        over = n + low + high - reach
        count = (-(-over // window.stride) if window.ceil_mode else over // window.stride) + 1
    starts = [i * window.stride - low for i in range(count) if i * window.stride - low < n]
    return [[start + a * window.dilation for a in range(window.size)] for start in starts], low, high


def average_matrix(window, n, counts):
    rows, low, high = reads(window, n)
    matrix = np.zeros((len(rows), n))
    for i, row in enumerate(rows):
        padded = [j for j in row if -low <= j < n + high]
        inside = [j for j in row if 0 <= j < n]
        for j in padded if counts == "replicate" else inside:
            matrix[i, min(max(j, 0), n - 1)] += 1 / len(inside if counts == "pixels" else padded)
    return matrix


@pytest.mark.parametrize("counts", ["window", "pixels", "replicate"])
def test_average_pooling_is_never_above_its_bound(counts):
    for window in WINDOWS:
        bound = average_pooling([window], counts=counts)
        for size in (1, 2, 3, 4, 5, 7, 9, 12, 19, 20, 21):
            if size + sum(window.pads if window.pads != "same" else (0, 0)) < window.extent and window.pads != "same":
                continue
            matrix = average_matrix(window, size, counts)
            if matrix.size:
                assert np.linalg.norm(matrix, 2) <= bound * (1 + ROUNDING), (window, size)


@pytest.mark.parametrize(("size", "stride", "truth"), [(2, 2, 2**-0.5), (3, 3, 3**-0.5), (3, 2, 5**0.5 / 3), (3, 1, 1)])
def test_average_pooling_inside_a_large_image_is_exact(size, stride, truth):
    assert average_pooling([Window(size, stride)], counts="window") == pytest.approx(truth, rel=1e-11)


def test_average_pooling_at_borders_can_stretch_and_the_bound_knows():
    window = Window(5, 1, 1, "same")
    truth = np.linalg.norm(average_matrix(window, 12, "pixels"), 2)
    assert 1 < truth <= average_pooling([window], counts="pixels")


def test_two_axes_multiply():
    windows = [Window(3, 2, 1, "same"), Window(2, 1, 1, "same")]
    matrix = np.kron(average_matrix(windows[0], 7, "pixels"), average_matrix(windows[1], 6, "pixels"))
    assert np.linalg.norm(matrix, 2) <= average_pooling(windows, counts="pixels") * (1 + ROUNDING)


def test_max_pooling_is_never_above_its_bound_and_reaches_it():
    for window in WINDOWS:
        bound = max_pooling([window])
        rows, _, _ = reads(window, 23)
        visits = np.bincount([j for row in rows for j in set(row) if 0 <= j < 23], minlength=23)
        assert visits.max() <= bound**2 * (1 + ROUNDING), window
        bump = np.zeros(23)
        bump[visits.argmax()] = 1  # alone it is the maximum of every window that reads it
        pooled = [max((bump[j] for j in row if 0 <= j < 23), default=0.0) for row in rows]
        assert np.linalg.norm(pooled) == pytest.approx(bound, rel=1e-9), window


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_upsampling_is_never_above_its_bound(factor):
    for size in (1, 2, 3, 5, 12):
        nearest = np.repeat(np.eye(size), factor, axis=0)
        assert np.linalg.norm(nearest, 2) == pytest.approx(nearest_upsampling((factor,)), rel=1e-9)
        places = (np.arange(size * factor) + 0.5) / factor - 0.5
        linear = np.array([np.interp(places, np.arange(size), e) for e in np.eye(size)])
        assert np.linalg.norm(linear, 2) <= linear_upsampling((factor,)) * (1 + ROUNDING)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("pads", [(0, 0), (1, 0), (2, 3)])
def test_padding_is_never_above_its_bound(mode, pads):
    node = n.plain("p", "Pad", "x", mode=mode, pads=pads)
    bound = network_bound(n.chain(node)).upper
    for size in (1, 2, 3, 4, 5, 9):  # of a short row NumPy, and ONNX's reference, mirror what they have mirrored
        matrix = np.array([np.pad(e, pads, mode=mode) for e in np.eye(size)])
        known = network_bound(n.chain(node._replace(options={**node.options, "input_shapes": ((size,),)}))).upper
        assert np.linalg.norm(matrix, 2) <= known * (1 + ROUNDING)
        assert known <= bound
    assert known <= 3**0.5 * (1 + 1e-9) or mode == "edge"  # where it is mirrored once, or goes around


@pytest.mark.parametrize("kind", ["AveragePool", "MaxPool"])
def test_onnx_pooling_reads_its_attributes(kind):
    node = n.plain("p", kind, "x", kernel_shape=[3, 2], strides=[1, 2], pads=[1, 0, 1, 0], count_include_pad=1)
    bound = network_bound(n.chain(node)).upper
    if kind == "MaxPool":
        assert bound == pytest.approx(3**0.5, rel=1e-9)
    else:
        assert bound == pytest.approx(2**-0.5, rel=1e-9)  # one axis keeps a constant image, the other halves squares
