"""The supremum of a symbol's norm over all frequencies between two proved numbers.

Claim a bound U. If the supremum S were larger, the cell that holds it would have `||M(centre)|| >= S cos(slack) > U
cos(slack)`; so prove `||M(centre)|| <= U cos(slack)` for every cell of a tiling, splitting the cells where that fails.
"""

from collections.abc import Iterator
from math import acos, cos, floor, log2

import numpy as np
from numpy.typing import NDArray

from opnorm.bounds.cells import Cells, tiling, tiling_size
from opnorm.bounds.certificates import down, proved, up
from opnorm.bounds.deadlines import NEVER, Deadline, OutOfTimeError
from opnorm.bounds.estimates import batches, climb, estimate_norms
from opnorm.bounds.forks import blas_section
from opnorm.bounds.matrices import bracket_blocks
from opnorm.bounds.memory import Memory
from opnorm.bounds.parallel import in_batches
from opnorm.bounds.symbols import Symbol
from opnorm.bounds.threads import one_blas_thread
from opnorm.checks import Array

_LARGE = 1024  # entries of a matrix from which a group is worth a run of its own
_WORK = 2e12  # multiplications after which no cell is split any more: about a minute on two cores
_CELLS = 1e6  # likewise, for the memory of their centres
_BYTES_PER_CELL = 512  # of a cell, its eight children and what is known of them
_EXPONENTIAL = 60  # multiplications that take as long as one complex exponential
_CLIMBS = 3  # starts of a local search: a better lower end saves hundreds of cells
_HALVINGS = 5  # looked ahead: a slack of 1.2 is then 0.04, of a loss below a thousandth
_PROBES = 10  # Golub-Kahan steps that rank frequencies, to about a percent


def can_be_tiled(symbol: Symbol, tolerance: float, memory: Memory) -> bool:
    """Return whether a group's coarsest cells are few enough to look at; else a bracket costs more than it is worth."""
    count = _tiles(symbol, _slacks(tolerance)[1])
    return count <= _budget(symbol) and memory.holds(count * _BYTES_PER_CELL)


def bracket_symbol(
    symbol: Symbol, tolerance: float, deadline: Deadline = NEVER, memory: Memory | None = None
) -> tuple[float, float]:
    """Return `(lower, upper)` with `lower <= sup ||M_g(w)|| <= upper`, proved in floating-point arithmetic.

    Args:
        symbol: Of a convolution, largest tap near 1.
        tolerance: Aim for `upper / lower - 1`; more only when the work would pass a fixed budget or the deadline.
        deadline: After it the upper end is the smallest that was proved by then, at worst the triangle inequality's.
        memory: Of the batches; None: half of the machine's.
    """
    memory = memory or Memory()
    if symbol.exponents.shape[1] == 0:  # one tap: the symbol is a constant matrix
        return bracket_blocks(symbol.taps[:, 0], min(tolerance, 1e-6), deadline, memory)
    lower, upper = 0.0, 0.0
    with one_blas_thread():
        for part in _parts(symbol, tolerance):  # the first may settle the others
            if _crude(part) > upper:
                lower, upper = _refine(part, tolerance, lower, upper, deadline, memory)
    return lower, upper


def _parts(symbol: Symbol, tolerance: float) -> Iterator[Symbol]:
    """Yield the groups, the largest first: one at a time where they are large, else as many as can be looked at."""
    groups = len(symbol.taps)
    together = max(1, int(_budget(symbol) / 4 / _tiles(symbol, _slacks(tolerance)[1])))
    size = 1 if symbol.taps[0, 0].size >= _LARGE else together
    if size >= groups:
        yield symbol
        return
    order = np.argsort(-symbol.frobenius)
    for first in range(0, groups, size):
        yield Symbol(symbol.taps[order[first : first + size]], symbol.exponents)


def _crude(symbol: Symbol) -> float:
    """Return a bound of the supremum that costs nothing: `||M(w)||` is at most the sum of the taps' norms."""
    return up(np.sqrt(symbol.taps.shape[1]) * float(symbol.frobenius.max()))


def _slacks(tolerance: float) -> tuple[float, float]:
    """Return the slack of cells that prove a bracket of that tolerance, and of those to begin with."""
    finest = acos(1 / (1 + tolerance)) * 0.97  # the cell of the maximum itself must pass, with room for rounding
    return finest, finest * 2.0 ** floor(log2(1.2 / finest))  # beyond a slack of 1.2 hardly any cell passes


def _tiles(symbol: Symbol, slack: float) -> float:
    """Return how many cells of that slack tile the frequencies of one group, nearly."""
    return tiling_size(symbol.degrees, slack) if symbol.exponents.shape[1] else 0.0


def _budget(symbol: Symbol) -> float:
    """Return how many cells may be looked at."""
    return min(_WORK / _work_per_cell(symbol), _CELLS)


def _refine(
    symbol: Symbol, tolerance: float, lower: float, upper: float, deadline: Deadline, memory: Memory
) -> tuple[float, float]:
    """Return the bracket `(lower, upper)` extended by `symbol`."""
    groups, others = np.arange(len(symbol.taps)), upper
    budget, known = min(_budget(symbol), memory.limit / _BYTES_PER_CELL), _crude(symbol)
    try:
        cells, is_sample = tiling(groups, symbol.degrees, _slacks(tolerance)[1]), True
        while len(cells):
            budget -= len(cells)
            if budget < 0:
                return lower, _settle(symbol, cells, max(upper, lower * (1 + tolerance)), deadline, memory)
            norms = estimate_norms(symbol, cells, _PROBES, deadline, memory)
            lower = _climbed(symbol, cells, norms, lower, deadline)
            upper = max(upper, up(lower * (1 + tolerance)))
            known = min(known, _known_by_now(symbol, cells, norms, upper, known, deadline, memory))
            slack = _cheapest_slack(symbol, cells, norms, upper, deadline) if is_sample else cells.slack
            is_sample = False
            if slack < cells.slack and len(groups) * _tiles(symbol, slack) <= budget:
                cells = tiling(groups, symbol.degrees, slack)
                continue
            failed = norms > upper * cos(cells.slack)
            tried = cells.where(~failed)
            failed[~failed] = ~_proved_at(symbol, tried, upper, deadline, memory)
            cells = cells.where(failed).halved()
    except OutOfTimeError:
        upper = max(others, known)
    return lower, upper


def _known_by_now(
    symbol: Symbol, cells: Cells, norms: Array, upper: float, known: float, deadline: Deadline, memory: Memory
) -> float:
    """Return what can be proved on cells that are still too large for `upper`, in case that time runs out.

    Args:
        symbol: One group, or several small ones.
        cells: All that is not proved yet to be at most `upper`.
        norms: Estimates at their centres.
        upper: What is to be proved in the end.
        known: The bound that is known; a larger one is not tried.
        deadline: Without one nothing is done.
        memory: Of the batches.
    """
    expected = max(upper, float(norms.max()) / cos(cells.slack))
    if deadline == NEVER or expected > 0.9 * known:
        return known
    return _settle(symbol, cells, expected, deadline, memory)


def _cheapest_slack(symbol: Symbol, cells: Cells, norms: Array, upper: float, deadline: Deadline) -> float:
    """Return the slack to tile all frequencies with, where a sample of them has these norms.

    Halving finds peaks. Where the norm hardly depends on the frequency every cell has to be small, and a tiling of
    just that size saves the larger ones.
    """
    if not upper > 0:  # the time was over before a lower end was found
        return cells.slack
    slacks = cells.slack * 2.0 ** (-np.arange(17) / 4)
    costs = [_cost(slack, cells, norms / upper) for slack in slacks]
    best = int(np.argmin(costs))
    return float(slacks[best]) if deadline.affords(costs[best] * _work_per_cell(symbol)) else cells.slack


def _cost(slack: float, cells: Cells, norms: Array) -> float:
    """Return how many cells are tried from a tiling of that slack on; `norms` are in units of the bound."""
    pieces = (cells.slack / slack) ** len(cells.degrees)  # of each of `cells`
    cost, waiting = 0.0, norms
    for _ in range(_HALVINGS):
        cost += pieces * len(waiting)
        waiting = waiting[waiting > cos(slack)]
        pieces, slack = pieces * 2 ** len(cells.degrees), slack / 2
    return cost


def _climbed(symbol: Symbol, cells: Cells, norms: Array, lower: float, deadline: Deadline) -> float:
    """Return the best proved lower bound that local searches from the largest of the estimates `norms` find."""
    for best in np.argsort(norms)[-_CLIMBS:]:
        if not deadline.passed and norms[best] > lower * 0.99:  # an estimate may be a percent too small
            with blas_section():
                lower = max(lower, climb(symbol, int(cells.groups[best]), cells.centres[best], 8)[0])
    return lower


def _proved_at(symbol: Symbol, cells: Cells, upper: float, deadline: Deadline, memory: Memory) -> NDArray[np.bool_]:
    """Return for each cell whether `||M(centre)|| <= upper cos(slack)` is proved; OutOfTimeError at the deadline."""
    taus = upper * down(cos(cells.slack)) - symbol.evaluation_error[cells.groups]

    def prove(part: slice) -> NDArray[np.bool_]:
        deadline.check()
        with blas_section():
            return proved(symbol.at(cells.groups[part], cells.centres[part]), taus[part])

    return np.concatenate([np.zeros(0, dtype=bool), *in_batches(prove, len(cells), *batches(symbol, memory))])


def _settle(symbol: Symbol, cells: Cells, upper: float, deadline: Deadline, memory: Memory) -> float:
    """Return a bound proved on `cells` without splitting them further, at most twice looser than it could be."""
    slack, crude = 0.01, _crude(symbol)
    while upper * (1 + slack) < crude:
        cells = cells.where(~_proved_at(symbol, cells, upper * (1 + slack), deadline, memory))
        if len(cells) == 0:
            return up(upper * (1 + slack))
        slack *= 1.5
    return max(upper, crude)


def _work_per_cell(symbol: Symbol) -> float:
    _, count, rows, columns = symbol.taps.shape
    products = 4 * rows * columns * (min(rows, columns) + count) + 4 * min(rows, columns) ** 3 / 3
    return float(products + _EXPONENTIAL * count)
