"""Numbers that a graph computes of shapes, against what ONNX's reference implementation computes in a run."""

import numpy as np
import pytest
from onnx_calls import call

from opnorm.checkpoints.onnx_shapes import value_shapes

onnx = pytest.importorskip("onnx")  # an extra of opnorm's

STORED = {
    "zero": np.array(0), "first": np.array([0]), "one": np.array(1), "second": np.array([1]), "two": np.array([2]),
    "rest": np.array([-1]), "sizes": np.array([0, 1]), "both": np.array([1, 2]),
}  # fmt: skip


def filled(value):
    return call("ConstantOfShape", value, "ones", value=onnx.numpy_helper.from_array(np.array([1]), "filling"))


HALVES = [
    call("Shape", "x", "shape"),
    call("Gather", "shape one", "count", axis=0),
    call("Add", "count one", "more"),
    call("Div", "more two", "middle"),
    call("Mul", "middle two", "end"),
    call("Slice", "x first middle second", "a"),
    call("Slice", "x middle end second", "b"),
    call("Max", "a b", "y"),
]
GROUPS = [
    call("Shape", "x", "batch", start=0, end=1),
    call("Concat", "batch rest two", "target", axis=0),
    call("Reshape", "x target", "groups", allowzero=0),
    call("Shape", "groups", "form"),
    call("Gather", "form two", "size", axis=0),
    call("TopK", "groups size", "sorted places"),
    call("Flatten", "sorted", "y"),
]
EXPANDED = [  # `x[:, :1].expand(-1, 6)`
    call("Slice", "x first second second", "a"),
    call("Concat", "rest six", "wanted", axis=0),
    call("Shape", "wanted", "rank"),
    filled("rank"),
    call("Equal", "wanted rest", "open"),
    call("Where", "open ones wanted", "target"),
    call("Expand", "a target", "y"),
]
SQUEEZED = [
    call("Shape", "x", "shape"),
    call("Slice", "shape second two first", "count"),
    call("Squeeze", "count first", "number"),
    call("Unsqueeze", "number first", "again"),
    call("Cast", "again", "cast", to=7),
    call("Sub", "cast two", "less"),
    call("Slice", "x first less second", "y"),
]
EXCHANGED = [
    call("Shape", "x", "shape"),
    call("Gather", "shape turned", "target", axis=0),
    call("Reshape", "x target", "y"),
]
OPEN = [call("Shape", "x", "shape"), call("Gather", "shape first", "n", axis=0), call("Slice", "x first n first", "y")]
GRAPHS = {
    "halves": (HALVES, {"y": ("N", 3)}),
    "groups": (GROUPS, {"groups": ("N", 3, 2), "sorted": ("N", 3, 2)}),
    "expanded": (EXPANDED, {"y": (None, 6)}),
    "squeezed": (SQUEEZED, {"y": ("N", 4)}),
    "exchanged": (EXCHANGED, {"y": (None, None)}),
    "open": (OPEN, {"y": (None, None)}),
}


def model_of(nodes, shape=("N", 6)):
    make, double = onnx.helper, onnx.TensorProto.DOUBLE
    stored = STORED | {"six": np.array([6]), "turned": np.array([1, 0])}
    tensors = [onnx.numpy_helper.from_array(values, name) for name, values in stored.items()]
    ends = [make.make_tensor_value_info("x", double, shape), make.make_tensor_value_info("y", double, None)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    return make.make_model(
        make.make_graph(copies, "g", ends[:1], ends[1:], tensors), opset_imports=[make.make_opsetid("", 17)]
    )


def computed(nodes, x):
    """Return every value of a run."""
    from onnx.reference import ReferenceEvaluator

    model = model_of(nodes)
    names = [name for node in nodes for name in node.output]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return {**STORED, "x": x, **dict(zip(names, ReferenceEvaluator(model).run(None, {"x": x}), strict=True))}


@pytest.mark.parametrize("name", GRAPHS)
def test_known_sizes_and_numbers_are_those_of_a_run(name):
    nodes, expected = GRAPHS[name]
    shapes, numbers, _ = value_shapes(model_of(nodes))
    for batch in (1, 5):
        found = computed(nodes, np.ones((batch, 6)))
        for value, shape in shapes.items():
            if value in found:
                sizes = [batch if size == "N" else size for size in shape]
                same = [n in (m, size) for n, m, size in zip(found[value].shape, sizes, shape, strict=True)]
                assert all(same or isinstance(size, str) for same, size in zip(same, shape, strict=True)), value
        for (result, place), told in numbers.items():
            (node,) = (node for node in nodes if node.output[0] == result)
            data, true = found[node.input[0]], np.ravel(found[node.input[place]])
            kept = node.op_type == "Reshape"
            assert [data.shape[i] if kept and n == 0 else n for i, n in enumerate(told.ravel())] == true.tolist()
    for value, shape in expected.items():
        assert len(shapes[value]) == len(shape)
        assert all(size in (None, known) for size, known in zip(shape, shapes[value], strict=True)), shapes[value]
        assert all(isinstance(known, str) for size, known in zip(shape, shapes[value], strict=True) if size is None)


def test_a_size_that_is_open_tells_no_limit():
    _, numbers, _ = value_shapes(model_of(HALVES, ("N", "width")))
    assert numbers == {}


def test_a_zero_that_is_a_size_is_not_taken_for_a_kept_one():
    """With `allowzero` a zero in a target is a size of zero."""
    nodes = [*GROUPS[:2], call("Reshape", "x target", "y", allowzero=1)]
    _, numbers, _ = value_shapes(model_of(nodes))
    assert numbers == {}


@pytest.mark.parametrize("large", [2**31, 2**62, -(2**62)])
def test_numbers_that_a_type_may_not_hold_are_not_known(large):
    nodes = [*HALVES[:2], call("Mul", "count large", "limit"), call("Slice", "x first limit second", "y")]
    model = model_of(nodes)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([large]), "large"))
    _, numbers, _ = value_shapes(model)
    assert numbers == {}
