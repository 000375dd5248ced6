"""Which leaves of a pytree without layer types are kernels, by their names and axes."""

from collections.abc import Mapping

from opnorm.jax.kinds import KernelGeometry, Shape

_NO_KERNELS = {"b", "bias", "biases", "scale", "scales", "offset", "gamma", "beta", "mean", "var"}
_LARGEST_WINDOW = 16  # taps along an axis: what is longer is hardly that of a convolution
_SIDES: Mapping[str, int | Shape] = {"query": (-2, -1), "key": (-2, -1), "value": (-2, -1), "out": -1}
CONVOLUTION = "taken for an ungrouped convolution (*spatial, in, out)"
_FACTORS = {"lora_a", "lora_b"}
_GROUPED = ("depthwise", "separable", "grouped")
_TOLD = "say which by `kernels={{pattern: opnorm.jax.KernelGeometry(...)}}`"


def guessed(name: str, shape: Shape) -> KernelGeometry | str | None:
    """Return what a leaf of that name and shape is taken for, the reason why it is not told, or None for no kernel.

    Two axes are (in, out); four or five, or three under a name with "conv" in it, (*spatial, in, out).
    """
    layer, own = _layer_and_own(name.lower())
    if len(shape) < 2 or own in _NO_KERNELS:
        return None
    if own in _FACTORS:
        return "one factor of a product"
    if len(shape) == 2:
        return KernelGeometry(rank=2)
    if layer in _SIDES and own == "kernel":
        return KernelGeometry(_SIDES[layer], rank=3)
    return _window(layer, own, shape)


def _layer_and_own(name: str) -> tuple[str, str]:
    """Return the last two parts of a name; haiku writes the modules that a layer is in before it, with slashes."""
    outer, _, own = name.rpartition(".")
    return outer.rpartition(".")[-1].rpartition("/")[-1], own


def _window(layer: str, own: str, shape: Shape) -> KernelGeometry | str:
    told = _TOLD.format()
    both = f"{layer}.{own}"
    convolves = "conv" in both
    if convolves and "transpose" in both:
        return f"a transposed convolution has its outputs on either axis: {told}"
    if any(one in both for one in _GROUPED):
        return f"names and axes do not tell how many groups there are: {told}"
    if len(shape) > 5 or max(shape[:-2]) > _LARGEST_WINDOW or (len(shape) == 3 and not convolves):
        return f"{len(shape)} axes do not tell which are outputs: {told}"
    spatial = tuple(range(len(shape) - 2))
    return KernelGeometry(-1, rank=len(shape), spatial=spatial, note=CONVOLUTION)
