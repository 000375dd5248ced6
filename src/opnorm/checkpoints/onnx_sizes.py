"""Open sizes of ONNX images, named by what computes them: two ways to one size end in one name."""

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from opnorm.checkpoints.guesses import Named
from opnorm.checkpoints.onnx_shapes import Shape
from opnorm.checkpoints.onnx_unfold import Op

_SLIDING = ("Conv", "MaxPool", "AveragePool")
_TOGETHER = ("Add", "Sub", "Mul", "Div", "Sum", "Max", "Min", "Mean", "Where", "PRelu")  # their inputs meet by axes
_LONG = 200  # characters of a name made of names: a longer one is left as it was


def with_open_sizes(ops: Iterable[Op], shapes: Mapping[str, Shape], tensors: Mapping[str, Named]) -> dict[str, Shape]:
    """Return the shapes, sizes that convolution and pooling compute from an open size named after the computation.

    ONNX's inference gives each of them a name of its own, so that the two branches of a residual block never meet.

    Args:
        ops: The operators, each after its inputs.
        shapes: Of values; a name of a size stands for one number in every run.
        tensors: Those of the file, kernels among them.
    """
    found = dict(shapes)
    names: dict[int | str, int | str] = {}
    for op in ops:
        for value in op.outputs:
            if value in found:
                found[value] = tuple(names.get(size, size) for size in found[value])
        result = op.outputs[0] if op.outputs else ""
        if result not in found:
            continue
        for old, new in zip(found[result], _computed(op, found, tensors), strict=True):
            if isinstance(old, str) and len(str(new)) <= _LONG:
                names[old] = new
        found[result] = tuple(names.get(size, size) for size in found[result])
    return found


def _computed(op: Op, shapes: Mapping[str, Shape], tensors: Mapping[str, Named]) -> Shape:
    """Return the shape of an operator's first result from those of its inputs, as far as that is told."""
    result = shapes[op.outputs[0]]
    given = [shapes[name] for name in op.inputs if name in shapes]
    if op.kind in _SLIDING and given and op.inputs[0] in shapes and len(given[0]) == len(result):
        kernel = tensors[op.inputs[1]].shape[2:] if op.kind == "Conv" and op.inputs[1] in tensors else ()
        return (*result[:2], *_slid({"kernel_shape": kernel, **op.options}, given[0][2:], result[2:]))
    if op.kind == "Resize" and op.inputs[0] in shapes and len(given[0]) == len(result):
        return _resized(op, given[0], result, tensors)
    if op.kind == "Reshape" and op.inputs[0] in shapes:
        return _regrouped(given[0], result)
    if op.kind in _TOGETHER and len(given) == len(op.inputs) and len(set(given)) == 1:
        return given[0] if len(given[0]) == len(result) else result
    return result


def _resized(op: Op, given: Shape, result: Shape, tensors: Mapping[str, Named]) -> Shape:
    """Return the shape of an image that is scaled: a size that is scaled by one stays as it is."""
    scales = tensors.get(op.inputs[2]) if len(op.inputs) > 2 else None
    if scales is None or scales.shape != (len(result),) or "axes" in op.options:
        return result
    return tuple(a if scale == 1 else b for scale, a, b in zip(scales.read(), given, result, strict=True))


def _regrouped(given: Shape, result: Shape) -> Shape:
    """Return a reshape's result, its one open size the input's where all others have the same product."""
    (before, known), (after, others) = _apart(given), _apart(result)
    is_same = len(before) == len(after) == 1 and prod(known) == prod(others) > 0
    return tuple(before[0] if isinstance(size, str) else size for size in result) if is_same else result


def _apart(shape: Shape) -> tuple[list[str], list[int]]:
    """Return the open sizes of a shape, and those that are known."""
    return [size for size in shape if isinstance(size, str)], [size for size in shape if isinstance(size, int)]


def _slid(options: Mapping[str, Any], sizes: Shape, result: Shape) -> Shape:
    rank, kernel = len(sizes), list(options.get("kernel_shape", ()))
    strides, rates = list(options.get("strides", [1] * rank)), list(options.get("dilations", [1] * rank))
    pads, automatic = list(options.get("pads", [0] * 2 * rank)), options.get("auto_pad", "NOTSET")
    lengths = (len(kernel), len(strides), len(rates), len(pads))
    if lengths != (rank, rank, rank, 2 * rank) or options.get("ceil_mode") or min(strides) < 1:
        return result
    zeros = [0] * rank if automatic == "VALID" else [pads[i] + pads[rank + i] for i in range(rank)]
    kept = [zeros[i] - (kernel[i] - 1) * rates[i] for i in range(rank)]
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        kept = [0] * rank
    axes = zip(sizes, result, kept, strides, strict=True)
    return tuple(_size(n, more, stride) if isinstance(n, str) else m for n, m, more, stride in axes)


def _size(n: str, more: int, stride: int) -> str:
    """Return the name of `(n + more - 1) // stride + 1`."""
    longer = n if more == 0 else f"({n}{more:+d})"
    return longer if stride == 1 else f"ceil({longer}/{stride})"
