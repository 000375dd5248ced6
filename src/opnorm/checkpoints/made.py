"""A layer's weight made of several tensors: one stands for it, the others are its parts."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.guesses import Named, guess
from opnorm.checkpoints.records import Geometry
from opnorm.checkpoints.settled import Settle

Read = Callable[[], np.ndarray]


class Made(NamedTuple):
    """What was found out about a tensor with the help of others."""

    geometry: Geometry
    read: Read | None = None  # the values that the layer applies, where they are not those stored
    weight: Named | None = None  # that of the layer, where it has another name, shape or dtype than what is stored


class File(NamedTuple):
    """The tensors of a file, by name."""

    path: Path
    tensors: Mapping[str, Named]
    settle: Settle  # what its configuration settles of a tensor's geometry


def layer(file: File, tensor: Named, name: str, read: Read, how: str) -> Made:
    """Return what stands for the weight `name` of a layer: `tensor`, with the values that the layer applies.

    Args:
        file: All tensors.
        tensor: The tensor.
        name: The weight's name in a layer that stores it as it is: it tells what the layer does.
        read: Returns the values that the layer applies.
        how: What is done to the stored values, for people.
    """
    whole = Named(name, tensor.shape, "float64", read)
    found = file.settle(whole, guess(whole, file.tensors))
    return Made(found._replace(text=f"{found.text}; {how}"), read)


def whole(file: File, members: Sequence[Named], weight: Named, how: str) -> dict[str, Made]:
    """Return what the tensors are that make a layer's weight: the first has its row, the others are parts of it.

    Args:
        file: All tensors.
        members: Those of the weight, as they are stored.
        weight: What the layer applies; it is called as in a layer that stores it as it is.
        how: What is done to the stored values, for people.
    """
    main, *parts = members
    if weight.name != main.name and weight.name in file.tensors:
        reason = f"it makes {weight.name!r}, and a tensor of that name is there too"
        return {main.name: unknown(reason), **{one.name: part(main.name) for one in parts}}
    made = layer(file, Named(main.name, weight.shape, weight.dtype, weight.read), weight.name, weight.read, how)
    return {main.name: made._replace(weight=weight), **{one.name: part(weight.name) for one in parts}}


def misfit(members: Sequence[Named], who: str, reason: str) -> dict[str, Made]:
    """Return what the tensors are that should make a layer's weight and do not fit each other."""
    main, *parts = members
    reason = f"quantized, as {who} stores it, but {reason}"
    return {main.name: unknown(reason), **{one.name: part(main.name) for one in parts}}


def part(of: str) -> Made:
    """Return what a part of a layer's weight is, which stands in the row of `of`."""
    return Made(g.nothing("unknown", f"a part of the weight in the row of {of!r}"))


def unknown(reason: str) -> Made:
    """Return what is known of a tensor of which a weight is made in a way that is not followed here."""
    return Made(g.unknown("unknown", reason))
