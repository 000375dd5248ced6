"""The message of a TFLite file: tensors, where their numbers lie, and operators; counts are held against its size.

The `tflite` package has the accessors of the FlatBuffers schema, in Python; nothing of the model is run.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opnorm.checkpoints.files import check_count, extra, require
from opnorm.checkpoints.tflite_sparse import Level, Sparsity

_LARGEST = 2**31 - 1  # bytes of a FlatBuffer; numbers may lie behind it
_NAME = 1000  # characters
_OPERATORS = 2**17
_LINKS = 2**20  # of operators to tensors
_AXES = 32
_INDICES = {1: "Int32Vector", 2: "Uint16Vector", 3: "Uint8Vector"}  # SparseIndexVector
_DTYPES = {  # TensorType: name, bits
    0: ("float32", 32), 1: ("float16", 16), 2: ("int32", 32), 3: ("uint8", 8), 4: ("int64", 64), 5: ("string", 0),
    6: ("bool", 8), 7: ("int16", 16), 8: ("complex64", 64), 9: ("int8", 8), 10: ("float64", 64),
    11: ("complex128", 128), 12: ("uint64", 64), 15: ("uint32", 32), 16: ("uint16", 16), 17: ("int4", 4),
    18: ("bfloat16", 16),
}  # fmt: skip
_OPTIONS = {  # by operator: the class of its options, and those that count
    "CONV_2D": ("Conv2DOptions", "Padding StrideH StrideW DilationHFactor DilationWFactor"),
    "DEPTHWISE_CONV_2D": (
        "DepthwiseConv2DOptions", "Padding StrideH StrideW DilationHFactor DilationWFactor DepthMultiplier",
    ),
    "TRANSPOSE_CONV": ("TransposeConvOptions", "Padding StrideH StrideW"),
    "CONV_3D": ("Conv3DOptions", "Padding StrideD StrideH StrideW DilationDFactor DilationHFactor DilationWFactor"),
    "CONV_3D_TRANSPOSE": (
        "Conv3DOptions", "Padding StrideD StrideH StrideW DilationDFactor DilationHFactor DilationWFactor",
    ),
    "FULLY_CONNECTED": ("FullyConnectedOptions", "WeightsFormat"),
    "BATCH_MATMUL": ("BatchMatMulOptions", "AdjX AdjY"),
    "GATHER": ("GatherOptions", "Axis BatchDims"),
}  # fmt: skip


class Stored(NamedTuple):
    """A tensor of the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bits: int  # of a number
    place: tuple[int, int] | None  # where its numbers lie and how many bytes they take; None: it is computed
    scale: tuple[float, ...]  # empty where the numbers stand for themselves
    zeros: tuple[int, ...]
    axis: int  # along which there are several scales
    sparsity: Sparsity | None
    reason: str  # why its numbers are not read


class Operator(NamedTuple):
    """An operator of the file, with the indices of its tensors; -1 stands for an input that is left out."""

    kind: str  # TFLite's name, or "CUSTOM name"
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, int]


class Part(NamedTuple):
    """A subgraph: the network, or a body of control flow."""

    tensors: tuple[Stored, ...]
    operators: tuple[Operator, ...]


def tflite_parts(path: Path) -> list[Part]:
    """Return the subgraphs of a TFLite file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        data = file.read(min(size, _LARGEST))
    require(data[4:8] == b"TFL3", "it is no TensorFlow Lite model")
    model = extra("tflite").Model.GetRootAs(data, 0)
    reader = _Reader(model, size)
    return [reader.part(model.Subgraphs(i)) for i in reader.span(model.SubgraphsLength(), "subgraphs")]


class _Reader:
    """Reads tables, and counts what it reads: the same table may stand in several places."""

    def __init__(self, model: Any, size: int):
        self.model, self.size = model, size
        self.tensors = self.operators = self.links = self.entries = 0
        codes = self.span(model.OperatorCodesLength(), "operator codes")
        self.kinds = [_kind(model.OperatorCodes(i)) for i in codes]
        self.buffers = [self.place(model.Buffers(i)) for i in self.span(model.BuffersLength(), "buffers")]

    def span(self, count: int, what: str) -> range:
        require(4 * count <= self.size, f"it has {count} {what} in {self.size} bytes")
        require(count <= _OPERATORS, f"it has {count} {what}, more than {_OPERATORS}")
        return range(count)

    def place(self, buffer: Any) -> tuple[int, int] | None:
        """Return where the bytes of a buffer lie: in the message, or behind it, where an offset of 1 is none yet."""
        table = buffer._tab  # the accessors return the bytes, and not where they are
        field = table.Offset(4)
        offset, size = (table.Vector(field), table.VectorLen(field)) if field else (buffer.Offset(), buffer.Size())
        require(offset >= 0 and offset + size <= self.size, f"a buffer of it takes {size} bytes at {offset}")
        return (offset, size) if size and offset > 1 else None

    def part(self, graph: Any) -> Part:
        self.tensors += graph.TensorsLength()
        check_count(self.tensors)
        self.operators += graph.OperatorsLength()
        require(self.operators <= _OPERATORS, f"it has more than {_OPERATORS} operators")
        tensors = tuple(self.tensor(graph.Tensors(i)) for i in self.span(graph.TensorsLength(), "tensors"))
        operators = self.span(graph.OperatorsLength(), "operators")
        return Part(tensors, tuple(self.operator(graph.Operators(i), len(tensors)) for i in operators))

    def tensor(self, tensor: Any) -> Stored:
        name = _text(tensor.Name())
        dtype, bits = _DTYPES.get(tensor.Type(), (f"type {tensor.Type()}", 0))
        require(0 <= tensor.Buffer() < len(self.buffers), f"{name!r} lies in the buffer {tensor.Buffer()}")
        place = self.buffers[tensor.Buffer()]
        require(tensor.ShapeLength() <= _AXES, f"{name!r} has {tensor.ShapeLength()} axes")
        shape = tuple(tensor.Shape(i) for i in range(tensor.ShapeLength()))
        scale, zeros, axis, reason = self.quantization(tensor.Quantization())
        sparsity = self.sparsity(tensor.Sparsity()) if place is not None else None
        reason = reason if bits else f"{dtype}: no numbers that are read"
        return Stored(name, shape, dtype, bits, place, scale, zeros, axis, sparsity, reason)

    def quantization(self, found: Any) -> tuple[tuple[float, ...], tuple[int, ...], int, str]:
        if found is None:
            return (), (), 0, ""
        reason = "it is quantized in a way of its own" if found.DetailsType() else ""
        scale = found.ScaleAsNumpy().tolist() if found.ScaleLength() else ()
        zeros = found.ZeroPointAsNumpy().tolist() if found.ZeroPointLength() else ()
        self.count(len(scale) + len(zeros))
        return tuple(scale), tuple(zeros), found.QuantizedDimension(), reason

    def sparsity(self, found: Any) -> Sparsity | None:
        if found is None:
            return None
        lengths = found.TraversalOrderLength(), found.BlockMapLength(), found.DimMetadataLength()
        require(max(lengths) <= _AXES, f"a tensor of it is sparse along {max(lengths)} axes")
        order = tuple(found.TraversalOrder(i) for i in range(lengths[0]))
        levels = tuple(self.level(found.DimMetadata(i)) for i in range(lengths[2]))
        return Sparsity(order, tuple(found.BlockMap(i) for i in range(lengths[1])), levels)

    def level(self, found: Any) -> Level:
        if found.Format() == 0:
            return Level(found.DenseSize())
        segments = self.indices(found.ArraySegmentsType(), found.ArraySegments())
        return Level(0, segments, self.indices(found.ArrayIndicesType(), found.ArrayIndices()))

    def indices(self, kind: int, table: Any) -> np.ndarray:
        require(kind in _INDICES and table is not None, "a sparse tensor of it has no indices")
        vector = getattr(extra("tflite"), _INDICES[kind])()
        vector.Init(table.Bytes, table.Pos)
        self.entries += vector.ValuesLength()
        require(self.entries <= self.size, "its sparse tensors have more indices than it has bytes")
        return np.array(vector.ValuesAsNumpy() if vector.ValuesLength() else [], np.int64)

    def count(self, links: int) -> None:
        self.links += links
        require(self.links <= 4 * _LINKS, f"its operators and scales have more than {4 * _LINKS} entries")

    def operator(self, operator: Any, tensors: int) -> Operator:
        code = operator.OpcodeIndex()
        require(0 <= code < len(self.kinds), f"an operator of it is number {code} of {len(self.kinds)}")
        kind = self.kinds[code]
        inputs = operator.InputsAsNumpy().tolist() if operator.InputsLength() else ()
        outputs = operator.OutputsAsNumpy().tolist() if operator.OutputsLength() else ()
        self.count(len(inputs) + len(outputs))
        proper = all(-1 <= i < tensors for i in inputs) and all(0 <= i < tensors for i in outputs)
        require(proper, f"an operator {kind} of it uses a tensor that is not there")
        return Operator(kind, tuple(inputs), tuple(outputs), dict(_options(operator, kind)))


def _kind(code: Any) -> str:
    """Return an operator's name; numbers up to 127 stand in an older field too."""
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    name = _names().get(number, f"operator {number}")
    return f"CUSTOM {_text(code.CustomCode())}" if name == "CUSTOM" else name


@cache
def _names() -> dict[int, str]:
    """Return TFLite's names of its operators."""
    return {number: name for name, number in vars(extra("tflite").BuiltinOperator).items() if type(number) is int}


def _text(text: bytes | None) -> str:
    require(len(text or b"") <= _NAME, f"a name of it has {len(text or b'')} bytes")
    return (text or b"").decode()


def _options(operator: Any, kind: str) -> Iterator[tuple[str, int]]:
    """Yield the options that say what a layer does with its kernel."""
    table = operator.BuiltinOptions() if kind in _OPTIONS else None
    if table is None:
        return
    name, fields = _OPTIONS[kind]
    tflite = extra("tflite")
    require(
        operator.BuiltinOptionsType() == getattr(tflite.BuiltinOptions, name), f"{kind} has other options than its own"
    )
    options = getattr(tflite, name)()
    options.Init(table.Bytes, table.Pos)
    yield from ((field, int(getattr(options, field)())) for field in fields.split())
