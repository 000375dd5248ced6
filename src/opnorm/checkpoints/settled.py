"""Geometries that a model's configuration settles: what was assumed from name and shape is known then."""

from collections.abc import Callable, Mapping
from math import isfinite, sqrt

from opnorm.checkpoints import diffusion
from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.config import ModelConfig
from opnorm.checkpoints.fused import divided, with_heads
from opnorm.checkpoints.guesses import Named
from opnorm.checkpoints.heads import fused
from opnorm.checkpoints.records import Geometry
from opnorm.checkpoints.roles import (
    CONV1D,
    CONVOLUTIONS,
    EPSILONS,
    EXPERTS,
    FAMILIES,
    IN_OUT,
    MASKED,
    OUT_IN,
    SCALED,
    TOKENS,
    Role,
    Sizes,
    role_of,
    sizes_of,
)
from opnorm.checks import Array

Settle = Callable[[Named, Geometry], Geometry]


def settler(config: ModelConfig, tensors: Mapping[str, Named]) -> Settle:
    """Return what makes of a tensor and its assumed geometry the one that the configuration settles, or the same.

    A tensor whose shape is not the one that the configuration asks for stays assumed: it is of another model. So does
    every tensor of a model that brings its own code, or of a kind that is not known here.
    """
    parts = [(part, sizes_of(part)) for part in config.parts()]
    if config.runs_own_code or not config.table:
        return lambda tensor, found: found

    def settled(tensor: Named, found: Geometry) -> Geometry:
        if not found.assumed:
            return found
        several = (_settled(part, sizes, tensor, found, tensors) for part, sizes in parts)
        return next((one for one in several if one is not None), found)

    return settled


def _settled(
    config: ModelConfig, sizes: Sizes, tensor: Named, found: Geometry, tensors: Mapping[str, Named]
) -> Geometry | None:
    """Return the geometry of a tensor by one part of a model, None where that does not settle it."""
    if found.kind == "BatchNorm" and found.operator is not None:
        return _batch_normalization(config, tensor, tensors)
    if found.kind == "experts":
        return _experts(config, sizes, tensor, found)
    drawn = diffusion.settled(config, tensor.name, tensor.shape)
    if drawn is not None or len(tensor.shape) in (3, 4):
        return drawn or _convolution(config, tensor) or _mask(config, tensor)
    role = role_of(tensor.name) if len(tensor.shape) == 2 else None
    if role is None or found.operator is None:
        return None
    if role.table and config.model_type in SCALED:
        return _scaled_tokens(config, sizes, role, tensor.shape)
    if config.model_type not in FAMILIES:
        return None
    known = _matrix(config, sizes, role, tensor.shape)
    return known if known is None or known.parts else known._replace(parts=found.parts)


def _matrix(config: ModelConfig, sizes: Sizes, role: Role, shape: tuple[int, ...]) -> Geometry | None:
    """Return a matrix that is stored as its family stores it, with the sizes that the configuration asks for."""
    inputs_first = role.table or (role.module in ("c_attn", "c_fc", "c_proj", "q_attn") and config.model_type in CONV1D)
    inputs, outputs = shape if inputs_first else shape[::-1]
    fits = any(_has(sizes, a, inputs) and _has(sizes, b, outputs) for a, b in role.ways)
    if not fits:
        return None
    if role.table:
        return g.columns("Embedding", "matrix (tokens, features)")
    joint = fused(config, role.module, outputs)
    make, kind, text = (g.columns, "Conv1D", IN_OUT) if inputs_first else (g.rows, "Linear", OUT_IN)
    if joint is None:
        return make(kind, f"matrix {text}")
    whole = make(kind, f"matrix {text}; {joint.text}")
    return divided(whole, lambda: with_heads(joint.places()), axis=int(inputs_first))


def _scaled_tokens(config: ModelConfig, sizes: Sizes, role: Role, shape: tuple[int, ...]) -> Geometry | None:
    """Return the embedding of tokens whose layer multiplies it by sqrt(features), as all that may read it apply it.

    The output layer reads the same matrix without the factor, where the two are tied, and other versions of the
    library multiply elsewhere: so the matrix as it is stands among the readings.
    """
    tokens, features = shape
    setting = SCALED[config.model_type]
    multiplies = not setting or config.table.get(setting) is not False
    if role.module not in TOKENS or features != config.hidden or not (_has(sizes, "V", tokens) and multiplies):
        return None
    factor = sqrt(features)
    plain = g.columns("Embedding", "matrix (tokens, features)", assumed=True)
    times = g.scaled(plain, lambda table: table * factor, f"times {factor:g}, as its layer multiplies it")
    return times._replace(readings=(plain,))


def _experts(config: ModelConfig, sizes: Sizes, tensor: Named, found: Geometry) -> Geometry | None:
    """Return the experts' matrices in the layout of their family, with the sizes that the configuration asks for."""
    layout, role = EXPERTS.get(config.model_type), role_of(f"{tensor.name}.weight")
    if layout is None or role is None or len(tensor.shape) != 3 or tensor.shape[0] != config.experts:
        return None
    inputs, outputs = tensor.shape[1:] if layout == IN_OUT else tensor.shape[:0:-1]
    if not any(_has(sizes, a, inputs) and _has(sizes, b, outputs) for a, b in role.ways):
        return None
    known = found._replace(text=f"a matrix {layout} for each expert: the largest of their norms")
    known = known._replace(assumed=False, oriented=True, readings=())
    return g.scaled(known, _turned, "transposed") if layout == IN_OUT else known


def _turned(stack: Array) -> Array:
    return stack.swapaxes(1, 2)


def _has(sizes: Sizes, symbol: str, count: int) -> bool:
    return symbol == "P" or count in sizes[symbol]


def _convolution(config: ModelConfig, tensor: Named) -> Geometry | None:
    """Return a convolution of a family whose module has that name, with the sizes that the configuration asks for."""
    module = CONVOLUTIONS.get(".".join(tensor.name.split(".")[-3:-1]))
    if module is None or config.model_type not in module.families or not tensor.name.endswith(".weight"):
        return None
    inputs, outputs = config.size(module.inputs), config.hidden
    taps = (config.size("patch_size"),) * 2 if module.taps is None else module.taps
    strides = taps if module.strides is None else module.strides
    if 0 in taps or tensor.shape != (outputs, inputs, *taps):
        return None
    padding = tuple((module.zeros, module.zeros) for _ in taps) if module.zeros else "valid"
    return g.channels_first(f"Conv{len(taps)}d", tensor.shape, g.Sliding(strides, padding))


def _mask(config: ModelConfig, tensor: Named) -> Geometry | None:
    """Return that a table of which token sees which, which old files hold beside the weights, is no map."""
    most = config.size("n_positions", "n_ctx", "max_position_embeddings")
    named = tensor.name.endswith((".attn.bias", ".attention.bias")) and config.model_type in MASKED
    return g.nothing("mask", "a causal mask, no weight") if named and tensor.shape == (1, 1, most, most) else None


def _batch_normalization(config: ModelConfig, tensor: Named, tensors: Mapping[str, Named]) -> Geometry | None:
    """Return a batch normalization with the epsilon that the configuration tells."""
    known = EPSILONS.get(config.model_type)
    epsilon = config.table.get(known) if isinstance(known, str) else known
    if not isinstance(epsilon, float) or not (isfinite(epsilon) and epsilon > 0):
        return None
    if tensor.name.endswith("running_var"):
        return g.batch_variance("BatchNorm", epsilon)
    variance = tensors.get(f"{tensor.name.rpartition('.')[0]}.running_var")
    return None if variance is None else g.batch_normalization("BatchNorm", variance.read, epsilon)
