"""Small networks built by hand: the graph that opnorm reads beside the function that NumPy computes."""

import numpy as np
from explicit import explicit_matrix
from scipy.sparse.linalg import aslinearoperator

from opnorm.checkpoints.records import Geometry, Graph, Node, Weight
from opnorm.operators.convolution import Convolution


def weight(name, values, operator=None):
    geometry = Geometry("test", "matrix (in, out)" if values.ndim == 2 else "convolution", operator)
    return Weight(name, values.shape, str(values.dtype), lambda: values, geometry)


def dense(name, source, kernel, **options):
    kernels = {"kernel": weight(f"{name}/kernel", kernel, lambda values: aslinearoperator(values.T))}
    return Node(
        name, "Dense", (source,), options, {**kernels, "bias": weight(f"{name}/bias", np.ones(kernel.shape[1]))}
    )


def conv(name, source, kernel, groups=1, transposed=False):
    def operator(values):
        convolution = Convolution(values, groups=groups)
        return convolution.H if transposed else convolution

    settings = {"strides": 1, "groups": groups, "data_format": "channels_last", "padding": "same"}
    kind = "Conv2DTranspose" if transposed else "Conv2D"
    return Node(name, kind, (source,), settings, {"kernel": weight(name, kernel, operator)})


def depthwise(name, source, kernel):
    *spatial, channels, multiplier = kernel.shape

    def operator(values):
        return Convolution(values.reshape(*spatial, 1, channels * multiplier), groups=channels)

    options = {"data_format": "channels_last", "padding": "same"}
    return Node(name, "DepthwiseConv2D", (source,), options, {"kernel": weight(name, kernel, operator)})


def batch_normalization(name, source, gamma, variance, axis=-1):
    weights = {"gamma": weight("gamma", gamma), "moving_variance": weight("moving_variance", variance)}
    return Node(name, "BatchNormalization", (source,), {"axis": axis, "epsilon": 1e-3}, weights)


def plain(name, kind, *sources, **options):
    return Node(name, kind, sources, options, {})


def chain(*nodes, inputs=("x",)):
    return Graph(tuple(nodes), tuple(inputs), (nodes[-1].name,))


def image_matrix(kernel, sizes, groups=1):
    return explicit_matrix(kernel, sizes, (1, 1), "same", (1, 1), groups)


def relu(z):
    return np.maximum(z, 0)


def largest_jacobian(function, size, points=40, seed=0, spread=2.0):
    """Return the largest norm of the Jacobian at random points, by central differences in float64."""
    rng, step = np.random.default_rng(seed), 1e-6
    found = 0.0
    for _ in range(points):
        x = spread * rng.standard_normal(size)
        columns = [(function(x + step * e) - function(x - step * e)) / (2 * step) for e in np.eye(size)]
        found = max(found, np.linalg.norm(np.array(columns), 2))
    return found
