"""How far activations stretch: for each name the interval that holds every difference quotient of the function.

The constants are proved in `docs/lipschitz.md` and checked again by the tests; all are rounded outwards.
"""

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from opnorm.checkpoints.keras_layers import class_of, function_of
from opnorm.networks.effects import Effect, Unbounded

Options = Mapping[str, Any]

_MONOTONE = (0.0, 1.0)  # slopes between none and one
_SELU = (0.0, 1.7580994)  # 1.67326324 * 1.05070099, the slope just below zero
_GELU = (-0.128994, 1.128994)  # of both forms: erf 1.1289042 at sqrt(2), tanh 1.1289931 at 1.4185
_SILU = (-0.09984, 1.09984)  # 1.0998393 at 2.3994
_MISH = (-0.112527, 1.088499)  # 1.0884982 at 1.4906, -0.1125262 at -2.2564
_SLOPES: dict[tuple[str, ...], tuple[float, float]] = {
    ("linear", "Identity"): (1.0, 1.0),
    ("relu", "Relu", "relu6", "Relu6", "ReLU6"): _MONOTONE,
    ("softplus", "Softplus", "squareplus", "sparse_plus", "SparsePlus"): _MONOTONE,
    ("tanh", "Tanh", "hard_tanh", "HardTanh", "tanh_shrink", "TanhShrink", "Atan", "Clip"): _MONOTONE,
    ("softsign", "Softsign", "SoftSign", "soft_shrink", "log_sigmoid", "LogSigmoid"): _MONOTONE,
    ("celu",): _MONOTONE,
    ("sigmoid", "Sigmoid"): (0.0, 0.25),
    ("sparse_sigmoid", "SparseSigmoid"): (0.0, 0.5),
    ("silu", "swish", "Silu", "SiLU", "Swish"): _SILU,
    ("gelu", "Gelu"): _GELU,
    ("mish", "Mish"): _MISH,
    ("hard_silu", "hard_swish", "HardSilu", "HardSwish"): (-0.5, 1.5),
    ("elu",): _MONOTONE,
    ("selu",): _SELU,
    ("leaky_relu",): (0.2, 1.0),
    ("Erf",): (0.0, 1.1283792),  # 2 / sqrt(pi)
    ("Neg", "Negative"): (-1.0, -1.0),
    ("Abs", "Absolute", "Sin", "Cos"): (-1.0, 1.0),
}
FIXED = {name: slopes for names, slopes in _SLOPES.items() for name in names}
JUMPS = (
    "threshold", "hard_shrink", "Threshold", "HardShrink", "ThresholdedRelu", "Shrink", "Sign", "Floor", "Round",
    "sparsemax", "Sparsemax",  # Keras's adds up several thresholds: no projection onto the simplex
)  # fmt: skip
STEEP = ("exponential", "Exp", "Log", "Sqrt", "Reciprocal", "Pow", "Square")
SIMPLEX = ("softmax", "Softmax")


def _relu(options: Options) -> tuple[float, float]:
    if options.get("threshold"):
        raise Unbounded(f"ReLU jumps at its threshold {options['threshold']}")
    return _hull(float(options.get("negative_slope") or 0.0), 1.0, *_flat(options.get("max_value")))


def _flat(max_value: Any) -> list[float]:
    return [] if max_value is None else [0.0]


def _hull(*slopes: float) -> tuple[float, float]:
    if not all(map(isfinite, slopes)):  # `min` and `max` may pass over a NaN
        raise Unbounded(f"its slopes {slopes} are not finite")
    return min(slopes), max(slopes)


def _selu(options: Options) -> tuple[float, float]:
    gamma = float(options.get("gamma", 1.0507010))
    return _hull(0.0, gamma, gamma * float(options.get("alpha", 1.6732633)) * (1 + 1e-15))  # one rounding


def _above(least: float, option: str, default: float) -> Callable[[Options], tuple[float, float]]:
    """Return the slopes of a monotone function whose parameter only says where it bends, if it is larger than that."""

    def slopes(options: Options) -> tuple[float, float]:
        value = float(options.get(option, default))
        if not value > least:
            raise Unbounded(f"with {option} {value:g} it has no bounded slope")
        return _MONOTONE

    return slopes


def _hard_sigmoid(options: Options) -> tuple[float, float]:
    return _hull(0.0, float(options.get("alpha", 0.2)))


def _hard_sigmoid_of_keras(options: Options) -> tuple[float, float]:
    """Return the slopes of the version that the reader found: x / 6 + 1 / 2 since Keras 3, x / 5 + 1 / 2 before."""
    return (0.0, 0.16666667) if options.get("keras") == 3 else (0.0, 0.2)


_WITH_OPTIONS: dict[str, Callable[[Options], tuple[float, float]]] = {
    "ReLU": _relu,
    "ELU": lambda options: _hull(0.0, 1.0, float(options.get("alpha", 1.0))),
    "Elu": lambda options: _hull(0.0, 1.0, float(options.get("alpha", 1.0))),
    "LeakyReLU": lambda options: _hull(float(options.get("alpha", options.get("negative_slope", 0.3))), 1.0),
    "LeakyRelu": lambda options: _hull(float(options.get("negative_slope", options.get("alpha", 0.01))), 1.0),
    "Selu": _selu,
    "HardSigmoid": _hard_sigmoid,
    "hard_sigmoid": _hard_sigmoid_of_keras,
    "Celu": _above(0, "alpha", 1.0),  # below zero alpha (exp(x / alpha) - 1) grows without bound where alpha < 0
    "SoftShrink": _above(-1e-300, "threshold", 0.5),  # jumps at a negative threshold
    "Squareplus": _above(-1e-300, "b", 4.0),  # (x + sqrt(x^2 + b)) / 2
}


def activation(name: str, options: Options) -> Effect:
    """Return the effect of the activation `name`: of a Keras function or layer, or of an ONNX operator.

    Args:
        name: As the network's file has it: "relu", "LeakyReLU", "HardSigmoid".
        options: What the file says of it: `negative_slope`, `alpha`, ...

    Raises:
        Unbounded: When it has no finite constant, or is not known.
    """
    if name in SIMPLEX:
        return Effect(0.5, f"{name}: 0.5")
    if name in JUMPS:
        raise Unbounded(f"{name} jumps")
    if name in STEEP:
        raise Unbounded(f"the slope of {name} is not bounded")
    if name not in FIXED and name not in _WITH_OPTIONS:
        raise Unbounded(f"no bound is known for the activation {name}")
    slopes = FIXED[name] if name in FIXED else _WITH_OPTIONS[name](options)
    constant = max(abs(slopes[0]), abs(slopes[1]))
    return Effect(constant, f"{name}: slopes in [{slopes[0]:g}, {slopes[1]:g}]", slopes)


def is_activation(name: str) -> bool:
    """Return whether `activation` has something to say of `name`."""
    return name in FIXED or name in _WITH_OPTIONS or name in SIMPLEX or name in JUMPS or name in STEEP


def parse(specification: Any) -> tuple[str, Options]:
    """Return name and options of what stands under `activation` in a Keras config.

    It is None, a name, or the config of a function or of a layer.
    """
    if specification is None:
        return "linear", {}
    if isinstance(specification, Mapping):
        inner = specification.get("config")
        if specification.get("class_name", "function") == "function":
            return function_of(specification), {}
        if not isinstance(inner, Mapping):  # a method, or an object of any class, called as a function is
            return f"{specification['class_name']}>{inner}", {}
        return class_of({"class_name": None, **specification}), inner
    return str(getattr(specification, "__name__", specification)), {}
