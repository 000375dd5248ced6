"""A kernel normalized in the forward pass, W / sigma(W), with the gradient through sigma: a parametrization."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from opnorm.checks import require, to_count, to_flag, to_fraction, to_operator, to_positive
from opnorm.rules import Normalizer
from opnorm.torch.compiling import written_out
from opnorm.torch.geometry import KernelGeometry, kernels
from opnorm.torch.sites import require_parameter

_FIRST = "_opnorm_loads"  # of a module: it has the hooks that load others' names


class Declared(NamedTuple):
    """What a parametrization holds a kernel at."""

    ball: float
    operator: str


class SpectralNormalization(nn.Module):
    """Returns a kernel with spectral norm `value`; `spectral_normalization` puts it on a module.

    The buffer `vectors` keeps the leading singular vectors from call to call. Calls in training mode write it, of a
    kernel that is not frozen; no other call writes anything.
    """

    vectors: Tensor

    def __init__(self, kernel: Tensor, geometry: KernelGeometry, normalizer: Normalizer, seed: int) -> None:
        super().__init__()
        self.geometry, self.normalizer = geometry, normalizer
        self._search = _search(geometry, normalizer)
        self.stale = False  # whether the kernel was loaded without vectors
        shape = tuple(self._view(kernel).shape)
        self.register_buffer("vectors", torch.tensor(normalizer.start(shape, (seed, 0)), device=kernel.device))
        self.settle(kernel)

    def forward(self, kernel: Tensor) -> Tensor:
        """Return the kernel times `value / sigma`."""
        vectors = self.vectors.float()
        if torch.compiler.is_compiling() and self.normalizer.operator == "matrix":
            steps = self.normalizer.power_iterations if self.training else 0
            factor, following = written_out(self.normalizer, self._view(kernel), vectors, steps)
        else:
            factor, following = self._search(kernel, vectors)
        if self.training and kernel.requires_grad:
            self._keep(following)
        return (self._view(kernel) * factor).to(kernel.dtype).reshape(kernel.shape) if factor.ndim else kernel * factor

    def right_inverse(self, kernel: Tensor) -> Tensor:
        """Return the kernel itself: `module.weight = kernel` stores it, and it is normalized in the next call."""
        return kernel

    def settle(self, kernel: Tensor) -> None:
        """Find the vectors of a kernel anew, from those that there are."""
        with torch.no_grad():
            self._keep(self._search(kernel, self.vectors.float())[1])

    def extra_repr(self) -> str:
        """Return the arguments that tell what is done."""
        return f"value={self.normalizer.value}, cap={self.normalizer.cap}, operator={self.normalizer.operator!r}"

    def _view(self, kernel: Tensor) -> Tensor:
        return self.geometry.view(kernel, self.normalizer.operator)

    def _keep(self, vectors: Tensor) -> None:
        with torch.no_grad():
            self.vectors.copy_(vectors)


def _search(geometry: KernelGeometry, normalizer: Normalizer) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the function of a kernel and vectors that finds the factor and the next vectors."""

    def search(kernel: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        return normalizer.factor(geometry.view(kernel, normalizer.operator), vectors)

    # No tracer follows the search for a convolution's frequencies: what is compiled calls it as it is.
    return torch.compiler.disable(search) if normalizer.operator == "convolution" else search


def spectral_normalization(
    module: nn.Module,
    name: str = "weight",
    *,
    value: float = 1.0,
    cap: bool = False,
    operator: str = "matrix",
    vectors: int = 8,
    power_iterations: int = 1,
    warmup_iterations: int = 100,
    tolerance: float = 3e-4,
    perturbation: float = 1e-3,
    seed: int | None = None,
) -> nn.Module:
    """Return `module`, which from now on multiplies with value * W / sigma(W), differentiated through sigma.

    In place of `torch.nn.utils.parametrizations.spectral_norm`, whose state dicts load, as do those of the older hook
    and of a module without either. Sigma is that of the matrix or convolution that the module applies, see
    `opnorm.torch.kernels`; an estimate from below, in float32, by subspace iteration. In evaluation nothing is written,
    and a weight that was replaced is normalized all the same. `torch.nn.utils.parametrize.remove_parametrizations`
    leaves the normalized weight in a plain module. What is compiled or exported takes exactly `power_iterations` steps
    in training and none in evaluation, from the vectors that the last training call or `load_state_dict` left.

    Args:
        module: A `torch.nn.Module` with a kernel that `opnorm.torch.kernels` knows.
        name: The kernel's name.
        value: The norm of the kernel, positive.
        cap: Scale down only: W / max(1, sigma / value).
        operator: `"matrix"`, or `"convolution"` for the sliding operator of convolutions.
        vectors: How many singular vectors are followed, at most.
        power_iterations: Iterations in each call, at least 1.
        warmup_iterations: At most so many more in a call where sigma still moves. 0 switches them off.
        tolerance: Sigma still moves while half an iteration raises it by more than this, relative.
        perturbation: Relative size of fixed random vectors mixed into those followed.
        seed: Seeds the first vectors; by default 0: replicas of a module must start alike.

    Raises:
        ValueError: When the kernel is not known, or normalized already.

    Example:
        >>> layer = opnorm.torch.spectral_normalization(torch.nn.Linear(20, 40))

    Reference:
        Miyato et al., Spectral Normalization for Generative Adversarial Networks, 2018.
    """
    require(isinstance(module, nn.Module), "module", "must be a torch.nn.Module", module)
    geometry = _geometry(module, name)
    normalizer = Normalizer(
        value=to_positive("value", value),
        cap=to_flag("cap", cap),
        vectors=to_count("vectors", vectors, 1),
        power_iterations=to_count("power_iterations", power_iterations, 1),
        warmup_iterations=to_count("warmup_iterations", warmup_iterations, 0),
        tolerance=to_positive("tolerance", tolerance),
        perturbation=to_fraction("perturbation", perturbation),
        blockwise=geometry.blockwise and geometry.groups > 1,
        **geometry.operator(to_operator(operator, -1))._asdict(),
    )
    one = SpectralNormalization(
        getattr(module, name), geometry, normalizer, 0 if seed is None else to_count("seed", seed, 0)
    )
    parametrize.register_parametrization(module, name, one)
    _load_others(module)
    return module


def ball_of(module: nn.Module, name: str) -> Declared | None:
    """Return what `spectral_normalization` holds the kernel of that name at; None if it does not."""
    found = _ours(module, name)
    return None if found is None else Declared(found[1].normalizer.value, found[1].normalizer.operator)


def _geometry(module: nn.Module, name: str) -> KernelGeometry:
    require(isinstance(name, str), "name", "must be the name of a kernel", name)
    if _ours(module, name) is not None:
        raise ValueError(f"Argument `name` must be of a kernel that is not normalized already. Received: name={name!r}")
    known = {one.name: one for one in kernels(module)}
    must = (
        f"must be one of the kernels of {type(module).__name__} that `opnorm.torch.kernels` knows, "
        f"{', '.join(known) or 'none'}; `opnorm.torch.kernels.register` teaches types of your own"
    )
    require(name in known, "name", must, name)
    require_parameter(module, known[name])
    return known[name]


def _ours(module: nn.Module, name: str) -> tuple[int, SpectralNormalization] | None:
    """Return opnorm's parametrization of a module's attribute, and its place among all of them."""
    if not parametrize.is_parametrized(module, name):
        return None
    parametrizations: Any = module.parametrizations
    several = enumerate(parametrizations[name])
    return next(((i, one) for i, one in several if isinstance(one, SpectralNormalization)), None)


def _load_others(module: nn.Module) -> None:
    if not getattr(module, _FIRST, False):
        setattr(module, _FIRST, True)
        module.register_load_state_dict_pre_hook(_rename)
        module.register_load_state_dict_post_hook(_settle)


def _rename(module: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Give what a plain module, PyTorch's parametrization or its older hook saved the names that it has here."""
    for name in getattr(module, "parametrizations", ()):
        found = _ours(module, name)
        if found is None:
            continue
        place, one = found
        inside = f"{prefix}parametrizations.{name}"
        for former in (f"{prefix}{name}", f"{prefix}{name}_orig"):
            if former in state_dict:
                state_dict[f"{inside}.original"] = state_dict.pop(former)
        for other in (f"{prefix}{name}_u", f"{prefix}{name}_v", f"{inside}.{place}._u", f"{inside}.{place}._v"):
            state_dict.pop(other, None)
        own = f"{inside}.{place}.vectors"
        if f"{inside}.original" in state_dict and own not in state_dict:
            state_dict[own] = one.vectors.detach().clone()
            one.stale = True


def _settle(module: nn.Module, incompatible: Any) -> None:
    """Find the vectors of weights that were loaded without any."""
    for name in getattr(module, "parametrizations", ()):
        found, parametrizations = _ours(module, name), module.parametrizations
        if found is not None and found[1].stale:
            found[1].settle(parametrizations[name].original)
            found[1].stale = False
