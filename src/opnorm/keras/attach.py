"""A constraint attached to every kernel of a model, each with the geometry of its own layer."""

import gc
import warnings
from typing import Any

import keras

from opnorm.checks import require_constraint
from opnorm.keras.attachments import Attachment, Attachments, describe
from opnorm.keras.base import OperatorConstraint, require_layer
from opnorm.keras.optimizers import optimizers_of
from opnorm.keras.sites import Kernel, PassedOver, find_kernels, walk
from opnorm.selection import Selection, choose

# Layers that make several kernels with the one constraint of their configuration.
_FORGETFUL = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)


def constrain(
    model: keras.Layer,
    constraint: OperatorConstraint,
    *,
    include: Selection | None = None,
    exclude: Selection | None = None,
) -> Attachments:
    """Attach `constraint` to every kernel of `model`, so that its next training constrains each layer's own operator.

    The kernels are those of Dense, Embedding, EinsumDense, convolutions (transposed, depthwise, grouped, separable),
    recurrent cells (ConvLSTM too), and the same inside nested models, wrappers and attention layers. `constraint` is a
    template: a copy with the layer's `axis`, `groups` and `strides` takes effect, and replaces what constrained the
    kernel before.
    With `operator="convolution"`, kernels that do not slide get `"matrix"`. Frozen kernels get it too; it acts once
    they are trainable. No kernel changes before the next update; `opnorm.project(model)` applies the constraints now.

    Call it before `fit`, after `compile` or before. The attached constraints are saved, loaded and cloned as far as
    Keras's configurations say: with Functional and Sequential models, nested ones, TimeDistributed, Bidirectional,
    recurrent layers. Call it again after loading a subclassed model or a layer of your own that makes layers in its
    code, and for attention layers, which have one constraint where their four projections need two: the table says so.

    Args:
        model: A `keras.Model` or `keras.Layer`. It need not be built, unless some kernel is only known then (attention,
            depthwise kernels).
        constraint: One of opnorm's, say `opnorm.SpectralNorm()`.
        include: The kernels to constrain, by default all: a glob pattern, or several, of the path in the table, in
            `kernel.path`, or of a layer's on the way there (`"encoder"`, `"*/query"`); or a function of the layer and
            of the attribute's name that returns whether to.
        exclude: The kernels to leave as they are, in the same way; it wins.

    Returns:
        The table of all kernels, attached or not, and of other weights that may be kernels, with the reason.

    Raises:
        ValueError: When a pattern matches no kernel, a layer must be built first, a kernel does not fit its geometry,
            or the model was trained since it was compiled: its training step would not see the constraint.

    Example:
        >>> print(opnorm.constrain(model, opnorm.SpectralNorm(), exclude="logits"))
    """
    require_layer(model)
    require_constraint(isinstance(constraint, OperatorConstraint), "constraint", "opnorm", constraint)
    _require_untrained(model)
    found = find_kernels(model)
    kernels = choose([one for one in found if isinstance(one, Kernel)], include, exclude)
    if not kernels:
        warnings.warn(f"No kernel was constrained in {model!r}.", stacklevel=2)
    constraints = dict(zip(map(id, kernels), _fitted(constraint, kernels), strict=True))
    rows = [_row(one, constraints.get(id(one))) for one in found]  # before anything changes: they tell what was there
    for kernel in kernels:
        _attach(kernel, constraints[id(kernel)])
    _retrace(model, [kernel.variable for kernel in kernels if kernel.variable is not None])
    return Attachments(rows)


def _require_untrained(model: keras.Layer) -> None:
    optimizer = model.optimizer if isinstance(model, keras.Model) and model.compiled else None
    if optimizer is not None and (optimizer.built or model.train_function is not None):
        raise ValueError(
            "Argument `model` must not have been trained since it was compiled, nor been loaded with its optimizer: "
            "its training step and its optimizer know nothing of a constraint that comes later. Call `model.compile` "
            f"with a new optimizer, then `opnorm.constrain`. Received: model={model!r}"
        )


def _fitted(template: OperatorConstraint, kernels: list[Kernel]) -> list[OperatorConstraint]:
    """Return a copy of `template` for each kernel, one for all kernels of the same geometry.

    Raises:
        ValueError: When a kernel does not fit its geometry.
    """
    own = type(template).get_config is not OperatorConstraint.get_config
    config = template.get_config() if own else template.arguments()  # where a function of the step is itself
    copies: dict[tuple[Any, ...], OperatorConstraint] = {}
    fitted = []
    for kernel in kernels:
        options = kernel.geometry.options(config.get("operator", "matrix"))
        key = tuple(options.values())
        if key not in copies:
            copies[key] = type(template).from_config(
                config | {name: options[name] for name in options if name in config}
            )
        if kernel.variable is not None:
            copies[key].initial_state(kernel.variable)  # raises if the kernel does not fit
        fitted.append(copies[key])
    return fitted


def _row(one: Kernel | PassedOver, constraint: OperatorConstraint | None) -> Attachment:
    if isinstance(one, PassedOver):
        return Attachment(one.path, one.shape, "", None, one.reason)
    shape = None if one.variable is None else tuple(one.variable.shape)
    if constraint is None:
        return Attachment(one.path, shape, "", None, "not selected")
    return Attachment(one.path, shape, getattr(constraint, "operator", "matrix"), constraint, _note(one, constraint))


def _note(kernel: Kernel, constraint: OperatorConstraint) -> str:
    """Return what else there is to know of a kernel that is constrained, in half sentences."""
    former, holder = _former(kernel), type(kernel.parent).__name__
    notes = {
        f"replaces {describe(former)}": former is not None and describe(former) != describe(constraint),
        "frozen: acts once trainable": not kernel.layer.trainable,
        f"not saved by {holder}: constrain again after loading": isinstance(kernel.parent, _FORGETFUL),
    }
    return "; ".join(note for note, holds in notes.items() if holds)


def _former(kernel: Kernel) -> Any:
    if kernel.variable is not None:
        return kernel.variable.constraint
    return getattr(kernel.layer, kernel.geometry.constraint, None)


def _attach(kernel: Kernel, constraint: OperatorConstraint) -> None:
    setattr(kernel.layer, kernel.geometry.constraint, constraint)  # for `build`, `get_config`: saving and cloning
    if kernel.variable is not None:
        kernel.variable.constraint = constraint


def _retrace(model: keras.Layer, kernels: list[keras.Variable]) -> None:
    """Let no training step traced earlier go on without the constraint: forget it, or warn of it."""
    nested = [layer for _, layer, _ in walk(model) if isinstance(layer, keras.Model)]
    for one in nested:
        one.train_function = None
    known = {id(optimizer) for one in nested for optimizer in _optimizers(one)}
    if _strangers(kernels, known):
        gc.collect()  # an optimizer of an earlier `compile` may wait in a cycle
        for kernel, optimizer in _strangers(kernels, known)[:1]:
            warnings.warn(
                f"'{kernel.path}' is also updated by an optimizer, {type(optimizer).__name__}, that was built before "
                "the constraint was attached: a training step traced with it goes on without. Compile the model that "
                "it trains again, or make and trace the step anew.",
                stacklevel=3,
            )


def _optimizers(model: keras.Model) -> list[Any]:
    optimizer = getattr(model, "optimizer", None)
    return [optimizer, getattr(optimizer, "inner_optimizer", None)]


def _strangers(kernels: list[keras.Variable], known: set[int]) -> list[tuple[keras.Variable, Any]]:
    return [(k, optimizer) for k in kernels for optimizer in optimizers_of(k) if id(optimizer) not in known]
