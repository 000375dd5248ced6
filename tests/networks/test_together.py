"""Parts of values, maxima beside minima, sorted groups: what is side by side without being longer than its origin."""

from itertools import product

import numpy as np
import pytest
from test_network_onnx import call, check, saved

from opnorm.networks.lipschitz import lipschitz_bound

pytest.importorskip("onnx")  # an extra of opnorm's

NUMBERS = {
    "zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "half": np.array([3]), "all": np.array([2**62]),
    "minus": np.array([-1]), "share": np.array(0.5),
}  # fmt: skip
HALVES, OTHERS = [(0, 3), (1, 4), (2, 5)], [(0, 1), (2, 3), (4, 5)]  # pairs of six entries


def beside(first, second, result="y"):
    return call("Concat", f"{first} {second}", result, axis=1)


def parts(value):
    return [call("Split", value, "a b", axis=1)]


def slices(value):
    return [call("Slice", f"{value} zero half one", "a"), call("Slice", f"{value} half all one", "b")]


def computed(value):
    """Return `x[:, : x.shape[1] // 2]` and the rest as PyTorch's exporter writes them."""
    return [
        call("Shape", value, "shape"),
        call("Gather", "shape one", "count"),
        call("Div", "count two", "middle"),
        call("Slice", f"{value} zero middle one", "a"),
        call("Slice", f"{value} middle all one", "b"),
    ]


def extremes():
    return [call("Max", "a b", "high"), call("Min", "b a", "low")]


def every_other(value, result):
    return [
        call("Slice", f"{value} zero all one two", "a"),
        call("Slice", f"{value} one all one two", "b"),
        *extremes(),
        call("Unsqueeze", "high two", "higher"),
        call("Unsqueeze", "low two", "lower"),
        call("Concat", "higher lower", "pairs", axis=2),
        call("Flatten", "pairs", result),
    ]


def groups(value, result):
    """Return deel-torchlip's GroupSort2."""
    return [
        call("Shape", value, "shape"),
        call("Slice", "shape zero one", "first"),
        call("Concat", "first minus two", "target", axis=0),
        call("Reshape", f"{value} target", "groups"),
        call("ReduceMin", "groups", "low", axes=[2], keepdims=1),
        call("ReduceMax", "groups", "high", axes=[2], keepdims=1),
        call("Concat", "low high", "pairs", axis=2),
        call("Reshape", "pairs shape", result),
    ]


def magnitudes(value, result):
    """Return the same of halves, from the magnitude of a difference."""
    return [
        *parts(value),
        call("Sub", "a b", "difference"),
        call("Abs", "difference", "magnitude"),
        call("Add", "a b", "sum"),
        call("Add", "sum magnitude", "high"),
        call("Sub", "sum magnitude", "low"),
        beside("low", "high", "twice"),
        call("Mul", "twice share", result),
    ]


FORMS = {
    "parts": (lambda value, result: [*parts(value), *extremes(), beside("low", "high", result)], HALVES),
    "slices": (lambda value, result: [*slices(value), *extremes(), beside("low", "high", result)], HALVES),
    "computed": (lambda value, result: [*computed(value), *extremes(), beside("high", "low", result)], HALVES),
    "every other": (every_other, OTHERS),
    "groups": (groups, OTHERS),
    "magnitudes": (magnitudes, HALVES),
}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def jacobians(pairs):
    """Yield what sorting pairs of six entries may do to a difference: leave each pair as it is, or exchange it."""
    for exchanged in product((False, True), repeat=len(pairs)):
        order = np.arange(6)
        for (i, k), is_exchanged in zip(pairs, exchanged, strict=True):
            order[[i, k]] = (k, i) if is_exchanged else (i, k)
        yield np.eye(6)[order]


@pytest.mark.parametrize("form", FORMS)
def test_a_network_of_maxima_and_minima_is_bounded_as_a_whole(tmp_path, rng, form):
    nodes, pairs = FORMS[form]
    V, W = rng.standard_normal((6, 6)), rng.standard_normal((4, 6))
    layers = [call("MatMul", "x V", "h"), *nodes("h", "m"), call("MatMul", "m W", "y")]
    bound = lipschitz_bound(saved(tmp_path / "model.onnx", layers, {"V": V.T, "W": W.T, **NUMBERS}, (6,)))
    exact = max(np.linalg.norm(W @ J @ V, 2) for J in jacobians(pairs))  # V is regular: all are met
    assert exact <= bound.upper * (1 + 1e-9)
    assert bound.upper <= (1 + 1e-5) * exact
    assert bound.upper < 0.9 * np.linalg.norm(W, 2) * np.linalg.norm(V, 2)


@pytest.mark.parametrize(
    "form", [form for form in FORMS if form != "magnitudes"]
)  # of sums alone is known that they may be twice as long
def test_maxima_and_minima_alone_are_no_longer_than_what_goes_in(tmp_path, form):
    bound = lipschitz_bound(saved(tmp_path / "model.onnx", FORMS[form][0]("x", "y"), NUMBERS, (6,)))
    assert bound.upper == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("kinds", ["Max Max", "Min Min", "Max Abs"])
def test_other_pairs_count_twice(tmp_path, kinds):
    """`max(a, b)` twice moves sqrt(2) times as far as one entry of a."""
    first, second = kinds.split()
    pair = call(second, "a b" if second != "Abs" else "a", "n")
    nodes = [*parts("x"), call(first, "a b", "m"), pair, beside("m", "n")]
    bound = lipschitz_bound(saved(tmp_path / "model.onnx", nodes, {}, (6,)))
    assert bound.upper >= np.sqrt(2)


@pytest.mark.parametrize("cuts", ["0:4 2:6", "0:4 3:4", "0:6:2 0:6:3"])
def test_parts_that_share_an_entry_count_it_twice(tmp_path, cuts):
    nodes, stored = [], {"axis": np.array([1])}
    for name, cut in zip("mn", cuts.split(), strict=True):
        numbers = [*map(int, cut.split(":")), 1][:3]
        stored |= {f"{name}{i}": np.array([n]) for i, n in enumerate(numbers)}
        nodes.append(call("Slice", f"x {name}0 {name}1 axis {name}2", name))
    bound = lipschitz_bound(saved(tmp_path / "model.onnx", [*nodes, beside("m", "n")], stored, (6,)))
    assert bound.upper == pytest.approx(np.sqrt(2), rel=1e-9)


def test_parts_that_share_none_are_one_value(tmp_path):
    stored = {"sizes": np.array([1, 2, 3])}
    three = call("Split", "x sizes", "a b c", axis=1)
    once = lipschitz_bound(saved(tmp_path / "a.onnx", [three, call("Concat", "c a b", "y", axis=1)], stored, (6,)))
    assert once.upper == pytest.approx(1, rel=1e-9)
    twice = lipschitz_bound(saved(tmp_path / "b.onnx", [three, call("Concat", "c a c", "y", axis=1)], stored, (6,)))
    assert twice.upper >= np.sqrt(2)


def test_the_largest_and_smallest_of_one_entry_are_both_it(tmp_path):
    nodes = [call("ReduceMax", "x", "m", axes=[2]), call("ReduceMin", "x", "n", axes=[2]), beside("m", "n")]
    for sizes, expected in (((6, 1), np.sqrt(2)), ((6, 3), 1.0), ((6, "open"), np.sqrt(2))):
        bound = lipschitz_bound(saved(tmp_path / "model.onnx", nodes, {}, sizes))
        assert bound.upper == pytest.approx(expected, rel=1e-9)


def of_both_signs(value, result):
    return [call("Neg", value, "minus"), call("Relu", "minus", "n"), call("Relu", value, "m"), beside("m", "n", result)]


def test_positive_parts_of_both_signs_are_no_longer_than_the_value(tmp_path):
    bound = lipschitz_bound(saved(tmp_path / "model.onnx", of_both_signs("x", "y"), {}, (6,)))
    assert bound.upper == pytest.approx(1, rel=1e-9)


def test_positive_parts_of_both_signs_are_bounded_as_a_whole(tmp_path, rng):
    V, W = rng.standard_normal((6, 6)), rng.standard_normal((4, 12))
    layers = [call("MatMul", "x V", "h"), *of_both_signs("h", "both"), call("MatMul", "both W", "y")]
    bound = lipschitz_bound(saved(tmp_path / "model.onnx", layers, {"V": V.T, "W": W.T}, (6,)))
    signs = (np.array(one, float) for one in product((0, 1), repeat=6))
    exact = max(np.linalg.norm(W @ np.concatenate([np.diag(s), np.diag(s - 1)]) @ V, 2) for s in signs)
    assert exact <= bound.upper * (1 + 1e-9)
    assert bound.upper <= 1.2 * exact


def test_a_gate_of_one_part_for_another_is_no_gated_activation(tmp_path):
    """`torch.nn.functional.glu`: the two parts are two values, whatever the operator that gives both is called."""
    nodes = [*parts("x"), call("Sigmoid", "b", "gate"), call("Mul", "a gate", "y")]
    bound = lipschitz_bound(saved(tmp_path / "model.onnx", nodes, {}, (6,)))
    assert bound.upper is None
    assert [step.kind for step in bound.unknown] == ["Mul"]


def test_a_convolutional_network_of_sorted_pairs_is_never_below_its_jacobians(tmp_path, rng):
    K, L, W = rng.standard_normal((4, 2, 3, 3)), rng.standard_normal((4, 4, 3, 3)), rng.standard_normal((3, 4 * 36))
    stored = {"K": K, "L": L, "W": W, "form": np.array([0, 2, 2, 6, 6]), "back": np.array([0, 4, 6, 6])}
    nodes = [
        call("Conv", "x K", "h", pads=[1, 1, 1, 1]),
        *parts("h"),
        *extremes(),
        beside("low", "high", "m"),
        call("Conv", "m L", "g", pads=[1, 1, 1, 1]),
        call("Reshape", "g form", "groups"),
        call("ReduceMax", "groups", "higher", axes=[2], keepdims=1),
        call("ReduceMin", "groups", "lower", axes=[2], keepdims=1),
        call("Concat", "higher lower", "pairs", axis=2),
        call("Reshape", "pairs back", "sorted"),
        call("Flatten", "sorted", "flat"),
        call("Gemm", "flat W", "y", transB=1),
    ]
    bound, _ = check(saved(tmp_path / "model.onnx", nodes, stored))
    constants = {step.name: step.constant for step in bound.steps}
    assert bound.upper < 0.8 * constants["h"] * constants["g"] * constants["y"]


@pytest.mark.parametrize("between", [[], [call("Relu", "h", "r")]])
def test_the_rows_and_the_columns_of_a_batch_are_two_things(tmp_path, rng, between):
    """`(x^T V)^T W` multiplies rows with V and columns with W: its norm is the product of theirs."""
    V, W = rng.standard_normal((2, 6, 6))
    last = "r" if between else "h"
    for nodes in (
        [call("Gemm", "x V", "h", transA=1), *between, call("Gemm", f"{last} W", "y", transA=1)],
        [call("Gemm", "x V", "h"), *between, call("Gemm", f"{last} W", "y", transA=1)],
    ):
        bound = lipschitz_bound(saved(tmp_path / "model.onnx", nodes, {"V": V, "W": W}, (6,)))
        assert bound.upper >= np.linalg.norm(V, 2) * np.linalg.norm(W, 2)


def test_an_entry_that_is_picked_from_both_ends_counts_twice_on_a_ball_too(tmp_path):
    path = saved(
        tmp_path / "model.onnx", [call("Gather", "x places", "y", axis=1)], {"places": np.array([5, -1])}, (6,)
    )
    assert lipschitz_bound(path, around=np.ones(6), radius=0.1).upper >= np.sqrt(2) * (1 - 1e-9)
