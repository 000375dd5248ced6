"""Convolutions of small images by the band of their Gram matrix, against their explicit matrices."""

import numpy as np
import pytest

from opnorm.bounds import banded
from opnorm.bounds.brackets import spectral_norm
from opnorm.bounds.deadlines import NEVER, Deadline
from opnorm.bounds.memory import Memory
from opnorm.operators.convolution import Convolution

RNG = np.random.default_rng(0)
CASES = [
    Convolution(RNG.standard_normal((3, 3, 4, 5)), (7, 6)),
    Convolution(RNG.standard_normal((4, 2, 3, 2)), (6, 9), strides=(2, 3), padding="valid"),
    Convolution(RNG.standard_normal((3, 3, 2, 6)), (8, 7), dilation_rate=2, groups=2),
    Convolution(RNG.standard_normal((3, 2, 3, 4)), (5, 5), strides=2, padding=((2, 0), (1, 3))),
    Convolution(RNG.standard_normal((5, 3, 2)), 11, padding="causal"),
    Convolution(RNG.standard_normal((2, 3, 2, 2, 3)), (4, 5, 3)),
    Convolution(RNG.standard_normal((9, 9, 1, 2)), (4, 4)),  # wider than the image
    Convolution(RNG.standard_normal((2, 2, 2, 2)), (7, 7), strides=3),  # pixels that nothing reads
]


def dense(operator):
    return operator @ np.eye(operator.shape[1])


@pytest.mark.parametrize("operator", CASES, ids=repr)
def test_the_band_is_the_gram_matrix(operator):
    whole = dense(operator)
    gram = whole.T @ whole
    side, width = banded._band(operator)
    channels = operator.kernel.shape[-2]
    for group in range(operator.groups):
        band = banded._gram(operator, operator.blocks[group])
        found = np.zeros((side, side))
        for j, column in enumerate(band):
            below = min(width, side - j)
            found[j : j + below, j] = column[:below]
        places = np.arange(operator.shape[1]).reshape(-1, operator.groups, channels)[:, group].ravel()
        np.testing.assert_allclose(found, np.tril(gram[np.ix_(places, places)]), atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
@pytest.mark.parametrize("operator", CASES, ids=repr)
def test_a_wide_bracket_is_narrowed_around_the_truth(operator, scale):
    operator = banded._times(operator, int(np.log2(scale)))
    truth = np.linalg.norm(dense(operator), 2)
    lower, upper = banded.narrowed(operator, (truth / 2, truth * 2), 1e-5, NEVER, Memory())
    assert lower <= truth * (1 + 1e-12)  # roundoff of NumPy's
    assert truth * (1 - 1e-12) <= upper <= lower * (1 + 1e-5)


def test_a_norm_below_the_truth_is_not_proved():
    for operator in CASES:
        truth = np.linalg.norm(dense(operator), 2)
        proofs = [
            all(banded._is_proved(operator, group, truth * factor) for group in range(operator.groups))
            for factor in (1 - 1e-6, 1 + 1e-6)
        ]
        assert proofs == [False, True]


def test_a_tolerance_that_is_asked_for_is_reached_on_small_images():
    operator = Convolution(RNG.standard_normal((5, 5, 20, 20)), (11, 11))  # too large to write out
    wide, narrow = spectral_norm(operator), spectral_norm(operator, tolerance=1e-3)
    assert narrow.upper / narrow.lower - 1 <= 1e-3 < wide.upper / wide.lower - 1
    assert wide.lower <= narrow.upper
    assert narrow.lower <= wide.upper


def test_without_time_or_memory_the_bracket_is_the_known_one():
    operator, known = CASES[0], (1.0, 50.0)
    assert banded.narrowed(operator, known, 1e-3, Deadline.after(0), Memory()) == known
    assert banded.narrowed(operator, known, 1e-3, NEVER, Memory(1000)) == known
    assert banded.narrowed(Convolution(operator.kernel), known, 1e-3, NEVER, Memory()) == known
