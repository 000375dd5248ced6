"""Random networks as ONNX models: layers, branches and activations in any order, small enough to differentiate."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
Shape = tuple[int, ...]  # without the batch: (channels, height, width), or (features,)
PLAIN = ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Selu", "HardSwish", "Mish", "Abs", "Neg", "Erf")
ACTIVATIONS: dict[str, Callable[[np.random.Generator], dict[str, float | str]]] = {
    **dict.fromkeys(PLAIN, lambda rng: {}),
    "LeakyRelu": lambda rng: {"alpha": float(rng.uniform(-0.5, 1.5))},
    "Elu": lambda rng: {"alpha": float(rng.uniform(0.2, 2))},
    "Celu": lambda rng: {"alpha": float(rng.uniform(0.2, 2))},
    "Selu": lambda rng: {"alpha": float(rng.uniform(0.5, 2)), "gamma": float(rng.uniform(0.5, 2))},
    "HardSigmoid": lambda rng: {"alpha": float(rng.uniform(0.1, 1)), "beta": 0.5},
    "Gelu": lambda rng: {"approximate": str(rng.choice(["none", "tanh"]))},
}


class Drawing:
    """A network while it is drawn: values have names, and shapes without the batch."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.shapes: dict[str, Shape] = {}
        self.fixed: set[str] = set()  # constants that are no weights

    def integer(self, low: int, high: int) -> int:
        """Return a number from `low` to `high`, both included."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, share: float) -> bool:
        """Return true in that share of all cases."""
        return bool(self.rng.random() < share)

    def constant(self, values: np.ndarray, dtype: type = np.float32) -> str:
        """Return the name of a stored tensor that is no weight."""
        name = self.stored(values, dtype)
        self.fixed.add(name)
        return name

    def stored(self, values: np.ndarray, dtype: type = np.float32) -> str:
        """Return the name of a stored tensor."""
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(values, dtype)
        return name

    def weight(self, *shape: int) -> str:
        """Return the name of a stored Gaussian tensor of that shape: a new one, or one that others read too."""
        alike = [name for name, values in self.constants.items() if values.shape == shape and name not in self.fixed]
        if alike and self.chance(0.2):
            return alike[0]
        fan = np.sqrt(np.prod(shape[1:]) if len(shape) > 1 else 1)
        return self.stored(self.rng.standard_normal(shape) * self.rng.uniform(0.5, 2) / fan)

    def call(self, kind: str, inputs: list[str], shape: Shape, **attributes: Any) -> str:
        """Return the name of the result of an operator."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self.shapes[name] = shape
        return name


def drawn(seed: int) -> tuple[Drawing, list[str], list[str]]:
    """Return a network, and the names of its inputs and outputs."""
    made = Drawing(seed)
    inputs = [f"x{i}" for i in range(1 + made.chance(0.15))]
    for name in inputs:
        made.shapes[name] = (
            (made.integer(1, 3), made.integer(4, 8), made.integer(4, 8)) if made.chance(0.6) else (made.integer(2, 10),)
        )
    ends = [layers(made, name, made.integer(1, 4)) for name in inputs]
    ends = ends if len(ends) == 1 else [joined(made, ends)]
    ends = [layers(made, ends[0], made.integer(1, 3))]
    if made.chance(0.1):
        ends.append(layers(made, ends[0], 1))
    return made, inputs, list(dict.fromkeys(ends))


def layers(made: Drawing, value: str, count: int) -> str:
    for _ in range(count):
        choices = IMAGES if len(made.shapes[value]) == 3 else VECTORS
        value = choices[made.integer(0, len(choices) - 1)](made, value)
    return value


def joined(made: Drawing, values: list[str]) -> str:
    flat = [flattened(made, value) for value in values]
    return made.call("Concat", flat, (sum(made.shapes[value][0] for value in flat),), axis=1)


def flattened(made: Drawing, value: str) -> str:
    shape = made.shapes[value]
    return value if len(shape) == 1 else made.call("Flatten", [value], (int(np.prod(shape)),), axis=1)


def dense(made: Drawing, value: str) -> str:
    (inputs,), outputs = made.shapes[value], made.integer(1, 12)
    if made.chance(0.5):
        return made.call("MatMul", [value, made.weight(inputs, outputs)], (outputs,))
    turned = made.chance(0.5)
    kernel = made.weight(*((outputs, inputs) if turned else (inputs, outputs)))
    alpha = float(made.rng.uniform(0.5, 2))
    return made.call("Gemm", [value, kernel, made.weight(outputs)], (outputs,), transB=int(turned), alpha=alpha)


def convolution(made: Drawing, value: str) -> str:
    channels, *sizes = made.shapes[value]
    groups = int(made.rng.choice([g for g in (1, 1, 1, 2, 3, channels) if channels % g == 0]))
    outputs = groups * made.integer(1, 3)
    window, after = automatic(made, sizes) if made.chance(0.25) else padded(made, sizes)
    kernel = made.weight(outputs, channels // groups, *window["kernel_shape"])
    given = [value, kernel, made.weight(outputs)] if made.chance(0.7) else [value, kernel]
    return made.call("Conv", given, (outputs, *after), group=groups, **window)


def padded(made: Drawing, sizes: list[int]) -> tuple[dict[str, Any], list[int]]:
    window = windows(made, sizes)
    return window, sizes_after(sizes, **window)


def automatic(made: Drawing, sizes: list[int]) -> tuple[dict[str, Any], list[int]]:
    """Return a window whose pads the runtime computes."""
    window: dict[str, Any] = windows(made, sizes, dilated=False)
    del window["pads"]
    how = str(made.rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    kernel = window["kernel_shape"] if how == "VALID" else [1] * len(sizes)
    after = [-(-(n - k + 1) // s) for n, k, s in zip(sizes, kernel, window["strides"], strict=True)]
    return {**window, "auto_pad": how}, after


def windows(made: Drawing, sizes: list[int], dilated: bool = True) -> dict[str, list[int]]:
    """Return kernel, strides, dilations and pads of a window that fits."""
    kernel = [made.integer(1, min(4, n)) for n in sizes]
    rates = [made.integer(1, 2) if dilated and (k - 1) * 2 < n else 1 for k, n in zip(kernel, sizes, strict=True)]
    strides = [made.integer(1, 3) if made.chance(0.4) else 1 for _ in sizes]
    pads = [made.integer(0, k - 1) for k in kernel] + [made.integer(0, k - 1) for k in kernel]
    found = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    return {**found, "dilations": rates} if dilated else found


def sizes_after(
    sizes: list[int], kernel_shape: list[int], strides: list[int], pads: list[int], dilations: list[int] | None = None
) -> list[int]:
    rates = dilations or [1] * len(sizes)
    return [
        (n + pads[i] + pads[len(sizes) + i] - (kernel_shape[i] - 1) * rates[i] - 1) // strides[i] + 1
        for i, n in enumerate(sizes)
    ]


def transposed(made: Drawing, value: str) -> str:
    channels, *sizes = made.shapes[value]
    if max(sizes) > 8:
        return activation(made, value)
    outputs, kernel, strides = (
        made.integer(1, 3),
        [made.integer(1, 3) for _ in sizes],
        [made.integer(1, 2) for _ in sizes],
    )
    after = [(n - 1) * s + k for n, s, k in zip(sizes, strides, kernel, strict=True)]
    return made.call(
        "ConvTranspose", [value, made.weight(channels, outputs, *kernel)], (outputs, *after), strides=strides
    )


def pooled(made: Drawing, value: str) -> str:
    channels, *sizes = made.shapes[value]
    window = windows(made, sizes, dilated=False)
    shape = (channels, *sizes_after(sizes, **window))
    if made.chance(0.5):
        return made.call("MaxPool", [value], shape, **window)
    return made.call("AveragePool", [value], shape, count_include_pad=made.integer(0, 1), **window)


def normalized(made: Drawing, value: str) -> str:
    shape = made.shapes[value]
    variance = made.constant(made.rng.uniform(0.3, 3, shape[0]))
    vectors = [made.weight(shape[0]), made.weight(shape[0]), made.weight(shape[0]), variance]
    return made.call("BatchNormalization", [value, *vectors], shape)


def activation(made: Drawing, value: str) -> str:
    shape = made.shapes[value]
    kind = str(made.rng.choice([*ACTIVATIONS, "Clip", "PRelu", "gate"]))
    if kind == "Clip":
        return made.call("Clip", [value, made.constant(np.float32(-0.5)), made.constant(np.float32(1.5))], shape)
    if kind == "PRelu":
        return made.call(
            "PRelu", [value, made.constant(made.rng.uniform(-1, 2, (shape[0], *[1] * (len(shape) - 1))))], shape
        )
    if kind == "gate":
        return gate(made, value)
    return made.call(kind, [value], shape, **ACTIVATIONS[kind](made.rng))


def gate(made: Drawing, value: str) -> str:
    """Return SiLU, or GELU, written out."""
    shape = made.shapes[value]
    if made.chance(0.5):
        return made.call("Mul", [value, made.call("Sigmoid", [value], shape)], shape)
    scaled = made.call("Div", [value, made.constant(np.float32(np.sqrt(2)))], shape)
    shifted = made.call("Add", [made.call("Erf", [scaled], shape), made.constant(np.float32(1))], shape)
    return made.call("Mul", [made.call("Mul", [value, shifted], shape), made.constant(np.float32(0.5))], shape)


def residual(made: Drawing, value: str) -> str:
    """Return the sum, difference or maximum of a value and a function of it, or both side by side."""
    inner, shape = activation(made, value), made.shapes[value]
    inner = mixed(made, inner) if made.chance(0.8) else inner
    kind = str(made.rng.choice(["Add", "Add", "Sub", "Max", "Min", "Concat"]))
    if kind != "Concat":
        return made.call(kind, [value, inner] if made.chance(0.5) else [inner, value], shape)
    return made.call("Concat", [value, inner], (2 * shape[0], *shape[1:]), axis=1)


def mixed(made: Drawing, value: str) -> str:
    """Return a linear map of a value that keeps its shape."""
    shape = made.shapes[value]
    if len(shape) == 1:
        return made.call("MatMul", [value, made.weight(shape[0], shape[0])], shape)
    k = int(made.rng.choice([1, 3]))
    return made.call("Conv", [value, made.weight(shape[0], shape[0], k, k)], shape, pads=[k // 2] * 4)


def bordered(made: Drawing, value: str) -> str:
    channels, *sizes = made.shapes[value]
    before, after = [made.integer(0, 1) for _ in sizes], [made.integer(0, 2) for _ in sizes]
    pads = made.constant(np.array([0, 0, *before, 0, 0, *after]), np.int64)
    shape = (channels, *[n + a + b for n, a, b in zip(sizes, before, after, strict=True)])
    modes = ["constant", "edge", *(["reflect"] if min(sizes) > 2 else [])]  # no row is mirrored further than it is long
    return made.call("Pad", [value, pads], shape, mode=str(made.rng.choice(modes)))


def scaled(made: Drawing, value: str) -> str:
    shape = made.shapes[value]
    factors = made.weight(shape[0], *[1] * (len(shape) - 1))
    return made.call(str(made.rng.choice(["Mul", "Add", "Sub"])), [value, factors], shape)


def averaged(made: Drawing, value: str) -> str:
    channels = made.shapes[value][0]
    if made.chance(0.5):
        return made.call("GlobalAveragePool", [value], (channels, 1, 1))
    axes = made.constant(np.array([2, 3]), np.int64)
    kind = str(made.rng.choice(["ReduceMean", "ReduceSum", "ReduceMax"]))
    return made.call(kind, [value, axes], (channels,), keepdims=0)


def cut(made: Drawing, value: str) -> str:
    shape = made.shapes[value]
    count = made.integer(1, shape[0])
    ends = [made.constant(np.array([n]), np.int64) for n in (0, count, 1)]
    return made.call("Slice", [value, *ends], (count, *shape[1:]))


def halves(made: Drawing, value: str) -> list[str]:
    """Return the two halves of the channels: parts of a Split, or slices whose limits may be computed of the shape."""
    shape = made.shapes[value]
    half = (shape[0] // 2, *shape[1:])
    if made.chance(0.5):
        names = [f"v{len(made.nodes)}", f"v{len(made.nodes)}b"]
        sizes = [made.constant(np.array([half[0]] * 2), np.int64)] if made.chance(0.5) else []
        count = {} if sizes else {"num_outputs": 2}
        made.nodes.append(helper.make_node("Split", [value, *sizes], names, name=names[0], axis=1, **count))
        made.shapes.update(dict.fromkeys(names, half))
        return names
    zero, one, all_ = (made.constant(np.array([n]), np.int64) for n in (0, 1, 2**62))
    if made.chance(0.3):  # every other channel
        two = made.constant(np.array([2]), np.int64)
        return [made.call("Slice", [value, start, all_, one, two], half) for start in (zero, one)]
    middle = made.constant(np.array([half[0]]), np.int64)
    if made.chance(0.5):
        channels = made.call("Gather", [made.call("Shape", [value], ()), one], ())
        middle = made.call("Div", [channels, made.constant(np.array([2]), np.int64)], ())
    return [made.call("Slice", [value, *ends, one], half) for ends in ((zero, middle), (middle, all_))]


def paired(made: Drawing, value: str) -> str:
    """Return maxima and minima of pairs of channels, or what two halves make of each other."""
    if made.shapes[value][0] % 2:
        return opposite(made, value)
    if made.chance(0.3):
        return sorted_groups(made, value)
    a, b = halves(made, value)
    half = made.shapes[a]
    if made.chance(0.15):
        return made.call("Mul", [a, made.call("Sigmoid", [b], half)], half)
    inner = [a, b] if made.chance(0.8) else [mixed(made, a), b]
    both = [made.call(kind, inner if made.chance(0.5) else inner[::-1], half) for kind in ("Max", "Min")]
    both = both[::-1] if made.chance(0.5) else both
    if made.chance(0.2):
        both[made.integer(0, 1)] = made.call("Abs", [a], half)
    if len(half) == 1 and made.chance(0.4):  # one after the other
        axes = made.constant(np.array([2]), np.int64)
        both = [made.call("Unsqueeze", [one, axes], (*half, 1)) for one in both]
        return made.call("Flatten", [made.call("Concat", both, (*half, 2), axis=2)], (2 * half[0],), axis=1)
    return made.call("Concat", both, made.shapes[value], axis=1)


def opposite(made: Drawing, value: str) -> str:
    """Return the positive parts of a value and its negative."""
    shape = made.shapes[value]
    both = [made.call("Relu", [one], shape) for one in (value, made.call("Neg", [value], shape))]
    return made.call("Concat", both[::-1] if made.chance(0.5) else both, (2 * shape[0], *shape[1:]), axis=1)


def sorted_groups(made: Drawing, value: str) -> str:
    """Return the channels sorted in groups: by TopK, or the larger of two beside the smaller one."""
    channels, *rest = made.shapes[value]
    size = int(made.rng.choice([n for n in (2, 2, 4) if channels % n == 0]))
    form = (channels // size, size, *rest)
    target = made.constant(np.array([0, *form]), np.int64)
    groups = made.call("Reshape", [value, target], form)
    back = made.constant(np.array([0, channels, *rest]), np.int64)
    if size > 2 or made.chance(0.3):
        count = made.constant(np.array([size]), np.int64)
        names = [f"v{len(made.nodes)}", f"v{len(made.nodes)}b"]
        made.nodes.append(helper.make_node("TopK", [groups, count], names, name=names[0], axis=2))
        made.shapes[names[0]] = form
        return made.call("Reshape", [names[0], back], (channels, *rest))
    axes = made.constant(np.array([2]), np.int64)
    both = [made.call(kind, [groups, axes], (form[0], 1, *rest), keepdims=1) for kind in ("ReduceMin", "ReduceMax")]
    return made.call("Reshape", [made.call("Concat", both, form, axis=2), back], (channels, *rest))


def upsampled(made: Drawing, value: str) -> str:
    channels, *sizes = made.shapes[value]
    if max(sizes) > 6:
        return activation(made, value)
    scales = made.constant(np.array([1, 1, 2, 2]))
    settings = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    return made.call("Resize", [value, "", scales], (channels, *[2 * n for n in sizes]), **settings)


def softmax(made: Drawing, value: str) -> str:
    return made.call("Softmax", [value], made.shapes[value], axis=-1)


VECTORS = (dense, dense, dense, activation, activation, residual, normalized, scaled, cut, softmax, paired)
IMAGES = (
    convolution, convolution, convolution, activation, activation, residual, residual, normalized, pooled, transposed,
    bordered, scaled, averaged, cut, upsampled, flattened, paired,
)  # fmt: skip


def model(made: Drawing, inputs: list[str], outputs: list[str], dtype: int, batch: str | int = "N") -> Any:
    """Return the ONNX model in one floating-point type; its numbers are those of float32."""
    real = helper.tensor_dtype_to_np_dtype(dtype)
    ends = [
        [helper.make_tensor_value_info(name, dtype, [batch, *made.shapes[name]]) for name in names]
        for names in (inputs, outputs)
    ]
    sized = {node.input[2] for node in made.nodes if node.op_type == "Resize"}  # scales are always float32
    tensors = [
        numpy_helper.from_array(values if values.dtype == np.int64 or name in sized else values.astype(real), name)
        for name, values in made.constants.items()
    ]
    graph = helper.make_graph(made.nodes, "drawn", *ends, tensors)
    found = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(found)
    return found


FLOAT, DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE
