"""What is known of a value inside a network while the input moves in a ball: where it is, and its Jacobian.

At every input of the ball `|x' - x| <= r` the Jacobian of a value, one row for each of its entries, is

    J = A + P S G + E,

with A the entries' tangents along the input, P those along the open neurons (`open_neurons.py`), and E a rest of which
only norms are known: of each row, and of the whole. Rounding errors are part of E. A network is such a Jacobian's
integral along a line, so `|value(x') - value(x)| <= max ||J|| |x' - x|`, entry by entry and as a whole.

A space without tangents has `A = P = 0`: the norms of E are then plain Lipschitz constants.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from opnorm.bounds.certificates import gamma
from opnorm.checks import Array
from opnorm.networks.balls.open_neurons import OpenNeurons
from opnorm.networks.effects import Effect

SPARE = 1 + 2.0**-28  # pays for the roundings of sums of up to 2^24 numbers that are not negative
TINY = 1e-125  # pays for underflow, that of squares too


class Found(NamedTuple):
    """What a rule says of a node's result; arrays have the result's shape, tangents one axis more in front."""

    centre: Array  # the value at the ball's centre, as computed
    error: Array  # how far it may be from what real arithmetic gives there
    tangents: Array  # (input + open neurons, *shape)
    rest: Array  # the norm of each row of E is at most this
    whole: float  # and that of all of E this
    effect: Effect | None = (
        None  # what the node alone does to a distance on this ball, where that is more than its rule
    )
    most: Array | None = None  # entries are no further from `centre` than this, whatever the input


class Value(NamedTuple):
    """`Found`, and what follows of it."""

    centre: Array
    error: Array
    tangents: Array
    rest: Array
    whole: float
    size: Array  # of each entry: the sum of the norms of its tangents, each open neuron as if by itself
    rows: Array  # the norm of each row of J is at most this
    reach: Array  # entries are no further from `centre` than this, at every input of the ball
    moved: Array  # the same without the error of the centre

    @property
    def low(self) -> Array:
        """No entry is below this, anywhere in the ball."""
        return np.asarray(np.nextafter(self.centre - self.reach, -np.inf))

    @property
    def high(self) -> Array:
        """No entry is above this, anywhere in the ball."""
        return np.asarray(np.nextafter(self.centre + self.reach, np.inf))


class Space:
    """One ball, and what has been found on the way through a network.

    Args:
        inputs: How many numbers the input has; 0 for a space without tangents.
        radius: Of the ball.
        neurons: The largest number of open neurons.
        inner: A smaller radius, at which `moved` was found.
        moved: By node: how far its entries move within the smaller ball.
    """

    def __init__(
        self, inputs: int, radius: float, neurons: int, inner: float = 0.0, moved: Mapping[str, Array] | None = None
    ):
        self.radius, self.inner, self.before = radius, inner, moved or {}
        self.open = OpenNeurons(inputs, neurons)
        self.apart: dict[frozenset[str], Value] = {}  # of two values, by name: the magnitudes of their difference

    def value(self, name: str, found: Found) -> Value:
        """Return what follows of a rule's result."""
        centre, error, tangents, rest, whole, _, most = found
        rest = np.minimum(rest, whole) * SPARE
        size = self.open.sizes(tangents)
        rows = np.minimum(self.open.norms(tangents), size) + rest
        moved = rows * (self.radius * SPARE)
        if name in self.before:  # on the line from the centre the Jacobian is at first one of the smaller ball
            moved = np.minimum(moved, (self.before[name] + rows * (self.radius - self.inner)) * SPARE)
        moved = moved if most is None else np.minimum(moved, most)
        return Value(centre, error, tangents, rest, whole, size, rows, (moved + error) * SPARE + TINY, moved)

    def norm(self, value: Value) -> float:
        """Return an upper bound of the norm of the value's Jacobian, all its entries together."""
        return (self.open.norm(value.tangents) + value.whole) * SPARE

    def distance(self, value: Value) -> float:
        """Return an upper bound of how far the value is from its computed centre, all entries as one vector."""
        return min(length(value.reach), (length(value.error) + self.norm(value) * self.radius) * SPARE)

    def aligned(self, values: list[Value]) -> list[Array]:
        """Return the tangents of several values along the same open neurons."""
        return [self.open.padded(value.tangents) for value in values]


def length(numbers: Array) -> float:
    """Return an upper bound of the Euclidean norm of all numbers together."""
    return float(np.linalg.norm(numbers.ravel())) * SPARE + TINY


def rounding(count: int, numbers: Array) -> Array:
    """Return what sums of so many products may be off by, from those sums over magnitudes."""
    return np.asarray(gamma(count + 2) * numbers * SPARE + TINY)
