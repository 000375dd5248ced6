"""What the few functions that PyTorch's pickles may name would return, worked out without a call."""

from collections.abc import Callable
from typing import Any

from opnorm.checkpoints.files import require
from opnorm.checkpoints.torch_records import (
    ConvertedTensor,
    Global,
    NumpyArray,
    NumpyType,
    Opaque,
    QuantizedTensor,
    SparseTensor,
    Storage,
    StoredTensor,
    Table,
    Unread,
)

Arguments = tuple[Any, ...]

_NUMBERS = ("data", "real", "imag")  # attributes of a tensor that set its numbers
_DTYPES = ("float", "bfloat", "int", "uint", "double", "half", "long", "short", "bool", "complex", "qint", "quint")
_BUILTINS = ("builtins", "__builtin__")  # the latter is what protocol 2 writes
_PLAIN = ("int", "long", "float", "complex", "str", "unicode", "bool")
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath")
_RECORDS = (  # of distributed checkpoints
    "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING",
    "MEM_FORMAT_ENCODING", "ChunkStorageMetadata", "MetadataIndex", "StorageMeta",
)  # fmt: skip
_OPAQUE = {
    *(f"{module}.{name}" for module in _BUILTINS for name in _PLAIN),
    "torch.device", "torch.Generator", "torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer",
    "torch.nn.parameter.UninitializedParameter", "numpy.ndarray", "torch.per_tensor_affine",
    "torch.per_channel_affine", "torch.per_channel_affine_float_qparams",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    *(f"torch.distributed.checkpoint.metadata.{name}" for name in _RECORDS),
    *(f"torch.distributed._shard.sharded_tensor.metadata.{name}" for name in _RECORDS),
    "torch.distributed.checkpoint.filesystem._StorageInfo",
}  # fmt: skip


def allowed(module: Any, name: Any) -> Global:
    """Return the name of a class or function that is one of a fixed few.

    Raises:
        CheckpointError: When it is another.
    """
    require(type(module) is str and type(name) is str, "its pickle names a class by something that is no text")
    found = Global(module, name)
    plain = module in ("torch", "torch.storage") and "." not in name
    storage = plain and (name.endswith("Storage") or name.startswith(_DTYPES))
    known = str(found) in _CALLS or str(found) in _OPAQUE or storage or module.startswith("__torch__.")
    require(known, f"its pickle asks for {module}.{name}, which would run code; nothing was run")
    return found


def result(function: Global, arguments: Arguments) -> Any:
    """Return what a call would give, without any call."""
    name = str(function)
    if name in _CALLS:
        return _CALLS[name](arguments)
    require(name in _OPAQUE or name.startswith("__torch__."), f"its pickle calls {name}, which was not run")
    return Opaque(function)


def storage(identifier: Any) -> Storage:
    """Return the storage that a persistent identifier names."""
    proper = type(identifier) is tuple and len(identifier) >= 5 and type(identifier[0]) is str
    proper = proper and identifier[0] == "storage" and isinstance(identifier[1], Global)
    require(proper, "its pickle refers to something that is no storage")
    require(_is_size(identifier[4]), "a storage of it has no size")
    key = identifier[2]
    require(identifier[5:] in ((), (None,)), "a storage of it is a part of another, which is not followed")
    require(type(key) is str or _is_size(key), "a storage of it has a key that is no text and no number")
    return Storage(identifier[1], str(key), identifier[4])


def checked(value: Any, kind: type) -> Any:
    """Return `value`, which must be of the type `kind`."""
    require(isinstance(value, kind), f"its pickle treats a {type(value).__name__} as a {kind.__name__}")
    return value


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _sizes(value: Any) -> tuple[int, ...]:
    require(type(value) in (tuple, list) and len(value) <= 32, "a tensor of it has a shape that is none")
    require(all(_is_size(n) for n in value), "a tensor of it has a place that makes no sense")
    return tuple(value)


def _view(arguments: Arguments, dtype: Global | None = None) -> StoredTensor:
    shape, strides = _sizes(arguments[2]), _sizes(arguments[3])
    require(_is_size(arguments[1]), "a tensor of it has a place that makes no sense")
    require(len(shape) == len(strides), "a tensor of it has more strides than axes")
    return StoredTensor(checked(arguments[0], Storage), arguments[1], shape, strides, dtype)


def _tensor(arguments: Arguments) -> StoredTensor | Unread:
    return _noted(_view(arguments), arguments[6:])


def _typed(arguments: Arguments) -> StoredTensor | Unread:
    return _noted(_view(arguments, checked(arguments[6], Global)), arguments[7:])


def _noted(tensor: StoredTensor, notes: Arguments) -> StoredTensor | Unread:
    """Return a tensor as PyTorch's notes on it say: lazily negated or not; the conjugate of reals is no other."""
    require(len(notes) < 2, "a tensor of it is made of more than PyTorch makes one of")
    if not notes or notes[0] is None:
        return tensor
    flags = checked(notes[0], Table).pairs
    known = all(type(key) is str and key in ("neg", "conj") and type(flag) is bool for key, flag in flags)
    if not known:
        return Unread(tensor.shape, tensor.kind, "the pickle says more of it than is known here")
    return tensor._replace(negated=notes[0].get("neg") is True)


def _converted(arguments: Arguments) -> Any:
    value = arguments[0]
    require(isinstance(value, StoredTensor | NumpyArray | Unread), "it converts what is no tensor")
    return value if isinstance(value, Unread) else ConvertedTensor(value, checked(arguments[1], Global))


def _with_attributes(value: Any, state: Any) -> Any:
    """Return a tensor that gets attributes: unread where they would set its numbers."""
    parts = state if isinstance(state, tuple) else (state,)
    tables = [part for part in parts if isinstance(part, Table)]
    if not any(table.get(name) is not None for table in tables for name in _NUMBERS):
        return value
    tensor: StoredTensor = checked(value, StoredTensor)
    return Unread(tensor.shape, tensor.kind, "its numbers are set by an attribute, which is not followed")


def _of_type(arguments: Arguments) -> Any:
    function = checked(arguments[0], Global)
    proper = str(function).startswith("torch._utils._rebuild_")  # of these none copies, or calls another
    require(proper, f"its pickle makes a tensor by {function}, which was not run")
    return _with_attributes(result(function, checked(arguments[2], tuple)), arguments[3])


def _quantized(arguments: Arguments) -> QuantizedTensor | Unread:
    codes = _view(arguments)
    scheme, *settings = checked(arguments[4], tuple)
    name = str(checked(scheme, Global))
    if name == "torch.per_tensor_affine":
        scale, zero = settings[:2]
        require(type(scale) is float and type(zero) is int and abs(zero) < 2**31, "a quantized tensor has no scale")
        return QuantizedTensor(codes, scale, zero)
    if name == "torch.per_channel_affine":
        scale, zero, axis = checked(settings[0], StoredTensor), checked(settings[1], StoredTensor), settings[2]
        length = codes.shape[axis : axis + 1] if _is_size(axis) else ()
        require(scale.shape == zero.shape == length, "a quantized tensor has another number of scales than places")
        return QuantizedTensor(codes, scale, zero, axis)
    return Unread(codes.shape, codes.kind, f"quantized by {name}, which is not undone here")


def _sparse(arguments: Arguments) -> SparseTensor | Unread:
    layout, data = checked(arguments[0], str), checked(arguments[1], tuple)
    count = {"torch.sparse_coo": 2, "torch.sparse_csr": 3}.get(layout)
    shape = _sizes(data[count or 3])
    if count is None:
        return Unread(shape, layout.removeprefix("torch.")[:20], f"sparse, of the layout {layout[:40]}")
    return SparseTensor(layout, tuple(checked(part, StoredTensor) for part in data[:count]), shape)


def _meta(arguments: Arguments) -> Unread:
    dtype = checked(arguments[0], Global).name
    return Unread(_sizes(arguments[1]), dtype, "a meta tensor: the file has its shape and none of its numbers")


def _wrapped(arguments: Arguments) -> Unread:
    dtype, kind = checked(arguments[1], Global).name, checked(arguments[0], Global)
    return Unread(_sizes(arguments[2]), dtype, f"a {kind}, whose numbers only its own code can tell")


def _nested(arguments: Arguments) -> Unread:
    buffer = checked(arguments[0], StoredTensor)
    return Unread(buffer.shape, buffer.kind, "a nested tensor: several of different shapes in one")


def _pairs(arguments: Arguments) -> Table:
    """Return a table: of nothing, of a table, or of a list of pairs."""
    given = arguments[0] if arguments else []
    pairs = given.pairs if isinstance(given, Table) else given if isinstance(given, list) else []
    require(all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs), "a table of it has no pairs")
    return Table([(key, value) for key, value in pairs])


def _items(arguments: Arguments) -> list[Any]:
    return list(arguments[0]) if arguments and isinstance(arguments[0], list | tuple) else []


def _path(arguments: Arguments) -> str:
    require(all(type(part) is str for part in arguments), "a path of it has a part that is no text")
    return "/".join(arguments).replace("//", "/")


def _bytes(arguments: Arguments) -> bytes:
    require(all(type(part) is str for part in arguments) and arguments[1:] == ("latin1",), "it encodes no bytes")
    return bytes(arguments[0], "latin1")


def _numpy_type(arguments: Arguments) -> NumpyType:
    return NumpyType(checked(arguments[0], str))


def _numpy_buffer(arguments: Arguments) -> NumpyArray:
    found = NumpyArray()
    found.data, found.type, found.shape = arguments[0], checked(arguments[1], NumpyType), _sizes(arguments[2])
    require(type(found.data) in (bytes, bytearray), "an array of it has no numbers")
    found.fortran = checked(arguments[3], str) == "F"
    if len(arguments) > 4 and arguments[3] == "K" and arguments[4] is not None:
        found.axes = _sizes(arguments[4])
        require(sorted(found.axes) == list(range(len(found.shape))), "an array of it has axes in no order")
    return found


def set_state(value: Any, state: Any) -> None:
    """Give `value` the state that follows it in the pickle; that of a table is PyTorch's note on versions."""
    require(not isinstance(value, StoredTensor), "it changes a tensor after it was made, which is not followed")
    if isinstance(value, Opaque):
        value.state = state
    elif isinstance(value, NumpyType):
        value.order = checked(checked(state, tuple)[1], str)
    elif isinstance(value, NumpyArray):
        _, shape, kind, fortran, data = checked(state, tuple)
        value.shape, value.type, value.fortran = _sizes(shape), checked(kind, NumpyType), fortran is True
        value.data = data if type(data) in (bytes, bytearray) else None


_CALLS: dict[str, Callable[[Arguments], Any]] = {
    "torch._utils._rebuild_tensor": _view,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_wrapper_subclass": _wrapped,
    "torch._utils._rebuild_nested_tensor": _nested,
    "torch._utils._rebuild_device_tensor_from_numpy": _converted,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _converted,
    "torch._utils._rebuild_parameter_with_state": lambda arguments: _with_attributes(arguments[0], arguments[3]),
    **dict.fromkeys(
        (
            "torch._utils._rebuild_parameter",
            "torch.serialization._get_layout",
            "torch.jit._pickle.build_intlist",
            "torch.jit._pickle.build_doublelist",
            "torch.jit._pickle.build_boollist",
            "torch.jit._pickle.build_tensorlist",
            "torch.jit._pickle.restore_type_tag",
        ),
        lambda arguments: arguments[0],
    ),
    **dict.fromkeys(("collections.OrderedDict", "collections.defaultdict", "collections.Counter"), _pairs),
    **dict.fromkeys((f"{module}.dict" for module in _BUILTINS), _pairs),
    **dict.fromkeys(
        (f"{module}.{name}" for module in _BUILTINS for name in ("set", "frozenset", "list", "tuple")), _items
    ),
    **dict.fromkeys(("collections.deque", "torch.Size"), _items),
    **dict.fromkeys((f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS), _path),
    "_codecs.encode": _bytes,
    **dict.fromkeys(("builtins.bytes", "__builtin__.bytes"), lambda _: b""),  # of none, as protocol 2 writes them
    "numpy.dtype": _numpy_type,
    **dict.fromkeys(
        ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"), lambda _: NumpyArray()
    ),
    **dict.fromkeys(("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"), _numpy_buffer),
}
