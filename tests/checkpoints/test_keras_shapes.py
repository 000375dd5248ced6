"""What a Keras file says of shapes between layers, or under names of our own, is no ground for a bound."""

import numpy as np
import pytest

from opnorm.auditing.audits import audit
from opnorm.networks.lipschitz import lipschitz_bound
from tests.samples import functional, keras_file, layer

IMAGE = [None, 2, 2, 1]
LIE = {"class_name": "__keras_tensor__", "config": {"shape": [None, 90, 90, 1], "keras_history": ["image", 0, 0]}}


def bound(path, *layers, last, weights=None, **image):
    first = layer("InputLayer", "image", **({"batch_shape": IMAGE} | image))
    return lipschitz_bound(keras_file(path / "a.keras", functional([first, *layers], ["image"], [last]), weights or {}))


def lying(kind, name, **config):
    return {**layer(kind, name, **config), "inbound_nodes": [{"args": [LIE], "kwargs": {}}]}


def test_the_pixels_of_a_mean_are_counted_and_not_believed(tmp_path):
    assert bound(tmp_path, lying("GlobalAveragePooling2D", "g"), last="g").upper == pytest.approx(1 / 2)
    named = lying(
        "GlobalAveragePooling2D", "g", input_shapes=[[None, 90, 90, 1]], build_config={"input_shape": [1, 9, 9, 1]}
    )
    assert bound(tmp_path, named, last="g").upper == pytest.approx(1 / 2)
    twice = {"batch_input_shape": [None, 1, 1, 1]}  # which Keras takes, where both are given
    assert bound(tmp_path, lying("GlobalAveragePooling2D", "g"), last="g", **twice).upper == pytest.approx(1)


@pytest.mark.parametrize("sizes", [(2, 2), (None, None)])
def test_a_branch_of_another_size_is_repeated_whatever_the_file_says(tmp_path, sizes):
    """Of an image of 2 x 2 pixels the pooled branch is one pixel, which counts four times; both sizes may be open."""
    pooled = layer("MaxPooling2D", "small", ["image"], pool_size=[2, 2], padding="valid")
    both = layer("Add", "sum", ["image", "small"])
    for call in both["inbound_nodes"][0]["args"][0]:
        call["config"]["shape"] = [None, 2, 2, 1]
    found = bound(tmp_path, pooled, both, last="sum", batch_shape=[None, *sizes, 1])
    if None in sizes:
        assert found.upper is None
        assert "repeated" in found.unknown[0].rule
    else:
        exact = np.linalg.norm(np.eye(4) + np.outer(np.ones(4), [1, 0, 0, 0]), 2)  # where the first pixel is largest
        assert exact <= found.upper <= (1 + 2) * (1 + 1e-6)


def test_a_branch_that_keeps_an_open_size_is_added(tmp_path):
    relu = layer("ReLU", "r", ["image"])
    assert bound(
        tmp_path, relu, layer("Add", "sum", ["image", "r"]), last="sum", batch_shape=[None, None, None, 1]
    ).upper == pytest.approx(2)


def test_an_option_of_our_own_in_a_file_changes_no_bound(tmp_path):
    kernel = np.diag([3.0, 2.0]).astype("float32")
    dense = layer("Dense", "d", ["image"], rounding=-2.0, kernel_layout="channels_first", other_epsilons=[1.0])
    wrapped = layer("TimeDistributed", "t", ["image"], layer=layer("Dense", "d", rounding=-2.0))
    for one, path in ((dense, "dense"), (wrapped, "time_distributed/layer")):
        found = bound(
            tmp_path, one, last=one["name"], weights={path: ("d", [kernel, np.zeros(2)])}, batch_shape=[None, 2, 2]
        )
        assert found.upper == pytest.approx(3, rel=1e-5)
    (row, _) = audit(tmp_path / "a.keras").rows
    assert row.upper == pytest.approx(3, rel=1e-5)


def test_the_slope_that_keras_takes_counts(tmp_path):
    """Keras 3 lets the old name of the slope win."""
    leaky = layer("LeakyReLU", "l", ["image"], negative_slope=0.1, alpha=7.0)
    assert bound(tmp_path, leaky, last="l").upper == pytest.approx(7)


@pytest.mark.parametrize("sizes", [(2, 2), (None, None)])
def test_behind_a_gate_that_is_repeated_over_the_image_the_shape_is_the_image_s(tmp_path, sizes):
    layers = [
        layer("GlobalMaxPooling2D", "gate", ["image"], keepdims=True),
        layer("Multiply", "gated", ["image", "gate"]),
        layer("Add", "sum", ["image", "gated"]),
    ]
    found = bound(tmp_path, *layers, last="sum", batch_shape=[None, *sizes, 3])
    assert [step.name for step in found.unknown] == ["gated"]
