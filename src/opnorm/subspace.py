"""Subspace iteration: several leading singular vectors of an operator are followed together.

Where W / sigma(W) is trained, nothing pulls at u and v but at what stands behind them, so that the leading singular
values crowd, overtake each other in every step, and one vector is left behind (docs/decisions.md has the figures).
Vectors are stacked along the first axis, as in `opnorm.iterations`; everything is float32.
"""

from keras import ops

from opnorm.iterations import TINY, Estimate, Maps, Tensor, perturbed, still_moves

_RESOLUTION = 1e-5  # of lengths, relative: below it directions are rounding, and not blown up


def settled_subspace_iteration(
    maps: Maps, vectors: Tensor, steps: int, extra_steps: int, tolerance: float, perturbation: float
) -> Estimate:
    """Return the estimate after `steps` subspace iterations, and up to `extra_steps` more while it still moves.

    The arguments are those of `iterations.settled_power_iteration`, of which it is the form for more vectors.
    """
    vectors = perturbed(vectors, perturbation)
    estimate = _iteration(maps, _swapped(_orthonormal(_swapped(vectors))[0]))
    for _ in range(steps - 1):
        estimate = _iteration(maps, estimate.vectors)
    if not extra_steps:
        return estimate
    return Estimate(
        *ops.while_loop(
            lambda *state: still_moves(Estimate(*state), tolerance),
            lambda *state: tuple(_iteration(maps, Estimate(*state).vectors)),
            tuple(estimate),
            maximum_iterations=extra_steps,
        )
    )


def _iteration(maps: Maps, vectors: Tensor) -> Estimate:
    # With U an orthonormal basis of the images W V, the rows of Z = U^T W, made orthogonal, are the next vectors: the
    # longest of them, |W^T v| for the unit vector v that it came from, is the best norm that U has to offer.
    images = maps.times(vectors)
    scale = ops.max(ops.abs(images)) + TINY  # squares of 1e-30 and 1e+30 would leave the range
    basis, _, lengths = _orthonormal(_swapped(images) / scale)
    z = _swapped(maps.transposed(_swapped(basis))) / scale
    following, rotation, sizes = _orthonormal(z)
    sizes, lengths = sizes[..., :1, :], lengths[..., :1, :]
    sound = (sizes > 0) & (sizes < float("inf"))
    return Estimate(
        vectors=ops.where(_swapped(sound), _swapped(following), vectors),
        sigma=_swapped(ops.where(sound, sizes * scale, 0.0)),
        rotation=_swapped(ops.where(sound, sizes / (lengths + TINY) - 1, 0.0)),
        start=vectors[:1],
        image=_swapped(ops.matmul(rotation[..., :1, :], basis)),
        length=_swapped(lengths * scale),
    )


def _orthonormal(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return an orthonormal basis of the rows, longest first, the rotation that made them orthogonal, their lengths."""
    gram = ops.matmul(rows, ops.swapaxes(rows, -1, -2))
    gram = ops.where(ops.isfinite(gram), gram, 0.0)  # PyTorch's `eigh` raises an error for NaN
    values, vectors = ops.eigh(gram)
    rotation = ops.flip(ops.swapaxes(vectors, -1, -2), axis=-2)
    squares = ops.maximum(ops.flip(values, axis=-1), 0.0)[..., None]
    lengths = ops.sqrt(squares)
    divisors = ops.maximum(lengths, _RESOLUTION * lengths[..., :1, :]) + TINY
    return ops.matmul(rotation, rows) / divisors, rotation, lengths


def _swapped(vectors: Tensor) -> Tensor:
    """Return `(count, blocks, n)` as `(blocks, count, n)`, and back; `(count, n)` as it is."""
    return vectors if len(vectors.shape) == 2 else ops.swapaxes(vectors, 0, 1)
