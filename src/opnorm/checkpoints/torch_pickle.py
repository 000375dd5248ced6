"""PyTorch's pickles read by an interpreter that cannot call anything: classes and functions are only ever names.

What a pickle says is never hashed, compared or shown unless it is a text or a number: tuples nested in themselves would
keep Python busy for ever, or overflow its stack.
"""

import pickletools
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, BinaryIO

from opnorm.checkpoints.files import require
from opnorm.checkpoints.records import CheckpointError
from opnorm.checkpoints.torch_calls import allowed, checked, result, set_state, storage
from opnorm.checkpoints.torch_records import Global, Opaque, Storage, Table

_OPERATIONS = 3 * 2**19  # of one pickle: a tensor takes about 45, and an empty table of one byte 150 bytes
_COPIES = 2**21  # items that the calls of one pickle may copy
_CHARACTERS = 32  # of a text, that count as an item
_MEMO = 2**32  # entries are numbered from 0


def load(file: BinaryIO, operations: int = _OPERATIONS) -> Any:
    """Return the value of one pickle: Tables, lists, tuples, numbers, texts, tensors and Opaques.

    Args:
        file: A file that stands at the pickle's beginning.
        operations: How many it may have.

    Raises:
        CheckpointError: When the pickle names a class or function that is not one of a fixed few, is broken, or asks
            for more work than a table of contents does.
    """
    return load_with_storages(file, operations)[0]


def load_with_storages(file: BinaryIO, operations: int = _OPERATIONS) -> tuple[Any, dict[str, Storage]]:
    """Return the value of one pickle, and every storage that it refers to, by its key."""
    machine = _Machine()
    return machine.run(pickletools.genops(file), operations), machine.storages


class _Mark:
    pass


class _Machine:
    """A stack, a memo, and one method for each opcode that PyTorch's pickles need."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.copied = 0

    def run(self, operations: Iterator[tuple[Any, Any, Any]], limit: int) -> Any:
        for opcode, argument, _ in islice(operations, limit):
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
        raise CheckpointError(f"its pickle has no end within {limit} operations")

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

    def do_put(self, key: int) -> None:
        require(0 <= key < _MEMO, "its pickle remembers a value under a number that makes no sense")
        self.memo[key] = self.stack[-1]

    do_binput = do_long_binput = do_put

    def do_get(self, key: int) -> None:
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

    do_frozenset = do_list

    def do_dict(self, _: Any) -> None:
        items = self.popped()
        self.stack.append(Table(list(zip(items[::2], items[1::2], strict=True))))

    def do_append(self, _: Any) -> None:
        item = self.stack.pop()
        checked(self.stack[-1], list).append(item)

    def do_appends(self, _: Any) -> None:
        items = self.popped()
        if not isinstance(self.stack[-1], Opaque):
            checked(self.stack[-1], list).extend(items)

    do_additems = do_appends

    def do_setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        checked(self.stack[-1], Table).pairs.append((key, value))

    def do_setitems(self, _: Any) -> None:
        items = self.popped()
        checked(self.stack[-1], Table).pairs.extend(zip(items[::2], items[1::2], strict=True))

    def do_global(self, argument: str) -> None:
        self.stack.append(allowed(*argument.split(" ", 1)))

    def do_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(allowed(module, name))

    def do_binpersid(self, _: Any) -> None:
        found = storage(self.stack.pop())
        self.storages[found.key] = found
        self.stack.append(found)

    def do_reduce(self, _: Any) -> None:
        arguments, function = checked(self.stack.pop(), tuple), checked(self.stack.pop(), Global)
        self.copied += sum(map(_length, arguments))
        require(self.copied < _COPIES, "its pickle copies more than a table of contents holds")
        self.stack.append(result(function, arguments))

    do_newobj = do_reduce

    def do_build(self, _: Any) -> None:
        state = self.stack.pop()
        set_state(self.stack[-1], state)


def _length(value: Any) -> int:
    """Return how many items a call that is handed `value` may copy."""
    if isinstance(value, str):
        return len(value) // _CHARACTERS
    return len(value) if isinstance(value, list | tuple) else len(value.pairs) if isinstance(value, Table) else 0


_PUSHES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "FLOAT",
    "BINFLOAT", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list, "EMPTY_DICT": lambda: Table([]), "EMPTY_SET": list, "MARK": _Mark,
}  # fmt: skip
