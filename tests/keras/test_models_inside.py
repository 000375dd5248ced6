"""Models inside models: which value is which, by tables of inputs and outputs, and by calls that share a model."""

from collections import OrderedDict
from itertools import product

import keras
import numpy as np
import pytest
from keras import ops

from opnorm.networks.lipschitz import lipschitz_bound

L = keras.layers
LARGE, SMALL = 5.0, 0.001
ORDERS = ["ab", "ba"]


def large(x):
    return L.Rescaling(LARGE)(x)


def small(x):
    return L.Rescaling(SMALL)(x)


def uppers(model, tmp_path):
    """Return the upper ends of a live model and of its file."""
    model.save(tmp_path / "model.keras")
    return [lipschitz_bound(source).upper for source in (model, tmp_path / "model.keras")]


@pytest.mark.parametrize(("order", "name"), [*product(ORDERS, "ab")])
def test_each_result_of_a_table_is_a_value_of_its_own(order, name, tmp_path):
    inner = keras.Input((4,))
    part = keras.Model(inner, {key: large(inner) if key == "a" else small(inner) for key in order})
    x = keras.Input((4,))
    expected = pytest.approx((LARGE if name == "a" else SMALL) / 2 + 1 / 2)
    assert uppers(keras.Model(x, L.Average()([part(x)[name], x])), tmp_path) == [expected, expected]


def test_a_table_in_a_list_of_results(tmp_path):
    inner = keras.Input((4,))
    part = keras.Model(inner, [{"b": small(inner), "a": large(inner)}, inner])
    x = keras.Input((4,))
    for find, expected in ((lambda y: y[0]["a"], LARGE), (lambda y: y[0]["b"], SMALL)):
        assert uppers(keras.Model(x, find(part(x))), tmp_path) == [pytest.approx(expected)] * 2


@pytest.mark.parametrize(("order", "called", "is_list"), [*product(ORDERS, ORDERS, [False, True])])
def test_a_table_of_inputs_is_taken_by_its_keys(order, called, is_list, tmp_path):
    inner = {key: keras.Input((4,), name=key) for key in order}
    ends = L.Add()([large(inner["a"]), small(inner["b"])])
    part = keras.Model([*inner.values()] if is_list else inner, ends)
    x = keras.Input((4,))
    given = {"a": L.Identity()(x), "b": small(x)}
    model = keras.Model(x, L.Identity()(part({key: given[key] for key in called})))
    assert uppers(model, tmp_path) == [pytest.approx(LARGE + SMALL**2)] * 2


@pytest.mark.parametrize("order", ORDERS)
def test_a_table_with_an_order_of_its_own_is_not_read_by_its_keys(order):
    inner = keras.Input((4,))
    made = OrderedDict((key, large(inner) if key == "a" else small(inner)) for key in order)
    x = keras.Input((4,))
    bound = lipschitz_bound(keras.Model(x, small(keras.Model(inner, made)(x)["a"])))
    assert bound.upper is None if order == "ba" else bound.upper == pytest.approx(LARGE * SMALL)


@pytest.mark.parametrize("count", [1, 2])
def test_a_model_that_ends_in_a_call_of_another_one(count, tmp_path):
    """Keras counts that call from one on there, and from zero on everywhere else."""
    inner = keras.Input((4,))
    part = keras.Model(inner, large(inner))
    x = keras.Input((4,))
    first = part(x)
    ends = [first, small(part(small(x)))][:count]
    assert uppers(keras.Model(x, ends), tmp_path) == [pytest.approx(LARGE)] * 2
    assert uppers(keras.Model(x, part(part(x))), tmp_path) == [pytest.approx(LARGE**2)] * 2


@pytest.mark.parametrize("kind", ["Functional", "Sequential"])
def test_a_model_that_is_called_in_training_mode_normalizes_by_its_batch(kind, tmp_path):
    x = keras.Input((4,))
    layers = [L.Dense(4), L.BatchNormalization()]
    part = keras.Sequential([keras.Input((4,)), *layers])
    part = part if kind == "Sequential" else keras.Model(x, layers[1](layers[0](x)))
    for training in (True, False):
        bound = lipschitz_bound(keras.Model(x, L.ReLU()(part(x, training=training))))
        assert [step.kind for step in bound.unknown] == ["BatchNormalization"] * training
        assert (bound.upper is None) == training


def test_what_is_called_in_training_mode_is_joined_to_nothing():
    x = keras.Input((4,))
    before = L.BatchNormalization()(L.Dense(4)(x), training=True)
    behind = L.Dense(4)(L.BatchNormalization()(x, training=True))
    inside = L.TimeDistributed(L.BatchNormalization())(L.Reshape((2, 2))(x), training=True)
    for result in (before, behind, inside):
        assert [step.rule for step in lipschitz_bound(keras.Model(x, result)).unknown] == [
            "it is called in training mode"
        ]


def test_a_maximum_with_a_third_number_is_no_maximum_of_two():
    """Where all of a pair is negative, `a + b - max(a, b, 0)` is `a + b`."""
    x = keras.Input((8,))
    first, last = L.Dense(8), L.Dense(4)
    pairs = L.Reshape((4, 2))(first(x))
    a, b = (L.Flatten()(part) for part in ops.split(pairs, 2, axis=-1))
    model = keras.Model(x, last(a + b - ops.max(pairs, axis=-1, initial=0.0)))
    first.kernel.assign(np.eye(8))
    last.kernel.assign(np.eye(4))
    assert lipschitz_bound(model).upper >= np.sqrt(2)


PARTS = {
    "numbers": (lambda x: x[:, 0] + x[:, -1], 2),
    "a number behind": (lambda x: L.ReLU()(x[..., 1]) + x[..., 1], 2),
    "stacked": (lambda x: ops.stack([x, x], axis=1) + ops.stack([x, -x], axis=1), 2 * np.sqrt(2)),
    "divided": (lambda x: x / 4 + L.Softmax()(x / 2), 0.5),
    "clipped": (lambda x: ops.relu6(x) + ops.clip(x, -1, 1), 2),
}


@pytest.mark.parametrize("name", PARTS)
def test_what_calls_make_of_a_value_has_a_shape(name, tmp_path):
    function, most = PARTS[name]
    x = keras.Input((3, 4))
    assert uppers(keras.Model(x, function(x)), tmp_path) == [pytest.approx(most)] * 2


def test_a_number_divided_by_a_value_has_no_constant():
    x = keras.Input((3,))
    for result in (2.0 / x, ops.divide(2.0, x), ops.divide(x1=2.0, x2=x), ops.divide(x2=x, x1=2.0), x / x):
        assert lipschitz_bound(keras.Model(x, result)).upper is None
