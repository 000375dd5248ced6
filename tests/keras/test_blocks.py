"""`groups` and `blockwise`: the blocks of one kernel, each with the norm asked for, or all scaled by the largest."""

import json
from typing import Any, NamedTuple

import dense
import explicit
import keras
import numpy as np
import pytest
from cases import ALL, CAPS, EVERY, built_optimizer, gaussian, take_steps
from keras import layers

C = 0.9
SCALED = ["SpectralNorm", "MaxSpectralNorm"]  # the others change each block by itself anyway


class Stack(NamedTuple):
    """A kernel of three blocks, with norms near 6, 2 and 0.3."""

    kernel: np.ndarray
    geometry: dict[str, Any]
    blocks: Any  # from the kernel to the explicit matrices


def stack(blocks, axis, geometry, matrix=lambda block: block):
    """Return the stack of these `blocks` along `axis`; a slice of it, as a `matrix`, is what the layer applies."""
    scaled = [factor * block / explicit.norm(matrix(block)) for factor, block in zip((6, 2, 0.3), blocks, strict=True)]
    join = np.stack if axis < blocks[0].ndim and "operator" not in geometry else np.concatenate

    def split(kernel):
        pieces = np.split(dense.array(kernel).astype("float64"), 3, axis)
        return [matrix(p if join is np.concatenate else p.squeeze(axis)) for p in pieces]

    return Stack(join(scaled, axis).astype("float32"), {**geometry, "groups": 3}, split)


def sliding(block):
    """Return the explicit matrix on 48 pixels, whose border costs far less than the tolerances."""
    return explicit.explicit_matrix(block, (48,), (1,), "same", (1,), 1)


MATRICES = {
    "experts": stack([gaussian(6, 4, seed=i) for i in range(3)], 0, {"axis": (0, -1)}),
    "heads": stack([gaussian(6, 4, seed=i) for i in range(3)], 1, {"axis": (-2, -1)}),
}
GROUPED = stack([gaussian(3, 2, 2, seed=i) for i in range(3)], 2, {"operator": "convolution"}, sliding)


def variable(case, blocks, **options):
    constraint = case.build(C, **case.options({**blocks.geometry, **options}))
    result = keras.Variable(blocks.kernel, name="kernel")
    result.constraint = constraint
    return result


def updated(case, blocks, **options):
    """Return the kernel after one update of an optimizer."""
    kernel = variable(case, blocks, **options)
    take_steps(built_optimizer([kernel]), [kernel])
    return dense.array(kernel)


@pytest.mark.parametrize("constraint_name", ALL)
@pytest.mark.parametrize("name", MATRICES)
def test_each_block_has_its_own_norm_after_one_update(constraint_name, name):
    case, blocks = ALL[constraint_name], MATRICES[name]
    result = updated(case, blocks, blockwise=True)
    for before, after in zip(blocks.blocks(blocks.kernel), blocks.blocks(result), strict=True):
        truth = dense.with_values(before, lambda s: case.values(s, C))
        assert after == pytest.approx(truth, abs=0.02 * explicit.norm(truth))  # a cold start, C5
        assert explicit.norm(after) == pytest.approx(explicit.norm(truth), rel=0.02)  # C5


@pytest.mark.parametrize("constraint_name", EVERY)
def test_each_group_of_a_convolution_has_its_own_norm_after_one_update(constraint_name):
    case = EVERY[constraint_name]
    norms = [explicit.norm(m) for m in GROUPED.blocks(updated(case, GROUPED, blockwise=True))]
    expected = [case.values(np.array([n]), C)[0] for n in (6, 2, 0.3)]
    assert norms == pytest.approx(expected, rel=0.02)  # C5, and a clipped convolution ends within 1 % below the bound


@pytest.mark.parametrize("constraint_name", SCALED)
@pytest.mark.parametrize("name", [*MATRICES, "grouped"])
def test_without_blockwise_the_largest_norm_counts_and_all_blocks_are_scaled_alike(constraint_name, name):
    blocks = {**MATRICES, "grouped": GROUPED}[name]
    result = updated(ALL[constraint_name], blocks)
    largest, *others = (explicit.norm(m) for m in blocks.blocks(result))
    assert largest == pytest.approx(C, rel=0.02)  # a cold start, C5
    assert others == pytest.approx([largest * 2 / 6, largest * 0.3 / 6], rel=1e-5)  # float32 rounding of one factor
    assert result == pytest.approx(blocks.kernel * (largest / 6), rel=1e-5)  # the same


@pytest.mark.parametrize("constraint_name", CAPS)
@pytest.mark.parametrize("name", MATRICES)
def test_a_block_inside_the_ball_is_left_bit_for_bit_beside_blocks_outside(constraint_name, name):
    blocks = MATRICES[name]
    result = updated(ALL[constraint_name], blocks, blockwise=True)
    before, after = (blocks.blocks(kernel)[2] for kernel in (blocks.kernel, result))
    assert np.array_equal(before, after)


@pytest.mark.parametrize("constraint_name", ["SpectralClip", "Orthogonal"])
def test_blockwise_changes_nothing_where_each_block_is_changed_by_itself_anyway(constraint_name):
    case, blocks = ALL[constraint_name], MATRICES["experts"]
    assert np.array_equal(updated(case, blocks, blockwise=True), updated(case, blocks))


@pytest.mark.parametrize("constraint_name", ALL)
def test_blockwise_survives_json_and_keras(constraint_name):
    case = ALL[constraint_name]
    constraint = case.build(C, **case.options({"axis": (0, -1), "groups": 3, "blockwise": True}))
    config = json.loads(json.dumps(constraint.get_config()))
    assert config["blockwise"] is True
    for again in (
        type(constraint).from_config(config),
        keras.constraints.deserialize(json.loads(json.dumps(keras.constraints.serialize(constraint)))),
    ):
        assert again.get_config() == constraint.get_config()
        assert again.rule == constraint.rule


@pytest.mark.parametrize("constraint_name", ALL)
@pytest.mark.parametrize("value", ["no", 1, None])
def test_blockwise_is_true_or_false(constraint_name, value):
    with pytest.raises(ValueError, match=rf"`blockwise` must be True or False\. Received: blockwise={value!r}"):
        ALL[constraint_name].build(C, blockwise=value)


def test_twenty_steps_of_fit_hold_every_expert_and_every_head():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((3, 6))
    outputs, held = [], []
    for case in ALL.values():
        for name, equation, shape in (("experts", "bei,eio->beo", (3, 4)), ("heads", "bei,iho->beho", (3, 3, 4))):
            options = case.options({**MATRICES[name].geometry, "blockwise": True})
            layer = layers.EinsumDense(equation, shape, kernel_constraint=case.build(C, **options))
            outputs.append(layers.Dense(2)(layers.Flatten()(layer(inputs))))
            layer.kernel.assign(MATRICES[name].kernel)
            held.append((case, name, layer.kernel))
    model = keras.Model(inputs, layers.Concatenate()(outputs))
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    model.fit(gaussian(160, 3, 6), gaussian(160, model.output_shape[-1]), batch_size=8, verbose=0)
    assert int(model.optimizer.iterations) == 20
    for case, name, kernel in held:
        (target,) = case.values(np.ones(1), C)  # of a norm above C
        for block in MATRICES[name].blocks(kernel):
            assert explicit.norm(block) <= target * (1 + 1e-3)  # C2
            assert explicit.norm(block) >= target * (1 - 1e-3) or not case.fills  # C2
