"""What a checkpoint holds, whatever its format: weights read on demand, what they do, and the network's graph."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse.linalg import LinearOperator

from opnorm.checks import Array


class CheckpointError(ValueError):
    """A file that cannot be read as what it claims to be; the message is one line and names the file."""


class Part(NamedTuple):
    """An expert of a stack, or one of the projections or heads that are stored in one matrix."""

    name: str  # "expert 3", "query"
    operator: LinearOperator


class Geometry(NamedTuple):
    """What a layer does with a weight."""

    kind: str  # the layer: a Keras class name, an ONNX operator, or "unknown"
    text: str  # for people: "convolution, strides 2, padding same"; "matrix (in, out)"
    operator: Callable[[Array], LinearOperator] | None = None  # of the weight's values in float64; None: no linear map
    reason: str = ""  # why there is no linear map: "a bias is added, not multiplied"
    assumed: bool = False  # guessed from shape and name; nothing in the file says it
    unknown: bool = False  # with no operator: there may be a norm, which is not known, and a check must not pass
    readings: tuple["Geometry", ...] = ()  # where it is assumed: what else the layer may do with the weight
    oriented: bool = True  # it is known which axis is the input's, and how many inputs an output has
    parts: Callable[[Array], Iterable["Part"]] | None = None  # of the values: what the model uses by itself, in order


class Weight(NamedTuple):
    """One tensor of a checkpoint."""

    name: str  # as in the file, unique
    shape: tuple[int, ...]
    dtype: str  # as stored: "float32", "bfloat16", "float8_e4m3fn", "int8"
    read: Callable[[], np.ndarray]  # what the layer applies, of a dtype of NumPy's or ml_dtypes'; nothing is kept
    geometry: Geometry
    constraint: Mapping[str, Any] | None = None  # the Keras config of the constraint declared for it


OWN_OPTIONS = (  # that readers and foldings give to nodes and layers; a file's own of these names are dropped
    "arguments", "cuts", "for_each", "input_shapes", "joined", "kernel_layout", "keras", "normalized",
    "other_epsilons", "part", "parts", "reason", "rounding", "steady", "steered", "target",
)  # fmt: skip


def of_file(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a file may give to a node or layer."""
    return {key: value for key, value in options.items() if key not in OWN_OPTIONS}


class Node(NamedTuple):
    """One layer or operation of a network."""

    name: str
    kind: str  # a Keras class name, an ONNX operator
    inputs: tuple[str, ...]  # names of nodes or of the network's inputs, in order
    options: Mapping[str, Any]  # the Keras config, the ONNX attributes
    weights: Mapping[str, Weight]  # by role: "kernel", "bias", "gamma", ...


class Graph(NamedTuple):
    """A network as far as its file tells it; `nodes` stand in an order in which each comes after its inputs."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Checkpoint(NamedTuple):
    """A file, read as far as its table of contents."""

    format: str  # "keras", "h5", "safetensors", "onnx", "torch", "npz", "model"
    weights: tuple[Weight, ...]  # every tensor of the file
    graph: Graph | None = None
    notes: tuple[str, ...] = ()  # what was not understood or not run: "Lambda layer 'scale' is named, not run"
