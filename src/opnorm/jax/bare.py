"""Which leaves of a pytree without layer types are kernels, by their names and axes."""

from collections.abc import Mapping

from opnorm.jax.kinds import KernelGeometry, Shape

_NO_KERNELS = {"b", "bias", "biases", "scale", "scales", "offset", "gamma", "beta", "mean", "var"}
_LARGEST_WINDOW = 16  # taps along an axis: what is longer is hardly that of a convolution
_SIDES: Mapping[str, int | Shape] = {"query": (-2, -1), "key": (-2, -1), "value": (-2, -1), "out": -1}
_CONVOLUTION = "taken for an ungrouped convolution (*spatial, in, out)"
_TOLD = "say which by `kernels={{pattern: opnorm.jax.KernelGeometry(...)}}`"


def guessed(name: str, shape: Shape) -> KernelGeometry | str | None:
    """Return what a leaf of that name and shape is taken for, the reason why it is not told, or None for no kernel.

    Two axes are (in, out); four or five, or three under a name with "conv" in it, (*spatial, in, out).
    """
    layer, own = name.lower().split(".")[-2:] if "." in name else ("", name.lower())
    if len(shape) < 2 or own in _NO_KERNELS:
        return None
    if len(shape) == 2:
        return KernelGeometry(rank=2)
    if layer in _SIDES and own == "kernel":
        return KernelGeometry(_SIDES[layer], rank=3)
    return _window(layer, own, shape)


def _window(layer: str, own: str, shape: Shape) -> KernelGeometry | str:
    told = _TOLD.format()
    convolves = "conv" in layer or "conv" in own
    if convolves and ("transpose" in layer or "transpose" in own):
        return f"a transposed convolution has its outputs on either axis: {told}"
    if len(shape) > 5 or max(shape[:-2]) > _LARGEST_WINDOW or (len(shape) == 3 and not convolves):
        return f"{len(shape)} axes do not tell which are outputs: {told}"
    spatial = tuple(range(len(shape) - 2))
    return KernelGeometry(-1, rank=len(shape), spatial=spatial, note=_CONVOLUTION)
