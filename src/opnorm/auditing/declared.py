"""Whether a tensor keeps the constraint that its file declares for it."""

from collections.abc import Mapping
from math import isfinite, prod, sqrt
from typing import Any, NamedTuple

from scipy.sparse.linalg import LinearOperator

from opnorm.operators.convolution import Convolution
from opnorm.operators.sizes import Adjoint

_PRECISION = 1e-2  # what training promises of a convolution's norm, and half precision of a stored kernel
_CAPS = ("MaxSpectralNorm", "SpectralClip")
_EQUALITIES = ("SpectralNorm", "Orthogonal")

Bracket = tuple[float, float]


class Known(NamedTuple):
    """What was proved of a tensor: brackets of its operator's norm, and of its kernel's as a matrix."""

    operator: LinearOperator
    shape: tuple[int, ...]  # of the stored tensor
    norm: Bracket
    matrix: Bracket | None


def declared(config: Mapping[str, Any], known: Known) -> dict[str, Any]:
    """Return name, operator and value of a declared constraint, and whether it is met: "yes", "no" or "unknown".

    It is unknown for constraints of other libraries, for another matrix than was measured, and within a percent of
    the value.

    Args:
        config: Keras's serialized constraint.
        known: The brackets.
    """
    name = str(config.get("class_name", "")).rpartition(">")[2]
    options = config.get("config")
    options = options if isinstance(options, Mapping) else {}
    value = _number(
        options.get("value", options.get("max_value", 1.0 if name == "Orthogonal" else None)), options, known
    )
    operator = options.get("operator", "matrix")
    result = {"name": name, "operator": operator, "value": value, "met": "unknown"}
    ours = str(config.get("registered_name", "")).startswith("opnorm>")
    bracket = _bracket(options, operator, known)
    if ours and isinstance(value, int | float) and value > 0 and bracket:
        result["met"] = _verdict(name, bracket, float(value))
    raised = result["met"] == "yes" and options.get("min_value", 0) != 0  # of the singular values one end is measured
    return result | {"met": "unknown"} if raised else result


def _number(norm: Any, options: Mapping[str, Any], known: Known) -> Any:
    """Return what a norm by shape is for a tensor; any other as it is declared, None for a function of the step."""
    if not isinstance(norm, str) or not norm.endswith("rms"):
        return None if isinstance(norm, Mapping) else norm
    try:
        axes, groups = options.get("axis", -1), int(options.get("groups", 1))
        columns = prod(known.shape[axis] for axis in ([axes] if isinstance(axes, int) else axes)) / groups
        number = float(norm.removesuffix("rms") or 1) * sqrt(columns**2 * groups / prod(known.shape))
        return number if isfinite(number) else norm
    except (ArithmeticError, IndexError, TypeError, ValueError):
        return norm


def _verdict(name: str, bracket: Bracket, value: float) -> str:
    lower, upper = bracket
    low, high = value * (1 - _PRECISION), value * (1 + _PRECISION)
    if lower > high or (name in _EQUALITIES and upper < low):
        return "no"
    if (name in _CAPS or (name == "SpectralNorm" and lower >= low)) and upper <= high:
        return "yes"
    return "unknown"  # of an orthogonal kernel the norm alone is measured


def _bracket(options: Mapping[str, Any], operator: Any, known: Known) -> Bracket | None:
    """Return the bracket of the norm that the constraint means, None when another one was measured."""
    transposed = isinstance(known.operator, Adjoint)
    inner = known.operator.operator if isinstance(known.operator, Adjoint) else known.operator
    if not isinstance(inner, Convolution):
        whole = options.get("groups", 1) == 1 and options.get("axis", -1) in (-1, 1, [-1], [1])
        return known.norm if operator == "matrix" and len(known.shape) == 2 and whole else None
    if known.shape != inner.kernel.shape or options.get("groups", 1) != inner.groups:
        return None
    if operator == "convolution":
        return known.norm if _strides(options, inner.rank) == inner.strides and not transposed else None
    axis = options.get("axis", -1)
    wanted = -2 if transposed else -1
    return known.matrix if axis in (wanted, len(known.shape) + wanted, [wanted]) else None


def _strides(options: Mapping[str, Any], rank: int) -> tuple[Any, ...]:
    strides = options.get("strides", 1)
    return tuple(strides) if isinstance(strides, list | tuple) else (strides,) * rank
