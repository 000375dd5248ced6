"""Numbers of a few bits, of which several share a byte or a word: unpacked, in NumPy."""

import numpy as np

from opnorm.checks import Array

FLOAT4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])  # e2m1, by code
_BIAS = 127  # of the exponents of e8m0
_NAN = 255  # of e8m0
_ROWS = 256  # at a time


def unpacked(words: np.ndarray, bits: int, *, signed: bool = False) -> np.ndarray:
    """Return the codes that lie one after another in the last axis, the lowest bits of the first byte first.

    Args:
        words: Integers, stored as a little-endian machine does; the bits of the last axis hold whole codes.
        bits: Of a code, 1 to 8.
        signed: Whether a code's highest bit is its sign; int8 then, else uint8.
    """
    octets = np.ascontiguousarray(words).view(np.uint8)
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        codes = ((octets[..., None] >> shifts) & np.uint8(2**bits - 1)).reshape(*octets.shape[:-1], -1)
    else:
        stream = np.unpackbits(octets, axis=-1, bitorder="little").reshape(*octets.shape[:-1], -1, bits)
        codes = np.packbits(stream, axis=-1, bitorder="little")[..., 0]
    if not signed:
        return codes
    top = np.uint8(1 << (bits - 1))
    return ((codes ^ top) - top).view(np.int8)  # wraps around, as two's complement does


def scale_groups(values: Array, scale: Array, shift: Array | None = None) -> None:
    """Multiply in place: groups of equal size along the last axis have a factor, and a summand, in common."""
    groups = values.reshape(*scale.shape, values.shape[-1] // scale.shape[-1])
    groups *= scale[..., None]
    if shift is not None:
        groups += shift[..., None]


def apply_groups(values: Array, zeros: Array, scale: Array, place: np.ndarray) -> None:
    """Make `(values - zeros[:, place]) * scale[:, place]` of values in place, without a second array of their size."""
    for start in range(0, len(values), _ROWS):
        rows = slice(start, start + _ROWS)
        values[rows] -= np.take(zeros[rows], place, axis=1)
        values[rows] *= np.take(scale[rows], place, axis=1)


def powers(exponents: np.ndarray) -> Array:
    """Return the powers of two that e8m0 codes stand for."""
    found = np.ldexp(1.0, exponents.astype(np.int32) - _BIAS)
    return np.where(exponents == _NAN, np.nan, found)
