"""Where an ONNX network computes its weights while it runs, and which constants go into them.

A constant that meets a value of the run has no norm as a weight: what the run makes of the two is not in the file.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from enum import IntEnum
from math import prod
from typing import NamedTuple

from opnorm.checkpoints.onnx_axes import Sides, before, is_spread, operand
from opnorm.checkpoints.onnx_shapes import Shape
from opnorm.checkpoints.onnx_unfold import Op

_FIXED = {  # operators whose inputs at these places are weights, whatever else they compute
    **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger", "DeformConv"), (1,)),
    "QLinearConv": (3,),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2, 7)),
    "BatchNormalization": (1, 4),
}
_PRODUCTS = {  # operators that multiply two of their inputs with each other: these
    **dict.fromkeys(("Gemm", "MatMul", "MatMulInteger", "Mul"), (0, 1)),
    "QLinearMatMul": (0, 3),
}
_MOVED = {  # operators whose further inputs only steer
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile", "Slice", "Split", "Gather", "Dropout",
    "GatherElements", "GatherND", "Resize", "Upsample", "TopK", "Compress", "Trilu", "CumSum",
}  # fmt: skip
_SIZES = {"Shape", "Size"}
_WAYS = 4  # by which the axes of one value are followed into products


class Reach(IntEnum):
    """How near a weight is to what goes into it."""

    FACTOR = 0  # one of two factors, entry by entry: a gate, which makes a weight only of what no layer computed
    FAR = 1  # behind a layer with weights of its own: what that layer reads is its data
    NEAR = 2  # an operand of a product, of which one may as well be the other's data
    CERTAIN = 3  # it stands where only weights stand


class Want(NamedTuple):
    """A value that is a weight of the run, or goes into one."""

    value: str
    user: Op  # the operator that reads the weight
    sides: Sides = None  # what its axes are in the product


Wanted = Mapping[Reach, list[Want]]


class Part(NamedTuple):
    """A constant that goes into a weight of the run."""

    op: Op
    position: int
    user: Op  # the operator that reads the weight


class Runtime:
    """Follows the weights that a network computes back to the constants in them; takes time linear in the operators.

    Args:
        ops: Each after those that it reads.
        links: What the values of control flow come from, beside their operators.
        shapes: Those of the constants, by name.
        values: The shapes of all values, as far as they are known.
    """

    def __init__(
        self,
        ops: list[Op],
        links: Mapping[str, list[str]],
        shapes: Mapping[str, tuple[int, ...]],
        values: Mapping[str, Shape],
    ):
        self.ops, self.links, self.shapes, self.values = ops, links, shapes, values
        self.makers = {value: op for op in ops for value in op.outputs if value}
        self.layered: set[str] = set()  # values that a layer with weights in the file computed
        for op in ops:
            if self.is_layer(op) or not self.layered.isdisjoint(op.inputs):
                self.layered.update(filter(None, op.outputs))

    def is_layer(self, op: Op) -> bool:
        """Return whether an operator multiplies data with a weight of the file."""
        table = op.kind == "Gather" and len(self.shapes.get(op.inputs[0] if op.inputs else "", ())) == 2
        known = [op.inputs[i] in self.shapes for i in _weights(op)]
        return table or (op.kind != "Mul" and any(known) and (op.kind in _FIXED or not all(known)))

    def parts(self) -> Iterator[Part]:
        """Yield the constants in the weights of the run."""
        wanted: Wanted = {reach: [] for reach in Reach}
        for op in self.ops:
            places = [i for i in _weights(op) if op.inputs[i] not in self.shapes]
            if op.kind in _FIXED or len(places) > 1:
                reach = Reach.CERTAIN if op.kind in _FIXED else Reach.FACTOR if op.kind == "Mul" else Reach.NEAR
                wanted[reach] += [Want(op.inputs[i], op, operand(op, self.values.get(op.inputs[i]))) for i in places]
            if places and op.kind == "BatchNormalization":
                yield from (Part(op, i, op) for i in _weights(op) if i not in places)
        seen: dict[str, set[Sides]] = defaultdict(set)
        for reach in sorted(Reach, reverse=True):
            while wanted[reach]:
                want = wanted[reach].pop()
                met = seen[want.value]
                if not met or (want.sides is not None and want.sides not in met and len(met) < _WAYS):
                    met.add(want.sides)
                    wanted[reach] += [Want(source, want.user) for source in self.links.get(want.value, ())]
                    yield from self.followed(want, reach, wanted)

    def followed(self, want: Want, reach: Reach, wanted: Wanted) -> Iterator[Part]:
        """Yield the constants that a value's operator puts into it, and note its other inputs as wanted."""
        op = self.makers.get(want.value)
        if op is None or self.ends(op, reach):
            return
        further = Reach.FAR if reach == Reach.NEAR and self.is_layer(op) else reach
        for i in _carried(op):
            constant = self.shapes.get(op.inputs[i])
            spread = constant is not None and i not in _weights(op) and is_spread(op, constant, want.sides)
            if spread or self.counts(op, i, further):
                yield Part(op, i, want.user)
            elif constant is None:
                sides = None if self.is_layer(op) else before(op, i, want.sides, self.values)
                wanted[further].append(Want(op.inputs[i], want.user, sides))

    def ends(self, op: Op, reach: Reach) -> bool:
        """Return whether nothing of an operator's inputs is in its result; a softmax is as large whatever was added."""
        softened = op.kind == "Softmax" and reach != Reach.CERTAIN and not self.layered.isdisjoint(op.inputs)
        return softened or op.kind in _SIZES or (reach == Reach.FACTOR and self.is_layer(op))

    def counts(self, op: Op, position: int, reach: Reach) -> bool:
        """Return whether a constant is a part of the weight, and not a bias or factor of a layer's result."""
        shape = self.shapes.get(op.inputs[position])
        if shape is None or (reach != Reach.CERTAIN and self.is_layer(op)):
            return False
        if op.kind == "OneHot":  # any of its entries may be any of the two numbers
            return True
        layered, matrix = not self.layered.isdisjoint(op.inputs), sum(n != 1 for n in shape) > 1
        if reach <= Reach.FAR:
            return (matrix if reach == Reach.FAR else prod(shape) != 1) and not layered
        return reach == Reach.CERTAIN or matrix or not layered


def _weights(op: Op) -> list[int]:
    """Return the places of an operator's inputs that are weights, or operands of its product."""
    places = _FIXED.get(op.kind) or _PRODUCTS.get(op.kind)
    if op.kind == "Einsum" or "." in op.kind:
        places = tuple(range(len(op.inputs)))
    return [i for i in places or () if i < len(op.inputs) and op.inputs[i]]


def _carried(op: Op) -> list[int]:
    """Return the places of the inputs whose numbers go into an operator's results."""
    places = {"Where": (1, 2), "Pad": (0, 2), "OneHot": (0, 2)}.get(op.kind, tuple(range(len(op.inputs))))
    places = (0,) if op.kind in _MOVED or op.kind.startswith("Reduce") else places
    return [i for i in places if i < len(op.inputs) and op.inputs[i]]
