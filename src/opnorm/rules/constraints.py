"""The constraints as one writes them down, without a framework: what the front ends of PyTorch and JAX hand out.

Their arguments are those of the Keras constraints of the same names. Each is a pure function with state, and knows how
to be the same constraint of another operator: that is how a front end fills in a layer's geometry.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from opnorm.arguments import KnownArguments
from opnorm.backends import Tensor, of
from opnorm.checks import (
    Norm,
    require,
    to_axis,
    to_count,
    to_counts,
    to_flag,
    to_fraction,
    to_norm,
    to_operator,
    to_positive,
)
from opnorm.iterations.frequencies import Strides
from opnorm.iterations.matrices import Axis
from opnorm.iterations.power import Search
from opnorm.rules.clipping import Clip
from opnorm.rules.norms import Operator
from opnorm.rules.orthogonal import Orthogonalize
from opnorm.rules.scaling import Scale
from opnorm.rules.targets import Target, as_tensor, require_matrix, target_of, to_least
from opnorm.rules.together import Rule, updated
from opnorm.showing import written


def _to_seed(name: str, value: Any) -> int | None:
    return value if value is None else to_count(name, value, 0)


def _as_it_is(name: str, value: Any) -> Any:
    return value


_at_least_one, _not_negative = partial(to_count, least=1), partial(to_count, least=0)
_CHECKS: dict[str, Callable[..., Any]] = {
    "value": to_norm,
    "max_value": to_norm,
    "min_value": _as_it_is,  # together with the largest
    "operator": _as_it_is,  # together with the axis
    "axis": to_axis,
    "strides": partial(to_counts, least=1),
    "groups": _at_least_one,
    "blockwise": to_flag,
    "power_iterations": _at_least_one,
    "warmup_iterations": _not_negative,
    "tolerance": to_positive,
    "perturbation": to_fraction,
    "companion": to_flag,
    "margin": to_fraction,
    "seed": _to_seed,
}

_MUST_BE_ARRAY = (
    "must be an array or tensor, not what holds it: of a layer its `weight` or `kernel`, of an nnx variable `[...]`"
)


@dataclass(frozen=True, repr=False)
class Constraint(KnownArguments):
    """Abstract: a constraint of an operator norm, as its arguments describe it."""

    _: KW_ONLY
    operator: str = "matrix"
    axis: Axis = -1
    groups: int = 1
    blockwise: bool = False

    if not TYPE_CHECKING:  # to type checkers it would have every name there is

        def __getattr__(self, name: str) -> Any:
            """Tell who puts the rule itself into optax's chain what belongs there."""
            hint = ": in `optax.chain` stands `opnorm.jax.constrain(rule)`" if name == "init" else ""
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Tell who calls the rule what it is made for; the constraints of Keras are called."""
            raise TypeError(
                f"{type(self).__name__!r} object is not callable: it is what `opnorm.torch.constrain(module, "
                "optimizer, rule)` and `opnorm.jax.constrain(rule)` take; "
                "one kernel is changed by `rule.update(kernel, state)`"
            )

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _CHECKS[field.name](field.name, getattr(self, field.name)))
        to_operator(self.operator, self.axis)
        require_matrix("value", getattr(self, "value", None), self.operator)
        require_matrix("max_value", getattr(self, "max_value", None), self.operator)

    @property
    @abstractmethod
    def rule(self) -> Rule:
        """What is done to a kernel."""

    @property
    def target(self) -> Target:
        """The norm that no kernel exceeds after an update."""
        return target_of(getattr(self, "value", getattr(self, "max_value", 1.0)))  # `Orthogonal` has neither: 1

    def ball(self, shape: tuple[int, ...], step: int | None = None) -> float | None:
        """Return the norm that no kernel of `shape` exceeds after an update; None where that depends on the `step`."""
        return self.target.ball(shape, self.axis, self.groups, step)

    def of(self, operator: Operator, blockwise: bool) -> Self:
        """Return the same constraint of another operator; each of its blocks has its own norm if `blockwise`."""
        names = {field.name for field in fields(self)}
        given = {name: value for name, value in operator._asdict().items() if name in names}
        return replace(self, **given, blockwise=blockwise)

    def initial_state(self, kernel: Any, index: int = 0) -> np.ndarray | None:
        """Return the state for the first update of `kernel`, a float32 array, or None where no state is needed.

        Args:
            kernel: An array or tensor; only its shape is read.
            index: Kernels with different indices get different states.
        """
        require(hasattr(kernel, "shape"), "kernel", _MUST_BE_ARRAY, kernel)
        shape = tuple(kernel.shape)
        return None if 0 in shape else self.rule.start(shape, (getattr(self, "seed", None) or 0, index))

    def update(self, kernel: Tensor, state: Tensor = None, step: Any = None) -> tuple[Tensor, Tensor]:
        """Return the constrained kernel and the next state; pure, so it serves any training loop.

        Args:
            kernel: A tensor of NumPy, PyTorch, JAX or TensorFlow, after the optimizer's update.
            state: What `initial_state` or the last `update` returned; None starts afresh.
            step: How many updates came before, for a norm that is a function of it.
        """
        return self._made(self.rule, kernel, state, step)

    def project(self, kernel: Tensor, step: Any = None) -> Tensor:
        """Return the constrained kernel, from a fresh start and to convergence."""
        return self._made(self.rule.converged, kernel, None, step)[0]

    def _made(self, rule: Rule, kernel: Tensor, state: Tensor, step: Any) -> tuple[Tensor, Tensor]:
        require_kernel(kernel, self.axis)
        start, level = self.initial_state(kernel), as_tensor(self.target.at(step), kernel)
        if start is None:
            return (kernel, state) if 0 in kernel.shape else (updated([rule], [kernel], [None], [level])[0][0], None)
        xp = of(kernel)
        state = xp.cast(xp.constant(np.asarray(start), kernel), "float32") if state is None else state
        shape = tuple(state.shape)
        require(shape == start.shape, "state", f"must have the shape of `initial_state`, {start.shape}", shape)
        if isinstance(state, np.ndarray):
            state = xp.cast(xp.constant(state, kernel), "float32")
        (changed,), (state,) = updated([rule], [kernel], [state], [level])
        return changed, state

    def __repr__(self) -> str:
        return written(self)


def require_kernel(kernel: Any, axis: Axis) -> None:
    """Raise unless a kernel is a real tensor whose output axes are known.

    PyTorch's kernels of more than two axes have the outputs first, so that the default says nothing.
    """
    held = hasattr(kernel, "dtype") and hasattr(kernel, "shape") and not hasattr(kernel, "get_metadata")
    require(held, "kernel", _MUST_BE_ARRAY, kernel)
    xp = of(kernel)
    require("float" in xp.dtype(kernel), "kernel", "must be real and floating point", xp.dtype(kernel))
    told = axis != -1 or len(kernel.shape) < 3 or not xp.__name__.endswith(".torch")
    must = (
        "must be given for a PyTorch tensor of more than two axes: axis=0 for the weight of a `torch.nn` convolution, "
        "axis=(-1,) for a kernel with the output channels last, as `operator='convolution'` takes it"
    )
    require(told, "axis", must, axis)


@dataclass(frozen=True, repr=False)
class _Scaled(Constraint):
    """Abstract: multiplies a kernel by a factor that depends on an estimate from below of its spectral norm."""

    _: KW_ONLY
    strides: Strides = 1
    power_iterations: int = 1
    warmup_iterations: int = 100
    tolerance: float = 1e-4
    perturbation: float = 1e-3
    companion: bool = True
    seed: int | None = None

    def _scale(self, cap: bool) -> Scale:
        size, rms, _ = self.target
        operator = Operator(self.operator, self.axis, self.strides, self.groups)
        search = Search(self.power_iterations, self.warmup_iterations, self.tolerance, self.perturbation)
        return Scale(size, cap, operator, search, self.companion, self.blockwise, rms=rms)


@dataclass(frozen=True, repr=False)
class SpectralNorm(_Scaled):
    """Constrains a kernel to spectral norm `value`: W <- value * W / sigma.

    A smaller norm is scaled up to `value` too; a zero kernel stays zero. Sigma is an estimate from below, computed in
    float32 whatever the kernel's dtype.

    Args:
        value: The target norm: a positive number; `"rms"` for sqrt(out / in) of the kernel, or of each of its blocks,
            `"0.5 rms"` for half of that; or a function of the step, counted from 0, that returns a positive number.
        operator: `"matrix"`; or `"convolution"`: the norm of the sliding operator with zero padding, for every image
            size and dilation. Kernels that do not slide are matrices all the same where a module tells the geometry.
        axis: The output axis or axes of the kernel; `strides` and `groups` are those of the layer. All three are filled
            in where a module tells them.
        blockwise: Whether each block is scaled by its own norm: of `groups`; of an attention layer the heads, of a
            recurrent one the gates.
        power_iterations: Iterations in every update, at least 1.
        warmup_iterations: At most so many more in an update where sigma still moves. 0 switches them off.
        tolerance: Sigma still moves while half an iteration raises it by more than this, relative.
        perturbation: Relative size of a fixed random vector that is mixed into `u`. 0 switches it off.
        companion: Whether a second vector follows the second singular value.
        seed: Seeds the first `u`; by default 0: replicas of a model must start alike.

    Reference:
        Miyato et al., Spectral Normalization for Generative Adversarial Networks, 2018.
    """

    value: Norm = 1.0

    @property
    def rule(self) -> Scale:
        """What is done to a kernel."""
        return self._scale(cap=False)


@dataclass(frozen=True, repr=False)
class MaxSpectralNorm(_Scaled):
    """Constrains a kernel to spectral norm at most `max_value`: W <- W / max(1, sigma / max_value).

    A kernel inside the ball is left bit for bit as it is. Everything else is as in `SpectralNorm`; `max_value` is given
    as `value` is there.

    Reference:
        Gouk et al., Regularisation of Neural Networks by Enforcing Lipschitz Continuity, 2018.
    """

    max_value: Norm = 1.0

    @property
    def rule(self) -> Scale:
        """What is done to a kernel."""
        return self._scale(cap=True)


@dataclass(frozen=True, repr=False)
class SpectralClip(Constraint):
    """Constrains a kernel to spectral norm at most `max_value` by clipping: W = U S V^T <- U min(S, max_value) V^T.

    Args:
        max_value: The largest singular value allowed, given as the `value` of `SpectralNorm`.
        min_value: Singular values below it are raised to it, as far as the kernel's rank allows: see
            `opnorm.SpectralClip`. At most `max_value` and in the same unit; 0 leaves them as they are.
        operator: `"matrix"` or `"convolution"`, of which the result is near the kernel, but not the nearest.
        margin: Above 0, nothing is done until the norm exceeds `max_value`; then singular values are clipped to
            `(1 - margin) * max_value`, so that the next updates find nothing to do.

    `axis`, `strides`, `groups`: see `SpectralNorm`. Each block is clipped by itself, whatever `blockwise`.
    """

    max_value: Norm = 1.0
    _: KW_ONLY
    strides: Strides = 1
    margin: float = 0.0
    min_value: float | str = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        least = to_least(self.min_value, self.max_value, self.operator, self.margin)
        object.__setattr__(self, "min_value", least)

    @property
    def rule(self) -> Clip:
        """What is done to a kernel."""
        operator = Operator(self.operator, self.axis, self.strides, self.groups)
        least = target_of(self.min_value).size
        return Clip(self.target.size, operator, self.margin, min_value=least, rms=self.target.rms)


@dataclass(frozen=True, repr=False)
class Orthogonal(Constraint):
    """Constrains a kernel to the nearest (semi-)orthogonal matrix: W = U S V^T <- U V^T, of each block.

    There is no `operator="convolution"`: cut to k x k taps, the symbols nearest to a kernel's are not orthogonal.

    Reference:
        Björck and Bowie, An iterative algorithm for computing the best estimate of an orthogonal matrix, 1971.
    """

    def __post_init__(self) -> None:
        must = "must be 'matrix': cut to k x k taps, the orthogonal symbols nearest to a kernel are not orthogonal"
        require(isinstance(self.operator, str) and self.operator == "matrix", "operator", must, self.operator)
        super().__post_init__()

    @property
    def rule(self) -> Orthogonalize:
        """What is done to a kernel."""
        return Orthogonalize(Operator("matrix", self.axis, 1, self.groups))
