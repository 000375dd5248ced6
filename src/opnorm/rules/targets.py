"""The norm that a rule aims at: a number, a number times sqrt(out / in), or what a function says of the step."""

from collections.abc import Sequence
from math import prod, sqrt
from typing import Any, NamedTuple

import numpy as np

from opnorm.backends import Tensor, of
from opnorm.checks import Norm, require, to_norm
from opnorm.iterations.matrices import Axis, output_shape

Levels = Sequence[Tensor] | None  # one a kernel, see `Target`; None if all are None


class Target(NamedTuple):
    """A norm: `size`, of kernels (in, out) `size * sqrt(out / in)` if `rms`, times the `level`."""

    size: float = 1.0
    rms: bool = False
    level: Any = None  # a tensor without axes, or a function of the step that returns one; None is 1

    @property
    def moves(self) -> bool:
        """Whether it is another one in each step."""
        return callable(self.level)

    def at(self, step: Any) -> Tensor:
        """Return the level in a step, counted from 0; None stands for 1.

        Raises:
            ValueError: When the level is a function and `step` is None.
        """
        if not callable(self.level):
            return self.level
        require(step is not None, "step", "must be given for a norm that is a function of the step", step)
        return self.level(step)

    def ball(self, shape: tuple[int, ...], axis: Axis, groups: int, step: Any = None) -> float | None:
        """Return the number for a kernel of `shape`; None where it depends on a step that is not told."""
        if self.moves and step is None:
            return None
        level = self.at(step)
        size = self.size * unit(self.rms, shape, axis, groups)
        return size if level is None else size * float(level)


def target_of(norm: Norm) -> Target:
    """Return what `checks.to_norm` let pass as a target."""
    if isinstance(norm, str):
        return Target(float(norm.removesuffix("rms") or 1), rms=True)
    return Target(float(norm)) if isinstance(norm, int | float) else Target(level=norm)


def unit(rms: bool, shape: tuple[int, ...], axis: Axis, groups: int) -> float:
    """Return what a target of 1 is for a kernel of `shape`: 1, or if `rms` sqrt(out / in) of each block.

    A matrix (in, out) of that norm lets the root of the mean square of no vector's entries grow.
    """
    if not rms:
        return 1.0
    blocks, columns = output_shape(shape, axis, groups)
    return sqrt(columns * blocks * columns / prod(shape))


def levelled(size: float, level: Tensor, like: Tensor) -> Tensor:
    """Return `size` times the level, if there is one, in the dtype of `like`."""
    if level is None:
        return size
    return size * (of(like).cast(level, of(like).dtype(like)) if hasattr(level, "dtype") else level)


def as_tensor(level: Any, like: Tensor) -> Tensor:
    """Return a level as a float32 tensor of the framework of `like`; a number of PyTorch's, and None, as it is."""
    if level is None or hasattr(level, "dtype") or of(like).__name__.endswith(".torch"):
        return level
    return of(like).constant(np.asarray(level, "float32"), of(like).cast(like, "float32"))


def to_least(least: Any, most: Norm, operator: str, margin: float) -> float | str:
    """Return the least singular value of a clipped kernel; raise unless it goes with the other arguments."""
    if isinstance(least, int | float) and not isinstance(least, bool) and least == 0:
        return 0.0
    low, high = target_of(to_norm("min_value", least)), target_of(most)
    alike = low.level is None and high.level is None and low.rms == high.rms
    must = f"must be at most `max_value` and in its unit, which is no function then; that is {most!r}"
    require(alike and low.size <= high.size, "min_value", must, least)
    alone = operator == "matrix" and not margin
    require(alone, "min_value", "must be 0 with a `margin` and with operator='convolution'", least)
    checked: float | str = to_norm("min_value", least)
    return checked


def require_matrix(name: str, norm: Any, operator: str) -> None:
    """Raise for a norm by shape of a sliding operator: its in and out depend on strides and on the way it is run."""
    must = "must be a number, or a function, with operator='convolution'"
    require(operator == "matrix" or not isinstance(norm, str), name, must, norm)
