"""Where the steps of a run are collected, and the tensors that they give."""

from collections.abc import Sequence
from math import prod

import numpy as np

from opnorm.networks.programs import Function, Map, Part, Piece, Run, Slope
from opnorm.networks.run_tensors import Tensor, still
from opnorm.networks.torus import Integers, Taps


def times(factor: float, tensor: Tensor, error: float = 0.0) -> Part:
    """Return what a map gets that multiplies a tensor with a factor, which is off by at most that part of it."""
    return Part(tensor.name, Taps(np.array([factor]), still(tensor), error, tensor.channels))


class Collector:
    """Collects the steps of a run; its state after each node that was understood is a run of its own.

    Steps have numbers for names, which no value of a graph can be confused with.
    """

    def __init__(self, entry: str, tensor: Tensor):
        self.entry = tensor._replace(name="entry")
        self.tensors = {entry: self.entry}  # by the names of the graph's values
        self.steps: list[Piece] = []
        self.choices: dict[tuple[str, bytes], Tensor] = {}  # of a tensor's channels
        self.apart: dict[frozenset[str], Tensor] = {}  # of two tensors: the magnitudes of their difference
        self.opposite: dict[str, Tensor] = {}  # of a tensor `-x`: x
        self.positive: dict[str, Tensor] = {}  # of a tensor x: `max(x, 0)`
        self.entries = self.work = 0.0  # numbers of all matrices, at every frequency, and multiplications, about
        self.needs: list[tuple[tuple[int, ...], tuple[int, ...]]] = []  # ratio of a level, pixels that its torus has

    def run(self, exit: str) -> Run:
        """Return the run up to the value `exit` of the graph."""
        ratios = [tensor.ratio for tensor in self.tensors.values() if tensor.ratio]
        coarsest = tuple(map(max, zip(*ratios, strict=True))) if ratios else ()
        size = [1] * len(coarsest)
        for ratio, need in self.needs:
            size = [max(n, -(-k * r // c)) for n, k, r, c in zip(size, need, ratio, coarsest, strict=True)]
        return Run(
            self.entry.name, self.entry.channels, tuple(self.steps), self.tensors[exit].name, tuple(size), self.work
        )

    def map(self, tensor: Tensor, parts: Sequence[Part], strides: tuple[int, ...] = (), lands: bool = False) -> Tensor:
        """Add a sum of sliding maps that is like `tensor`, and return it."""
        step = Map(self.next, tensor.channels, tuple(parts), strides, lands)
        for part in parts:
            rows, columns = part.taps.matrix_shape
            repeats = len(part.taps.shifts) if lands else prod(tensor.sizes) * prod(strides)
            self.count(repeats * rows * columns, rows + columns)
        self.steps.append(step)
        return tensor._replace(name=step.name)

    def function(self, tensor: Tensor, low: Slope = 0.0, high: Slope = 1.0) -> Tensor:
        """Add a function of each entry with slopes in [low, high], and return its result: zero outside of an image."""
        self.count(tensor.numbers * tensor.channels, 4.0 * tensor.channels)
        step = Function(self.next, tensor.name, low, high)
        self.steps.append(step)
        return tensor._replace(name=step.name, clean=True)

    def chosen(self, tensor: Tensor, numbers: Integers) -> Tensor:
        """Add the channels of these numbers, once for all who ask for them, and return them."""
        key = tensor.name, numbers.tobytes()
        if np.array_equal(numbers, np.arange(tensor.channels)):
            return tensor
        if key not in self.choices:
            matrix = np.eye(tensor.channels)[numbers]
            part = Part(tensor.name, Taps(matrix[None], still(tensor)))
            self.choices[key] = self.map(tensor._replace(channels=len(matrix)), [part])
        return self.choices[key]

    def extreme(self, a: Tensor, b: Tensor, sign: float) -> Tensor:
        """Add `(a + b) / 2 + sign |a - b|`, a maximum or minimum: both of the same two share the magnitudes."""
        key = frozenset((a.name, b.name))
        if key not in self.apart:
            self.apart[key] = self.function(self.map(a, [times(1.0, a), times(-1.0, b)]), -1.0, 1.0)
        found = self.map(a, [times(0.5, a), times(0.5, b), times(sign, self.apart[key])])
        return found._replace(clean=a.clean and b.clean)

    def count(self, numbers: float, order: float) -> None:
        """Count matrices of so many numbers, and a product with others of that order: complex, at half the pixels."""
        self.entries, self.work = self.entries + numbers, self.work + 2 * numbers * order

    @property
    def next(self) -> str:
        """The name of the next step."""
        return str(len(self.steps))
