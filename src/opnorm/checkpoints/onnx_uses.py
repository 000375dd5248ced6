"""What becomes of each constant of an ONNX model: its uses, through the operators that compute constants from it."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.files import border, guarded, require
from opnorm.checkpoints.guesses import FLOATS, Named
from opnorm.checkpoints.onnx_bodies import Names
from opnorm.checkpoints.onnx_folding import data, planned
from opnorm.checkpoints.onnx_geometry import RECURRENT, SCALE_OF_INTEGERS, TOGETHER, Use, use_geometry
from opnorm.checkpoints.onnx_plans import Given, Result, Shape
from opnorm.checkpoints.onnx_runtime import Part
from opnorm.checkpoints.onnx_shapes import Shape as ShapeInFile
from opnorm.checkpoints.onnx_unfold import Op
from opnorm.checkpoints.records import CheckpointError, Geometry, Weight
from opnorm.checks import Array, real_array

_LINEAR = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_BIAS = 2  # the place of their bias
_HANDED = {  # operators whose first input, when a constant, is what comes out, though not before the network runs
    "Identity", "Cast", "DequantizeLinear", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile",
    "Slice", "Split", "Gather", "QuantizeLinear", "Dropout", "Pad",
}  # fmt: skip
_NO_NUMBERS = ("bool", "string")
_TABLE = 2  # axes of a constant that Gather looks rows up in: an embedding
_STEERING = 64  # integers that say how a constant is moved: axes, sizes
_ENTRIES = 2**22  # of a computed constant, unless what it is made of has half as many
_WORK = 2**26  # entries computed for one constant, unless it has a sixteenth of that
_STEPS = 64  # operators between a stored and a computed constant


class Value(NamedTuple):
    """A constant: a tensor, or what operators make of tensors; it is told by the row of the largest of these."""

    tensor: str
    shape: Shape
    dtype: str
    digest: str  # equal where the same was done to the same tensors
    make: Callable[[Array], Array] | None  # of the tensor's values; None where that is not worked out
    ways: tuple[str, ...] = ()  # the operators between
    moving: bool = False  # it depends on the network's input as well
    work: int = 0  # entries computed on the way
    steps: int = 0  # operators on the longest way


class Met(NamedTuple):
    """What an operator is to a network, when it reads more than constants."""

    weights: Mapping[int, Weight]  # by input
    hands_on: bool = False  # a constant of the file, by a way that depends on the input


class Uses:
    """The constants of a list of operators, and the weights that they are to those who use them.

    Args:
        path: The file, for errors.
        tensors: Those of the file; each gets a row for each use of it as a map, one row if there is none.
        shapes: Of values, as far as they are known.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Named], shapes: Mapping[str, ShapeInFile]):
        self.path, self.tensors, self.shapes = path, tensors, shapes
        self.values = {name: Value(name, t.shape, t.dtype, name, lambda array: array) for name, t in tensors.items()}
        self.found: dict[str, dict[str, Weight]] = defaultdict(dict)
        self.places: dict[tuple[str, int], str] = {}  # the key of a use, by the operator's first result and its input
        self.names = Names()
        for name in tensors:
            self.names.fresh(name)

    def meet(self, op: Op) -> Met | None:
        """Note what an operator does with constants; return what it is to the network, None if it only makes more."""
        held = {i: self.values[name] for i, name in enumerate(op.inputs) if name in self.values}
        if not held:
            return Met({})
        made = self.made(op, held)
        if made:
            self.values.update((name, value) for name, value in zip(op.outputs, made, strict=False) if name)
            self.part(op, made[0].tensor, held.values())
            return Met({i: self.handed(op, value) for i, value in held.items()}, True) if made[0].moving else None
        weights = {i: self.used(op, i, held) for i in held}
        return Met({i: weight for i, weight in weights.items() if not held[i].moving})

    def handed(self, op: Op, value: Value) -> Weight:
        """Return a constant that an operator hands on, which is no weight of it."""
        return Weight(value.tensor, value.shape, value.dtype, self.reader(value), g.nothing(op.kind, "it is handed on"))

    def part(self, op: Op, tensor: str, held: Iterable[Value]) -> None:
        """Note of the constants that are no main source of a computed one that they went into it."""
        reason = f"goes into the weight that {op.kind} computes from {tensor!r}"
        if op.kind == "DequantizeLinear":
            reason = SCALE_OF_INTEGERS
        for value in held:
            if value.tensor != tensor:
                weight = Weight(*self.tensors[value.tensor], g.nothing(op.kind, reason))
                self.found[value.tensor].setdefault(op.kind, weight)

    def made(self, op: Op, held: Mapping[int, Value]) -> list[Value]:
        """Return the constants that an operator makes of constants, none where it does something with another value."""
        present = {i for i, name in enumerate(op.inputs) if name}
        alone = op.plain and set(held) == present and bool(op.outputs) and not any(v.moving for v in held.values())
        handed = held.get(0) if op.kind in _HANDED else held.get(1) if op.kind == "ConstantOfShape" else None
        if not alone and (handed is None or (op.kind == "Gather" and _may_be_table(handed))):
            return []
        if op.kind == "Identity":
            return [held[0]]
        try:
            require(alone, "it depends on the network's input")
            return self.folded(op, held)
        except (LookupError, ValueError, TypeError, ArithmeticError):
            most = max(held.values(), key=_weight) if alone or handed is None else handed
            digest = _digest(op, [len(op.outputs), *(value.digest for value in held.values())])
            ways = (*most.ways, op.kind)[-3:]
            dtype = "float32" if most.dtype in _NO_NUMBERS else most.dtype  # which may have been made numbers of
            return [most._replace(dtype=dtype, make=None, ways=ways, digest=digest, moving=not alone)] * len(op.outputs)

    def folded(self, op: Op, held: Mapping[int, Value]) -> list[Value]:
        """Return what an operator computes from constants alone; raise when that is not worked out."""
        places = [i for i in data(op.kind, len(op.inputs)) if i in held]
        sources = [held[i] for i in places]
        most = 0 if op.kind == "DequantizeLinear" else max(range(len(places)), key=lambda i: prod(sources[i].shape))
        require(all(value.make for value in held.values()), "made of what is not worked out")
        shapes = [held[i].shape if i in held else () for i in range(len(op.inputs))]
        dtypes = [held[i].dtype if i in held else "" for i in range(len(op.inputs))]
        given = Given(op.options, shapes, dtypes, lambda i: self.steering(held.get(i)), len(op.outputs))
        results = planned(op.kind, given)
        largest, main = max(prod(value.shape) for value in sources), sources[most]
        work = sum(value.work for value in sources) + sum(prod(result.shape) for result in results)
        require(all(prod(r.shape) <= max(_ENTRIES, 2 * largest) for r in results), "too large")
        steps = 1 + max(value.steps for value in sources)
        require(work <= max(_WORK, 16 * largest) and steps <= _STEPS, "too much work")
        parts = [value.digest if i in places else self.steering(value) for i, value in held.items()]
        ways, digest = (*main.ways, op.kind), _digest(op, [len(op.outputs), *parts])
        makers = [self.maker(result, sources, most) for result in results]
        return [
            Value(main.tensor, result.shape, result.dtype, f"{digest}.{i}", make, ways, False, work, steps)
            for i, (result, make) in enumerate(zip(results, makers, strict=True))
        ]

    def maker(self, result: Result, sources: list[Value], most: int) -> Callable[[Array], Array]:
        """Return the function from the values of the main source's tensor to a result."""

        def make(array: Array) -> Array:
            with border(self.path):
                main = sources[most].make
                arrays = [self.numbers(value) for value in (*sources[:most], *sources[most + 1 :])]
                arrays.insert(most, array if main is None else main(array))
                found = result.compute(arrays)
                require(found.shape == result.shape, f"a computed weight has the shape {found.shape}")
                return found

        return make

    def numbers(self, value: Value) -> Array:
        """Return a constant's values in float64."""
        if value.make is None:
            raise CheckpointError(_not_worked_out(value))
        stored = self.tensors[value.tensor].read()
        return value.make(real_array(stored.astype(np.uint8) if stored.dtype == bool else stored, value.tensor))

    def steering(self, value: Value | None) -> list[int] | None:
        """Return a constant's few integers, read at once."""
        if value is None:
            return None
        require(prod(value.shape) <= _STEERING and value.work <= 64 * _STEERING, "too many integers")
        stored = self.tensors[value.tensor].read() if not value.ways else None
        if prod(value.shape) == 0:
            return []
        return [int(n) for n in np.ravel(self.numbers(value) if stored is None else stored)]

    def used(self, op: Op, position: int, held: Mapping[int, Value]) -> Weight:
        """Return the weight that a constant is for an operator, which the row of its tensor tells too."""
        value = held[position]
        others = [self.shapes.get(name) for i, name in enumerate(op.inputs) if name and i not in held]
        beside = others[0] if len(others) == 1 else None
        constants = {i: Named(v.tensor, v.shape, v.dtype, self.reader(v)) for i, v in held.items()}
        given = {i for i, name in enumerate(op.inputs) if name}
        use = Use(op.kind, position, op.options, constants, beside, given)
        around = [(i, v.digest) for i, v in held.items()] if op.kind in TOGETHER else []
        key = _digest(op, [value.digest, position, around, beside if op.kind in ("Mul", "Div") else None])
        known = self.found[value.tensor]
        if op.outputs:
            self.places[op.outputs[0], position] = key
        if key not in known:
            geometry = self.through(value, use_geometry(use, constants[position]))
            further = _tells(geometry) and any(_tells(weight.geometry) for weight in known.values())
            name = self.names.fresh(f"{value.tensor} (in {op.name})") if further else value.tensor
            known[key] = Weight(name, *self.tensors[value.tensor][1:], geometry)
        row = known[key]
        if not value.ways or (op.kind in _LINEAR and position < _BIAS):
            return row
        values = row.geometry._replace(operator=None)  # which is an operator of the stored numbers
        return Weight(row.name, value.shape, value.dtype, self.reader(value), values)

    def compute(self, part: Part) -> None:
        """Note of a constant that it is in a weight that the network computes while it runs."""
        value = self.values[part.op.inputs[part.position]]
        if value.dtype in _NO_NUMBERS:
            return
        reason = f"it goes, through {part.op.kind}, into a weight of {part.user.kind} that the network's input changes"
        known, key = self.found[value.tensor], self.places.get((part.op.outputs[0], part.position), "computed")
        before = known.get(key, Weight(*self.tensors[value.tensor], _UNUSED))
        known[key] = before._replace(geometry=g.unknown(part.user.kind, reason))

    def reader(self, value: Value) -> Callable[[], np.ndarray]:
        """Return the function that reads a constant: as it is stored, or else in float64."""
        return guarded(self.path, self.numbers, value) if value.ways else self.tensors[value.tensor].read

    def through(self, value: Value, found: Geometry) -> Geometry:
        """Return the geometry of a tensor of which `found` is that of what becomes of it."""
        if value.make is None and (found.operator is not None or found.unknown):
            return g.unknown(found.kind, _not_worked_out(value))
        if not value.ways or value.make is None:
            return found
        return g.scaled(found, value.make, f"of the tensor after {', '.join(value.ways)}")

    def rows(self) -> Iterator[Weight]:
        """Yield the weights of the file: every tensor, and again for each further use as a map."""
        for name, tensor in self.tensors.items():
            found = [*self.found[name].values()] or [Weight(*tensor, _UNUSED)]
            telling = [weight for weight in found if _tells(weight.geometry)] or found[:1]
            yield from telling if 0 not in tensor.shape else [Weight(*tensor, _EMPTY)]


_UNUSED = g.nothing("unused", "no operator of the file uses it")
_EMPTY = g.nothing("unknown", "an empty tensor")


def _may_be_table(value: Value) -> bool:
    """Return whether Gather may look rows up in a constant; of one that is not worked out the shape is not known."""
    return len(value.shape) == _TABLE or value.make is None


def _weight(value: Value) -> tuple[bool, bool, int]:
    """Return by what the constant is found that tells of what is made of several: it holds numbers, and the most."""
    return value.dtype not in _NO_NUMBERS, value.dtype in FLOATS, prod(value.shape)


def _tells(geometry: Geometry) -> bool:
    return geometry.operator is not None or geometry.unknown


def _not_worked_out(value: Value) -> str:
    return f"what {', '.join(value.ways)} make of it is not worked out"


def _digest(op: Op, parts: object) -> str:
    options = [] if op.kind in RECURRENT else sorted(op.options.items())
    text = repr((op.kind, options, parts))
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
