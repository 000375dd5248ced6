"""Certified radii: margins of logits over the Lipschitz constants of their differences."""

from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opnorm.bounds.certificates import UNIT
from opnorm.bounds.deadlines import Deadline
from opnorm.checks import Array, numbers, to_not_negative
from opnorm.networks.balls.bound import outputs
from opnorm.networks.balls.radii import radii_on_balls
from opnorm.networks.balls.walk import Network
from opnorm.networks.bound import bound_joined
from opnorm.networks.certificate import Certificate
from opnorm.networks.folding import fold, split
from opnorm.networks.forward import Value
from opnorm.networks.logits import Subject, logits_of, subject_of, without_softmax
from opnorm.networks.pairs import Progress, pair_constants, remembered

_INPUTS = 1024  # numbers of an example up to which balls have tangents along them
_EACH = 0.5  # seconds for the balls around an example
_OPEN = 128  # open neurons of a ball


def certify(
    model: Any, x: Any, labels: Any = None, *, time_limit: float | None = 60.0, progress: Progress | None = None
) -> Certificate:
    """Return for each example a radius within which the network's prediction is proved to stay the same.

    If `||x' - x||_2 < radius`, the largest logit at x' is that of the same class as at x. The radius is the least
    `(f_i - f_j) / L_ij` over all other classes j, with `L_ij` a proved Lipschitz constant of `f_i - f_j`, or what balls
    around x prove beyond that: the Jacobian of a network there is bounded shell by shell. A final
    softmax is taken off first, for it does not change which logit is largest; the model itself is left alone.

    Proved: of the network in real arithmetic, at inference, with the stored weights, which treats each example alone.
    Networks are evaluated in float64 with all rounding errors bounded and counted (elementary functions are taken to be
    right to 32 ulps). Assumed, with a line in `notes`, for layers of Keras that opnorm does not evaluate: that the
    logits which the model computes in its own precision are off by at most the square root of its unit roundoff times
    their magnitude. What the network computes in float32 at x' is another function: there a margin may be off by as
    much as its rounding errors.

    Args:
        model: A built Keras model, a PyTorch module (traced as its ONNX export, which needs the extra `audit`), or the
            path of a file that holds its network's graph (`.onnx`, `.keras`; it is never run): one input, one output of
            two logits (or probabilities) or more for each example.
        x: The examples, (examples, ...), as the model takes them.
        labels: The right classes, (examples,), integers: the radius is 0 where the prediction is another one.
        time_limit: Seconds for the pairs of classes, each bounded by itself up to 20 classes, and again so many, but
            half a second an example at most, for the balls around them; what is left then has smaller radii, and as
            true: how far they get depends on the machine. 0: no balls.
        progress: Called with the number of pairs of classes done and of all, after each; then with that of examples.

    Raises:
        ValueError: When the model has several inputs or outputs, or a node without a finite Lipschitz constant on any
            ball, which is named, or is a file or module that opnorm does not evaluate; or x or the labels do not fit.

    Example:
        >>> certificate = opnorm.certify(model, x_test, y_test)
        >>> certificate.certified_accuracy(0.5)

    Reference:
        Y. Tsuzuku, I. Sato, M. Sugiyama, "Lipschitz-Margin Training: Scalable Certification of Perturbation Invariance
        for Deep Neural Networks", NeurIPS 2018.
    """
    seconds = None if time_limit is None else to_not_negative("time_limit", time_limit)
    deadline = Deadline.after(seconds)
    with subject_of(model, x) as subject:
        return _certified(subject, labels, seconds, deadline, progress)


def _certified(
    subject: Subject, labels: Any, seconds: float | None, deadline: Deadline, progress: Progress | None
) -> Certificate:
    whole, points = split(subject.graph), subject.points
    graph = without_softmax(whole)
    bounds = remembered()
    joined = fold(graph)
    bound = bound_joined(joined, bounds)
    network = Network(without_softmax(split(subject.graph, gates=False)), bounds, _INPUTS, _OPEN)
    if bound.upper is None and (why := _unfollowed(network, points, seconds)):
        must = "must have a finite Lipschitz constant, for all inputs or on balls"
        raise ValueError(f"Argument `model` {must}. Received: {bound!r}; on a ball: {why}")
    logits, notes = logits_of(subject, graph, network, graph is not whole)
    predictions = _predictions(logits.values)
    classes = logits.values.shape[1]
    right = _right(predictions, labels, classes)
    upper = inf if bound.upper is None else bound.upper
    chosen = set(predictions.tolist())
    constants = pair_constants(joined, upper, classes, chosen if upper < inf else set(), bounds, deadline, progress)
    margins = _margins(logits, predictions)
    radius = np.where(right, _radii(margins, predictions, constants), 0.0)
    if seconds != 0:
        ending = Deadline.after(min(_EACH * len(points), inf if seconds is None else seconds))
        balls = np.where(right[:, None], margins, 0.0)
        radius = radii_on_balls(network, points, balls, predictions, constants, radius, ending, progress)
    return Certificate(radius, predictions, constants, upper, labels is not None, notes)


def _unfollowed(network: Network, points: Array, seconds: float | None) -> str:
    """Return why the Jacobian of the logits is not known on balls; nothing where it is."""
    if seconds == 0:
        return "with `time_limit=0` there are none"
    met = network.meet([points[:1]], 0.0)
    return "" if outputs(network, met) is not None else network.ended(met)


def _predictions(logits: Array) -> NDArray[np.int64]:
    if logits.ndim != 2 or logits.shape[1] < 2:
        must = "must end in two logits or more for each example"
        raise ValueError(f"Argument `model` {must}. Received: outputs of shape {logits.shape[1:]}")
    return np.asarray(np.argmax(logits, axis=1), dtype=np.int64)


def _right(predictions: NDArray[np.int64], labels: Any, classes: int) -> NDArray[np.bool_]:
    if labels is None:
        return np.ones(len(predictions), dtype=bool)
    given = numbers(labels, "labels")
    fits = given.shape == predictions.shape and given.dtype.kind in "iu" and 0 <= given.min() <= given.max() < classes
    if not fits:
        must = f"must hold one integer from 0 to {classes - 1} for each of {len(predictions)} examples"
        raise ValueError(f"Argument `labels` {must}. Received: shape={given.shape}, dtype={given.dtype}")
    return np.asarray(predictions == given)


def _margins(logits: Value, predictions: NDArray[np.int64]) -> Array:
    """Return how far the logit of the prediction is above each, at least: after the errors of both."""
    values, errors = logits
    rows = np.arange(len(values))
    margins = values[rows, predictions][:, None] - values
    lost = (
        errors[rows, predictions][:, None] + errors + 4 * UNIT * (np.abs(values) + np.abs(values).max(axis=1)[:, None])
    )
    return np.asarray(np.maximum(margins - lost, 0.0))


def _radii(margins: Array, predictions: NDArray[np.int64], constants: Array) -> Array:
    """Return the least of margin over constant, rounded down."""
    with np.errstate(divide="ignore", invalid="ignore"):
        radii = np.where(margins > 0, margins / constants[predictions], 0.0)
    radii[np.arange(len(radii)), predictions] = np.inf
    return np.asarray(radii.min(axis=1) * (1 - 8 * UNIT))
