"""Subspace iteration: several leading singular vectors of an operator are followed together.

Where W / sigma(W) is trained, nothing pulls at u and v but at what stands behind them, so that the leading singular
values crowd, overtake each other in every step, and one vector is left behind. And from a random start one or two
vectors now and then settle on the second singular value. docs/decisions.md has the figures. Vectors are stacked along
the first axis, as in `opnorm.iterations.power`; everything is float32.
"""

from opnorm.backends.primitives import TINY, Tensor, concatenate, dot, eigh, largest, repeat_while, transpose, where
from opnorm.iterations.power import (
    Estimate,
    Maps,
    first_steps,
    fixed_directions,
    perturbed,
    power_iteration,
    settled,
    still_moves,
    unit,
)

_BLOCK = 8  # vectors of a cold start: of 60 Gaussian kernels of each of five shapes, none ended 1e-3 below its norm
_TURN = 0.95  # squared cosine of the angle by which one step turns u: below it u knew little of this kernel
_RESOLUTION = 1e-5  # of lengths, relative: below it directions are rounding, and not blown up


def settled_pair_iteration(
    maps: Maps, vectors: Tensor, steps: int, extra_steps: int, tolerance: float, perturbation: float
) -> Estimate:
    """Return what `settled_power_iteration` does, by way of a subspace iteration where the first step turns `u` away.

    So it does in a cold start and with newly loaded weights.
    """
    estimate = first_steps(maps, vectors, steps, perturbation)
    if extra_steps and vectors.shape[0] > 1:
        cold = dot(unit(vectors[:1]), estimate.vectors[:1]) ** 2 < _TURN
        estimate = _started(maps, estimate, cold, extra_steps, tolerance)
    return settled(maps, estimate, extra_steps, tolerance)


def settled_subspace_iteration(
    maps: Maps, vectors: Tensor, steps: int, extra_steps: int, tolerance: float, perturbation: float
) -> Estimate:
    """Return the estimate after `steps` subspace iterations, and up to `extra_steps` more while it still moves.

    The arguments are those of `iterations.settled_power_iteration`, of which it is the form for more vectors.
    """
    estimate = _iteration(maps, perturbed(vectors, perturbation))
    for _ in range(steps - 1):
        estimate = _iteration(maps, estimate.vectors)
    if not extra_steps:
        return estimate
    return repeat_while(
        lambda estimate: still_moves(estimate, tolerance),
        lambda estimate: _iteration(maps, estimate.vectors),
        estimate,
        extra_steps,
    )


def _started(maps: Maps, estimate: Estimate, cold: Tensor, steps: int, tolerance: float) -> Estimate:
    # Of the blocks that start cold, the two vectors are found again among `_BLOCK`; nothing is done if there are none.
    count, *blocks, size = estimate.vectors.shape
    others = fixed_directions((max(0, min(_BLOCK, size) - count), *blocks, size), estimate.vectors)

    def step(last: Estimate) -> Estimate:
        found = _iteration(maps, last.vectors).vectors
        pair = power_iteration(maps, found[:count])
        return pair._replace(vectors=concatenate([pair.vectors, found[count:]]))

    wide = estimate._replace(
        vectors=concatenate([estimate.vectors, others]), rotation=where(cold, float("inf"), 0 * estimate.rotation)
    )
    found = repeat_while(lambda last: still_moves(last, tolerance), step, wide, steps)
    rotation = where(cold, found.rotation, estimate.rotation)
    return found._replace(vectors=found.vectors[:count], rotation=rotation)


def _iteration(maps: Maps, vectors: Tensor) -> Estimate:
    # With U an orthonormal basis of the images W V, the rows of Z = U^T W, made orthogonal, are the next vectors: the
    # longest of them, |W^T v| for the unit vector v that it came from, is the best norm that U has to offer.
    images = maps.times(vectors)
    scale = largest(abs(images), tuple(range(len(images.shape)))) + TINY  # squares of 1e-30, 1e+30 leave the range
    images = images / scale
    basis, _, _ = _orthonormal(_swapped(images))
    z = _swapped(maps.transposed(_swapped(basis))) / scale
    following, rotation, sizes = _orthonormal(z)
    size, before = _swapped(sizes[..., :1, :]), dot(images[:1], images[:1]) ** 0.5
    sound = (size > 0) & (size < float("inf"))
    return Estimate(
        vectors=where(sound, _swapped(following), vectors),
        sigma=where(sound, size * scale, 0.0),
        rotation=where(sound, size / (before + TINY) - 1, 0.0),
        start=vectors[:1],
        image=_swapped(rotation[..., :1, :] @ basis),
        length=before * scale,
    )


def _orthonormal(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return an orthonormal basis of the rows, longest first, the rotation that made them orthogonal, their lengths."""
    gram = rows @ _transposed(rows)
    values, vectors = eigh(-where(abs(gram) < float("inf"), gram, 0.0))  # PyTorch's `eigh` raises an error for NaN
    rotation = _transposed(vectors)
    lengths = where(values < 0, abs(values), 0.0)[..., None] ** 0.5
    least = _RESOLUTION * lengths[..., :1, :] + TINY
    return rotation @ rows / where(lengths > least, lengths, least), rotation, lengths


def _transposed(matrix: Tensor) -> Tensor:
    return transpose(matrix, (1, 0) if len(matrix.shape) == 2 else (0, 2, 1))


def _swapped(vectors: Tensor) -> Tensor:
    """Return `(count, blocks, n)` as `(blocks, count, n)`, and back; `(count, n)` as it is."""
    return vectors if len(vectors.shape) == 2 else transpose(vectors, (1, 0, 2))
