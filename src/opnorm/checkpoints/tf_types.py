"""TensorFlow's dtypes by number."""

from typing import Any

import numpy as np

from opnorm.checkpoints.files import extra

_NAMES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string", 8: "complex64", 9: "int64",
    10: "bool", 11: "qint8", 12: "quint8", 13: "qint32", 14: "bfloat16", 15: "qint16", 16: "quint16", 17: "uint16",
    18: "complex128", 19: "float16", 20: "resource", 21: "variant", 22: "uint32", 23: "uint64", 24: "float8_e5m2",
    25: "float8_e4m3fn", 26: "float8_e4m3fnuz", 27: "float8_e4m3b11fnuz", 28: "float8_e5m2fnuz", 29: "int4",
    30: "uint4", 31: "int2", 32: "uint2",
}  # fmt: skip
_UNREAD = ("string", "resource", "variant", "int4", "uint4", "int2", "uint2")


def type_name(kind: int) -> str:
    """Return the name of a dtype."""
    return _NAMES.get(kind, f"the dtype {kind}")


def dtype_of(kind: int) -> np.dtype[Any] | None:
    """Return the dtype of that number, None for one that holds no numbers that are read."""
    name: Any = type_name(kind)
    if kind not in _NAMES or name in _UNREAD or "qu" in name or name.startswith("qint"):
        return None
    if name.startswith(("bfloat", "float8")):
        name = getattr(extra("ml_dtypes"), name)
    found: np.dtype[Any] = np.dtype(name)
    return found.newbyteorder("<")
