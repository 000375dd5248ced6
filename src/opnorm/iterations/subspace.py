"""Subspace iteration: several leading singular vectors of an operator are followed together.

Where W / sigma(W) is trained, nothing pulls at u and v but at what stands behind them, so that the leading singular
values crowd, overtake each other in every step, and one vector is left behind. And from a random start one or two
vectors now and then settle on the second singular value. docs/decisions.md has the figures. Vectors are stacked along
the first axis, as in `iterations.power`.
"""

import numpy as np

from opnorm.backends import TINY, Tensor, of
from opnorm.iterations.maps import Maps
from opnorm.iterations.power import (
    Estimate,
    Search,
    chosen,
    exact,
    first_steps,
    fixed_directions,
    moved,
    perturbed,
    seen,
    settled,
    still_moves,
    unit,
    weight,
)

_BLOCK = 8  # vectors of a cold start: of 60 Gaussian kernels of each of five shapes, none ended 1e-3 below its norm
_TURN = 0.95  # squared cosine of the angle by which one step turns u: below it u knew little of this kernel
_RESOLUTION = 1e-5  # of lengths, relative: below it directions are rounding, and zero takes their place


def settled_pair_iteration(maps: Maps, vectors: Tensor, search: Search) -> Estimate:
    """Return what `settled_power_iteration` does, by way of a subspace iteration where the first step turns `u` away.

    So it does in a cold start and with newly loaded weights.
    """
    xp = of(vectors)
    estimate = first_steps(maps, vectors, search)
    if not search.extra_steps or exact(maps):
        return estimate
    if vectors.shape[0] == 1:
        return settled(maps, estimate, search)
    cold = xp.dot(unit(vectors[:1]), estimate.vectors[:1]) ** 2 < _TURN
    found: Estimate = xp.cond(  # one look at the numbers where all is well, as in most updates
        xp.any_of(cold | still_moves(maps, estimate, search.tolerance)),
        lambda: settled(maps, _started(maps, estimate, cold, search), search),
        lambda: estimate,
    )
    return found


def settled_subspace_iteration(maps: Maps, vectors: Tensor, search: Search) -> Estimate:
    """Return the estimate after `search.steps` subspace iterations, and further ones while it still moves."""
    estimate = _unsearched(maps, perturbed(maps, vectors, search.perturbation))
    loops = search.extra_steps > 0
    for _ in range(search.steps - loops):
        estimate = _plain(maps, estimate.vectors)
    if not loops:
        return estimate
    # The last of the steps is the loop's first: a step written out once more costs XLA seconds for every ten kernels.
    restless = estimate._replace(sigma=0 * estimate.sigma + 1, rotation=0 * estimate.rotation + float("inf"))
    further = search._replace(extra_steps=search.extra_steps + 1)
    return moved(maps, lambda some, last: _plain(some, last.vectors), restless, further)


def _unsearched(maps: Maps, vectors: Tensor) -> Estimate:
    """Return an estimate that nothing is known of but its vectors."""
    one = 0 * vectors[:1, :, :1] + 1
    image = of(vectors).table(vectors, np.zeros, (1, maps.blocks, maps.rows))
    return Estimate(vectors, one, one, vectors[:1], image, one, one)


def _plain(maps: Maps, vectors: Tensor) -> Estimate:
    # Of many vectors the first gains little from the second: no more is asked of them where the values crowd.
    return _iteration(maps, vectors, crowded=False)


def _started(maps: Maps, estimate: Estimate, cold: Tensor, search: Search) -> Estimate:
    # Of the blocks that start cold, the two vectors are found again among `_BLOCK`; nothing is done if there are none.
    xp = of(cold)
    count = estimate.vectors.shape[0]
    others = fixed_directions(max(0, min(_BLOCK, maps.columns) - count), maps.parts, estimate.vectors)
    still = 0 * estimate.rotation
    wide = estimate._replace(
        vectors=xp.concatenate([estimate.vectors, others]), rotation=xp.where(cold, float("inf"), still)
    )
    found = moved(maps, lambda some, last: _iteration(some, last.vectors), wide, search)
    leading = found.vectors[:count]  # of a rank-one kernel the second is rounding, and shorter than 1
    leading = xp.where(xp.length(leading) > 0, unit(leading), estimate.vectors)
    return chosen(cold, seen(maps, found._replace(vectors=leading)), estimate)


def _iteration(maps: Maps, vectors: Tensor, crowded: bool = True) -> Estimate:
    # With U an orthonormal basis of the images W V, the rows of Z = U^T W, made orthogonal, are the next vectors: the
    # longest of them, |W^T v| for the unit vector v that it came from, is the best norm that U has to offer.
    xp = of(vectors)
    images = maps.times(vectors)
    scale = xp.largest(abs(images), (0, 2)) + TINY  # squares of 1e-30, 1e+30 leave the range
    images = images / scale
    basis, _, _ = _orthonormal(_swapped(images))
    z = _swapped(maps.transposed(_swapped(basis))) / _swapped(scale)
    following, rotation, sizes = _orthonormal(z)
    size, before = _swapped(sizes[:, :1]), xp.length(images[:1])
    sound = (size > 0) & (size < float("inf"))
    return Estimate(
        vectors=xp.where(sound & xp.isfinite(_swapped(following)), _swapped(following), vectors),
        sigma=xp.where(sound, size * scale, 0.0),
        rotation=xp.where(sound, size / (before + TINY) - 1, 0.0),
        start=vectors[:1],
        image=_swapped(rotation[:, :1] @ basis),
        length=before * scale,
        weight=weight(_swapped(sizes[:, : 2 if crowded else 1])),
    )


def _orthonormal(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return an orthonormal basis of the rows, longest first, the rotation that made them orthogonal, their lengths.

    All of `(blocks, count, n)`; the lengths are `(blocks, count, 1)`.
    """
    xp = of(rows)
    gram = rows @ xp.transpose(rows, (0, 2, 1))
    values, vectors = xp.eigh(-xp.where(abs(gram) < float("inf"), gram, 0.0))  # PyTorch's raises an error for NaN
    rotation = xp.transpose(vectors, (0, 2, 1))
    lengths = xp.sqrt(xp.where(values < 0, abs(values), 0.0))[..., None]
    present = lengths > _RESOLUTION * lengths[:, :1]  # smaller ones would shrink on until their squares vanish
    return xp.where(present, rotation @ rows / xp.where(present, lengths, 1.0), 0.0), rotation, lengths


def _swapped(vectors: Tensor) -> Tensor:
    """Return `(count, blocks, n)` as `(blocks, count, n)`, and back."""
    return of(vectors).transpose(vectors, (1, 0, 2))
