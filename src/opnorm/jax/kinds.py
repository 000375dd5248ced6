"""What a layer makes of one array of weights, and which arrays of a layer are kernels, by the layer's type.

`kernels(layer)` is open: `kernels.register(MyLayer)` teaches it a new type, and `geometry`, `constrain` and `project`
then know it.
"""

from collections.abc import Mapping
from functools import singledispatch
from math import prod
from typing import Any, NamedTuple

from opnorm.backends import Tensor
from opnorm.iterations.frequencies import Strides
from opnorm.rules import Operator

Shape = tuple[int, ...]


class KernelGeometry(NamedTuple):
    """The matrix, or the convolution, that a layer makes of an array of weights.

    Args:
        axis: The output axis or axes.
        groups: The number of diagonal blocks, consecutive along the output axes in the order of `axis`.
        rank: How many axes one kernel has; further axes before those stack several, each with a norm of its own:
            experts, layers made by `vmap` and `scan`, whole models. None: all axes belong to one kernel.
        spatial: The spatial axes of a convolution, which has one input axis beside them; () if the kernel slides not.
        strides: Those of the convolution.
        transposed: Whether the layer is the adjoint of the convolution.
        parts: What `blockwise=True` of a constraint means: the heads of an attention, the gates of a recurrence.
        note: What else is to be known.
    """

    axis: int | Shape = -1
    groups: int = 1
    rank: int | None = None
    spatial: Shape = ()
    strides: Strides = 1
    transposed: bool = False
    parts: int = 1
    note: str = ""

    def fits(self, shape: Shape) -> bool:
        """Return whether an array of `shape` can be such a kernel."""
        if self.rank is not None and not 1 <= self.rank <= len(shape):
            return False
        own = len(shape) - len(self.stack(shape))
        outputs, spatial = several(self.axis), self.spatial
        if not all(-own <= axis < own for axis in (*outputs, *spatial)):
            return False
        taken = [axis % own for axis in (*outputs, *spatial)]
        inputs = own - len(taken)
        slides = len(outputs) == inputs == 1 or not spatial
        channels = prod(shape[len(shape) - own + axis % own] for axis in outputs)
        return bool(outputs) and len(set(taken)) == len(taken) and slides and channels % self.groups == 0

    def stack(self, shape: Shape) -> Shape:
        """Return the sizes of the axes that stack several kernels in an array of `shape`."""
        return shape[: len(shape) - (len(shape) if self.rank is None else self.rank)]

    def blocks(self, blockwise: bool) -> int:
        """Return the number of diagonal blocks of one kernel, those with norms of their own if `blockwise`."""
        return self.groups * (self.parts if blockwise else 1)

    def operator(self, operator: str, shape: Shape, blockwise: bool) -> Operator:
        """Return the operator of `view` for an array of `shape`; a kernel that does not slide is its own matrix."""
        stack = self.stack(shape)
        if self.slides(operator):
            return Operator("convolution", -1, self.strides, prod(stack) * self.groups)
        axes = (*range(len(stack)), *self._outputs(len(shape)))
        return Operator("matrix", axes[0] if len(axes) == 1 else axes, 1, prod(stack) * self.blocks(blockwise))

    def view(self, array: Tensor, operator: str) -> Tensor:
        """Return the array as the rules read it: of a convolution `(*spatial, in / groups, stack * out)`."""
        if not self.slides(operator):
            return array
        split, order, shape = self._sliding(array.shape)
        return array.reshape(split).transpose(order).reshape(shape)

    def unview(self, kernel: Tensor, operator: str, shape: Shape) -> Tensor:
        """Return the array of `shape` of which `kernel` is the view."""
        if not self.slides(operator):
            return kernel
        split, order, _ = self._sliding(shape)
        return kernel.reshape([split[i] for i in order]).transpose(_inverse(order)).reshape(shape)

    def slides(self, operator: str) -> bool:
        """Return whether the kernel is a convolution for that `operator`, not a matrix."""
        return operator == "convolution" and bool(self.spatial)

    def _outputs(self, rank: int) -> Shape:
        """Return the output axes of an array of `rank` axes, counted from its first."""
        own = rank if self.rank is None else self.rank
        return tuple(rank - own + axis % own for axis in several(self.axis))

    def _sliding(self, shape: Shape) -> tuple[Shape, Shape, Shape]:
        """Return how to cut an array's axes, the order to put them in, and the shape to join them to."""
        stack, (out,) = len(self.stack(shape)), self._outputs(len(shape))
        spatial = [stack + axis % (len(shape) - stack) for axis in self.spatial]
        (into,) = [axis for axis in range(stack, len(shape)) if axis not in (out, *spatial)]
        if not self.transposed:
            order = (*spatial, into, *range(stack), out)
            return shape, order, (*(shape[i] for i in (*spatial, into)), -1)
        # The outputs of the layer are the inputs of the convolution, a group's share of them.
        split = (*shape[:out], self.groups, shape[out] // self.groups, *shape[out + 1 :])
        spatial, into = [axis + (axis > out) for axis in spatial], into + (into > out)
        order = (*spatial, out + 1, *range(stack), out, into)
        return split, order, (*(split[i] for i in (*spatial, out + 1)), -1)


def several(axes: int | Shape) -> Shape:
    """Return an axis, or axes, as a tuple."""
    return (axes,) if isinstance(axes, int) else tuple(axes)


def _inverse(order: Shape) -> list[int]:
    return [order.index(i) for i in range(len(order))]


@singledispatch
def kernels(layer: Any) -> Mapping[str, KernelGeometry | str]:
    """Return the geometry of each kernel of `layer` by the attribute's path, none for a type that is not registered.

    Kernels of layers inside are theirs, unless the outer layer names them (`"query.kernel"`). A text instead of a
    geometry is the reason why an array is no kernel; under `"*"` it is that of all arrays in the layer.

    Args:
        layer: A `flax.nnx.Module`, an `equinox.Module`, or any class of yours that is a pytree; of `flax.linen` a
            module bound to its parameters.

    Example:
        >>> @opnorm.jax.kernels.register
        ... def _(layer: MyExperts):  # weight: (experts, in, out)
        ...     return {"weight": opnorm.jax.KernelGeometry(rank=2)}
    """
    return {}


def is_registered(layer: Any) -> bool:
    """Return whether `kernels` knows the type of `layer`."""
    return kernels.dispatch(type(layer)) is not kernels.dispatch(object)


def strides_of(strides: Any, dilation: Any, count: int) -> Strides:
    """Return the strides as a constraint takes them: 1, which bounds, where strides and dilation both exceed 1."""
    steps, holes = _each(strides, count), _each(dilation, count)
    if max(steps) > 1 and max(holes) > 1:
        return 1
    return steps[0] if len(set(steps)) == 1 else steps


def _each(value: Any, count: int) -> Shape:
    if value is None:
        return (1,) * count
    return (int(value),) * count if isinstance(value, int) else tuple(map(int, value))
