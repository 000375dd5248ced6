"""Sizes in a trace: a module may ask them which way to go, for the graph is that of examples of this size."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_CONVERTED = ("__bool__", "__int__", "__float__", "__index__")
_STEPS = 256  # back from a number to the sizes that it is computed from
_FREE = ("prim::Constant", "aten::size")  # what is the same for every example of one size


@contextmanager
def sizes_are_known() -> Iterator[list[Any]]:
    """Let modules that are traced take numbers that follow from the example's size, the batch's apart, as they are.

    `assert x.shape[1] % 2 == 0` is no question about the values of x. PyTorch warns of it like of any other. What was
    taken is listed: were it another number for other batches, it would be one of the batch's size all the same.
    """
    taken: list[Any] = []
    before = {name: torch.Tensor.__dict__.get(name) for name in _CONVERTED}
    for name in _CONVERTED:
        setattr(torch.Tensor, name, _converted(getattr(torch.Tensor, name), taken))
    try:
        yield taken
    finally:
        for name, method in before.items():
            if method is None:
                delattr(torch.Tensor, name)
            else:
                setattr(torch.Tensor, name, method)


def _converted(method: Callable[[Any], Any], taken: list[Any]) -> Callable[[Any], Any]:
    def convert(tensor: Any) -> Any:
        is_known, asks = _is_of_sizes(tensor), str(sys._getframe(1).f_globals.get("__name__"))
        with warnings.catch_warnings():
            if is_known or asks.partition(".")[0] == "torch":  # PyTorch's own checks of shapes
                warnings.simplefilter("ignore", torch.jit.TracerWarning)
            found = method(tensor)
        taken.extend([found] if is_known else [])
        return found

    return convert


def _is_of_sizes(tensor: Any) -> bool:
    """Return whether a number is computed from sizes of other axes than the first, and from constants."""
    if not torch.jit.is_tracing():
        return False
    left, steps = [torch._C._get_value_trace(tensor).node()], 0
    while left:
        node, steps = left.pop(), steps + 1
        if steps > _STEPS or (node.kind() == "aten::size" and not _is_of_example(node)):
            return False
        inputs = [value.node() for value in node.inputs()]
        if not inputs and node.kind() != "prim::Constant":
            return False
        left += [] if node.kind() in _FREE else inputs
    return True


def _is_of_example(size: Any) -> bool:
    value, *axis = size.inputs()
    rank = value.type().dim()
    return len(axis) == 1 and bool(rank) and axis[0].toIValue() % rank != 0
