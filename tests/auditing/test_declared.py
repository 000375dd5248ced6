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
