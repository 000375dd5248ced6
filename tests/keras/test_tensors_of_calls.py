"""Which tensors a layer is called with, in which order, and what stands among them."""

import keras
import numpy as np
import pytest
from jacobians import jacobian

import opnorm

L, ops = keras.layers, keras.ops
SINGLE = 1e-4  # Jacobians in float32


def both(model, tmp_path):
    """Return the live model and its file, on PyTorch and the others alike."""
    model.save(tmp_path / "model.keras")
    return model, tmp_path / "model.keras"


def randomized(model):
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if "seed" not in variable.path:
            variable.assign(rng.normal(size=variable.shape))
    return model


ZEROS = np.zeros((1, 5, 3), "float32")
MIXED = {
    "add": lambda x: L.Add()([x, ZEROS]),
    "subtract": lambda x: L.Subtract()([x, ZEROS]),
    "multiply": lambda x: L.Multiply()([x, ZEROS + 5]),
    "average": lambda x: L.Average()([x, ZEROS]),
    "maximum": lambda x: L.Maximum()([x, ZEROS - 9]),
    "concatenate": lambda x: L.Conv1D(2, 3, padding="same")(ops.concatenate([x, ZEROS], axis=1)),
    "stack": lambda x: L.Conv2D(2, 3, padding="same")(ops.stack([x, ZEROS[:, :1]], axis=1)),
    "by keyword": lambda x: L.Add()(inputs=[x, ZEROS]),
    "relu behind": lambda x: L.ReLU()(L.Add()([x, ZEROS[:, :1] + 3])),
}


@pytest.mark.parametrize("name", MIXED)
def test_a_constant_among_the_tensors_of_a_call_is_not_left_out(name, tmp_path):
    x = keras.Input(batch_shape=(1, 1, 3))
    model = randomized(keras.Model(x, MIXED[name](x)))
    point = -np.ones((1, 3), "float32")
    for given in both(model, tmp_path):
        for bound in (opnorm.lipschitz_bound(given), opnorm.lipschitz_bound(given, around=point, radius=0.1)):
            assert bound.upper is None or jacobian(model, point) <= bound.upper * (1 + SINGLE)
            assert bound.upper is not None or "a constant among its tensors" in bound.unknown[0].rule


CALLS = {
    "key, value": lambda mha, q, v, k: mha(q, key=k, value=v),
    "query, value, key": lambda mha, q, v, k: mha(query=q, value=v, key=k),
    "by place": lambda mha, q, v, k: mha(q, v, k),
    "some by place": lambda mha, q, v, k: mha(q, v, key=k),
}


@pytest.mark.parametrize("how", CALLS)
def test_attention_that_is_called_by_keyword_has_the_jacobian_of_its_model(how, tmp_path):
    values = keras.Input((3, 12))
    q, v, k = (values[:, :, start : start + 4] for start in (0, 4, 8))
    model = randomized(keras.Model(values, CALLS[how](L.MultiHeadAttention(2, 3), q, v, k)))
    point = np.random.default_rng(1).normal(size=(3, 12)).astype("float32") * 0.3
    for given in both(model, tmp_path):
        bound = opnorm.lipschitz_bound(given, around=point, radius=0.0)
        assert bound.upper == pytest.approx(jacobian(model, point), rel=SINGLE)
        assert bound.lower == pytest.approx(jacobian(model, point), rel=SINGLE)


def test_attention_without_a_key_has_its_value_for_one_whatever_stands_behind(tmp_path):
    values = keras.Input((3, 8))
    q, v = values[:, :, :4], values[:, :, 4:]
    model = randomized(keras.Model(values, L.MultiHeadAttention(2, 3)(q, v, None)))
    point = np.random.default_rng(1).normal(size=(3, 8)).astype("float32") * 0.3
    for given in both(model, tmp_path):
        upper = opnorm.lipschitz_bound(given, around=point, radius=0.0).upper
        assert upper == pytest.approx(jacobian(model, point), rel=SINGLE)


@pytest.mark.parametrize("keyword", [None, "attention_mask"])
def test_a_mask_of_attention_is_no_key(keyword, tmp_path):
    values, mask = keras.Input((3, 4)), keras.Input((3, 3) if keyword else (3,))
    attention = L.MultiHeadAttention(2, 3)
    by_place = () if keyword else (None, mask > 0)  # between it and the value a key may be missing
    found = attention(values, values, *by_place, **({keyword: mask > 0} if keyword else {}))
    model = randomized(keras.Model([values, mask], found))
    points = [np.ones((3, 4), "float32"), np.ones(mask.shape[1:], "float32")]
    for one in both(model, tmp_path):
        assert opnorm.lipschitz_bound(one, around=points, radius=0.0).upper is None


@pytest.mark.parametrize("by_keyword", [False, True])
def test_a_model_that_is_called_with_a_table_takes_it_by_name(by_keyword, tmp_path):
    a, b, x = keras.Input((3,), name="a"), keras.Input((3,), name="b"), keras.Input((3,))
    one, two = L.Dense(2), L.Dense(2)
    inner = keras.Model([b, a], L.Concatenate()([one(a), two(b)]))
    one.kernel.assign(np.eye(3, 2))
    two.kernel.assign(np.eye(3, 2) * 0.1)
    table = {"a": 9.0 * x, "b": x}
    model = keras.Model(x, inner(inputs=table) if by_keyword else inner(table))
    point = np.ones(3, "float32")
    for given in both(model, tmp_path):
        assert opnorm.lipschitz_bound(given).upper == pytest.approx(jacobian(model, point), rel=SINGLE)


@pytest.mark.parametrize("limits", [([-9.0] * 5, 9.0), (-9.0, [9.0] * 5), ([-9.0] * 5, [9.0] * 5)])
def test_a_clip_between_lists_which_may_repeat_its_input_has_no_constant(limits, tmp_path):
    x = keras.Input((1,))
    model = keras.Model(x, ops.clip(x, *limits))
    for given in both(model, tmp_path):
        assert opnorm.lipschitz_bound(given).upper is None
        assert opnorm.lipschitz_bound(given, around=np.zeros(1), radius=0.1).upper is None


def test_a_clip_between_numbers_has_the_constant_one():
    x = keras.Input((3,))
    assert opnorm.lipschitz_bound(keras.Model(x, ops.clip(x, -9, 9.0))).upper == pytest.approx(1)


@pytest.mark.parametrize("value", [-2.0, 0.0, 2.0])
def test_a_maximum_from_an_initial_value_on_heeds_it_on_a_ball(value, tmp_path):
    x = keras.Input((3, 2))
    model = keras.Model(x, ops.max(x, axis=-1, initial=0.5))
    point = np.array([[value, value - 1]] * 3, "float32")
    for given in both(model, tmp_path):
        assert opnorm.lipschitz_bound(given).upper == pytest.approx(1)
        bound = opnorm.lipschitz_bound(given, around=point, radius=0.1)
        assert (bound.lower or 0.0) <= jacobian(model, point) <= bound.upper * (1 + SINGLE)
