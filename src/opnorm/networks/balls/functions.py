"""Functions of each entry on a ball: an entry's slopes are those that the function has where the entry may be."""

import numpy as np

from opnorm.bounds.certificates import UNIT, up
from opnorm.checkpoints.records import Node
from opnorm.checks import Array
from opnorm.networks.activations import parse
from opnorm.networks.balls.known_functions import WIDER, Known, known_function, smooth, straight
from opnorm.networks.balls.open_neurons import flat_of
from opnorm.networks.balls.rules import Rule, is_keras, not_followed, rule
from opnorm.networks.balls.values import SPARE, TINY, Found, Space, Value, length, rounding
from opnorm.networks.effects import BoundWeight, Effect, Unbounded, called_with, find

_ULPS = 64 * UNIT  # of an elementary function: 32 ulps
_NARROW = 2.0**-8  # of a slope: intervals that are narrower are no open neurons, and count with what is left out
_FAINT = 1e-9  # of the longest row: what moves less is no open neuron either


def reciprocal(value: Value) -> Known:
    """Return 1 / x where no entry of a value gets to zero."""
    if not np.all((value.low > 0) | (value.high < 0)):
        raise Unbounded("it divides by something that gets to zero on the ball")
    return smooth(lambda v: 1 / v, lambda v: -1 / v**2, rising=False)


def root(value: Value) -> Known:
    """Return the square root where no entry of a value gets to zero."""
    if not np.all(value.low > 0):
        raise Unbounded("the root of something that gets to zero on the ball")
    return smooth(np.sqrt, lambda v: 0.5 / np.sqrt(v))


def exponential(value: Value) -> Known:
    """Return the exponential function where it stays inside float64."""
    if not np.all(value.high < 700):
        raise Unbounded("its exponent gets beyond 700 on the ball")
    return smooth(np.exp, np.exp)


_LOCAL = {"Reciprocal": reciprocal, "Sqrt": root, "Exp": exponential, "exponential": exponential}


@rule(*_LOCAL)
def _(node: Node, bounds: BoundWeight) -> Rule:
    return lambda values, space: entrywise(_LOCAL[node.kind](values[0]), values[0], space)


@rule("Pow", "Square")
def _(node: Node, bounds: BoundWeight) -> Rule:
    exponent = find(node.weights, "1")
    power = (
        2.0 if node.kind == "Square" else float("nan") if exponent is None or "0" in node.weights else exponent.item()
    )
    if exponent is not None and exponent.ndim > 1:
        raise not_followed("an exponent that may add axes")
    if power == 0.5:
        return lambda values, space: entrywise(root(values[0]), values[0], space)
    if not power.is_integer() or not 0 < power <= 8:
        raise not_followed(f"the power {power}")

    return lambda values, space: entrywise(_power(int(power)), values[0], space)


def squared() -> Known:
    """Return the square."""
    return _power(2)


def _power(power: int) -> Known:
    def between(low: Array, high: Array) -> tuple[Array, Array]:
        ends = power * low ** (power - 1), power * high ** (power - 1)
        even = np.where((low <= 0) & (high >= 0) & (power % 2 == 1), 0.0, np.minimum(*ends))
        wider = WIDER * np.maximum(*np.abs(ends))
        return even - wider, np.maximum(*ends) + wider

    return Known(lambda v: v**power, between)


def of_function(node: Node, bounds: BoundWeight) -> Rule:
    """Return the rule of a node that is an activation, by its kind or its option."""
    name, options = parse(node.options.get("activation")) if node.kind == "Activation" else (node.kind, node.options)
    if is_keras(node) and (node.kind == "Clip" or (node.kind == "Gelu" and "approximate" not in options)):
        raise not_followed("Keras's function of that name has arguments that are not told")
    if name == "hard_sigmoid" and options.get("keras") != 3:
        raise not_followed("an older Keras's function of that name is another one")
    if is_keras(node) and node.kind in ("Selu", "HardSigmoid"):  # functions of `keras.ops`
        name = {"Selu": "selu", "HardSigmoid": "hard_sigmoid"}[node.kind]
    if is_keras(node) and node.kind == "LeakyRelu" and "negative_slope" not in options:
        raise not_followed("its slope is not told")
    if set(called_with(node)) - {"training"} or (set(node.weights) and node.kind != "Clip"):
        raise not_followed("arguments that opnorm does not read")
    known = _clip(node) if node.kind == "Clip" else known_function(name, options)
    return lambda values, space: entrywise(known, values[0], space)


def _clip(node: Node) -> Known:
    ends = [find(node.weights, role, option) for role, option in (("1", "min"), ("2", "max"))]
    low, high = (
        float(node.options.get(option, default)) if end is None else float(end.item())
        for end, option, default in zip(ends, ("min", "max"), (-np.inf, np.inf), strict=True)
    )
    if any(end is not None and end.ndim > 1 for end in ends):
        raise not_followed("ends that may add axes")
    if not low <= high:
        raise not_followed("a clip to nothing")
    bends = [(low, 1.0)] if low > -np.inf else []
    bends += [(high, 0.0)] if high < np.inf else []
    slopes = straight(*bends, first=0.0 if low > -np.inf else 1.0).slopes
    return Known(lambda v: np.clip(v, low, high), slopes)


def entrywise(known: Known, value: Value, space: Space) -> Found:
    """Return a function of each entry; the heaviest entries whose slope is open get a variable each."""
    low, high = known.slopes(value.low, value.high)
    middle, half = (low + high) / 2, (high - low) / 2 * SPARE
    steep = np.maximum(np.abs(low), np.abs(high))
    centre = known.function(value.centre)
    error = (steep * value.error + _ULPS * np.abs(centre) + known.inexact) * SPARE + TINY
    worth = (half > _NARROW * steep) & (value.rows > _FAINT * np.max(value.rows, initial=0.0))
    chosen = space.open.chosen(np.where(worth, half * value.rows, 0.0))
    flat = flat_of(value.tangents)
    if len(chosen):
        space.open.add(flat[:, chosen], value.rest.ravel()[chosen], value.rows.ravel()[chosen])
    left = half.copy()
    left.flat[chosen] = 0.0
    tangents = space.open.padded(middle * value.tangents)
    if len(chosen):
        rows = np.arange(len(tangents) - len(chosen), len(tangents))
        flat_of(tangents)[rows, chosen] = half.flat[chosen]
    lost = rounding(2, np.abs(middle) * value.size)
    rest = np.abs(middle) * value.rest + left * value.rows
    largest = float(np.max(np.abs(middle), initial=0.0))
    most = float(np.max(left, initial=0.0))
    beyond = min(length(left * value.rows), most * space.norm(value)) if most else 0.0
    whole = min(largest * value.whole + beyond, length(rest))
    effect = _effect(low, high)
    bounded = _moved(known, value, centre) if np.all(low >= 0) else None
    return Found(centre, error, tangents, (rest + lost) * SPARE, (whole + length(lost)) * SPARE, effect, bounded)


def _moved(known: Known, value: Value, centre: Array) -> Array:
    """Return how far a function that never falls gets from its value at the centre."""
    ends = known.function(value.low), known.function(value.high)
    inexact = _ULPS * (np.abs(ends[0]) + np.abs(ends[1]) + np.abs(centre)) + 2 * known.inexact
    return np.asarray((np.maximum(np.maximum(ends[1] - centre, centre - ends[0]), 0.0) + inexact) * SPARE)


def _effect(low: Array, high: Array) -> Effect:
    ends = float(low.min(initial=np.inf)), float(high.max(initial=-np.inf))
    steep = max(abs(ends[0]), abs(ends[1]))
    text = f"slopes in [{ends[0]:g}, {ends[1]:g}] on the ball, {np.mean(low == high):.0%} of them fixed"
    return Effect(up(steep), text, (low, high))
