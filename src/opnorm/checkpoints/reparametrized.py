"""PyTorch's reparametrizations: the weight that a layer applies, from the tensors that its file holds instead."""

import re
from collections.abc import Callable, Collection, Iterator

import numpy as np

from opnorm.checkpoints.files import guarded, require
from opnorm.checkpoints.guesses import Named
from opnorm.checkpoints.made import File, Made, layer, part, unknown
from opnorm.checks import Array

_NEW = re.compile(r"original\d*(_\w+)?|\d+\..+")  # after the weight's own name
_OLD = ("orig", "g", "u", "v", "mask")
_ALIGNED = 0.9  # cosine of u and W v from which they count as each other's; of other vectors it is small
_CLEARER = 0.1  # what the axis misses of being parallel, over what another one misses
_SAME = 1e-6  # relative difference of two norms that are one

Members = dict[str, Named]


def find_reparametrized(file: File) -> dict[str, Made]:
    """Return, by name, what the tensors of spectral and weight normalization and of pruning are.

    The layer applies W / (u^T W v), g v / ||v|| or W times its mask, all of which the file holds. The vectors, lengths
    and masks are parts of the row of W or v. What is parametrized otherwise is unknown.
    """
    groups: dict[tuple[bool, str], Members] = {}
    for name, tensor in file.tensors.items():
        stem, new, rest = name.partition("parametrizations.")
        weight, _, member = rest.partition(".") if new else name.rpartition("_")
        if _NEW.fullmatch(member) if new else member in _OLD and _is_weight(weight):
            groups.setdefault((bool(new), stem + weight if new else weight), {})[member] = tensor
    twice = _twice({weight for _, weight in groups})
    found: dict[str, Made] = {}
    for (_, weight), members in groups.items():
        reason = f"the weight {weight!r} is reparametrized twice, or part of one that is: that is not followed here"
        both = ((one.name, unknown(reason)) for one in members.values())
        found.update(both if weight in twice else _weight(file, weight, members))
    return found


def _twice(weights: Collection[str]) -> set[str]:
    """Return the weights one of whose parts is made of others itself, and these parts: a pruned `weight_v`."""
    pairs = ((weight, stem) for weight in weights for stem, _, end in [weight.rpartition("_")] if end in _OLD)
    return {name for weight, stem in pairs if stem in weights for name in (weight, stem)}


def _is_weight(name: str) -> bool:
    """Return whether the last part of a name is PyTorch's word for a kernel: weight, weight_hh_l0, in_proj_weight."""
    return "_weight" in f"_{name.rpartition('.')[2]}"


def _weight(file: File, weight: str, members: Members) -> Iterator[tuple[str, Made]]:
    """Yield what each tensor is of which the weight of that name is made."""
    for keys, compute, how in _WAYS:
        if set(keys) == set(members) and _fits[compute](*(members[key].shape for key in keys)):
            main, *parts = (members[key] for key in keys)
            read = guarded(file.path, _apply, compute, [main, *parts])
            yield main.name, layer(file, main, weight, read, how)
            yield from ((one.name, part(main.name)) for one in parts)
            return
    if any(key.startswith("orig") for key in members) or set(members) in ({"g", "v"}, {"g"}, {"v"}):
        reason = f"the weight {weight!r} is made of it in a way that is not followed here, or not by this file alone"
        yield from ((one.name, unknown(reason)) for one in members.values())


def _apply(compute: Callable[..., Array], parts: list[Named]) -> Array:
    return compute(*(one.read().astype(np.float64) for one in parts))


def _spectral(W: Array, u: Array, v: Array) -> Array:
    """Return W / (u^T W v); of several axes for u that is taken on which u and W v are parallel."""
    found = []
    for axis in _axes(W.shape, u.shape, v.shape):
        image = np.moveaxis(W, axis, 0).reshape(len(u), -1) @ v
        sigma, length = float(u @ image), float(np.linalg.norm(image) * np.linalg.norm(u))
        found.append((abs(sigma) / length if length else 0.0, sigma))
    (best, sigma), *others = sorted(found, reverse=True)
    clear = not others or (best >= _ALIGNED and 1 - best <= _CLEARER * (1 - others[0][0]))
    same = all(abs(other - sigma) <= _SAME * abs(sigma) for _, other in others)
    require(clear or same, "nothing tells which axis its spectral normalization takes for the outputs")
    require(sigma != 0, "its spectral normalization divides by 0")
    return np.asarray(W / sigma)


def _axes(shape: tuple[int, ...], u: tuple[int, ...], v: tuple[int, ...]) -> list[int]:
    """Return the axes of W that u may belong to, with all others flattened for v."""
    size = int(np.prod(shape, dtype=np.float64)) if shape else 0
    proper = len(u) == len(v) == 1 and size == u[0] * v[0]
    return [axis for axis, count in enumerate(shape[:2]) if count == u[0]] if proper else []


def _normalized(v: Array, g: Array) -> Array:
    """Return g v / ||v||, over the axes along which there is one length."""
    axes = tuple(axis for axis in range(v.ndim) if g.ndim == 0 or g.shape[axis] == 1)
    return np.asarray(v * (g / np.sqrt((v * v).sum(axes, keepdims=True))))


def _are_lengths(v: tuple[int, ...], g: tuple[int, ...]) -> bool:
    along = [axis for axis, count in enumerate(g) if count != 1]
    return len(v) > 1 and (not g or (len(g) == len(v) and len(along) <= 1 and all(g[a] == v[a] for a in along)))


def _masked(W: Array, mask: Array) -> Array:
    return W * mask


_fits: dict[Callable[..., Array], Callable[..., bool]] = {
    _spectral: lambda W, u, v: bool(_axes(W, u, v)),
    _normalized: _are_lengths,
    _masked: lambda W, mask: mask == W,
}
_DIVIDED = "divided by u^T W v (spectral normalization)"
_SCALED = "g v / ||v|| (weight normalization)"
_WAYS: list[tuple[tuple[str, ...], Callable[..., Array], str]] = [  # the first member has the row
    (("orig", "u", "v"), _spectral, _DIVIDED),
    (("original", "0._u", "0._v"), _spectral, _DIVIDED),
    (("v", "g"), _normalized, _SCALED),
    (("original1", "original0"), _normalized, _SCALED),
    (("orig", "mask"), _masked, "times its mask (pruning)"),
]
