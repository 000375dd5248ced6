"""PyTorch's pickles read by an interpreter that cannot call anything: classes and functions are only ever names."""

import pickletools
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from opnorm.checkpoints.files import require
from opnorm.checkpoints.records import CheckpointError


class Global(NamedTuple):
    """The name of a class or function; it is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Storage(NamedTuple):
    """A run of numbers in the file."""

    kind: Global
    key: str
    size: int  # in numbers


class StoredTensor(NamedTuple):
    """A view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Global | None  # None: the storage's


class Opaque:
    """A value of an allowed class that holds no readable tensor, or a TorchScript module with its attributes."""

    def __init__(self, kind: Global):
        self.kind = kind
        self.state: Any = None


_TENSORS = {  # how many leading arguments are not needed, and whether a dtype follows
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
}
_PARAMETERS = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
_DICTS = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter"}
_LISTS = {"builtins.set", "builtins.frozenset", "builtins.list", "__builtin__.set", "torch.Size"}
_OPAQUE = {
    "torch.device", "torch.serialization._get_layout", "torch._utils._rebuild_qtensor", "torch.Generator",
    "torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_meta_tensor_no_storage", "_codecs.encode",
    "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ndarray",
    "torch.jit._pickle.build_intlist", "torch.jit._pickle.build_doublelist", "torch.jit._pickle.build_boollist",
    "torch.jit._pickle.build_tensorlist", "torch.jit._pickle.restore_type_tag",
}  # fmt: skip
_ALLOWED = _TENSORS | _PARAMETERS | _DICTS | _LISTS | _OPAQUE | {"torch._tensor._rebuild_from_type_v2"}


def load(file: BinaryIO) -> Any:
    """Return the value of one pickle: dicts, lists, tuples, numbers, texts, StoredTensors and Opaques.

    Raises:
        CheckpointError: When the pickle names a class or function that is not one of a fixed few, or is broken.
    """
    return _Machine().run(pickletools.genops(file))


class _Mark:
    pass


class _Machine:
    """A stack, a memo, and one method for each opcode that PyTorch's pickles need."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[Any, Any] = {}

    def run(self, operations: Iterator[tuple[Any, Any, Any]]) -> Any:
        for opcode, argument, _ in operations:
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in _PUSHES:
                self.stack.append(argument)
            elif opcode.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[opcode.name]())
            else:
                method = getattr(self, f"do_{opcode.name.lower()}", None)
                require(method is not None, f"its pickle uses {opcode.name}, which no tensor needs")
                method(argument)  # type: ignore[misc]
        raise CheckpointError("its pickle has no end")

    def popped(self) -> list[Any]:
        """Return what was pushed since the last mark."""
        items: list[Any] = []
        while not isinstance(top := self.stack.pop(), _Mark):
            items.append(top)
        return items[::-1]

    def do_proto(self, _: Any) -> None: ...

    def do_frame(self, _: Any) -> None: ...

    def do_pop(self, _: Any) -> None:
        self.stack.pop()

    def do_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_put(self, key: Any) -> None:
        self.memo[key] = self.stack[-1]

    do_binput = do_long_binput = do_put

    def do_get(self, key: Any) -> None:
        self.stack.append(self.memo[key])

    do_binget = do_long_binget = do_get

    def do_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.popped()))

    def do_tuple1(self, _: Any) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def do_tuple2(self, _: Any) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def do_tuple3(self, _: Any) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def do_list(self, _: Any) -> None:
        self.stack.append(self.popped())

    def do_dict(self, _: Any) -> None:
        items = self.popped()
        self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def do_append(self, _: Any) -> None:
        item = self.stack.pop()
        _checked(self.stack[-1], list).append(item)

    def do_appends(self, _: Any) -> None:
        items = self.popped()
        if not isinstance(self.stack[-1], Opaque):
            _checked(self.stack[-1], list).extend(items)

    do_additems = do_appends

    def do_setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _checked(self.stack[-1], dict)[key] = value

    def do_setitems(self, _: Any) -> None:
        items = self.popped()
        _checked(self.stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))

    def do_global(self, argument: str) -> None:
        self.stack.append(_allowed(*argument.split(" ", 1)))

    def do_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_allowed(str(module), str(name)))

    def do_binpersid(self, _: Any) -> None:
        self.stack.append(_storage(self.stack.pop()))

    def do_reduce(self, _: Any) -> None:
        arguments, function = _checked(self.stack.pop(), tuple), _checked(self.stack.pop(), Global)
        self.stack.append(_result(function, arguments))

    do_newobj = do_reduce

    def do_build(self, _: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Opaque):  # the state of a dict is PyTorch's note on versions
            self.stack[-1].state = state


_PUSHES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "FLOAT",
    "BINFLOAT", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list, "MARK": _Mark,
}  # fmt: skip


def _checked(value: Any, kind: type) -> Any:
    require(isinstance(value, kind), f"its pickle treats a {type(value).__name__} as a {kind.__name__}")
    return value


def _allowed(module: str, name: str) -> Global:
    found = Global(module, name)
    plain = module in ("torch", "torch.storage") and "." not in name
    storage = plain and (name.endswith("Storage") or name.startswith(_DTYPES))
    known = str(found) in _ALLOWED or storage or module.startswith("__torch__.")
    require(known, f"its pickle asks for {module}.{name}, which would run code; nothing was run")
    return found


_DTYPES = ("float", "bfloat", "int", "uint", "double", "half", "long", "short", "bool", "complex", "qint", "quint")


def _storage(identifier: Any) -> Storage:
    proper = isinstance(identifier, tuple) and len(identifier) >= 5 and identifier[0] == "storage"
    require(proper and isinstance(identifier[1], Global), "its pickle refers to something that is no storage")
    require(type(identifier[4]) is int, "a storage of it has no size")
    return Storage(identifier[1], str(identifier[2]), identifier[4])


def _result(function: Global, arguments: tuple[Any, ...]) -> Any:
    """Return what a call would give, without any call."""
    name = str(function)
    if name in _TENSORS:
        return _tensor(arguments, len(arguments) > 6 and name.endswith("_v3"))
    if name in _PARAMETERS:
        return arguments[0]
    if name == "torch._tensor._rebuild_from_type_v2":
        return _result(_checked(arguments[0], Global), _checked(arguments[2], tuple))
    if name in _DICTS:
        return dict(arguments[0]) if arguments and isinstance(arguments[0], list | dict) else {}
    if name in _LISTS:
        return list(arguments[0]) if arguments and isinstance(arguments[0], list | tuple) else []
    require(name in _OPAQUE or name.startswith("__torch__."), f"its pickle calls {name}, which was not run")
    return Opaque(function)


def _tensor(arguments: tuple[Any, ...], typed: bool) -> StoredTensor:
    storage, offset, shape, strides = arguments[:4]
    numbers = [offset, *_checked(shape, tuple), *_checked(strides, tuple)]
    require(all(type(n) is int and 0 <= n < 2**63 for n in numbers), "a tensor of it has a place that makes no sense")
    require(len(shape) == len(strides) <= 32, "a tensor of it has more strides than axes")
    dtype = _checked(arguments[6], Global) if typed else None
    return StoredTensor(_checked(storage, Storage), offset, shape, strides, dtype)
