"""The symbol of a convolution: the small matrix by which it multiplies each frequency."""

from dataclasses import dataclass
from functools import cached_property
from math import gcd, prod

import numpy as np
from numpy.typing import NDArray

from opnorm.bounds.certificates import UNIT, gamma, up
from opnorm.checks import Array

Complex = NDArray[np.complex128]


@dataclass(frozen=True)
class Symbol:
    """The matrix polynomials `M_g(w) = sum_t K[g, t] exp(-i n_t . w)`, one for each group g.

    The supremum of `||M_g(w)||` over all g and w bounds the convolution on every image; without size it is its norm.

    Args:
        taps: (groups, T, rows, columns), largest entry near 1.
        exponents: (T, axes), the n_t, centred on zero, half-integers where the number of taps is even.
    """

    taps: Array
    exponents: Array

    @cached_property
    def degrees(self) -> Array:
        """The largest exponent on each axis, (axes,): along a line t the norm has exponential type `degrees . |t|`."""
        return np.asarray(np.max(self.exponents, axis=0))

    @cached_property
    def frobenius(self) -> Array:
        """At least the Frobenius norm of each group's taps, (groups,)."""
        squares = np.sum(np.square(self.taps), axis=(1, 2, 3))
        return np.asarray(np.sqrt(squares) * (1 + gamma(2 * self.taps[0].size + 8)))

    @cached_property
    def evaluation_error(self) -> Array:
        """At least `||fl(M_g(w)) - M_g(w)||` for every w, |w| <= 2 pi, (groups,)."""
        count = self.taps.shape[1]
        # Angles below 2 pi max|n| carry a few roundings each, sine and cosine two more; the sum has `count` terms.
        angle = 16 * UNIT * (1 + 2 * np.pi * float(np.sum(self.degrees)))
        return np.asarray(up(1.5 * (gamma(count + 4) + angle) * np.sqrt(count)) * self.frobenius)

    def phases(self, frequencies: Array) -> Complex:
        """Return `exp(-i n_t . w)` for w of shape (count, axes): (count, T)."""
        return np.asarray(np.exp(-1j * (frequencies @ self.exponents.T)))

    def at(self, groups: NDArray[np.intp], frequencies: Array) -> Complex:
        """Return the matrices `M_g(w)`, (count, rows, columns), for pairs of a group and a frequency."""
        phases = self.phases(frequencies)
        _, count, rows, columns = self.taps.shape
        if len(self.taps) == 1:  # two real products that read the kernel once for all frequencies
            flat = self.taps.reshape(count, rows * columns)
            values = np.empty((len(phases), rows * columns), dtype=np.complex128)
            values.real, values.imag = phases.real @ flat, phases.imag @ flat
            return values.reshape(-1, rows, columns)
        return np.asarray(np.einsum("bt,btij->bij", phases, self.taps[groups]))

    @cached_property
    def single(self) -> NDArray[np.float32]:
        """The taps in float32, for estimates."""
        return self.taps.astype(np.float32)


def own_strides(spatial: tuple[int, ...], strides: tuple[int, ...], dilation_rate: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides that give the same norm with dilation 1, none larger than the taps of its axis.

    Output o reads the pixels `o s + j d`. The common factor of s and d only spaces pixels that are read out. Of coprime
    s and d, the taps j, j + s, j + 2 s, ... read one phase of pixels, d steps apart: a frequency relabelled d w, and
    phases shifted against each other, which is unitary. With a stride of k and more the windows are disjoint.

    Args:
        spatial: Taps of each axis.
        strides: One per axis.
        dilation_rate: One per axis.
    """
    axes = zip(spatial, strides, dilation_rate, strict=True)
    return tuple(min(s // gcd(s, d), k) for k, s, d in axes)


def symbol_shape(kernel: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a symbol's taps, (groups, T, rows, columns), for `own_strides` of a kernel by groups."""
    groups, *spatial, rows, columns = kernel
    counts = [-(-k // s) for k, s in zip(spatial, strides, strict=True)]
    return groups, prod(counts), prod(strides) * rows, columns


def symbol_of(blocks: Array, strides: tuple[int, ...], dilation_rate: tuple[int, ...]) -> Symbol:
    """Return a symbol with the norms of a convolution's: of its polyphase form where it has strides.

    Dilation alone only relabels frequencies and is left out. With strides the pixels of one step become channels
    (space to depth), so the symbol has `prod(strides)` times as many rows and fewer taps.

    Args:
        blocks: (groups, *spatial, cin / groups, cout / groups), the kernel by groups, largest entry near 1.
        strides: One per spatial axis.
        dilation_rate: One per spatial axis.
    """
    strides = own_strides(blocks.shape[1:-2], strides, dilation_rate)
    blocks = np.pad(
        blocks, [(0, 0), *[(0, -k % s) for k, s in zip(blocks.shape[1:], strides, strict=False)], (0, 0), (0, 0)]
    )
    rank = len(strides)
    sizes = [n // s for n, s in zip(blocks.shape[1:], strides, strict=False)]
    split = [part for n, s in zip(sizes, strides, strict=True) for part in (n, s)]
    steps, phases = range(1, 2 * rank, 2), range(2, 2 * rank + 1, 2)
    apart = blocks.reshape(len(blocks), *split, *blocks.shape[-2:])
    apart = apart.transpose(0, *steps, *phases, 2 * rank + 1, 2 * rank + 2)
    taps = apart.reshape(len(blocks), prod(sizes), -1, blocks.shape[-1])
    middle = (np.array(sizes) - 1) / 2
    exponents = np.indices(sizes).reshape(rank, -1).T - middle
    moving = [axis for axis, n in enumerate(sizes) if n > 1]  # the symbol does not depend on the other axes
    return Symbol(np.ascontiguousarray(taps), np.ascontiguousarray(exponents[:, moving]))
