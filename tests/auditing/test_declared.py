"""What a file declares of a kernel is held against what was proved of the operator that it means, or of none."""

import numpy as np
import pytest
from scipy.sparse.linalg import aslinearoperator

from opnorm.auditing.declared import Known, declared


def verdict(bracket, **options):
    config = {"class_name": "opnorm>SpectralNorm", "registered_name": "opnorm>SpectralNorm", "config": options}
    return declared(config, Known(aslinearoperator(np.ones((6, 4))), (4, 6), bracket, bracket))["met"]


@pytest.mark.parametrize("options", [{"groups": 3, "blockwise": True}, {"groups": 3}, {"axis": 0}, {"axis": [0, 1]}])
def test_a_constraint_of_blocks_or_of_another_axis_is_not_judged_by_the_whole_matrix(options):
    assert verdict((1.7, 1.7), value=1.0, **options) == "unknown"


@pytest.mark.parametrize(("bracket", "met"), [((1.7, 1.7), "no"), ((1.0, 1.0), "yes"), ((0.9, 1.2), "unknown")])
@pytest.mark.parametrize("axis", [-1, 1, [-1]])
def test_a_constraint_of_the_whole_matrix_is(bracket, met, axis):
    assert verdict(bracket, value=1.0, axis=axis) == met


@pytest.mark.parametrize(("norm", "met"), [("rms", "yes"), ("2 rms", "no"), ("0.5 rms", "no"), (1.0, "no")])
def test_a_norm_by_shape_is_that_of_the_kernels_own(norm, met):
    assert verdict((1.5**0.5, 1.5**0.5), value=norm) == met  # four inputs, six outputs


@pytest.mark.parametrize(
    "norm", ["rms rms", "1e999 rms", "x", "-1 rms", {"class_name": "ExponentialDecay"}, [1.0], None]
)
@pytest.mark.parametrize("options", [{}, {"axis": 7}, {"axis": "x"}, {"groups": 0}, {"groups": None}], ids=str)
def test_a_norm_that_is_none_or_depends_on_the_step_is_not_judged(norm, options):
    assert verdict((1.0, 1.0), value=norm, **options) == "unknown"


def test_that_small_singular_values_are_raised_is_not_judged_by_the_largest():
    options = {"max_value": 1.0, "min_value": 0.5}
    config = {"class_name": "opnorm>SpectralClip", "registered_name": "opnorm>SpectralClip", "config": options}
    for bracket, met in (((0.9, 0.9), "unknown"), ((1.7, 1.7), "no")):
        assert declared(config, Known(aslinearoperator(np.ones((6, 4))), (4, 6), bracket, bracket))["met"] == met
