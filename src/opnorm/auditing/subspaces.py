"""How a tuned matrix turned away from its base: effective rank, overlap of leading subspaces, intruder dimensions.

Numbers of LAPACK's singular vectors in float64, and no brackets: what the norms of a comparison are not.
"""

from contextlib import nullcontext
from typing import TypedDict

import numpy as np
from scipy.linalg import svd

from opnorm.bounds.matrices import SMALL
from opnorm.bounds.threads import one_blas_thread
from opnorm.checks import Array

_LEADING = 10  # singular vectors that are looked at, as in the paper
_ALIEN = 0.5  # the cosine below which a vector is none of the base's
_ROUNDING = 1e-12  # of the largest singular value: what lies below it is rounding


class Subspaces(TypedDict):
    """The singular vectors of a difference and of a tuned matrix, beside those of the base."""

    effective_rank: float  # of the difference: exp of the entropy of its singular values
    overlap_out: float | None  # mean squared cosine between the leading outputs of the difference and of the base
    overlap_in: float | None  # likewise of the inputs
    leading: int  # how many vectors each of these subspaces has; the overlap of random ones is that over the side
    intruders: int  # of the tuned matrix's leading left singular vectors those that are none of the base's


def subspaces(base: Array, tuned: Array) -> Subspaces:
    """Return how `tuned` and `tuned - base` lie to `base`, all (outputs, inputs) in float64.

    An intruder dimension is a leading left singular vector of `tuned` whose cosine with every left singular vector of
    `base` is below 0.5.

    Reference:
        O. Roy, M. Vetterli, "The effective rank", EUSIPCO 2007.
        E. J. Hu et al., "LoRA", ICLR 2022, appendix G: the overlap.
        R. Shuttleworth et al., "LoRA vs Full Fine-tuning: An Illusion of Equivalence", arXiv 2410.21228.
    """
    with one_blas_thread() if base.size <= SMALL else nullcontext():
        outputs, _, inputs = svd(base, full_matrices=False)
        changed_outputs, values, changed_inputs = svd(tuned - base, full_matrices=False)
        after, sizes, _ = svd(tuned, full_matrices=False)
    leading = _leading(values)
    cosines = np.abs(outputs.T @ after[:, : _leading(sizes)]).max(axis=0)
    return {
        "effective_rank": effective_rank(values),
        "overlap_out": _overlap(outputs[:, :leading], changed_outputs[:, :leading]),
        "overlap_in": _overlap(inputs[:leading].T, changed_inputs[:leading].T),
        "leading": leading,
        "intruders": int(np.sum(cosines < _ALIEN)),
    }


def _leading(values: Array) -> int:
    """Return how many singular vectors are looked at: those of zeros have no direction."""
    return min(_LEADING, int(np.sum(values > _ROUNDING * values[0])))


def effective_rank(values: Array) -> float:
    """Return exp of the entropy of singular values; 0 of a matrix of zeros."""
    total = float(np.sum(values))
    if total == 0:
        return 0.0
    shares = values[values > 0] / total
    return float(np.exp(-np.sum(shares * np.log(shares))))


def _overlap(one: Array, other: Array) -> float | None:
    """Return the mean squared cosine between two subspaces of as many dimensions, None of none."""
    return float(np.sum((one.T @ other) ** 2)) / one.shape[1] if one.shape[1] else None
