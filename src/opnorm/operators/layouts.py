"""In which order a kernel of a convolution has its axes: "HWIO" as in Keras, "OIHW" as in PyTorch."""

from typing import Any

from opnorm.checks import require


def kernel_axes(layout: Any, rank: int) -> tuple[int, ...]:
    """Return the axes of a kernel in Keras's order: the spatial ones, then those of channels in and channels out.

    Args:
        layout: One letter an axis: I for the channels in, O for the channels out, any other letters or digits, side by
            side, for the spatial axes, which stand for as many as the kernel has: "OIHW" is read as "OIW" and "OIDHW".
        rank: The number of the kernel's axes, at least 3.

    Raises:
        ValueError: When `layout` is nothing like that.
    """
    text = layout.upper() if isinstance(layout, str) else ""
    spatial = [place for place, letter in enumerate(text) if letter not in "IO"]
    together = bool(spatial) and spatial[-1] - spatial[0] + 1 == len(spatial)
    sound = together and text.isalnum() and len(set(text)) == len(text) == len(spatial) + 2
    require(sound, "layout", 'must have one I, one O and spatial axes side by side, such as "HWIO" or "OIHW"', layout)
    before, after = text[: spatial[0]], text[spatial[-1] + 1 :]
    places = {letter: place for place, letter in enumerate(before)}
    places |= {letter: place - len(after) + rank for place, letter in enumerate(after)}
    return (*range(len(before), rank - len(after)), places["I"], places["O"])


def require_layout(kernel: Any, layout: Any, name: str) -> None:
    """Raise for a PyTorch tensor of three axes or more that comes without a layout: PyTorch has the channels first."""
    shape = tuple(getattr(kernel, "shape", ()))
    if layout is None and len(shape) > 2 and _is_torch_tensor(kernel):
        raise ValueError(
            f"Argument `layout` must be given for a PyTorch tensor of {len(shape)} axes, whose order it does not tell: "
            'layout="OIHW" for the weight of a `torch.nn` convolution, layout="HWIO" for a kernel of Keras. '
            f"Received: layout=None with `{name}` of shape={shape}"
        )


def _is_torch_tensor(value: Any) -> bool:
    bases = ((base.__module__.partition(".")[0], base.__name__) for base in type(value).__mro__)
    return ("torch", "Tensor") in bases
