"""The explicit matrix of a convolution, written out entry by entry: the truth that every operator is compared with."""

from itertools import product
from math import ceil

import numpy as np


def explicit_matrix(kernel, sizes, strides, padding, dilation_rate, groups):
    """Return the matrix (outputs, inputs), channels last, by the definition of a convolution layer and nothing else."""
    *spans, cin, cout = kernel.shape
    low, outputs = _geometry(spans, sizes, strides, padding, dilation_rate)
    matrix = np.zeros((*outputs, cout, *sizes, cin * groups))
    per_group = cout // groups
    for place in product(*map(range, outputs)):
        for tap in product(*map(range, spans)):
            axes = range(len(sizes))
            pixel = tuple(place[i] * strides[i] + tap[i] * dilation_rate[i] - low[i] for i in axes)
            if any(not 0 <= pixel[i] < sizes[i] for i in axes):
                continue  # a zero of the padding
            for g in range(groups):
                for o, c in product(range(g * per_group, (g + 1) * per_group), range(cin)):
                    matrix[(*place, o, *pixel, g * cin + c)] += kernel[(*tap, c, o)]
    return matrix.reshape(int(np.prod(outputs)) * cout, -1)


def _geometry(spans, sizes, strides, padding, dilation_rate):
    """Return the zeros before the image and the output's sizes."""
    reach = [(k - 1) * d + 1 for k, d in zip(spans, dilation_rate, strict=True)]
    low, outputs = [], []
    for axis, (n, k, s) in enumerate(zip(sizes, reach, strides, strict=True)):
        if padding == "same":
            m = ceil(n / s)
            before = max((m - 1) * s + k - n, 0) // 2
        elif padding == "valid":
            before, m = 0, ceil((n - k + 1) / s)
        elif padding == "causal":
            before, m = k - 1, ceil(n / s)
        else:
            before, after = padding[axis]
            m = ceil((n + before + after - k + 1) / s)
        low.append(before)
        outputs.append(m)
    return low, outputs


def norm(matrix):
    """Return the largest singular value by LAPACK."""
    return float(np.linalg.svd(matrix, compute_uv=False)[0])
