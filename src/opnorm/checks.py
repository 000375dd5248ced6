"""Argument checks with one form of message: what the argument must be, and the value received.

Every public function sees real, finite float64 arrays, positive integers and numbers in range, or raises.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Norm = float | str | Callable[[Any], Any]  # what a rule aims at: see `to_norm`

_EXACT_INTEGERS = 2**53  # beyond it float64 skips integers, and a certificate would speak of another matrix
_TOLERANCES = 1e-15, 1e3  # what float64 can tell from zero; what a bracket that is of use may miss
_LARGEST_INTEGER = 2**63 - 1  # of 64 bits, which arrays and random generators take
_RMS = re.compile(r"\s*(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)?\s*rms\s*")
_FRONTS = {"keras": "opnorm, for Keras 3", "rules": "opnorm.torch and opnorm.jax"}  # by the wing that a class is in
_NO_VALUE_YET = "traced", "eager execution", "symbolic"  # NumPy's and the frameworks' words for it
_LONG = 120  # characters of a received value in an error
_WHOLES = {"Constraint", "Layer", "Module"}  # base classes, in every framework, of what is callable and no schedule


def real_array(value: Any, name: str, *, copy: bool = True, exact: bool = True) -> Array:
    """Return `value` as a float64 array with exactly the same entries.

    Args:
        value: Anything NumPy reads: arrays, tensors of TensorFlow, JAX and PyTorch (half precisions too), Keras
            variables, nested lists. Real floating point up to 64 bits, or integers up to 2**53 in magnitude.
        name: The argument's name, for the error.
        copy: Whether a float64 array is copied too; without it the result is only to be read.
        exact: Whether integers beyond 2**53 are refused; else they are rounded to the nearest float64.

    Raises:
        ValueError: When `value` is empty, complex, not numeric, not finite, or does not fit float64 exactly.
    """
    must = "must be one array, not a mapping of names to arrays; `opnorm.audit` takes those that are not nested"
    require(not isinstance(value, Mapping), name, must, value)
    array = numbers(value, name)
    model = array.dtype.kind == "O" and hasattr(value, "weights")  # Keras's, or a layer that nobody registered
    must = "must be an array, an operator or a layer with one linear map; "
    must += "`opnorm.linear_operators` has those of a model, `opnorm.lipschitz_bound` bounds the whole"
    require(not model, name, must, value)
    module = array.dtype.kind == "O" and (_is_whole(value) or hasattr(value, "weight"))
    held = next((f": hand over its `{held}`" for held in ("weight", "kernel") if hasattr(value, held)), "")
    require(not module, name, f"must be an array, not a module{held}", value)
    kind = "f" if array.dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2") else array.dtype.kind
    if kind not in "fiu" or array.dtype.itemsize > 8:
        what = f"dtype={array.dtype}" if hasattr(value, "dtype") else f"{name}={abridged(value)}"
        raise ValueError(f"Argument `{name}` must be real, float64 or narrower. Received: {what}")
    if array.size == 0:
        raise ValueError(f"Argument `{name}` must not be empty. Received: shape={array.shape}")
    with np.errstate(invalid="ignore"):  # a signalling NaN: refused below
        result = array.astype(np.float64, copy=copy)
    if not np.all(np.isfinite(result)):
        raise ValueError(f"Argument `{name}` must be finite. Received: {_first_not_finite(result)} among its entries")
    if exact and kind in "iu" and (largest := max(int(array.max()), -int(array.min()))) > _EXACT_INTEGERS:
        raise ValueError(f"Argument `{name}` must hold integers up to 2**53. Received: {largest} among its entries")
    return result


def is_torch_module(value: Any) -> bool:
    """Return whether a value is a module of PyTorch that is no Keras model, which on PyTorch is one too."""
    return hasattr(value, "named_modules") and not hasattr(value, "built")


def numbers(value: Any, name: str) -> NDArray[Any]:
    """Return `value` as NumPy reads it.

    Raises:
        ValueError: When NumPy cannot: ragged lists, sparse tensors, objects of no kind it knows; or when entries are
            masked, which a plain array would lay bare.
    """
    if isinstance(value, np.ma.MaskedArray) and np.any(value.mask):
        must = f"Argument `{name}` must have no masked entries; fill them first: {name}.filled(0)"
        raise ValueError(f"{must}. Received: {int(np.sum(value.mask))} masked of {value.size}")
    try:
        return np.asarray(_host(value))
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        must = f"Argument `{name}` must be an array of numbers"
        if any(word in reason for word in _NO_VALUE_YET):
            must += ", known by now: outside of `jax.jit` and `tf.function`; of a TF1 graph what `session.run` returned"
        raise ValueError(f"{must}; NumPy says: {reason}. Received: {name}={abridged(value)}") from error


def abridged(value: Any) -> str:
    """Return what a value looks like, in a few dozen characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."


def _host(value: Any) -> Any:
    """Return the values of a Keras variable or a PyTorch tensor in a form that NumPy reads."""
    inner = getattr(value, "value", None)
    if inner is not None and not callable(inner):  # a Keras variable; TensorFlow's own `value` is a method
        value = inner
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # NumPy cannot read PyTorch's half precisions; `double` is exact
        return value.double().numpy() if value.is_floating_point() else value.numpy()
    return value


def _first_not_finite(array: Array) -> float:
    return float(array[~np.isfinite(array)][0])


def positive_integers(value: int | Sequence[int], count: int, name: str) -> tuple[int, ...]:
    """Return `count` positive integers: `value` itself, or one integer repeated.

    Raises:
        ValueError: When `value` is anything else, with its name and what was received.
    """
    several: Sequence[int] = value if isinstance(value, Sequence) else (value,) * count
    try:
        result = () if any(isinstance(one, bool) for one in several) else tuple(map(index, several))
    except TypeError:
        result = ()
    if len(result) != count or not 1 <= min(result) <= max(result) <= _LARGEST_INTEGER:
        raise ValueError(
            f"Argument `{name}` must be a positive integer or {count} of them. Received: {name}={value!r}"
        ) from None
    return result


def check_tolerance(tolerance: float) -> float:
    """Return `tolerance`.

    Raises:
        ValueError: Unless it is a number from 1e-15 to 1e3.
    """
    least, most = _TOLERANCES
    must = f"must be a positive finite number from {least:g} to {most:g}"
    require(_is_real(tolerance) and least <= float(tolerance) <= most, "tolerance", must, tolerance)
    return float(tolerance)


def check_time_limit(time_limit: Any) -> None:
    """Raise a `ValueError` unless `time_limit` is None or a number of seconds, which is not negative."""
    proper = time_limit is None or (_is_real(time_limit) and float(time_limit) >= 0)
    require(proper, "time_limit", "must not be negative, in seconds", time_limit)


def to_axes(name: str, value: Any, rank: int) -> tuple[int, ...]:
    """Return the axes `value` of an array of `rank` axes, counted from 0; raise unless they are its own, all different.

    Args:
        name: The argument's name.
        value: An integer or several; negative ones count from the last axis.
        rank: At least 1.
    """
    axes = to_axis(name, value)
    several = (axes,) if isinstance(axes, int) else axes
    inside = all(-rank <= axis < rank for axis in several)
    distinct = inside and len({axis % rank for axis in several}) == len(several)
    require(distinct, name, f"must be one or more different axes of the {rank} that there are", value)
    return tuple(axis % rank for axis in several)


def require(holds: bool, name: str, must: str, value: Any) -> None:
    """Raise a `ValueError` that names the argument, the rule and the value received, unless the rule holds."""
    if not holds:
        raise ValueError(f"Argument `{name}` {must}. Received: {name}={abridged(value)}")


def require_constraint(holds: bool, name: str, front: str, value: Any) -> None:
    """Raise a `ValueError` unless it holds that `value` is a constraint of the front end `front`.

    It tells where the value is from: constraints of all front ends have the same names.
    """
    if not holds:
        home = type(value).__module__
        wing = home.split(".")[1] if home.startswith("opnorm.") else ""
        origin = f"of {_FRONTS.get(wing, home)}"
        origin = "a class, not called" if isinstance(value, type) else origin
        must = f"must be one of {front}'s constraints, such as `{front}.SpectralNorm()`"
        raise ValueError(f"Argument `{name}` {must}. Received: {name}={abridged(value)}, {origin}")


def to_count(name: str, value: Any, least: int) -> int:
    """Return `value` as an int; raise unless it is an integer that is at least `least`."""
    require(_is_integer(value) and int(value) >= least, name, f"must be an integer >= {least}", value)
    require(int(value) <= _LARGEST_INTEGER, name, "must be an integer of at most 64 bits", value)
    return int(value)


def to_counts(name: str, value: Any, least: int) -> int | tuple[int, ...]:
    """Return `value` as an int or a tuple of ints; raise unless all are integers that are at least `least`."""
    if _is_integer(value):
        return to_count(name, value, least)
    counts = _listed(value)
    sound = bool(counts) and all(_is_integer(count) and least <= int(count) <= _LARGEST_INTEGER for count in counts)
    require(sound, name, f"must be an integer >= {least} or a tuple of them", value)
    return tuple(map(int, counts))


def to_positive(name: str, value: Any) -> float:
    """Return `value` as a float; raise unless it is a positive finite number."""
    require(_is_real(value) and 0 < float(value) < math.inf, name, "must be a positive finite number", value)
    return float(value)


def to_norm(name: str, value: Any) -> Any:
    """Return a norm to aim at as one writes it down; raise unless it is one.

    That is a positive number, returned as a float; `"rms"` or `"0.5 rms"`, so many times sqrt(out / in); a function of
    the step; or, where a framework traces it, an array without axes.
    """
    if _is_real(value):
        return to_positive(name, value)
    must = "must be a positive finite number, 'rms', a multiple such as '0.5 rms', or a function of the step"
    require_norm(name, value, must)
    if callable(value) or _is_number_array(value):
        return value
    found = _RMS.fullmatch(value) if isinstance(value, str) else None
    count = float(found[1] or 1) if found else 0.0
    require(0 < count < math.inf, name, must, value)
    return "rms" if count == 1 else f"{count!r} rms"


def require_norm(name: str, value: Any, must: str) -> None:
    """Raise where a layer, a kernel or another constraint stands for the norm: the constraint was not made yet."""
    told = f"{must}; make the constraint first, as `SpectralNorm()`, and give it to the layer or model"
    kernel = hasattr(value, "dtype") and len(getattr(value, "shape", None) or ()) > 0
    require(not (kernel or _is_whole(value)), name, told, value)


def _is_whole(value: Any) -> bool:
    """Return whether a value is a layer or a model of some framework, or a constraint: made, or a class."""
    kind = value if isinstance(value, type) else type(value)
    return not _WHOLES.isdisjoint(base.__name__ for base in kind.__mro__)


def _is_number_array(value: Any) -> bool:
    return getattr(value, "shape", None) == () and hasattr(value, "dtype") and not isinstance(value, np.ndarray)


def to_not_negative(name: str, value: Any) -> float:
    """Return `value` as a float; raise unless it is a finite number, zero or positive."""
    require(_is_real(value) and 0 <= float(value) < math.inf, name, "must be a finite number >= 0", value)
    return float(value)


def to_fraction(name: str, value: Any) -> float:
    """Return `value` as a float; raise unless it is at least 0 and below 1."""
    require(_is_real(value) and 0 <= float(value) < 1, name, "must be a number at least 0 and below 1", value)
    return float(value)


def to_flag(name: str, value: Any) -> bool:
    """Return `value`; raise unless it is True or False."""
    require(isinstance(value, bool), name, "must be True or False", value)
    return bool(value)


def to_axis(name: str, value: Any) -> int | tuple[int, ...]:
    """Return `value` as an int or a tuple of ints; raise unless it is an integer or several of them, all different."""
    if _is_integer(value):
        return int(value)
    axes = _listed(value)
    distinct = bool(axes) and all(map(_is_integer, axes)) and len(set(axes)) == len(axes)
    require(distinct, name, "must be an integer or a tuple of different integers", value)
    return tuple(map(int, axes))


def to_operator(operator: Any, axis: int | tuple[int, ...]) -> str:
    """Return `operator`; raise unless it is "matrix", or "convolution" with the last axes for the outputs."""
    operators = "matrix", "convolution"
    require(isinstance(operator, str) and operator in operators, "operator", f"must be one of {operators}", operator)
    last = operator == "matrix" or axis in (-1, (-1,), (-2, -1))
    require(last, "axis", "must be -1 (if depthwise, (-2, -1)) with operator='convolution'", axis)
    return str(operator)


def _listed(value: Any) -> tuple[Any, ...]:
    """Return the members of a collection; nothing for anything else."""
    try:
        return tuple(value) if isinstance(value, Iterable) and not isinstance(value, bytes) else ()
    except TypeError:  # an array without axes
        return ()


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    """Return whether a value is a number that is finite as a float."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False
