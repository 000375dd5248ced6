"""What ONNX's operators meant in earlier versions of its operator set, said in the options of the latest ones."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_FLATTENED = ("Softmax", "LogSoftmax", "Hardmax")  # before 13: along all axes from one on, as if they were one
_ALIGNED = ("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less")  # before 7: at an axis
_TESTED = ("BatchNormalization", "Dropout")  # before 7: in training mode unless `is_test` says otherwise


def version_of(imports: Iterable[Any], default: int) -> int:
    """Return the version of ONNX's own operators that a model or a function uses."""
    return next((each.version for each in imports if each.domain in ("", "ai.onnx")), default)


def earlier(kind: str, options: Mapping[str, Any], outputs: Sequence[str], version: int) -> dict[str, Any]:
    """Return an operator's options with those that its version has other defaults for, or no name.

    Args:
        kind: One of ONNX's own operators.
        options: As its file has them.
        outputs: Names of its results.
        version: Of the operator set.
    """
    if kind in _FLATTENED and version < 13:
        return {"axis": 1, **options, "flattened": 1}
    if kind == "BatchNormalization" and 7 <= version < 14 and any(outputs[1:]):  # which statistics are only then
        return {**options, "training_mode": 1}
    if kind in _TESTED and version < 7:
        return {"is_test": 0, **options}
    if kind == "Concat" and version < 4:
        return {"axis": 1, **options}
    return {**options, "channels": 1} if kind == "PRelu" and version < 7 else dict(options)


def is_aligned(kind: str, options: Mapping[str, Any], version: int) -> bool:
    """Return whether an operator spreads its second input from an axis on, as none does since version 7."""
    return kind in _ALIGNED and version < 7 and "axis" in options
