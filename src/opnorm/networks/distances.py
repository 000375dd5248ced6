"""How far a value inside a network moves when the network's inputs move: squares of distances as a quadratic form.

A value of a network with p inputs has a `Reach`: a matrix Q, p x p, symmetric, with entries that are not negative, and

    ||change of the value||^2 <= d^T Q d,   d_i = ||change of input i||,   for every d >= 0.

Each operation below rounds upwards, entry by entry, which only enlarges the right side.
"""

from math import sqrt
from typing import NamedTuple

import numpy as np

from opnorm.bounds.certificates import up
from opnorm.bounds.matrices import bracket_matrix
from opnorm.checks import Array


class Reach(NamedTuple):
    """`Q = 4**exponent * form`; the exponent keeps deep networks inside the range of float64."""

    form: Array
    exponent: int = 0

    @property
    def norm(self) -> float:
        """Upper bound of the Lipschitz constant with respect to all inputs as one vector; inf when beyond float64."""
        with np.errstate(over="ignore"):
            return float(np.ldexp(_root_norm(self.form), self.exponent))


def _root_norm(form: Array) -> float:
    if form.size == 1:
        return up(sqrt(float(form[0, 0])))
    return up(sqrt(bracket_matrix(form, 1e-9)[1]))


def source(index: int, count: int) -> Reach:
    """Return the reach of input `index` of `count`: itself."""
    form = np.zeros((count, count))
    form[index, index] = 1.0
    return Reach(form)


def through(reach: Reach, constant: float) -> Reach:
    """Return the reach behind a map with this Lipschitz constant."""
    mantissa, exponent = np.frexp(constant)
    return _normalized(reach.form * up(float(mantissa) ** 2), reach.exponent + int(exponent))


def side_by_side(reaches: list[Reach]) -> Reach:
    """Return the reach of several values as one vector: squares add up."""
    forms, exponent = _aligned(reaches)
    return _normalized(sum(forms) * up(1.0), exponent)  # type: ignore[arg-type]


def added(reaches: list[Reach]) -> Reach:
    """Return the reach of the sum of several values: the smaller of two bounds.

    One weighs the forms with their norms L_j, since `(sum a_j)^2 <= sum(L) sum(a_j^2 / L_j)` (Cauchy); with one input
    it is `(sum L)^2`. The other adds the constants for each input and forgets how inputs are combined.
    """
    forms, exponent = _aligned(reaches)
    norms = [_root_norm(form) for form in forms]
    moving = [(form, norm) for form, norm in zip(forms, norms, strict=True) if norm > 0]
    if not moving:
        return Reach(forms[0])
    weighed = sum(norms) * np.sum([form / norm for form, norm in moving], axis=0)
    each = np.sum([np.sqrt(np.diag(form)) for form in forms], axis=0)
    return _normalized(min(weighed, np.outer(each, each), key=_root_norm) * up(1.0), exponent)


def _aligned(reaches: list[Reach]) -> tuple[list[Array], int]:
    """Return the forms over one common exponent; what is too small for it becomes the smallest number there."""
    exponent = max(reach.exponent for reach in reaches)
    forms = []
    for form, own in reaches:
        shifted = np.ldexp(form, 2 * (own - exponent))
        tiny = np.finfo(np.float64).tiny
        forms.append(np.where((form > 0) & (shifted < tiny), tiny, shifted))
    return forms, exponent


def _normalized(form: Array, exponent: int) -> Reach:
    peak = float(np.max(form))
    if peak == 0:
        return Reach(form)
    half = int(np.frexp(peak)[1]) // 2
    return Reach(np.ldexp(form, -2 * half), exponent + half)
