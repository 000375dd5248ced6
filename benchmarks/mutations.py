"""Files whose parts are intact but for a few: a field of a header, an operation of a pickle, a member of an archive."""

import ast
import io
import json
import pickletools
import struct
import zipfile
from itertools import pairwise

INTEGERS = (0, 1, 2, 3, 7, 63, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
VALUES = (*INTEGERS, -1, 1.5, 1e300, None, True, "", "F4", "x" * 2000, [], {}, [1, 2], [[1, 2], [3]], {"a": 1})
NUMBERS = (b"K\xff", b"M\xff\xff", b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"N", b")", b"]", b"}")
NAMES = ("../x", "/x", "", ".", "a/b", "config.json", "archive/data.pkl", "x" * 300, "a\0b")


def scrambled(data, chance):
    """Return bytes of which some were changed, cut out, repeated or copied, or the end cut off."""
    broken = bytearray(data or b"x")
    for _ in range(chance.choice([1, 2, 8, 30])):
        first, size = chance.randrange(len(broken)), chance.choice([1, 1, 1, 4, 16])
        kind = chance.random()
        if kind < 0.7:
            broken[first : first + size] = chance.randbytes(len(broken[first : first + size]))
        elif kind < 0.8:
            del broken[first : first + size]
        elif kind < 0.9:
            broken[first:first] = broken[first : first + size]
        else:
            other = chance.randrange(len(broken))
            broken[first : first + size] = broken[other : other + size]
        broken = broken or bytearray(b"x")
    return bytes(broken[: chance.randrange(1, len(broken) + 1)] if chance.random() < 0.1 else broken)


def restructured(name, data, chance):
    """Return the good file `data`, called `name`, with one to three of its fields changed."""
    if name.endswith(".h5") and chance.random() < 0.3:  # first: HDF5 opens no damaged file in safety
        data = _keras_h5(data, chance)
    for _ in range(chance.choice([1, 1, 2, 3])):
        data = _BY_ENDING[name.rpartition(".")[2]](data, chance)
    return data


def changed_value(value, chance):
    """Return JSON with one value somewhere in it replaced, left out, renamed, or put in the place of another."""
    if not (isinstance(value, dict | list) and value) or chance.random() < 0.05:
        return chance.choice(VALUES)
    key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
    table = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    way = chance.random()
    if way < 0.8:
        table[key] = changed_value(table[key], chance)
    elif way < 0.87:
        del table[key]
    elif way < 0.94:
        table[key] = table[chance.choice(list(table))]
    else:  # under another name; of a list, in the place of another
        other = chance.choice(list(table)) if isinstance(value, list) else str(chance.choice(VALUES))
        table[other] = table.pop(key)
    return table if isinstance(value, dict) else list(table.values())


def json_text(data, chance):
    return json.dumps(changed_value(json.loads(data), chance)).encode()


def _safetensors(data, chance):
    (length,) = struct.unpack("<Q", data[:8])
    if chance.random() < 0.05:
        return struct.pack("<Q", chance.choice(INTEGERS)) + data[8:]
    try:
        text = json_text(data[8 : 8 + length], chance)
    except ValueError:  # a change before this one
        return scrambled(data, chance)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _npy(data, chance):
    length = int.from_bytes(data[8:10], "little")
    try:
        table = ast.literal_eval(data[10 : 10 + length].decode("latin-1").strip())
    except (SyntaxError, ValueError):
        return scrambled(data, chance)
    text = repr(changed_value(table, chance) if chance.random() < 0.8 else chance.choice(VALUES)).encode()
    size = len(text) if chance.random() < 0.9 else chance.choice(INTEGERS)
    return data[:8] + (size % 2**16).to_bytes(2, "little") + text + data[10 + length :]


def _operations(data):
    """Return the bytes of each operation of the pickles that stand one behind the other, and what follows them."""
    parts, begin = [], 0
    try:
        while begin < len(data):
            stream = io.BytesIO(data)
            stream.seek(begin)
            at = [place for _, _, place in pickletools.genops(stream)] + [stream.tell()]
            parts += [data[first:last] for first, last in pairwise(at)]
            begin = stream.tell()
    except Exception:  # here the numbers begin
        pass
    return parts, data[begin:]


def _pickle(data, chance):
    parts, rest = _operations(data)
    if not parts:
        return scrambled(data, chance)
    i, j, way = chance.randrange(len(parts)), chance.randrange(len(parts)), chance.randrange(4)
    if way == 0:
        del parts[i]
    elif way == 1:
        parts.insert(i, parts[j])
    elif way == 2:
        parts[i], parts[j] = parts[j], parts[i]
    else:
        parts[i] = chance.choice(NUMBERS)
    return b"".join(parts) + rest


def _varint(data, at):
    """Return the number at a place, and where it ends."""
    number, shift = 0, 0
    while True:
        number |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return number, at
        if shift > 63:
            raise ValueError


def _as_varint(number):
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _fields(data):
    """Return the fields of a protocol buffer, (number, type, value); raise ValueError or IndexError for other bytes."""
    found, at = [], 0
    while at < len(data):
        key, at = _varint(data, at)
        size = {1: 8, 5: 4}.get(key & 7, 0)
        if key & 7 == 2:
            size, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
        elif key & 7 in (1, 2, 5) and at + size <= len(data) and key >> 3:
            value, at = data[at : at + size], at + size
        else:
            raise ValueError
        found.append((key >> 3, key & 7, value))
    return found


def _joined(fields):
    parts = []
    for number, kind, value in fields:
        parts.append(_as_varint(number << 3 | kind))
        parts.append(_as_varint(value) if kind == 0 else (_as_varint(len(value)) if kind == 2 else b"") + value)
    return b"".join(parts)


def _protobuf(data, chance):
    try:
        fields = _fields(data)
    except (ValueError, IndexError):
        return scrambled(data, chance)
    if not fields:
        return data
    i, way = chance.randrange(len(fields)), chance.random()
    number, kind, value = fields[i]
    if way < 0.75:
        changed = chance.choice(INTEGERS) if kind == 0 else _protobuf(value, chance) if kind == 2 else value[::-1]
        fields[i] = number, kind, changed
    elif way < 0.81:
        del fields[i]
    elif way < 0.87:
        fields.insert(chance.randrange(len(fields) + 1), fields[i])
    elif way < 0.93:
        alike = [other for _, wire, other in fields if wire == kind]
        fields[i] = number, kind, chance.choice(alike)
    else:
        fields[i] = chance.randrange(1, 30), kind, value
    return _joined(fields)


def _hdf5(data, chance):
    """Return the file with one of the numbers in its headers replaced: sizes and addresses are below its length."""
    broken, width = bytearray(data), chance.choice([1, 2, 4, 8, 8])
    places = [
        at for at in range(0, len(data) - 8, 8) if 0 < int.from_bytes(data[at : at + 8], "little") < 2 * len(data)
    ]
    at = chance.choice(places) if places and chance.random() < 0.8 else chance.randrange(max(1, len(data) - 8))
    old, other = int.from_bytes(data[at : at + width], "little"), chance.choice(places or [0])
    choices = (*INTEGERS, old + 1, max(0, old - 1), 2 * old, int.from_bytes(data[other : other + 8], "little"), other)
    broken[at : at + width] = (chance.choice(choices) % 2 ** (8 * width)).to_bytes(width, "little")
    return bytes(broken)


def _keras_h5(data, chance):
    """Return a good `.h5` file with a change in its config, where it has one."""
    import h5py

    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        if "model_config" not in file.attrs:
            return data
        file.attrs["model_config"] = json_text(file.attrs["model_config"], chance).decode()
    return buffer.getvalue()


def _archive(data, chance):
    """Return a zip archive with a change in a member, in its name, or in a number of the archive's own headers."""
    if chance.random() < 0.15:
        starts = [at for at in range(len(data) - 46) if data[at : at + 4] in (b"PK\3\4", b"PK\1\2", b"PK\5\6")]
        at = chance.choice(starts or [0]) + chance.randrange(4, 44)
        return data[:at] + chance.choice(INTEGERS).to_bytes(8, "little")[: chance.choice([1, 2, 4])] + data[at + 4 :]
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
    except Exception:
        return scrambled(data, chance)
    if not members:
        return scrambled(data, chance)
    i, way = chance.randrange(len(members)), chance.random()
    name, held = members[i]
    if way < 0.85:
        change = _INSIDE.get(name.rpartition(".")[2], scrambled)
        members[i] = name, change(held, chance)
    elif way < 0.9:
        members[i] = chance.choice((*NAMES, *(name for name, _ in members))), held
    elif way < 0.95:
        del members[i]
    else:
        members.insert(0, (name, chance.choice(members)[1]))
    buffer, method = io.BytesIO(), zipfile.ZIP_DEFLATED if chance.random() < 0.2 else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, held in members:
            archive.writestr(zipfile.ZipInfo(name or "x"), held, method)
    return buffer.getvalue()


def _text_or_scrambled(data, chance):
    try:
        return json_text(data, chance)
    except ValueError:
        return scrambled(data, chance)


_INSIDE = {"json": _text_or_scrambled, "h5": _hdf5, "pkl": _pickle, "npy": _npy}
_BY_ENDING = {
    **dict.fromkeys(("keras", "npz", "pt"), _archive),
    "safetensors": _safetensors,
    "npy": _npy,
    "bin": _pickle,
    "onnx": _protobuf,
    "h5": _hdf5,
}
