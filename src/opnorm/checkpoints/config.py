"""`config.json` beside weights: the sizes of a model of Hugging Face's libraries, as far as the file makes sense."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from opnorm.checkpoints.files import parse_json, require
from opnorm.checkpoints.records import CheckpointError

NAME = "config.json"
_QUANTIZATION = ("quantization_config", "compression_config", "quantization")  # the last is MLX's
_SNAPSHOTS, _COMMIT = "snapshots", 100  # of a cache: the folder, and the most bytes that a commit's name has
_BYTES = 8 * 2**20  # labels of 21,000 classes take 2 MiB
_LARGEST = 2**40  # that a size may be
_PARTS = 16  # models in a model: text, vision, audio, ...
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads")
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_ONE_OR_ALL = ("falcon", "gpt_bigcode")  # keys and values: one head, or as many as queries
_INNER = (
    "intermediate_size", "n_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "hidden_dim",
    "ffn_hidden_size", "moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp",
)  # fmt: skip


class ModelConfig(NamedTuple):
    """What a `config.json` says of a model, or of a part of it; a size that it does not tell is 0."""

    model_type: str = ""
    table: Mapping[str, Any] = {}  # as in the file
    trouble: str = ""  # why the file is not understood, where there is one

    def size(self, *names: str) -> int:
        """Return the first positive integer that stands under one of the names, else 0."""
        found = (self.table.get(name) for name in names)
        return next((n for n in found if type(n) is int and 0 < n < _LARGEST), 0)

    @property
    def hidden(self) -> int:
        """Return the number of features between the blocks."""
        return self.size("hidden_size", "n_embd", "d_model", "dim")

    @property
    def heads(self) -> int:
        """Return the number of the heads of an attention's queries."""
        return self.size(*_HEADS)

    @property
    def key_value_heads(self) -> int:
        """Return the number of the heads of its keys and values."""
        if self.model_type in _ONE_OR_ALL and not self.table.get("new_decoder_architecture"):
            return 1 if self.table.get("multi_query", True) else self.heads
        return self.size(*_KEY_VALUE_HEADS) or self.heads

    @property
    def head_dim(self) -> int:
        """Return the number of features of a head."""
        return self.size("head_dim", "d_kv") or (self.hidden // self.heads if self.heads else 0)

    @property
    def inner(self) -> frozenset[int]:
        """Return the numbers of features inside of its feed-forward layers: experts may have another one."""
        return frozenset({self.size(name) for name in _INNER} | {4 * self.hidden}) - {0}

    @property
    def experts(self) -> int:
        """Return the number of the experts of a mixture."""
        return self.size("num_local_experts", "num_experts", "n_routed_experts")

    @property
    def quantization(self) -> Mapping[str, Any]:
        """Return how the weights of the model, or of a part of it, are quantized; nothing where they are not."""
        found = (part.table.get(key) for part in self.parts() for key in _QUANTIZATION)
        return next((value for value in found if isinstance(value, Mapping)), {})

    @property
    def runs_own_code(self) -> bool:
        """Return whether the model's code comes with it, and may apply weights in any way."""
        return bool(self.table.get("auto_map"))

    def parts(self) -> Iterator["ModelConfig"]:
        """Yield this, and the models that it is made of: a text model, a vision tower."""
        yield self
        inner = [value for value in self.table.values() if isinstance(value, Mapping) and "model_type" in value]
        for value in inner[:_PARTS]:
            yield _of_table(value)


def beside(path: Path) -> Path:
    """Return the folder in which the configuration of a file or a folder lies, and the files of that folder.

    That is a file's own, and a folder itself; of a model in Hugging Face's cache that of the commit which is its
    `main`, or of the only one.
    """
    return _snapshot(path) if path.is_dir() else path.parent


def _snapshot(folder: Path) -> Path:
    commits = sorted((folder / _SNAPSHOTS).iterdir()) if (folder / _SNAPSHOTS).is_dir() else []
    main = folder / "refs" / "main"
    if commits and main.is_file() and main.stat().st_size < _COMMIT:
        named = main.read_text(encoding="utf-8", errors="replace").strip()
        commits = [commit for commit in commits if commit.name == named]
    return commits[0] if len(commits) == 1 and commits[0].is_dir() else folder


def read_config(path: Path) -> ModelConfig:
    """Return what the `config.json` in a folder, or beside a file, says; it never fails: what is wrong is `trouble`."""
    try:
        file = beside(path) / NAME
        if not file.is_file():
            return ModelConfig()
        require(file.stat().st_size <= _BYTES, f"{NAME} is larger than {_BYTES >> 20} MiB")
        table = parse_json(file.read_bytes(), NAME)
        require(isinstance(table, Mapping), f"{NAME} is no table")
    except (CheckpointError, OSError, RecursionError) as error:
        return ModelConfig(trouble=" ".join(str(error).split())[:200] or type(error).__name__)
    return _of_table(table)


def _of_table(table: Mapping[str, Any]) -> ModelConfig:
    kind = table.get("model_type")
    return ModelConfig(kind if isinstance(kind, str) else "", table)
