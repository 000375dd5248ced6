"""By `axis` and `groups` a plain constraint means the matrix that its layer really applies."""

from typing import Any, NamedTuple

import dense
import numpy as np
import pytest
from cases import CONSTRAINTS, gaussian, op_by_op
from keras import layers


class Row(NamedTuple):
    layer: Any  # without a bias; a convolution sees one patch, so that its matrix is the whole operator
    input_shape: tuple[int, ...]
    geometry: dict[str, Any]  # what to tell the constraint
    state_shape: tuple[int, ...]  # of one vector of the stack


def bare(layer, *args, **options):
    return lambda: layer(*args, use_bias=False, **options)


def einsum(equation, output_shape):
    return lambda: layers.EinsumDense(equation, output_shape)


CHANNELS = {"axis": (-2, -1), "groups": 2}  # of a depthwise kernel with two channels
ROWS = {  # of 12 rows and 8 columns in all, since JAX compiles for each shape
    "dense": Row(bare(layers.Dense, 8), (12,), {}, (8,)),
    "conv_1d": Row(bare(layers.Conv1D, 8, 3), (3, 4), {}, (8,)),
    "conv_2d": Row(bare(layers.Conv2D, 8, (2, 3)), (2, 3, 2), {}, (8,)),
    "conv_3d": Row(bare(layers.Conv3D, 8, (1, 2, 3)), (1, 2, 3, 2), {}, (8,)),
    "grouped_conv_2d": Row(bare(layers.Conv2D, 8, (2, 3), groups=2), (2, 3, 4), {"groups": 2}, (2, 4)),
    "depthwise_1d": Row(bare(layers.DepthwiseConv1D, 12, depth_multiplier=4), (12, 2), CHANNELS, (2, 4)),
    "depthwise_2d": Row(bare(layers.DepthwiseConv2D, (3, 4), depth_multiplier=4), (3, 4, 2), CHANNELS, (2, 4)),
    "depthwise_without_multiplier": Row(bare(layers.DepthwiseConv2D, (3, 4)), (3, 4, 2), CHANNELS, (2, 1)),
    "einsum_to_heads": Row(einsum("bd,dhk->bhk", (2, 4)), (12,), {"axis": (-2, -1)}, (8,)),
    "einsum_from_heads": Row(einsum("bhk,hkd->bd", (8,)), (3, 4), {}, (8,)),
    "einsum_outputs_around_the_sum": Row(einsum("bd,hdk->bhk", (2, 4)), (12,), {"axis": (2, 0)}, (8,)),
    "einsum_outputs_first": Row(einsum("bde,hde->bh", (8,)), (3, 4), {"axis": 0}, (8,)),
    "einsum_of_each_head": Row(einsum("bhd,hdk->bhk", (2, 4)), (2, 12), {"axis": (0, -1), "groups": 2}, (2, 4)),
    "einsum_heads_last": Row(einsum("bdh,dkh->bkh", (4, 2)), (12, 2), {"axis": (-1, -2), "groups": 2}, (2, 4)),
}

every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
every_constraint = pytest.mark.parametrize("constraint_name", CONSTRAINTS)


def built(row):
    """Return the layer with a random kernel far outside the ball."""
    layer = row.layer()
    layer.build((None, *row.input_shape))
    layer.kernel.assign(gaussian(*layer.kernel.shape))
    return layer


@every_constraint
@every_row
def test_explicit_matrix_of_the_layer_has_the_norm_asked_for(constraint_name, row):
    layer = built(row)
    constraint = CONSTRAINTS[constraint_name].build(0.9, **row.geometry, seed=1)
    state = constraint.initial_state(layer.kernel)
    assert state.shape[1:] == row.state_shape

    def run(kernel, state):
        return constraint.update(kernel, state)[0], constraint.project(kernel)

    first, projected = op_by_op(run)(layer.kernel.value, state)
    layer.kernel.assign(first)
    assert abs(dense.norm(dense.matrix_of(layer, row.input_shape)) / 0.9 - 1) <= 0.02  # a cold start, C5
    layer.kernel.assign(projected)
    assert abs(dense.norm(dense.matrix_of(layer, row.input_shape)) / 0.9 - 1) <= 1e-3  # what `project` documents


MISREAD = [name for name, row in ROWS.items() if row.geometry]


@pytest.mark.parametrize("name", MISREAD)
def test_without_the_geometry_the_norm_would_be_another(name):
    row = ROWS[name]
    layer = built(row)
    assert (
        abs(dense.norm(layer.kernel) / dense.norm(dense.matrix_of(layer, row.input_shape)) - 1) >= 0.02
    )  # no accident


@every_constraint
def test_transposed_convolution_is_grouped_by_its_outputs(constraint_name):
    kernel = gaussian(2, 2, 8, 3)  # of a `Conv2DTranspose`: height, width, outputs, inputs
    constraint = CONSTRAINTS[constraint_name].build(0.9, axis=-2, seed=1)
    result = dense.array(op_by_op(constraint.project)(kernel))
    assert abs(dense.norm(np.moveaxis(result, -2, -1)) / 0.9 - 1) <= 1e-3  # what `project` documents
    np.testing.assert_allclose(result / kernel, (result / kernel).flat[0], rtol=1e-5)  # one factor, float32's rounding
