"""`.tflite` files: every tensor that is stored, with what the operators do with it."""

from collections import defaultdict
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.files import byte_size, extra, guarded, require
from opnorm.checkpoints.guesses import FLOATS, unique
from opnorm.checkpoints.packed import unpacked
from opnorm.checkpoints.records import Checkpoint, Geometry, Weight
from opnorm.checkpoints.tflite_geometry import KERNELS, Shape, Use, use_geometry
from opnorm.checkpoints.tflite_sparse import densified
from opnorm.checkpoints.tflite_wire import Operator, Part, Stored, tflite_parts

_UNUSED = g.nothing("unused", "no operator of the file uses it")
_TELLING = 3  # inputs whose shapes say what an operator does
_SHOWN = 5  # names of custom operators in a note


def read_tflite(path: Path) -> Checkpoint:
    """Return the checkpoint of a TFLite model: what it stores, multiplied out where it is quantized.

    The message is in memory while it is read. Shapes of computed tensors are taken at the file's word.
    """
    parts, taken = tflite_parts(path), set[str]()
    weights = [weight for part in parts for weight in _Uses(path, part, taken).rows()]
    custom = sorted({op.kind.removeprefix("CUSTOM ") for part in parts for op in part.operators if "CUSTOM" in op.kind})
    shown = ", ".join(map(repr, custom[:_SHOWN])) + (f" and {len(custom) - _SHOWN} more" if custom[_SHOWN:] else "")
    return Checkpoint(
        "tflite", tuple(weights), notes=(f"custom operators are named, not run: {shown}",) if custom else ()
    )


class _Uses:
    """The uses of a subgraph's constants; `taken` has the names of other rows."""

    def __init__(self, path: Path, part: Part, taken: set[str]):
        self.path, self.part, self.taken = path, part, taken
        self.sources = _sources(part)
        self.found: dict[int, list[tuple[Operator, int]]] = defaultdict(list)
        for op in part.operators:
            handed = bool(op.outputs) and op.outputs[0] in self.sources
            for position, i in enumerate(() if handed else op.inputs):
                if i in self.sources:
                    self.found[self.sources[i]].append((op, position))
        self.computed = _computed(part, self.sources)

    def rows(self) -> Iterator[Weight]:
        """Yield the weights: every tensor that is stored, and again for each further use as a map."""
        for i, tensor in enumerate(self.part.tensors):
            if tensor.place is None:
                continue
            named = self.taken_name(tensor.name or f"tensor {i}")
            weight = Weight(named, tensor.shape, tensor.dtype, guarded(self.path, _values, self.path, tensor), _UNUSED)
            reason = _reason(tensor)
            if reason:
                yield weight._replace(geometry=g.unknown("unknown", reason))
                continue
            geometries = self.geometries(i, tensor) or [("", _UNUSED)]
            telling = [one for one in geometries if one[1].operator or one[1].unknown] or geometries[:1]
            for further, (where, geometry) in enumerate(telling):
                name = self.taken_name(f"{named} (in {where})") if further else named
                yield weight._replace(name=name, geometry=geometry)

    def taken_name(self, name: str) -> str:
        return unique(name, self.taken)

    def geometries(self, i: int, tensor: Stored) -> list[tuple[str, Geometry]]:
        """Return what each use that differs does with a constant, and which result it goes into."""
        if 0 in tensor.shape:
            return [("", g.nothing("unknown", "an empty tensor"))]
        if i in self.computed:
            return [("", g.unknown(self.computed[i], "it goes into a weight that the network computes while it runs"))]
        found: dict[object, tuple[str, Geometry]] = {}
        for op, position in self.found[i]:
            use = Use(op.kind, position, op.options, self.shapes(op.inputs[:_TELLING]))
            key = (op.kind, position, tuple(op.options.items()), use.shapes if op.kind in _BESIDE else None)
            if key not in found:
                geometry = use_geometry(use, tensor.shape, tensor.dtype, scaled=bool(tensor.scale))
                found[key] = (self.part.tensors[op.outputs[0]].name if op.outputs else op.kind, geometry)
        return list(found.values())

    def shapes(self, places: tuple[int, ...]) -> tuple[Shape, ...]:
        return tuple(self.part.tensors[i].shape if i >= 0 else () for i in places)


_BESIDE = {"MUL", "DIV", "CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D"}  # where the other input's shape has a say
_LAYERS = {*KERNELS, "BATCH_MATMUL"}


def _sources(part: Part) -> dict[int, int]:
    """Return the stored tensors, and by which of them each is known that is one dequantized or filled with zeros."""
    found = {i: i for i, tensor in enumerate(part.tensors) if tensor.place is not None}
    written = next((i for op in part.operators for i in op.outputs if i in found), None)
    require(written is None, f"an operator of it writes into the stored tensor {written}")
    for op in part.operators:
        if op.kind in ("DEQUANTIZE", "DENSIFY") and len(op.inputs) == len(op.outputs) == 1 and op.inputs[0] in found:
            found[op.outputs[0]] = found[op.inputs[0]]  # whose numbers are multiplied out when they are read
    return found


def _computed(part: Part, sources: dict[int, int]) -> dict[int, str]:
    """Return the constants that go into weights which the network computes, and the operator that reads these.

    What a layer has computed is data, and not followed back.
    """
    makers = {i: n for n, op in enumerate(part.operators) for i in op.outputs}
    wanted = [(op.inputs[p], op.kind) for op in part.operators for p in KERNELS.get(op.kind, ()) if p < len(op.inputs)]
    found: dict[int, str] = {}
    seen: set[int] = set()
    while wanted:
        value, kind = wanted.pop()
        number = makers.get(value, -1)
        if value in sources or number in seen or number < 0 or part.operators[number].kind in _LAYERS:
            continue
        seen.add(number)
        inputs = part.operators[number].inputs
        found.update((sources[i], kind) for i in inputs if i in sources)
        wanted += [(i, kind) for i in inputs]
    return found


def _reason(tensor: Stored) -> str:
    """Return why the numbers of a tensor cannot be told, or ""."""
    if tensor.reason:
        return tensor.reason
    size, stored = -(-byte_size(tensor.shape, tensor.bits) // 8), tensor.place[1] if tensor.place else 0
    if size != stored and tensor.sparsity is None:
        return f"its shape takes {size} bytes, and the file stores {stored}"
    count = len(tensor.scale)
    along = tensor.shape[tensor.axis] if 0 <= tensor.axis < len(tensor.shape) else 0
    if count > 1 and count != along:
        return f"it has {count} scales for {along} places of its axis {tensor.axis}"
    fits = len(tensor.zeros) in (0, 1, count) and (count or not tensor.zeros)
    return "" if fits else f"it has {len(tensor.zeros)} zero points and {count} scales"


def _values(path: Path, tensor: Stored) -> np.ndarray:
    """Return the numbers that a tensor stands for: integers with a scale in float64."""
    reason = _reason(tensor)
    require(not reason, reason)
    offset, size = tensor.place or (0, 0)
    with path.open("rb") as file:
        file.seek(offset)
        data = np.frombuffer(file.read(size), np.uint8)
    require(len(data) == size, "the file became shorter")
    if tensor.bits < 8:
        stored = unpacked(data, tensor.bits, signed=True)[: prod(tensor.shape)]
    else:
        stored = data.view(extra("ml_dtypes").bfloat16 if tensor.dtype == "bfloat16" else tensor.dtype)
    sparsity = tensor.sparsity
    stored = densified(tensor.name, stored, tensor.shape, sparsity) if sparsity else stored.reshape(tensor.shape)
    return stored if tensor.dtype in FLOATS or not tensor.scale else _multiplied(stored, tensor)


def _multiplied(stored: np.ndarray, tensor: Stored) -> np.ndarray:
    along = [-1 if axis == tensor.axis else 1 for axis in range(stored.ndim)] if len(tensor.scale) > 1 else []
    zeros = np.array(tensor.zeros or (0,), np.float64)
    values = stored.astype(np.float64) - (zeros.reshape(along) if len(zeros) > 1 else zeros[0])
    scale = np.array(tensor.scale)
    return np.asarray(values * (scale.reshape(along) if along else scale[0]))
