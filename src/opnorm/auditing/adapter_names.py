"""How adapters name their tensors and the layers they change: PEFT, diffusers, kohya and LyCORIS, MLX, torchtune."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from opnorm.auditing.sgm_names import in_diffusers
from opnorm.checkpoints.records import Weight

_WHICH = r"(\.(?P<which>(?!weight$)[\w-]+))?"  # PEFT's name of one of several adapters
_KRONECKER = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
_NAMES = {  # what follows the name of the layer, by role
    "down": rf"(lora_[Aa]|lora_down|lora\.down|lora_linear_layer\.down){_WHICH}\.weight",
    "up": rf"(lora_[Bb]|lora_up|lora\.up|lora_linear_layer\.up){_WHICH}\.weight",
    "mid": rf"lora_mid{_WHICH}\.weight",
    "mlx_a": r"lora_a",
    "mlx_b": r"lora_b",
    "mlx_m": r"m",
    "table_down": rf"lora_embedding_A{_WHICH}(\.weight)?",
    "table_up": rf"lora_embedding_B{_WHICH}(\.weight)?",
    "magnitude": rf"lora_magnitude_vector{_WHICH}(\.weight)?",
    "dora_scale": "dora_scale",
    "alpha": r"(lora\.)?alpha",
    "diff": "diff",
    **{f"hada_{part}": rf"hada_{part}{_WHICH}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{part}": rf"lokr_{part}{_WHICH}" for part in _KRONECKER},
}
_PATTERNS = {role: re.compile(rf"^(?P<layer>.+?)\.{tail}$") for role, tail in _NAMES.items()}
_PROCESSOR = re.compile(r"^(?P<of>.+)\.processor\.(?P<to>to_\w+)_lora\.(?P<role>up|down)\.weight$")  # of diffusers
_BIASES = re.compile(rf"\.(lora_B{_WHICH}\.bias|lora_up\.bias|diff_b)$")
_OTHERS = re.compile(
    r"\.(b?oft_\w+|vera_\w+|ia3_\w+|lora_\w+|hada_\w+|lokr_\w+|dora_scale|glora_\w+|hra_\w+|w_norm|b_norm|\w+_lora\d?|"
    r"fourierft_\w+|vblora_\w+|randlora_\w+|road_\w+|bone_\w+|shira_\w+|c3a_\w+|miss_\w+|trainable_tokens_\w+)(\.|$)"
)
_PREFIX = re.compile(  # that adapters, or their bases, put before the names of the model's weights
    r"^(base_model\.model\.|base_model\.|(lora|lycoris)_(unet|te\d?|transformer)_|lycoris_|unet\.|text_encoder(_2)?\.|"
    r"(model\.)?diffusion_model\.|conditioner\.embedders\.\d\.(transformer|model)\.|cond_stage_model\.(transformer|model)\.|"
    r"transformer\.|model\.|bert\.|roberta\.|distilbert\.|deberta\.|electra\.|gpt_neox\.|vit\.)+"
)
_TOWERS = {  # the parts of a pipeline, whose layers may have the same names
    "second text encoder": re.compile(r"^((lora|lycoris)_te2_|text_encoder_2\.|conditioner\.embedders\.1\.)"),
    "text encoder": re.compile(
        r"^((lora|lycoris)_te1?_|text_encoder\.|conditioner\.embedders\.0\.|cond_stage_model\.)"
    ),
    "denoiser": re.compile(r"^((lora|lycoris)_(unet|transformer)_|unet\.|(model\.)?diffusion_model\.)"),
}
_ENDS = (".weight", "", ".in_proj_weight")  # of a layer's weight; the last is that of PyTorch's MultiheadAttention
PEFT = re.compile(
    r"^base_model\.model\.|\.modules_to_save\.[^.]+(?=\.)|\.base_layer(?=\.)"
)  # around a model's own names


class Role(NamedTuple):
    """What a tensor is in an adapter."""

    layer: str
    role: str  # "" where it is in none
    adapter: str = ""  # which of several, where the name tells


def role_of(name: str) -> Role:
    """Return the layer and the role of an adapter's tensor, and which adapter; no role for other tensors."""
    old = _PROCESSOR.match(name)
    if old:
        return Role(f"{old['of']}.{'to_out.0' if old['to'] == 'to_out' else old['to']}", old["role"])
    for role, pattern in _PATTERNS.items():
        if match := pattern.match(name):
            return Role(match["layer"], role, match.groupdict().get("which") or "")
    return Role("", "")


def reason_against(name: str, foreign: str = "") -> str:
    """Return why a tensor that no update is made of is none, or "" when it belongs to no adapter by its name.

    Args:
        name: Its name.
        foreign: The kind of its file's adapter, if its configuration says that it is another than those known here.
    """
    if foreign:
        return f"an adapter of the kind {foreign}, which is not multiplied out"
    layer, role, _ = role_of(name)
    if role in ("up", "down", "mid", "diff", "mlx_a", "mlx_b") or role.startswith(("hada", "lokr")):
        return f"a part of an adapter of {layer} whose other parts are missing, or that is not the only one"
    return "an adapter of a kind that is not multiplied out" if _OTHERS.search(name) else ""


def is_bias(name: str) -> bool:
    """Return whether an adapter's tensor is added to a bias."""
    return _BIASES.search(name) is not None


class Base:
    """The names of a base's weights, by what adapters call their layers."""

    def __init__(self, names: Iterable[str]):
        self._names = dict.fromkeys(names)
        self._called: dict[str, list[str]] = {}
        self._inside: dict[str, list[str]] = {}
        for name in self._names:
            self._inside.setdefault(name.rpartition(".")[0], []).append(name)
            self._called.setdefault(_called(name.removesuffix(".weight")), []).append(name)

    def of(self, layer: str) -> list[list[str]]:
        """Return the weights that a layer's name may mean: those of the surest way to read it first."""
        own = PEFT.sub("", layer)
        exact = [name for name in (f"{layer}.weight", layer, *(f"{own}{end}" for end in _ENDS)) if name in self._names]
        tower = _tower(layer)
        called = _called(layer)
        alike = [
            [name for name in self._called.get(one, ()) if not tower or _tower(name) in ("", tower)]
            for one in (called, in_diffusers(called))
        ]
        return [exact[:1], *alike]

    def within(self, layer: str) -> list[str]:
        """Return the parameters of a module: PEFT names the module, once more for each that it changes."""
        return self._inside.get(PEFT.sub("", f"{layer}.").removesuffix("."), [])


def _called(layer: str) -> str:
    """Return a layer's name without prefixes, and with one kind of separator: kohya writes underscores for dots."""
    return _PREFIX.sub("", layer).replace(".", "_")


def _tower(name: str) -> str:
    return next((tower for tower, pattern in _TOWERS.items() if pattern.match(name)), "")


def as_in_base(new: Mapping[str, Weight], base: Mapping[str, Weight]) -> dict[str, Weight]:
    """Return the tensors of a file, those that PEFT saves whole by the names that they have in the base."""
    found: dict[str, Weight] = {}
    for name, weight in new.items():
        own = PEFT.sub("", name)
        free = name not in base and own in base and own not in new and own not in found
        found[own if free else name] = weight._replace(name=own) if free else weight
    return found
