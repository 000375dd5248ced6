"""Sliding maps of images of one size, as matrices over channels, one for each frequency of a torus.

A convolution of a finite image is the same sliding map on a torus that is large enough for no window to reach around
it, between images that are zero outside. There it is a matrix A(w) of channels at each frequency w, `sum_k K_k e^(i w
k)`; with stride s the s frequencies that look alike on the coarser torus come together, `sum A Y A* / s`. What reads
every pixel by its own kernel, as a dense layer does, is a sliding map with one output: all frequencies come together.
Kernels are real, so that one of each two opposite frequencies is enough.
"""

from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from opnorm.bounds.certificates import gamma
from opnorm.checks import Array
from opnorm.networks.covariances import Stack

_PHASE = 32  # roundings of e^(i w k), a product of one number an axis
Integers = NDArray[np.int64]


class Taps(NamedTuple):
    """A sliding map: output o is the sum over k of `values[k] @ input[o * stride + shifts[k]]`."""

    values: Array  # (taps, outputs, inputs); (taps,): times the identity of `channels`
    shifts: Integers  # (taps, axes); no axes: there is one pixel
    error: float = 0.0  # of each value, in parts of its magnitude
    channels: int = 0

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix at one frequency."""
        return (self.channels, self.channels) if self.channels else (self.values.shape[1], self.values.shape[2])

    @property
    def size(self) -> Array:
        """Return at least the magnitudes of the matrix at every frequency: (outputs, inputs)."""
        return self.spread(np.abs(self.values).sum(axis=0) * (1 + gamma(len(self.values) + 2)))

    def spread(self, numbers: Stack) -> Stack:
        """Return the matrices that these stand for: themselves, or multiples of the identity."""
        return np.multiply.outer(numbers, np.eye(self.channels)) if self.channels else np.asarray(numbers)

    @property
    def rounding(self) -> float:
        """How far a computed matrix may be from the true one, in parts of `size`."""
        return self.error + (gamma(4 * len(self.values) + _PHASE) if self.shifts.any() else 0.0)


class Frequencies(NamedTuple):
    """Frequencies of a torus: `2 pi places / size` on each axis."""

    places: Integers  # (frequencies, axes)
    size: tuple[int, ...]

    def finer(self, strides: tuple[int, ...]) -> "Frequencies":
        """Return those of a torus so many times larger that look alike on this one, neighbours of each other."""
        steps = np.indices(strides).reshape(len(strides), -1).T * np.array(self.size, dtype=np.int64)
        places = (self.places[:, None] + steps).reshape(-1, len(strides))
        return Frequencies(places, tuple(n * s for n, s in zip(self.size, strides, strict=True)))

    def matrices(self, taps: Taps) -> Stack:
        """Return the matrix of a sliding map at each frequency, or one for all of them."""
        if not taps.shifts.any():
            return taps.spread(taps.values.sum(axis=0, keepdims=True))
        phases = np.ones((len(self.places), len(taps.shifts)), complex)
        for axis, size in enumerate(self.size):
            table = np.exp(2j * np.pi * np.arange(size) / size)
            phases *= table[np.outer(self.places[:, axis], taps.shifts[:, axis]) % size]
        found = phases @ taps.values.reshape(len(taps.shifts), -1)
        return taps.spread(found.reshape(-1, *taps.values.shape[1:]))


def half(size: tuple[int, ...]) -> tuple[Frequencies, Array]:
    """Return one of each two opposite frequencies of a torus, and how many each stands for: one or two."""
    index = np.indices(size).reshape(len(size), prod(size)).T.astype(np.int64)
    opposite = -index % np.array(size, dtype=np.int64)
    order = np.array([prod(size[i + 1 :]) for i in range(len(size))], dtype=np.int64)
    here, there = index @ order, opposite @ order
    kept = here <= there
    return Frequencies(index[kept], size), np.where(here == there, 1.0, 2.0)[kept]
