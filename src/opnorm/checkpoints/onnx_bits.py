"""ONNX Runtime's MatMulNBits: `y = x @ W.T` with the codes of W packed in bytes, a scale and a zero point a block."""

from math import prod
from typing import NamedTuple

import numpy as np

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.guesses import FLOATS, Named
from opnorm.checkpoints.packed import unpacked
from opnorm.checkpoints.records import Geometry
from opnorm.checks import Array, real_array

MATMUL_NBITS = "com.microsoft.MatMulNBits"


class Blocks(NamedTuple):
    """How W (outputs, inputs) is cut into blocks of inputs."""

    outputs: int
    inputs: int
    bits: int
    size: int

    @property
    def each(self) -> int:
        """Blocks of one output."""
        return -(-self.inputs // self.size)

    def proper(self) -> bool:
        """Return whether there can be such blocks."""
        return min(self) > 0 and self.bits <= 8 and self.size * self.bits % 8 == 0


def bits_geometry(codes: Named, scales: Named | None, zeros: Named | None, blocks: Blocks) -> Geometry:
    """Return the geometry of the codes, whose numbers are s (q - z); without zero points z is the middle code."""
    shape = (blocks.outputs, blocks.each, blocks.size * blocks.bits // 8) if blocks.proper() else ()
    if codes.shape != shape or codes.dtype != "uint8" or scales is None or scales.dtype not in FLOATS:
        return g.unknown(
            MATMUL_NBITS, f"codes {list(codes.shape)} do not fit the operator's attributes, or have no scale"
        )
    entries = blocks.outputs * blocks.each
    packed = zeros is not None and zeros.dtype == "uint8"
    expected = blocks.outputs * -(-blocks.each * blocks.bits // 8) if packed else entries
    if prod(scales.shape) != entries or (zeros is not None and prod(zeros.shape) != expected):
        return g.unknown(MATMUL_NBITS, "its scales or zero points do not fit its blocks")
    if zeros is not None and not packed and zeros.dtype not in FLOATS:
        return g.unknown(MATMUL_NBITS, f"zero points of {zeros.dtype}")

    def values(array: Array) -> Array:
        q = unpacked(array.astype(np.uint8), blocks.bits).astype(np.float64)
        grid = (blocks.outputs, blocks.each, 1)
        scale = real_array(scales.read(), "scale").reshape(grid)
        weight = (q - _zeros(zeros, blocks).reshape(grid)) * scale
        return np.asarray(weight.reshape(blocks.outputs, -1)[:, : blocks.inputs])

    return g.scaled(
        g.rows(MATMUL_NBITS), values, f"of {blocks.bits} bits, times the scale of each {blocks.size} inputs"
    )


def _zeros(zeros: Named | None, blocks: Blocks) -> Array:
    grid = (blocks.outputs, blocks.each)
    if zeros is None:
        return np.full(grid, 2.0 ** (blocks.bits - 1))
    stored = zeros.read()
    if stored.dtype != np.uint8:
        return real_array(stored, "zero_points").reshape(grid)
    rows = stored.reshape(blocks.outputs, -1)
    stream = np.unpackbits(rows, axis=-1, bitorder="little")[:, : blocks.each * blocks.bits]
    codes = np.packbits(stream.reshape(*grid, blocks.bits), axis=-1, bitorder="little")
    return np.asarray(codes.reshape(grid), np.float64)
