"""The layers of Stable Diffusion's networks: the names of its own code in those of diffusers."""

import re

_RESNET = {
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ALONE = {
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
}
_BLOCK = re.compile(r"(input|output)_blocks_(\d{1,3})_(\d)_(\w+)")
_MIDDLE = re.compile(r"middle_block_([012])_(\w+)")
_LAYERS = 3  # of a block, the last one of them the sampler's: of Stable Diffusion 1, 2 and XL


def in_diffusers(name: str) -> str:
    """Return diffusers' name of a layer, both with underscores for dots; "" of other names."""
    if middle := _MIDDLE.fullmatch(name):
        place = ("resnets_0", "attentions_0", "resnets_1")[int(middle[1])]
        return f"mid_block_{place}_{_RESNET.get(middle[2], middle[2])}"
    if block := _BLOCK.fullmatch(name):
        return _in_block(block[1], int(block[2]), int(block[3]), block[4])
    return _ALONE.get(name, "")


def _in_block(side: str, number: int, inner: int, rest: str) -> str:
    at = number - (side == "input")
    block = f"{'down' if side == 'input' else 'up'}_blocks_{at // _LAYERS}"
    if rest == "op":
        return f"{block}_downsamplers_0_conv"
    if side == "output" and rest == "conv":
        return f"{block}_upsamplers_0_conv"
    return f"{block}_{'attentions' if inner else 'resnets'}_{at % _LAYERS}_{_RESNET.get(rest, rest)}"
