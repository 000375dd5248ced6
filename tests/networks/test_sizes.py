"""Convolutions, pooling and means at the one size that a model fixes, against explicit matrices of that size."""

import numpy as np
import pytest
from explicit import explicit_matrix
from test_network_onnx import OPEN, call, check, saved

from opnorm.networks.lipschitz import lipschitz_bound
from opnorm.networks.sector_bounds import bound_chain

onnx = pytest.importorskip("onnx")  # an extra of opnorm's
PROOF = 1e-5  # of the proofs, and of matrices by differences
NAMED = "the upper end holds for inputs of the size that the model names or was traced with: at others it may be larger"
EVERY = "the upper end holds for inputs of every size that its kernels and windows fit into"
OLD_REFERENCE = pytest.mark.skipif(
    onnx.__version__.startswith("1.19."), reason="the reference of ONNX 1.19 computes something else"
)
LINEAR = [
    ("Conv", "x K", {"pads": [2, 2, 2, 2]}),
    ("Conv", "x K", {"pads": [0, 1, 2, 1], "strides": [2, 1]}),
    pytest.param("Conv", "x K", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, marks=OLD_REFERENCE),
    ("Conv", "x S", {"pads": [2, 2, 2, 2], "dilations": [2, 2]}),
    ("Conv", "x G", {"pads": [1, 1, 1, 1], "group": 2}),
    ("AveragePool", "x", {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]}),
    ("AveragePool", "x", {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 1, 1, 0], "count_include_pad": 1}),
    ("GlobalAveragePool", "x", {}),
    ("ReduceMean", "x", {"axes": [2, 3]}),
    ("ReduceMean", "x", {"axes": [-1], "keepdims": 0}),
    ("ReduceSum", "x axes", {}),
    ("Tile", "x repeats", {}),
]


def constants_of(inputs, rng):
    """Return the constants that are named among the inputs."""
    shapes = {"K": (4, 2, 5, 5), "S": (4, 2, 3, 3), "G": (4, 1, 3, 3)}
    found = {name: rng.standard_normal(shapes[name]) for name in inputs.split() if name in shapes}
    integers = {"axes": np.array([1, 2]), "repeats": np.array([1, 3, 1, 2])}
    return found | {name: integers[name] for name in inputs.split() if name in integers}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(("kind", "inputs", "attributes"), LINEAR)
def test_at_a_fixed_size_the_bound_is_the_norm_of_the_matrix(tmp_path, rng, kind, inputs, attributes):
    nodes = [call(kind, inputs, "y", **attributes)]
    bound, truth = check(saved(tmp_path / "model.onnx", nodes, constants_of(inputs, rng)))
    assert bound.upper <= truth * (1 + PROOF)
    assert bound.notes == ((NAMED,) if kind != "Tile" else ())


@pytest.mark.parametrize(("kind", "inputs", "attributes"), LINEAR[:-2])
def test_at_an_open_size_the_bound_is_larger_and_says_so(tmp_path, rng, kind, inputs, attributes):
    constants, nodes = constants_of(inputs, rng), [call(kind, inputs, "y", **attributes)]
    fixed = lipschitz_bound(saved(tmp_path / "a.onnx", nodes, constants))
    every = lipschitz_bound(saved(tmp_path / "b.onnx", nodes, constants, OPEN))
    assert every.upper > 1.01 * fixed.upper
    assert every.notes == (EVERY,)


def test_a_mirrored_padding_is_never_below(tmp_path, rng):
    attributes = {"auto_pad": "SAME_LOWER", "strides": [2, 2]}
    check(saved(tmp_path / "model.onnx", [call("Conv", "x K", "y", **attributes)], constants_of("K", rng)))


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 0, 1, 1]])
def test_max_pooling_counts_the_windows_of_its_size(tmp_path, pads):
    nodes = [call("MaxPool", "x", "y", kernel_shape=[4, 3], strides=[3, 3], pads=pads)]
    bound, _ = check(saved(tmp_path / "model.onnx", nodes, {}))
    shared = 1 + (pads[0] + pads[2] > 0)  # one window of four rows fits into six, two into eight
    assert bound.upper == pytest.approx(shared**0.5, rel=1e-9)


@pytest.mark.parametrize("kind", ["AveragePool", "MaxPool"])
@pytest.mark.parametrize("attributes", [{"pads": [10**9] * 4}, {"dilations": [10**8, 1]}, {"kernel_shape": [10**9, 1]}])
def test_pooling_beyond_all_measure_ends_at_once_in_no_small_number(tmp_path, kind, attributes):
    nodes = [call(kind, "x", "y", **{"kernel_shape": [3, 3], **attributes})]
    upper = lipschitz_bound(saved(tmp_path / "model.onnx", nodes, {})).upper
    assert upper is None or upper >= 1


def test_an_image_beyond_all_measure_is_bounded_over_all_sizes(tmp_path):
    nodes = [call("MaxPool", "x", "y", kernel_shape=[3, 3], strides=[2, 2])]
    bound = lipschitz_bound(saved(tmp_path / "model.onnx", nodes, {}, (2, 10**12, 10**12)))
    assert bound.upper == pytest.approx(2, rel=1e-9)


def test_a_kernel_that_was_joined_with_a_scale_is_bounded_at_its_size(tmp_path, rng):
    constants = {**constants_of("K", rng), "s": rng.standard_normal(4), "z": np.zeros(4), "v": rng.uniform(0.2, 3, 4)}
    nodes = [call("Conv", "x K", "conv", pads=[2, 0, 1, 2]), call("BatchNormalization", "conv s z z v", "y")]
    bound, truth = check(saved(tmp_path / "model.onnx", nodes, constants))
    assert len(bound.steps) == 1
    assert bound.upper <= truth * (1 + PROOF)


def test_a_network_of_matrices_has_no_note_on_sizes(tmp_path, rng):
    assert lipschitz_bound(saved(tmp_path / "model.onnx", [call("MatMul", "x W", "y")], {"W": np.eye(6)})).notes == ()


@pytest.mark.parametrize("attributes", [{"pads": [1, 1, 1, 1]}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}])
def test_a_convolution_and_a_dense_layer_are_bounded_as_one(tmp_path, rng, attributes):
    """The chain of their explicit matrices, whose rows and columns meet in the order of ONNX, channels first."""
    size = 6 if "pads" in attributes else 3
    K, W = rng.standard_normal((3, 2, 3, 3)), rng.standard_normal((2, 3 * size**2))
    nodes = [
        call("Conv", "x K", "c", **attributes),
        call("Relu", "c", "z"),
        call("Flatten", "z", "f"),
        call("Gemm", "f W", "y", transB=1),
    ]
    bound, _ = check(saved(tmp_path / "model.onnx", nodes, {"K": K, "W": W}))
    columns = explicit_matrix(K.transpose(2, 3, 1, 0), (6, 6), attributes.get("strides", (1, 1)), "same", (1, 1), 1)
    rows = columns.reshape(size, size, 3, -1).transpose(2, 0, 1, 3).reshape(3 * size**2, -1)
    exact = bound_chain([rows, W], [(0.0, 1.0)])
    assert bound.upper == pytest.approx(exact, rel=1e-4)
    assert bound.upper < 0.9 * np.linalg.norm(rows, 2) * np.linalg.norm(W, 2)


def test_dense_layers_of_each_position_and_of_all_are_no_one_chain(tmp_path, rng):
    V, W, U = rng.standard_normal((6, 5)), rng.standard_normal((5, 6)), rng.standard_normal((3, 72))
    nodes = [
        call("MatMul", "x V", "a"),
        call("Relu", "a", "b"),
        call("MatMul", "b W", "c"),
        call("Flatten", "c", "f"),
        call("Gemm", "f U", "y", transB=1),
    ]
    bound, _ = check(saved(tmp_path / "model.onnx", nodes, {"V": V, "W": W, "U": U}))
    chain = bound_chain([V.T, W.T], [(0.0, 1.0)])
    assert bound.upper == pytest.approx(chain * np.linalg.norm(U, 2), rel=1e-5)
