"""The nodes of a graph, one after the other, as the maps and functions of a `Run`; what is not understood ends it.

Images. A convolution with zeros around its image is what the torus does to images that are zero outside: what goes in,
and every function's result where its slopes may be zero, which is what it has outside. A sum, or a kernel of one pixel,
keeps that. What a wider kernel gives is not zero outside, and must not be read there: before the next kernel that reads
over the border it is cut off by a function of its own, slopes in [0, 1].
"""

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from opnorm.bounds.certificates import UNIT, gamma, up
from opnorm.checkpoints.records import Node
from opnorm.checks import Array
from opnorm.networks.effects import Effect, called_with, input_shapes, is_training
from opnorm.networks.folding import places
from opnorm.networks.kernel_products import form_of, without_groups
from opnorm.networks.linear_rules import MATRICES, channel_factors, kernel_of
from opnorm.networks.programs import Part, Shorter
from opnorm.networks.run_branches import met
from opnorm.networks.run_collector import Collector, times
from opnorm.networks.run_moves import MOVES, extreme, moved
from opnorm.networks.run_tensors import SLIDING, NotUnderstoodError, Tensor, convolved, pixels, still, unlisted
from opnorm.networks.shape_rules import pooled_shape, pooled_windows, windows_of
from opnorm.networks.sizes import image_size, is_first, placed
from opnorm.networks.together import is_negative, is_relu
from opnorm.networks.torus import Taps
from opnorm.operators.convolution import Convolution

IN_ORDER = ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "ExpandDims")  # these keep the order of an example's numbers
SCALES = ("BatchNormalization", "Rescaling", "Normalization")
_MEANS = ("GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D", "GlobalAveragePool")
_POOLS = ("AveragePooling1D", "AveragePooling2D", "AveragePooling3D", "AveragePool")
_MAXIMA = ("MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "MaxPool")
_FACTOR = gamma(16)  # of a channel factor


class Builder(Collector):
    """Understands nodes, and adds their steps."""

    def add(self, node: Node, effect: Effect) -> None:
        """Add a node.

        Raises:
            NotUnderstoodError: When it is of a kind, or has settings, that no run goes through.
        """
        inputs = [self.tensors.get(name) for name in node.inputs]
        if not inputs or None in inputs or is_training(node):
            raise NotUnderstoodError(node.name)
        known = [tensor for tensor in inputs if tensor is not None]
        shapes = input_shapes(node)
        if shapes is not None:
            known = [unlisted(tensor, shape) for tensor, shape in zip(known, shapes, strict=True)]
        self.tensors[node.name] = self._added(node, effect, known)

    def _added(self, node: Node, effect: Effect, inputs: Sequence[Tensor]) -> Tensor:
        if len(inputs) > 1:
            return met(self, node, inputs)
        return _RULES.get(node.kind, Builder._function)(self, node, effect, inputs[0])

    def _ordered(self, node: Node, effect: Effect, tensor: Tensor) -> Tensor:
        if node.options.get("data_format") == "channels_first":
            raise NotUnderstoodError(node.name)
        return tensor._replace(listed=bool(tensor.sizes))

    def _moved(self, node: Node, effect: Effect, tensor: Tensor) -> Tensor:
        return moved(self, node, tensor)

    def _extreme(self, node: Node, effect: Effect, tensor: Tensor) -> Tensor:
        return extreme(self, node, tensor)

    def _function(self, node: Node, effect: Effect, tensor: Tensor) -> Tensor:
        if effect.slopes is None:
            if node.kind in ("Add", "Sub") and effect.adds and "0" not in node.weights and not called_with(node):
                return tensor  # a constant
            raise NotUnderstoodError(node.name)
        low, high = effect.slopes
        if isinstance(low, float) and low == high == 1:
            return tensor
        if isinstance(low, float) and low == high:
            found = self.map(tensor, [times(low, tensor)])
            if is_negative(node):
                self.opposite.update({found.name: tensor, tensor.name: found})
            return found
        other = self.positive.get(self.opposite[tensor.name].name) if tensor.name in self.opposite else None
        if other is not None and is_relu(node):  # max(x, 0) - max(-x, 0) = x
            return self.map(tensor, [times(1.0, other), times(1.0, tensor)])
        if tensor.sizes:  # outside of the image nothing passes
            low, high = min(low, 0.0), max(high, 0.0)
        found = self.function(tensor, low, high)
        self.positive.update({tensor.name: found} if is_relu(node) else {})
        return found

    def _dense(self, node: Node, effect: Effect, tensor: Tensor) -> Tensor:
        if "last" not in places(node):
            raise NotUnderstoodError(node.name)
        W = form_of(node).values.T
        if tensor.listed and W.shape[1] == tensor.numbers:
            return self._landed(node, tensor, W)
        if tensor.listed or W.shape[1] != tensor.channels or (tensor.sizes and tensor.first):
            raise NotUnderstoodError(node.name)
        after = tensor._replace(channels=len(W))
        return self.map(after, [Part(tensor.name, Taps(W[None], still(tensor)))])

    def _landed(self, node: Node, tensor: Tensor, W: Array) -> Tensor:
        """Return what a matrix makes of all pixels, whose numbers stand in the order of the image."""
        order = (tensor.channels, *tensor.sizes) if tensor.first else (*tensor.sizes, tensor.channels)
        values = W.reshape(len(W), *order)
        values = (
            values.reshape(len(W), tensor.channels, -1).transpose(2, 0, 1)
            if tensor.first
            else values.reshape(len(W), -1, tensor.channels).transpose(1, 0, 2)
        )
        taps = Taps(np.ascontiguousarray(values), pixels(tensor.sizes))
        return self.map(Tensor("", len(W)), [Part(tensor.name, taps)], lands=True)

    def _mean(self, node: Node, effect: Effect, tensor: Tensor) -> Tensor:
        _require_image(node, tensor)
        count = prod(tensor.sizes)
        taps = Taps(np.full(count, 1 / count), pixels(tensor.sizes), UNIT, tensor.channels)
        return self.map(Tensor("", tensor.channels), [Part(tensor.name, taps)], lands=True)

    def _scaled(self, node: Node, effect: Effect, tensor: Tensor) -> Tensor:
        place = places(node)
        axis = "first" if tensor.sizes and tensor.first else "last"
        other = f"axis {1 if axis == 'first' else len(tensor.sizes) + 1}"
        is_there = axis in place or (tensor.sizes and other in place) or (not tensor.sizes and _is_flat(node))
        factors = channel_factors(node)
        if tensor.listed or not is_there or factors.size not in (1, tensor.channels):
            raise NotUnderstoodError(node.name)
        matrix = np.diag(np.broadcast_to(factors, tensor.channels))
        return self.map(tensor, [Part(tensor.name, Taps(matrix[None], still(tensor), _FACTOR))])

    def _slid(self, node: Node, effect: Effect, tensor: Tensor) -> Tensor:
        _require_image(node, tensor)
        sized = placed(node, kernel_of(node))
        if sized is None or sized.channels[0] != tensor.channels:
            raise NotUnderstoodError(node.name)
        kernel = without_groups(sized.kernel, sized.groups)
        lows = [pad[0] for pad in sized.pads]
        return self._over(tensor, convolved(kernel, lows, sized.dilation_rate), sized)

    def _pooled(self, node: Node, effect: Effect, tensor: Tensor) -> Tensor:
        _require_image(node, tensor)
        windows = pooled_windows(node)
        if windows is None:
            raise NotUnderstoodError(node.name)
        kernel = np.full((*(w.size for w in windows), 1, 1), 1 / prod(w.size for w in windows))
        strides, dilations = tuple(w.stride for w in windows), tuple(w.dilation for w in windows)
        sized = Convolution(kernel, tensor.sizes, strides=strides, padding="valid", dilation_rate=dilations)
        taps = convolved(kernel, [0] * len(windows), dilations)
        alike = taps._replace(values=taps.values.ravel(), error=UNIT, channels=tensor.channels)
        return self._over(tensor, alike, sized)

    def _maximum(self, node: Node, effect: Effect, tensor: Tensor) -> Tensor:
        """Return the maxima over windows, each of which moves no more than the window, channel by channel."""
        _require_image(node, tensor)
        shapes, windows = pooled_shape(node), windows_of(node)
        if shapes is None:
            raise NotUnderstoodError(node.name)
        strides = tuple(window.stride for window in windows)
        ratio = tuple(r * s for r, s in zip(tensor.ratio, strides, strict=True))
        self.needs += [(tensor.ratio, tensor.sizes), (ratio, shapes)]
        step = Shorter(self.next, tensor.name, up(effect.constant**2), strides)
        self.steps.append(step)
        return tensor._replace(name=step.name, sizes=shapes, ratio=ratio, clean=True)

    def _over(self, tensor: Tensor, taps: Taps, sized: Convolution) -> Tensor:
        """Return the result of a sliding map at the size of its image."""
        low, high = taps.shifts.min(axis=0), taps.shifts.max(axis=0)
        ends = zip(low, high, sized.output_shape, sized.strides, tensor.sizes, strict=True)
        over = [max(0, -int(a), (m - 1) * s + int(b) - (n - 1)) for a, b, m, s, n in ends]
        if any(over) and not tensor.clean:
            tensor = self.function(tensor)
        ratio = tuple(r * s for r, s in zip(tensor.ratio, sized.strides, strict=True))
        self.needs.append((tensor.ratio, tuple(n + o for n, o in zip(tensor.sizes, over, strict=True))))
        self.needs.append((ratio, sized.output_shape))
        channels = tensor.channels if taps.channels else taps.values.shape[1]
        clean = tensor.clean and not taps.shifts.any()
        after = tensor._replace(channels=channels, sizes=sized.output_shape, ratio=ratio, clean=clean)
        return self.map(after, [Part(tensor.name, taps)], sized.strides)


_RULES: dict[str, Callable[[Builder, Node, Effect, Tensor], Tensor]] = {
    **dict.fromkeys(MATRICES, Builder._dense),
    **dict.fromkeys(SLIDING, Builder._slid),
    **dict.fromkeys(SCALES, Builder._scaled),
    **dict.fromkeys(_MEANS, Builder._mean),
    **dict.fromkeys(_POOLS, Builder._pooled),
    **dict.fromkeys(_MAXIMA, Builder._maximum),
    **dict.fromkeys(IN_ORDER, Builder._ordered),
    **dict.fromkeys(MOVES, Builder._moved),
    **dict.fromkeys(("ReduceMax", "ReduceMin"), Builder._extreme),
}


def _require_image(node: Node, tensor: Tensor) -> None:
    """Raise unless a node slides over the very axes along which the run holds the tensor's pixels.

    Shapes alone do not tell: of (5, 5, 5) one layer may take the first axis for channels, the next one the last.
    """
    if not tensor.sizes or tensor.listed or image_size(node) != tensor.sizes or is_first(node) != tensor.first:
        raise NotUnderstoodError(node.name)


def _is_flat(node: Node) -> bool:
    """Return whether an example is a vector, whose one axis is the first and the last."""
    shapes = input_shapes(node)
    return bool(shapes) and all(len(shape) == 2 for shape in shapes or ())
