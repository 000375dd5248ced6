"""A kernel divided by its norm in the forward pass, differentiated through the norm."""

from typing import Any

import jax
import jax.numpy as jnp

from opnorm.backends import Tensor
from opnorm.checks import require, to_count, to_flag, to_fraction, to_operator, to_positive
from opnorm.jax.fitting import without_explicit_axes
from opnorm.jax.kinds import KernelGeometry
from opnorm.rules import Normalizer


def normalized(
    kernel: Any,
    state: Tensor = None,
    *,
    geometry: KernelGeometry | None = None,
    value: float = 1.0,
    cap: bool = False,
    operator: str = "matrix",
    vectors: int = 8,
    power_iterations: int = 1,
    warmup_iterations: int = 100,
    tolerance: float = 3e-4,
    perturbation: float = 1e-3,
    seed: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return value * W / sigma(W), whose gradient goes through sigma, and the next state; pure.

    Sigma is an estimate from below, in float32, by subspace iteration; no gradient goes through the search, so that
    second derivatives by the kernel itself hold the singular vectors fixed. A zero kernel stays zero. Keep the next
    state in training, and throw it away in evaluation: the result is then that of the stored vectors.

    Args:
        kernel: The array.
        state: The singular vectors that are followed, as the last call returned them; None starts afresh, so that
            `normalized(kernel)[1]` is the first state.
        geometry: Which matrix it is, by default (..., out); of equinox's layers `KernelGeometry(axis=0)`.
        value: The norm of the result, positive.
        cap: Scale down only: W / max(1, sigma / value).
        operator: `"matrix"`, or `"convolution"` for the sliding operator of a geometry with `spatial` axes.
        vectors: How many singular vectors are followed, at most.
        power_iterations: Iterations in each call, at least 1.
        warmup_iterations: At most so many more in a call where sigma still moves. 0 switches them off.
        tolerance: Sigma still moves while half an iteration raises it by more than this, relative.
        perturbation: Relative size of fixed random vectors mixed into those followed.
        seed: Seeds the first vectors; by default 0.

    Raises:
        ValueError: When the kernel is not real and floating point, or `state` is not of its shape.

    Example:
        >>> weight, vectors = opnorm.jax.normalized(kernel)

    Reference:
        Miyato et al., Spectral Normalization for Generative Adversarial Networks, 2018.
    """
    geometry = KernelGeometry() if geometry is None else geometry
    require(isinstance(geometry, KernelGeometry), "geometry", "must be a KernelGeometry", geometry)
    must = "must be an array, not what holds it: of a layer its `kernel` or `weight`"
    require(hasattr(kernel, "shape") and hasattr(kernel, "dtype"), "kernel", must, kernel)
    kernel = jnp.asarray(kernel)
    real = jnp.issubdtype(kernel.dtype, jnp.floating)
    require(real, "kernel", "must be real and floating point", str(kernel.dtype))
    require(kernel.size > 0, "kernel", "must have entries", kernel.shape)
    require(geometry.fits(kernel.shape), "geometry", f"must fit a kernel of shape {kernel.shape}", geometry)
    blockwise = bool(geometry.stack(kernel.shape))
    normalizer = Normalizer(
        value=to_positive("value", value),
        cap=to_flag("cap", cap),
        vectors=to_count("vectors", vectors, 1),
        power_iterations=to_count("power_iterations", power_iterations, 1),
        warmup_iterations=to_count("warmup_iterations", warmup_iterations, 0),
        tolerance=to_positive("tolerance", tolerance),
        perturbation=to_fraction("perturbation", perturbation),
        blockwise=blockwise,
        **geometry.operator(to_operator(operator, -1), kernel.shape, False)._asdict(),
    )
    shape = jax.eval_shape(lambda kernel: geometry.view(kernel, operator), kernel).shape
    start = normalizer.start(shape, (0 if seed is None else to_count("seed", seed, 0),))
    state = jnp.asarray(start) if state is None else state
    must = "must be what the last call returned beside the kernel, or None; `value=` is given by name"
    require(hasattr(state, "shape"), "state", must, state)
    require(state.shape == start.shape, "state", f"must have the shape {start.shape}", state.shape)

    def applied(kernels: list[Tensor], states: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        view = geometry.view(kernels[0], operator)
        factor, following = normalizer.factor(view, states[0])
        wide = view.astype(jnp.promote_types(view.dtype, factor.dtype)) * factor
        return [geometry.unview(wide.astype(kernel.dtype), operator, kernel.shape)], [following]

    with jax.default_matmul_precision("highest"):
        (changed,), (following,) = without_explicit_axes(applied, [kernel], [state])
    return changed, following
