"""Gated activations that a network writes out in several nodes, against quotients of ONNX's own reference."""

import numpy as np
import pytest
from test_network_onnx import call, function, saved

from opnorm.networks.lipschitz import lipschitz_bound

H = 1e-3
X = np.arange(-12, 12, H)
ROUNDING = 1e-9  # of a difference quotient of numbers below 150: 2^-52 * 150 / h, some operations
NEAR = 2e-3  # the steepest point may lie inside a step of the grid: h times the second derivative
NUMBERS = {
    "half": 0.5, "one": 1.0, "two": 2.0, "three": 3.0, "six": 6.0, "zero": 0.0, "minus": -2.5,
    "root": np.sqrt(2.0), "inverse": np.sqrt(0.5), "quick": 1.702,
    "slope": np.sqrt(2 / np.pi), "cube": 0.044715,
}  # fmt: skip
FORMS = {
    "silu": [("Sigmoid", "x", "g"), ("Mul", "x g", "y")],
    "silu, the gate first": [("Sigmoid", "x", "g"), ("Mul", "g x", "y")],
    "quick gelu": [("Mul", "x quick", "z"), ("Sigmoid", "z", "g"), ("Mul", "x g", "y")],
    "a mirrored silu": [("Neg", "x", "z"), ("Sigmoid", "z", "g"), ("Mul", "x g", "y")],
    "gelu, halved last": [
        ("Div", "x root", "z"), ("Erf", "z", "e"), ("Add", "e one", "g"), ("Mul", "x g", "p"), ("Mul", "p half", "y"),
    ],
    "gelu, halved first": [
        ("Mul", "x half", "h"), ("Mul", "x inverse", "z"), ("Erf", "z", "e"), ("Add", "one e", "g"),
        ("Mul", "h g", "y"),
    ],
    "gelu's tanh form, a product of three": [
        ("Mul", "x x", "s"), ("Mul", "x s", "t"), ("Mul", "cube t", "u"), ("Add", "x u", "v"), ("Mul", "slope v", "z"),
        ("Tanh", "z", "e"), ("Add", "one e", "g"), ("Mul", "x g", "p"), ("Mul", "half p", "y"),
    ],
    "gelu's tanh form, a power": [
        ("Mul", "x half", "h"), ("Pow", "x three", "t"), ("Mul", "t cube", "u"), ("Add", "x u", "v"),
        ("Mul", "v slope", "z"), ("Tanh", "z", "e"), ("Add", "e one", "g"), ("Mul", "h g", "y"),
    ],
    "gelu's tanh form, factored": [
        ("Mul", "x half", "h"), ("Mul", "x slope", "k"), ("Mul", "x cube", "t"), ("Mul", "t x", "u"),
        ("Add", "u one", "v"), ("Mul", "k v", "z"), ("Tanh", "z", "e"), ("Add", "e one", "g"), ("Mul", "g h", "y"),
    ],
    "gelu of a negative scale": [
        ("Div", "x minus", "z"), ("Erf", "z", "e"), ("Sub", "three e", "g"), ("Mul", "x g", "y"),
    ],
    "x tanh x": [("Tanh", "x", "g"), ("Mul", "x g", "y")],
    "mish": [("Softplus", "x", "s"), ("Tanh", "s", "g"), ("Mul", "x g", "y")],
    "hard swish of HardSigmoid": [("HardSigmoid", "x", "g"), ("Mul", "x g", "y")],
    "hard swish of Clip": [
        ("Add", "x three", "z"), ("Clip", "z zero six", "c"), ("Mul", "x c", "p"), ("Div", "p six", "y"),
    ],
    "hard swish, divided first": [
        ("Add", "x three", "z"), ("Clip", "z zero six", "c"), ("Div", "c six", "g"), ("Mul", "x g", "y"),
    ],
    "a clip far from zero": [("Sub", "x six", "z"), ("Clip", "z minus one", "c"), ("Mul", "c x", "y")],
    "a clip of the negative": [("Sub", "two x", "z"), ("Clip", "z minus one", "c"), ("Mul", "c x", "y")],
}  # fmt: skip


def network(path, form):
    used = {word for _, inputs, _ in form for word in inputs.split()} & set(NUMBERS)
    nodes = [call(*node) for node in form]
    return saved(path / "model.onnx", nodes, {name: np.asarray(NUMBERS[name]) for name in used}, shape=X.shape)


@pytest.mark.parametrize("form", FORMS)
def test_a_gate_that_is_written_out_is_one_function_with_its_own_constant(tmp_path, form):
    path = network(tmp_path, FORMS[form])
    bound = lipschitz_bound(path)
    steepest = np.abs(np.diff(function(path)(X, X.shape)) / H).max()
    assert bound.unknown == ()
    assert steepest <= bound.upper + ROUNDING
    assert bound.upper <= steepest * (1 + NEAR)


@pytest.mark.parametrize(
    "form",
    [
        [("Sin", "x", "g"), ("Mul", "x g", "y")],
        [("Clip", "x zero", "g"), ("Mul", "x g", "y")],
        [("Add", "x one", "z"), ("Sigmoid", "z", "g"), ("Mul", "x g", "y")],
        [("Neg", "x", "z"), ("Softplus", "z", "s"), ("Tanh", "s", "g"), ("Mul", "x g", "y")],
        [("Tanh", "x", "z"), ("Sigmoid", "x", "g"), ("Mul", "z g", "y")],
        [("Add", "x one", "z"), ("Sigmoid", "x", "g"), ("Mul", "z g", "y")],
        [("Div", "one x", "y")],
        [("Div", "x zero", "y")],
    ],
)  # fmt: skip
def test_a_product_or_quotient_without_a_known_constant_is_unknown(tmp_path, form):
    bound = lipschitz_bound(network(tmp_path, form))
    assert bound.upper is None
    assert [step.name for step in bound.unknown] == ["y"]


@pytest.mark.parametrize(
    "form",
    [
        [("Pow", "x three", "t"), ("Add", "x t", "z"), ("Tanh", "z", "g"), ("Mul", "x g", "y")],  # steeper than GELU's
        [("Mul", "x x", "t"), ("Add", "x t", "z"), ("Tanh", "z", "g"), ("Mul", "x g", "y")],
        [("Pow", "three x", "t"), ("Add", "x t", "z"), ("Tanh", "z", "g"), ("Mul", "x g", "y")],
    ],
)
def test_another_polynomial_inside_tanh_is_unknown(tmp_path, form):
    bound = lipschitz_bound(network(tmp_path, form))
    assert bound.upper is None
    assert "y" in [step.name for step in bound.unknown]


def test_a_gate_that_something_else_reads_keeps_its_row(tmp_path):
    form = [("Sigmoid", "x", "g"), ("Mul", "x g", "p"), ("Add", "p g", "y")]
    bound = lipschitz_bound(network(tmp_path, form))
    assert {step.name for step in bound.steps} == {"g", "p", "y"}
    assert bound.upper == pytest.approx(1.09984 + 0.25, rel=1e-9)


def test_a_gate_that_nothing_else_reads_has_no_row(tmp_path):
    bound = lipschitz_bound(network(tmp_path, FORMS["gelu, halved last"]))
    assert [step.name for step in bound.steps] == ["p", "y"]


def test_dividing_by_constants_divides_by_the_smallest(tmp_path):
    path = saved(tmp_path / "model.onnx", [call("Div", "x c", "y")], {"c": np.array([4.0, -0.5, 2.0])}, shape=(3,))
    assert lipschitz_bound(path).upper == pytest.approx(2, rel=1e-9)


@pytest.mark.parametrize("form", ["silu", "silu, the gate first", "a mirrored silu"])
def test_a_silu_in_several_nodes_has_the_constant_of_the_one(tmp_path, form):
    assert lipschitz_bound(network(tmp_path, FORMS[form])).upper == pytest.approx(1.09984, rel=1e-9)


def test_a_gate_that_is_halved_afterwards_stays_in_its_chain(tmp_path):
    rng = np.random.default_rng(0)
    W = {name: rng.standard_normal((6, 6)) for name in "ABC"}
    halved = [
        (kind, inputs.replace("x", "a"), output.replace("y", "b"))
        for kind, inputs, output in FORMS["gelu, halved last"]
    ]
    nodes = [call("MatMul", "x A", "a"), *(call(*node) for node in halved), call("MatMul", "b B", "y")]
    bound = lipschitz_bound(saved(tmp_path / "model.onnx", nodes, {**W, **NUMBERS}, shape=(6,)))
    assert [step.kind for step in bound.steps][-1] == "chain"
    product = 1.128994 * np.linalg.norm(W["A"], 2) * np.linalg.norm(W["B"], 2)
    assert bound.upper < 0.99 * product
