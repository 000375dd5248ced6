"""Projections stored in one matrix: which rows or columns are whose, told by a configuration or by the name."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from scipy.sparse.linalg import aslinearoperator

from opnorm.checkpoints.records import Geometry, Part
from opnorm.checks import Array

Places = Mapping[str, slice | Sequence[int] | Array]  # by the name of a part: its rows or columns

_ATTENTION = ("query", "key", "value")
_FUSED = {  # names under which the parts are as many equal runs, one after another, of as many inputs as outputs
    _ATTENTION: re.compile(
        r"(^|[._/])in_proj_weight$|(^|[./])(c_attn|Wqkv|W_pack|to_qkv|qkv|self_attn[./]qkv_proj)[./](weight|kernel)$"
    ),
    ("key", "value"): re.compile(r"(^|[./])attn[./](to_)?kv[./]weight$"),
}
_HEADS = 1024  # beyond which they are left whole: real models have up to 128
_GATED = re.compile(r"(^|[./])mlp[./]gate_up_proj[./]weight$")  # as many rows of each, whatever the inputs


def divided(geometry: Geometry, places: Callable[[], Places], axis: int = 0) -> Geometry:
    """Return the geometry of a matrix that holds several, each with its rows (axis 0) or columns (axis 1).

    The matrix stays the operator; each part's norm is a number beside its norm. Places are asked for when the matrix is
    measured.
    """

    def parts(matrix: Array) -> Iterator[Part]:
        for name, place in places().items():
            own = place if isinstance(place, slice) else np.asarray(place)
            yield Part(name, aslinearoperator(matrix[own] if axis == 0 else matrix[:, own]))

    return geometry._replace(parts=parts)


def by_head(geometry: Geometry, axis: int) -> Geometry:
    """Return the geometry of a kernel with more axes, one of which counts the heads: each is a part."""

    def parts(kernel: Array) -> Iterator[Part]:
        heads = np.moveaxis(kernel, axis, 0)
        for i, head in enumerate(heads if len(heads) <= _HEADS else ()):
            yield Part(f"head {i}", aslinearoperator(head.reshape(len(head), -1)))

    return geometry._replace(parts=parts)


def with_heads(places: Mapping[str, Array]) -> Places:
    """Return the rows of each projection, and of each of its heads; `places` has them as (heads, rows of a head)."""
    whole = {name: rows.ravel() for name, rows in places.items()}
    cut = {name: rows for name, rows in places.items() if len(rows) <= _HEADS}
    return whole | {f"{name} head {i}": head for name, rows in cut.items() for i, head in enumerate(rows)}


def equal_runs(names: Sequence[str], count: int) -> Places:
    """Return as many runs of equal length, one after another, of `count` rows."""
    size = count // len(names)
    return {name: slice(i * size, (i + 1) * size) for i, name in enumerate(names)}


def with_known_parts(geometry: Geometry, name: str, shape: tuple[int, ...]) -> Geometry:
    """Return the geometry of a matrix with the parts that its name and shape tell, else as it is.

    A matrix whose parts are not all square is left whole: with fewer heads of keys than of queries nothing but the
    configuration tells which rows are whose, and where the parts alternate from head to head (GPT-NeoX, BLOOM,
    CodeGen, InternLM2) the names are others.
    """
    if geometry.operator is None or len(shape) != 2:
        return geometry
    if _GATED.search(name) and shape[0] % 2 == 0:
        return divided(geometry, partial(equal_runs, ("gate", "up"), shape[0]))
    for parts, pattern in _FUSED.items():
        if pattern.search(name):
            for axis in (0, 1):
                if shape[axis] == len(parts) * shape[1 - axis]:
                    return divided(geometry, partial(equal_runs, parts, shape[axis]), axis)
    return geometry
