"""Products of integers as ONNX Runtime's dynamic quantization writes them: their scales are moved to the kernels.

`MatMulInteger(x, W) -> Cast -> Mul` by `Mul(scale of x, scale of W)` is what the layer computes of W times its scale.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from math import prod
from typing import NamedTuple

from opnorm.checkpoints.guesses import FLOATS, Named
from opnorm.checkpoints.onnx_unfold import Op

_PRODUCTS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}
_DOUBLE = 11  # ONNX's number of float64
_KERNEL, _ZERO_POINT = 1, 3  # places of inputs


class _Scaled(NamedTuple):
    """A product of integers, the operator that multiplies both scales, and which of its inputs is the kernel's."""

    product: Op
    scales: Op
    place: int


def with_scales(
    ops: list[Op], tensors: Mapping[str, Named], outputs: Collection[str], fresh: Callable[[str], str]
) -> list[Op]:
    """Return the operators with kernels dequantized before their product, where nothing else reads what is between.

    Args:
        ops: Each after those that it reads.
        tensors: Those of the file.
        outputs: Values that the network, or a graph of control flow in it, gives.
        fresh: Returns a name for a value that is not taken.
    """
    readers: dict[str, list[Op]] = defaultdict(list)
    for op in ops:
        for value in op.inputs:
            readers[value].append(op)
    makers = {value: op for op in ops for value in op.outputs}
    found = [_scaled(op, readers, makers, tensors, outputs) for op in ops if op.kind in _PRODUCTS]
    known = {one.product.outputs[0]: one for one in found if one}
    plain = {one.scales.outputs[0]: one for one in found if one}
    moved: list[Op] = []
    for op in ops:
        first = op.outputs[0] if op.outputs else ""
        if first in known:
            moved += _dequantized(known[first], tensors, fresh)
        elif first in plain:
            moved.append(op._replace(kind="Identity", inputs=(op.inputs[1 - plain[first].place],), options={}))
        else:
            moved.append(op)
    return moved


def _scaled(
    op: Op,
    readers: Mapping[str, list[Op]],
    makers: Mapping[str, Op],
    tensors: Mapping[str, Named],
    outputs: Collection[str],
) -> _Scaled | None:
    """Return a product with its scales, None where it is written in another way."""

    def sole(before: Op, kind: str) -> Op | None:
        value = before.outputs[0] if before.outputs else ""
        found = readers.get(value, []) if value else []
        return found[0] if len(found) == 1 and found[0].kind == kind and value not in outputs else None

    cast = sole(op, "Cast")
    last = sole(cast, "Mul") if cast else None
    if cast is None or last is None:
        return None
    others = [value for value in last.inputs if value != cast.outputs[0]]
    scales = makers.get(others[0]) if len(others) == 1 else None
    if scales is None or scales.kind != "Mul" or sole(scales, "Mul") is not last:
        return None
    places = [i for i, value in enumerate(scales.inputs) if value in tensors]
    kernel = tensors.get(op.inputs[_KERNEL]) if len(op.inputs) > _KERNEL else None
    if len(places) != 1 or kernel is None or not _fits(op, kernel, tensors[scales.inputs[places[0]]], tensors):
        return None
    return _Scaled(op, scales, places[0])


def _fits(op: Op, kernel: Named, scale: Named, tensors: Mapping[str, Named]) -> bool:
    """Return whether a kernel has one scale, or a matrix one for each column, and its zero points likewise."""
    single = prod(scale.shape) == 1 and len(scale.shape) < 2
    columns = len(kernel.shape) == 2 and scale.shape == kernel.shape[1:] and op.kind == "MatMulInteger"
    zero = op.inputs[_ZERO_POINT] if len(op.inputs) > _ZERO_POINT else ""
    same = not zero or (zero in tensors and prod(tensors[zero].shape) == prod(scale.shape))
    return scale.dtype in FLOATS and (single or columns) and same


def _dequantized(one: _Scaled, tensors: Mapping[str, Named], fresh: Callable[[str], str]) -> list[Op]:
    """Return the operators that scale a kernel, and multiply by it."""
    op = one.product
    kernel, scale = op.inputs[_KERNEL], one.scales.inputs[one.place]
    value, axis = fresh(f"{kernel} scaled"), len(tensors[kernel].shape) - 1
    options = {"axis": axis, "output_dtype": _DOUBLE}  # the product is one of integers: no entry was rounded
    given = (kernel, scale, *op.inputs[_ZERO_POINT:])
    name = f"{op.name} scaled"
    first = op._replace(name=name, kind="DequantizeLinear", inputs=given, outputs=(value,), options=options)
    return [first, op._replace(kind=_PRODUCTS[op.kind], inputs=(op.inputs[0], value))]
