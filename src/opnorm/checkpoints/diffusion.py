"""What the layers of diffusers' networks do, by their names, the class that the configuration names, and its sizes."""

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.config import ModelConfig
from opnorm.checkpoints.records import Geometry

_CLASSES = ("UNet2DConditionModel", "AutoencoderKL")
_CONVOLUTIONS = ("conv_in", "conv_out", "conv1", "conv2", "conv_shortcut", "quant_conv", "post_quant_conv")
_EITHER = ("proj_in", "proj_out")  # convolutions over one pixel, or matrices
_LINEAR = ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "linear_1", "linear_2", "time_emb_proj")
_BLOCKS = 16  # that a network may have


def settled(config: ModelConfig, name: str, shape: tuple[int, ...]) -> Geometry | None:
    """Return the geometry of a weight of a network of diffusers', None where nothing settles it."""
    parts = name.split(".")
    if config.table.get("_class_name") not in _CLASSES or len(parts) < 2 or parts[-1] != "weight":
        return None
    module, widths = parts[-2], _widths(config)
    if len(shape) == 4 and shape[2] == shape[3] and shape[0] in widths and shape[1] in _joined(widths):
        strides = _strides(parts)
        return _convolution(config, shape, strides) if strides else None
    linear = module in _LINEAR + _EITHER or ".".join(parts[-3:-1]) in _LINEAR or ".".join(parts[-4:-1]) in _LINEAR
    fits = len(shape) == 2 and all(count in _inner(config, widths) for count in shape)
    return g.rows("Linear") if linear and fits else None


def _strides(parts: list[str]) -> int:
    """Return the strides of a convolution by its name, 0 where it is not known."""
    if parts[-2] in _CONVOLUTIONS + _EITHER:
        return 1
    within = parts[-4] if len(parts) > 3 and parts[-2] == "conv" else ""
    return {"upsamplers": 1, "downsamplers": 2}.get(within, 0)


def _convolution(config: ModelConfig, shape: tuple[int, ...], strides: int) -> Geometry:
    """Return a convolution with zeros around it; an autoencoder's that halves an image adds them on one side."""
    sides = (0, 1) if strides == 2 and config.table["_class_name"] == "AutoencoderKL" else ((shape[2] - 1) // 2,) * 2
    return g.channels_first("Conv2d", shape, g.Sliding(strides=strides, padding=(sides, sides)))


def _widths(config: ModelConfig) -> frozenset[int]:
    """Return the numbers of channels that a network may have between its layers."""
    blocks = config.table.get("block_out_channels")
    several = blocks[:_BLOCKS] if isinstance(blocks, list) else []
    latent = config.size("latent_channels")
    ends = {config.size("in_channels"), config.size("out_channels"), latent, 2 * latent}
    return frozenset({n for n in several if type(n) is int and n > 0} | ends) - {0}


def _joined(widths: frozenset[int]) -> set[int]:
    """Return the numbers of channels of one input, or of two that were joined."""
    return {a + b for a in widths for b in (0, *widths)}


def _inner(config: ModelConfig, widths: frozenset[int]) -> set[int]:
    """Return the numbers of features in attentions, feed-forward layers and the embedding of time."""
    crossed = config.table.get("cross_attention_dim")
    others = {n for n in (crossed if isinstance(crossed, list) else [crossed])[:_BLOCKS] if type(n) is int}
    return {factor * width for factor in (1, 4, 8) for width in widths} | others
