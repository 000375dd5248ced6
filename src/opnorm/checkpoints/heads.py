"""Query, key and value in one matrix: which of its outputs belong to which head, by the model's configuration."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from opnorm.checkpoints.config import ModelConfig

_STACKED = {  # all queries, then all keys, then all values, by the module's name
    "c_attn": ("gpt2", "imagegpt", "decision_transformer", "openai-gpt"),
    "qkv_proj": ("phi3",),
    "Wqkv": ("modernbert", "mpt"),
}
_BY_HEAD = ("gpt_neox", "bloom", "persimmon")  # query, key and value of each head in turn: `query_key_value`


class Fused(NamedTuple):
    """The outputs of a joint projection to queries, keys and values."""

    heads: int
    key_value_heads: int
    head_dim: int
    order: str  # "stacked"; "head": query, key, value of each head; "group": a group's queries, its key, its value

    @property
    def outputs(self) -> int:
        """Return how many there are."""
        return (self.heads + 2 * self.key_value_heads) * self.head_dim

    def places(self) -> Mapping[str, np.ndarray]:
        """Return the outputs of "query", "key" and "value", each (its heads, head_dim)."""
        whole = np.arange(self.outputs).reshape(-1, self.head_dim)
        if self.order == "stacked":
            ends = [self.heads, self.heads + self.key_value_heads]
            query, key, value = np.split(whole, ends)
        else:
            groups = whole.reshape(self.key_value_heads, -1, self.head_dim)
            query, key, value = groups[:, :-2].reshape(-1, self.head_dim), groups[:, -2], groups[:, -1]
        return {"query": query, "key": key, "value": value}

    @property
    def text(self) -> str:
        """Return the order for people."""
        if self.order == "stacked":
            return "queries, keys, values one after another"
        return f"query, key, value of each {self.order} in turn"


def fused(config: ModelConfig, module: str, outputs: int) -> Fused | None:
    """Return the heads of the joint projection `module` with so many outputs; None where the configuration tells none.

    Args:
        config: The model's, or that of the part of it which has the module.
        module: The module's own name: "c_attn", "query_key_value".
        outputs: How many the stored weight has: with another number the configuration is of another model.
    """
    order = _order(config, module)
    if not order:
        return None
    found = Fused(config.heads, config.key_value_heads, config.head_dim, order)
    sizes = found.heads and found.head_dim and found.key_value_heads
    proper = sizes and found.heads % found.key_value_heads == 0 and found.outputs == outputs
    return found if proper else None


def _order(config: ModelConfig, module: str) -> str:
    if config.model_type in _STACKED.get(module, ()):
        return "stacked"
    if module == "c_attn" and config.model_type == "gpt_bigcode":
        return "stacked" if config.key_value_heads == 1 else "head"
    if module != "query_key_value":
        return ""
    if config.model_type == "falcon":
        if config.table.get("new_decoder_architecture"):
            return "group"
        return "stacked" if config.key_value_heads == 1 else "head"
    return "head" if config.model_type in _BY_HEAD else ""
