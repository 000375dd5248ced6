"""TFLite models, written table by table with the accessors of their schema."""

from typing import NamedTuple

import flatbuffers
import numpy as np
import tflite

TYPES = {
    "float32": 0,
    "float16": 1,
    "int32": 2,
    "uint8": 3,
    "int64": 4,
    "bool": 6,
    "int16": 7,
    "int8": 9,
    "float64": 10,
}


class Tensor(NamedTuple):
    """A tensor: with an array it is a constant, else computed."""

    name: str
    shape: tuple = ()
    array: np.ndarray | None = None
    scale: tuple = ()
    zeros: tuple = ()
    axis: int = 0
    kind: int | None = None  # TensorType, where it is not the array's
    details: bool = False  # a quantization of its own
    outside: int = 0  # where its numbers lie behind the message
    sparse: tuple = ()  # order, block map, levels: a size, or the segments and indices of one that is compressed


class Operator(NamedTuple):
    """An operator: TFLite's name, or another for a custom one."""

    kind: str
    inputs: tuple
    outputs: tuple
    options: tuple = ()  # the class, and the fields


def tflite_model(tensors, operators, subgraphs=1):
    """Return the bytes of a model; `subgraphs` says how often its one graph stands in it."""
    b = flatbuffers.Builder(1024)
    buffers = [_buffer(b, None), *(_buffer(b, t.array, t.outside) for t in tensors if t.array is not None)]
    places = iter(range(1, len(buffers)))
    made = [_tensor(b, t, next(places) if t.array is not None else 0) for t in tensors]
    kinds = list(dict.fromkeys(op.kind for op in operators))
    codes = [_code(b, kind) for kind in kinds]
    ops = [_operator(b, op, kinds.index(op.kind)) for op in operators]
    graph = _table(b, "SubGraph", Tensors=_offsets(b, made), Operators=_offsets(b, ops))
    parts = {"OperatorCodes": codes, "Subgraphs": [graph] * subgraphs, "Buffers": buffers}
    b.Finish(_table(b, "Model", Version=3, **{key: _offsets(b, part) for key, part in parts.items()}), b"TFL3")
    return bytes(b.Output())


def _table(b, name, **fields):
    getattr(tflite, f"{name}Start")(b)
    for field, value in fields.items():
        if value is not None:
            getattr(tflite, f"{name}Add{field}")(b, value)
    return getattr(tflite, f"{name}End")(b)


def _offsets(b, tables):
    b.StartVector(4, len(tables), 4)
    for table in reversed(tables):
        b.PrependUOffsetTRelative(table)
    return b.EndVector()


def _buffer(b, array, outside=0):
    if outside:
        return _table(b, "Buffer", Offset=outside, Size=array.nbytes)
    data = (
        None if array is None else b.CreateNumpyVector(np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8))
    )
    return _table(b, "Buffer", Data=data)


def _code(b, kind):
    number = getattr(tflite.BuiltinOperator, kind, tflite.BuiltinOperator.CUSTOM)
    custom = b.CreateString(kind) if number == tflite.BuiltinOperator.CUSTOM else None
    return _table(b, "OperatorCode", DeprecatedBuiltinCode=min(number, 127), BuiltinCode=number, CustomCode=custom)


def _vector(b, values, dtype):
    return b.CreateNumpyVector(np.asarray(values, dtype)) if len(values) else None


def _tensor(b, tensor, buffer):
    name = b.CreateString(tensor.name)
    array, shape = tensor.array, tensor.shape or (() if tensor.array is None else tensor.array.shape)
    kind = tensor.kind if tensor.kind is not None else TYPES[str(array.dtype) if array is not None else "float32"]
    quantization = None
    if tensor.scale or tensor.details:
        scale, zeros = _vector(b, tensor.scale, "f4"), _vector(b, tensor.zeros, "i8")
        details = _table(b, "CustomQuantization") if tensor.details else None
        fields = {"Scale": scale, "ZeroPoint": zeros, "QuantizedDimension": tensor.axis, "Details": details}
        quantization = _table(b, "QuantizationParameters", **fields, DetailsType=int(tensor.details))
    sparsity = _sparsity(b, *tensor.sparse) if tensor.sparse else None
    fields = {"Shape": _vector(b, shape, "i4"), "Type": kind, "Buffer": buffer, "Name": name}
    return _table(b, "Tensor", **fields, Quantization=quantization, Sparsity=sparsity)


def _sparsity(b, order, blocks, levels):
    made = _offsets(b, [_level(b, level) for level in levels])
    ends = {"TraversalOrder": _vector(b, order, "i4"), "BlockMap": _vector(b, blocks, "i4")}
    return _table(b, "SparsityParameters", **ends, DimMetadata=made)


def _level(b, level):
    if isinstance(level, int):
        return _table(b, "DimensionMetadata", Format=0, DenseSize=level)
    segments = _table(b, "Int32Vector", Values=_vector(b, level[0], "i4"))
    indices = _table(b, "Uint8Vector", Values=_vector(b, level[1], "u1"))
    fields = {"ArraySegmentsType": 1, "ArraySegments": segments, "ArrayIndicesType": 3, "ArrayIndices": indices}
    return _table(b, "DimensionMetadata", Format=1, **fields)


def _operator(b, op, code):
    options, kind = None, 0
    if op.options:
        name, fields = op.options
        options, kind = _table(b, name, **fields), getattr(tflite.BuiltinOptions, name)
    ends = {"Inputs": _vector(b, op.inputs, "i4"), "Outputs": _vector(b, op.outputs, "i4")}
    return _table(b, "Operator", OpcodeIndex=code, **ends, BuiltinOptionsType=kind, BuiltinOptions=options)


def one_layer(kind, kernel, shape, options=(), position=1, **settings):
    """Return a model of one operator with a constant kernel at an input, the value of that shape at the first other."""
    tensors = [Tensor("x", shape), Tensor("w", kernel.shape, kernel, **settings), Tensor("y", shape), Tensor("other")]
    inputs = [0 if i == min({0, 1} - {position}) else 3 for i in range(position + 1)]
    inputs[position] = 1
    if position == 0:
        inputs.append(0)
    return tflite_model(tensors, [Operator(kind, tuple(inputs), (2,), options)])
