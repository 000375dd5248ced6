"""Rules for nodes with weights: kernels, scales, embeddings, and those for which no finite constant exists."""

import numpy as np

from opnorm.bounds.brackets import Bounds, bracket
from opnorm.bounds.certificates import up
from opnorm.bounds.deadlines import Deadline
from opnorm.checkpoints.records import Node, Weight
from opnorm.checks import Array, real_array
from opnorm.networks.activations import activation, is_activation, parse
from opnorm.networks.effects import (
    RULES,
    BoundWeight,
    Effect,
    Unbounded,
    called_with,
    find,
    fits,
    input_shapes,
    kernels,
    rule,
)
from opnorm.networks.entry_rules import picked
from opnorm.networks.sizes import at_size

MATRICES = ("Dense", "Gemm", "MatMul")
CONVOLUTIONS = ("Conv1D", "Conv2D", "Conv3D", "Conv")
DEPTHWISE = ("DepthwiseConv1D", "DepthwiseConv2D")
TRANSPOSED = ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose", "ConvTranspose")
KERNELS = (*MATRICES, *CONVOLUTIONS, *DEPTHWISE, *TRANSPOSED, "EinsumDense")
_CHANGED = ("lora", "scale", "zero_point", "zero")  # roles of weights that change what a kernel means
_TIGHT = 1e-5  # of a bracket at a size: the bound of all sizes is above its lower end
_PAIRS = 2048  # rows of an embedding whose distances are all computed: 4 million
_WORK = 2**29  # numbers in all these differences: a second


def bound_weight(weight: Weight, time_limit: float | None = None) -> Bounds:
    """Return the proved bracket of the norm of what `weight` does: after `time_limit` seconds a wider one."""
    if weight.geometry.operator is None:
        raise Unbounded(weight.geometry.reason or f"what {weight.name} does is not known")
    operator = weight.geometry.operator(real_array(weight.read(), weight.name))
    return Bounds(*bracket(operator, None, Deadline.after(time_limit)))


def kernel_of(node: Node) -> Weight:
    """Return the one kernel of a node.

    Raises:
        Unbounded: When there is none, several, or something else in the node changes it.
    """
    found = [weight for _, weight in kernels(node)]
    if not found and len(node.inputs) == 1:
        raise Unbounded("its kernel is not there, or no linear map")
    if len(found) != 1 or len(node.inputs) != 1:
        raise Unbounded(f"{len(node.inputs)} inputs and {len(found)} kernels: not one linear map")
    _require_plain(node)
    if found[0].geometry.assumed:
        raise Unbounded("what its kernel does is only guessed")
    return found[0]


def _require_plain(node: Node) -> None:
    changed = [role for role in node.weights if any(word in role for word in _CHANGED)]
    if changed:
        raise Unbounded(f"its kernel is quantized or adapted ({', '.join(changed)})")


@rule(*KERNELS)
def _(node: Node, bounds: BoundWeight) -> Effect:
    weight = kernel_of(node)
    sized = at_size(node, weight)
    upper = bounds(weight).upper if sized is None else _at_size(sized, weight, bounds)
    if not np.isfinite(upper):
        raise Unbounded("its kernel is too large, or of a kind that opnorm cannot bound")
    rounding = float(node.options.get("rounding", 0.0))  # of a product of kernels
    text = f"largest singular value: {(sized or weight).geometry.text}"
    slides = node.kind not in (*MATRICES, "EinsumDense")
    return Effect(up(upper + rounding), text, sized=sized is not None if slides else None)


def _at_size(sized: Weight, weight: Weight, bounds: BoundWeight) -> float:
    """Return the norm on images of one size; the bound of all sizes is asked for where it may be smaller."""
    lower, upper = bounds(sized)
    return upper if upper <= lower * (1 + _TIGHT) else min(upper, bounds(weight).upper)


def channel_factors(node: Node) -> Array:
    """Return what a node multiplies each channel with, to 8 roundings: BatchNormalization, Normalization, Rescaling.

    Raises:
        Unbounded: When the node's weights are not there, or an input may be repeated to fit them.
    """
    if node.kind == "Rescaling":
        return _rescaling(node)
    if node.kind == "Normalization":
        return _normalization(node)
    gamma = find(node.weights, "gamma", "scale")
    variance = find(node.weights, "moving_variance", "var", "input_var", "variance", "running_var")
    if variance is None or node.options.get("training_mode") or not node.options.get("is_test", 1):
        raise Unbounded("its moving variance is not there, or not used: it is in training mode")
    epsilon = float(node.options.get("epsilon", 1e-5))  # ONNX's default; Keras always writes it
    return np.asarray((1.0 if gamma is None else gamma) / np.sqrt(variance + epsilon))


def _rescaling(node: Node) -> Array:
    scale, offset = real_array(node.options["scale"], "scale"), real_array(node.options.get("offset", 0.0), "offset")
    shapes = input_shapes(node)
    fitting = shapes is not None and fits(scale.shape, shapes[0]) and fits(offset.shape, shapes[0])
    if max(scale.size, offset.size) > 1 and not fitting:
        raise Unbounded("its input may be repeated to fit its scale and offset")
    return scale.ravel()


def _normalization(node: Node) -> Array:
    variance = find(node.weights, "variance")
    if variance is None and node.options.get("variance") is not None:
        variance = real_array(node.options["variance"], "variance")
    if variance is None:
        raise Unbounded("its variance is not there: the layer was not adapted")
    deviation = np.maximum(np.sqrt(variance), 1e-7)  # Keras's epsilon
    return np.asarray(deviation if node.options.get("invert") else 1 / deviation).ravel()


@rule("BatchNormalization", "Rescaling", "Normalization")
def _(node: Node, bounds: BoundWeight) -> Effect:
    largest = float(np.max(np.abs(channel_factors(node))))
    return Effect(up(largest), "the largest factor of a channel")


@rule("keras.applications.LayerScale")
def _(node: Node, bounds: BoundWeight) -> Effect:
    factors = find(node.weights, *node.weights)
    if factors is None or len(node.weights) != 1:
        raise Unbounded("its factors are not there")
    return Effect(float(np.max(np.abs(factors))), "the largest factor of a channel")


@rule("PReLU", "PRelu")
def _(node: Node, bounds: BoundWeight) -> Effect:
    slopes = find(node.weights, *node.weights)
    if slopes is None or len(node.weights) != 1 or "0" in node.weights:
        raise Unbounded("its slopes are not there")
    if node.kind == "PRelu" and not node.options.get("channels"):
        shapes = input_shapes(node)
        if slopes.size > 1 if shapes is None else not fits(slopes.shape, shapes[0]):
            raise Unbounded("its slopes may repeat its input, or the shape of that is not known")
    low, high = min(1.0, float(slopes.min())), max(1.0, float(slopes.max()))
    return Effect(max(abs(low), abs(high)), f"slopes in [{low:g}, {high:g}]", (low, high))


@rule("Activation")
def _(node: Node, bounds: BoundWeight) -> Effect:
    name, options = parse(node.options.get("activation"))
    if name == "log_softmax":
        return RULES["LogSoftmax"](node._replace(options={**node.options, "axis": -1}), bounds)
    return activation(name, options)


@rule("Unread")
def _(node: Node, bounds: BoundWeight) -> Effect:
    raise Unbounded(str(node.options["reason"]))


def of_activation(node: Node, bounds: BoundWeight) -> Effect:
    """Return the effect of a node that is an activation by its kind."""
    if not is_activation(node.kind):
        raise Unbounded(f"opnorm has no rule for {node.kind}")
    if set(called_with(node)) - {"training", "mask"}:
        raise Unbounded("it was called with arguments that opnorm does not read")
    return activation(node.kind, node.options)


@rule("Embedding", "Gather")
def _(node: Node, bounds: BoundWeight) -> Effect:
    if node.kind == "Gather" and "embeddings" not in node.weights:
        return picked(node)
    rows = find(node.weights, "embeddings")
    if rows is None or rows.ndim != 2 or len(node.inputs) != 1 or node.options.get("axis"):
        raise Unbounded("its table is not there")
    if node.options.get("mask_zero"):
        raise Unbounded("makes a mask, and what reads a mask jumps")
    _require_plain(node)
    text = "largest distance of two rows; the input is measured by the root of the number of changed tokens"
    return Effect(row_distance(rows), text, discrete=True)


def row_distance(rows: Array) -> float:
    """Return an upper bound of the distance of any two rows: of all pairs, or twice the radius around their mean."""
    if len(rows) > _PAIRS or len(rows) * rows.size > _WORK:
        return up(2 * float(np.max(np.linalg.norm(rows - rows.mean(axis=0), axis=1))))
    return up(max(float(np.max(np.linalg.norm(rows - row, axis=1))) for row in rows))


_ONLY_LOCALLY: dict[str, tuple[str, ...]] = {
    "dot-product attention is not Lipschitz on the whole space": (
        "MultiHeadAttention", "Attention", "AdditiveAttention", "GroupQueryAttention", "GroupedQueryAttention",
    ),
    "divides by a deviation of its own input: only max|gamma| / sqrt(epsilon) bounds it, unbounded in practice": (
        "LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization",
        "LayerNorm", "SimplifiedLayerNormalization", "SkipLayerNormalization", "UnitNormalization", "LpNormalization",
    ),
    "its bound holds for one step in time, not for a sequence": (
        "LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D",
        "LSTMCell", "GRUCell", "SimpleRNNCell",
    ),
    "a product of two inputs is not Lipschitz on the whole space": ("Dot", "Matmul", "glu"),
    "its kernel is divided by an estimate of its norm in each call: bound what `opnorm.bake(model)` returns": (
        "opnorm>SpectralNormalization",
    ),
    "opnorm does not run code from files": ("Lambda",),
}  # fmt: skip


def _register(reason: str, kinds: tuple[str, ...]) -> None:
    @rule(*kinds)
    def _(node: Node, bounds: BoundWeight) -> Effect:
        raise Unbounded(reason)


for _reason, _kinds in _ONLY_LOCALLY.items():
    _register(_reason, _kinds)
