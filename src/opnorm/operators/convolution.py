"""The convolution of a neural network as a linear operator: stride, padding, dilation and groups included."""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from operator import index
from typing import Any

import numpy as np

from opnorm.checks import Array, positive_integers, real_array
from opnorm.operators.layouts import kernel_axes, require_layout
from opnorm.operators.sizes import Adjoint, SizedOperator

_CALL = 1e5  # multiplications that take as long as the calls for one tap: some ten microseconds
Pairs = tuple[tuple[int, int], ...]


class Convolution(SizedOperator):
    """The matrix that a convolution layer multiplies its flattened input with, without its bias.

    `Convolution(kernel, (h, w)) @ x.ravel()` equals Keras's `Conv2D(x).ravel()` for x of shape (h, w, cin).
    Like every layer of that name it correlates: the kernel is not flipped. Without `input_shape` the object stands for
    every image size: `opnorm.spectral_norm` bounds the norm over all of them, and applying it raises an error.

    Args:
        kernel: (*spatial, cin / groups, cout), Keras's layout, with 1, 2 or 3 spatial axes; any other by `layout`.
        input_shape: Spatial sizes of the input, without batch and channels; an int when there is one axis.
        strides: A positive int, or one per axis. Any combination with `dilation_rate` is allowed.
        padding: `"same"` and `"valid"` as in Keras and TensorFlow, `"causal"` (one axis), or pairs
            `((before, after), ...)`, one per axis, as in PyTorch and ONNX. Always zeros.
        dilation_rate: A positive int, or one per axis.
        groups: Number of independent blocks of channels.
        layout: The order of the kernel's axes: "HWIO", the default for arrays, or "OIHW" for the weights of `torch.nn`;
            I and O say where the channels in and out are, the other letters stand for all spatial axes. The weight of a
            transposed convolution of PyTorch is "OIHW" of the convolution that it transposes. A PyTorch tensor must
            say.

    Raises:
        ValueError: When an argument does not make sense, or the input is smaller than the kernel.

    Example:
        >>> A = opnorm.Convolution(np.ones((3, 3, 1, 1)), (8, 8))
        >>> (A @ np.ones(64)).reshape(8, 8, 1)[0, 0]
        array([4.])
    """

    def __init__(
        self,
        kernel: Any,
        input_shape: int | Sequence[int] | None = None,
        *,
        strides: int | Sequence[int] = 1,
        padding: str | Sequence[Sequence[int]] = "same",
        dilation_rate: int | Sequence[int] = 1,
        groups: int = 1,
        layout: str | None = None,
    ):
        require_layout(kernel, layout, "kernel")
        self.kernel = real_array(kernel, "kernel")
        if self.kernel.ndim not in (3, 4, 5):
            raise ValueError(
                "Argument `kernel` must have shape (*spatial, channels in, channels out) with 1 to 3 spatial axes. "
                f"Received: shape={self.kernel.shape}"
            )
        self.kernel = self.kernel.transpose(kernel_axes("HWIO" if layout is None else layout, self.kernel.ndim))
        self.rank = self.kernel.ndim - 2
        self.strides = positive_integers(strides, self.rank, "strides")
        self.dilation_rate = positive_integers(dilation_rate, self.rank, "dilation_rate")
        (self.groups,) = positive_integers(groups, 1, "groups")
        if self.kernel.shape[-1] % self.groups:
            raise ValueError(
                f"Argument `groups` must divide the {self.kernel.shape[-1]} output channels. Received: groups={groups}"
            )
        self.padding = _check_padding(padding, self.rank)
        super().__init__(np.float64, None if input_shape is None else self._set_size(input_shape))

    def _set_size(self, input_shape: int | Sequence[int]) -> tuple[int, int]:
        self.input_shape = positive_integers(input_shape, self.rank, "input_shape")
        self.pads = self._pads(self.input_shape)
        self.output_shape = self._output_shape(self.input_shape, self.pads)
        return prod(self.output_shape) * self.channels[1], prod(self.input_shape) * self.channels[0]

    def _named(self) -> str:
        """Return the kernel's shape, and the arguments that are not the defaults."""
        ones, kernel = (1,) * self.rank, "x".join(map(str, self.kernel.shape))
        usual = {"input_shape": None, "strides": ones, "padding": "same", "dilation_rate": ones, "groups": 1}
        given = ((name, getattr(self, name, None)) for name in usual)
        shown = [f"{name}={value!r}" for name, value in given if value != usual[name]]
        return ", ".join([f"Convolution of a {kernel} kernel", *shown])

    @property
    def channels(self) -> tuple[int, int]:
        """Channels in and out, over all groups."""
        return self.kernel.shape[-2] * self.groups, self.kernel.shape[-1]

    @property
    def extents(self) -> tuple[int, ...]:
        """Pixels that the dilated kernel spans on each axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel.shape, self.dilation_rate, strict=False))

    @property
    def blocks(self) -> Array:
        """The kernel by groups: (groups, *spatial, cin / groups, cout / groups), a view."""
        *spatial, cin, cout = self.kernel.shape
        split = self.kernel.reshape(*spatial, cin, self.groups, cout // self.groups)
        return np.moveaxis(split, -2, 0)

    def _pads(self, sizes: tuple[int, ...]) -> Pairs:
        if not isinstance(self.padding, str):
            return self.padding
        if self.padding == "valid":
            return ((0, 0),) * self.rank
        if self.padding == "causal":
            return ((self.extents[0] - 1, 0),)
        totals = [
            max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(sizes, self.strides, self.extents, strict=True)
        ]
        return tuple((total // 2, total - total // 2) for total in totals)  # TensorFlow's rule: the odd one goes after

    def _output_shape(self, sizes: tuple[int, ...], pads: Pairs) -> tuple[int, ...]:
        steps = zip(sizes, pads, self.extents, self.strides, strict=True)
        result = tuple((n + sum(pad) - k) // s + 1 for n, pad, k, s in steps)
        if min(result) < 1:
            raise ValueError(
                f"Argument `input_shape` must be at least as large as the dilated kernel {self.extents} less the "
                f"padding {pads}. Received: input_shape={sizes}"
            )
        return result

    def windows(self, axis: int) -> list[tuple[int, slice, slice]]:
        """Return for each tap along an axis that meets the image: its number, the pixels it reads, where they go to.

        Zeros that are read outside of the image are left out: the work is that of the image, whatever the padding.
        """
        n, m, s = self.input_shape[axis], self.output_shape[axis], self.strides[axis]
        low, d = self.pads[axis][0], self.dilation_rate[axis]
        found = []
        for tap in range(self.kernel.shape[axis]):
            shift = tap * d - low  # output o reads pixel o s + shift
            first, last = max(0, -(shift // s)), min(m - 1, (n - 1 - shift) // s)
            if first <= last:
                reads = slice(first * s + shift, last * s + shift + 1, s)
                found.append((tap, reads, slice(first, last + 1)))
        return found

    @property
    def work(self) -> float:
        """Multiplications of one product, and for each tap the time of as many as its call takes."""
        axes = [self.windows(axis) for axis in range(self.rank)]
        pairs = prod(sum(goes.stop - goes.start for _, _, goes in axis) for axis in axes)
        return float(pairs * self.kernel.shape[-2] * self.kernel.shape[-1] + _CALL * prod(map(len, axes)))

    def _taps(self) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...], Array]]:
        """Yield for each tap that meets the image the inputs it reads, the outputs they go to, and its matrices."""
        blocks, every = self.blocks, (slice(None), slice(None))
        for parts in product(*map(self.windows, range(self.rank))):
            position, reads, goes = zip(*parts, strict=True)
            yield (*every, *reads), (*every, *goes), blocks[(slice(None), *position)]

    @property
    def _is_by_channel(self) -> bool:
        return self.kernel.shape[-2] == 1 and self.groups == self.channels[1] > 1

    def _by_channel(self, X: Array, *, adjoint: bool) -> Array:
        """Return what each channel's own taps make of it: factors of whole images, in the order in which they lie."""
        sizes, others = self.input_shape, self.output_shape
        sizes, others = (others, sizes) if adjoint else (sizes, others)
        given = X.T.reshape(X.shape[1], *sizes, self.groups)
        result = np.zeros((X.shape[1], *others, self.groups))
        for reads, goes, matrices in self._taps():
            source, target = (goes, reads) if adjoint else (reads, goes)
            result[target[1:]] += given[source[1:]] * matrices[:, 0, 0]
        return result.reshape(len(result), -1).T

    def _matmat(self, X: Array) -> Array:
        if self._is_by_channel:
            return self._by_channel(X, adjoint=False)
        given = self._split(X, self.input_shape)
        result = np.zeros((self.groups, X.shape[1], *self.output_shape, self.channels[1] // self.groups))
        for reads, goes, matrices in self._taps():
            seen = given[reads]
            image = seen.reshape(self.groups, -1, seen.shape[-1]) @ matrices
            result[goes] += image.reshape(*seen.shape[:-1], -1)
        return self._join(result)

    def _rmatmat(self, X: Array) -> Array:
        if self._is_by_channel:
            return self._by_channel(X, adjoint=True)
        given = self._split(X, self.output_shape)
        result = np.zeros((self.groups, X.shape[1], *self.input_shape, self.kernel.shape[-2]))
        for reads, goes, matrices in self._taps():
            seen = given[goes]
            image = seen.reshape(self.groups, -1, seen.shape[-1]) @ matrices.transpose(0, 2, 1)
            result[reads] += image.reshape(*seen.shape[:-1], -1)
        return self._join(result)

    def _split(self, X: Array, sizes: tuple[int, ...]) -> Array:
        """Return the columns of X as (groups, batch, *sizes, channels / groups)."""
        split = X.T.reshape(X.shape[1], *sizes, self.groups, -1)
        return np.moveaxis(split, -2, 0)

    def _join(self, split: Array) -> Array:
        """Undo `_split`."""
        return np.moveaxis(split, 0, -2).reshape(split.shape[1], -1).T

    def _matvec(self, x: Array) -> Array:
        return self._matmat(x.reshape(-1, 1)).ravel()

    def _rmatvec(self, x: Array) -> Array:
        return self._rmatmat(x.reshape(-1, 1)).ravel()

    def _adjoint(self) -> Adjoint:
        return Adjoint(self)

    _transpose = _adjoint  # kernels are real


def alike(
    operator: Convolution,
    kernel: Array | None = None,
    input_shape: Sequence[int] | None = None,
    padding: str | Sequence[Sequence[int]] | None = None,
) -> Convolution:
    """Return the convolution that slides as `operator` does, with what is given in place of its own."""
    return Convolution(
        operator.kernel if kernel is None else kernel,
        getattr(operator, "input_shape", None) if input_shape is None else input_shape,
        strides=operator.strides,
        padding=operator.padding if padding is None else padding,
        dilation_rate=operator.dilation_rate,
        groups=operator.groups,
    )


def _check_padding(padding: str | Sequence[Sequence[int]], rank: int) -> str | Pairs:
    """Return the padding's name, or its pairs as integers."""
    if isinstance(padding, str):
        if padding in ("same", "valid") or (padding == "causal" and rank == 1):
            return padding
        raise ValueError(
            'Argument `padding` must be "same", "valid", "causal" (one axis only) or pairs of zeros to add. Other '
            "paddings repeat pixels, so the bound for zeros does not hold for them. "
            f"Received: padding={padding!r} with {rank} axes"
        )
    try:
        pairs = tuple((index(low), index(high)) for low, high in padding)
    except (TypeError, ValueError):
        pairs = ()
    if len(pairs) != rank or any(min(pair) < 0 for pair in pairs):
        raise ValueError(
            f"Argument `padding` must be {rank} pairs of integers that are not negative. Received: padding={padding!r}"
        )
    return pairs
