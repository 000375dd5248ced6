"""Adapters found in a file by the names of their tensors: LoRA, LoCon, LoHa, LoKr, each with or without DoRA."""

import json
import re
from collections.abc import Mapping
from math import isfinite, nan, prod, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opnorm.auditing.forms import FORMS, Form, pair
from opnorm.auditing.lora import Product, directed
from opnorm.auditing.measure import values_of
from opnorm.checkpoints.config import beside
from opnorm.checkpoints.records import CheckpointError, Weight
from opnorm.checks import Array

_WHICH = r"(\.(?P<which>(?!weight$)\w+))?"  # PEFT's name of one of several adapters
_KRONECKER = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
_NAMES = {  # what follows the name of the layer, by role
    "down": rf"(lora_A|lora_down|lora\.down|lora_linear_layer\.down){_WHICH}\.weight",
    "up": rf"(lora_B|lora_up|lora\.up|lora_linear_layer\.up){_WHICH}\.weight",
    "mid": rf"lora_mid{_WHICH}\.weight",
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
_OTHERS = re.compile(r"\.(b?oft_\w+|vera_\w+|ia3_\w+|lora_\w+|hada_\w+|lokr_\w+|dora_scale|glora_\w+|hra_\w+)(\.|$)")
_PREFIX = re.compile(  # that adapters put before the names of the model's weights
    r"^(base_model\.model\.|base_model\.|lora_(unet|te\d?|transformer)_|unet\.|text_encoder(_2)?\.|transformer\.)+"
)
_PEFT = re.compile(
    r"^base_model\.model\.|\.modules_to_save\.[^.]+(?=\.)|\.base_layer(?=\.)"
)  # around a model's own names
_LARGEST = 1e300
_USES = {"LoRA": re.compile("up|down|mid"), "LoHa": re.compile("hada_.*"), "LoKr": re.compile("lokr_.*")}
_COMMON = {"alpha", "magnitude", "dora_scale"}  # roles beside every form
_PLAIN = re.compile(r"[\w.-]{1,300}")  # a pattern of a configuration that is just a name
_SIMPLE = re.compile(  # or takes no long time to search: two groups, or one and a repetition of one character
    r"(?!.*\)[*+?{])(?!.*[(].*[(].*[*+?])(?!(.*[(]){3})[^*+?{}]*[*+?]?[^*+?{}]*"
)
_PATTERNED = 300  # patterns, and characters of names that they are searched in
_SEARCHED = 100  # characters of a pattern that is more than a name, and of a name that it is searched in
_DIRECTED = {"magnitude", "dora_scale"}


class Update(NamedTuple):
    """What an adapter adds to the weight of a layer."""

    layer: str
    form: Form
    parts: Mapping[str, Weight]  # by role
    scale: float
    note: str = ""
    trouble: str = ""  # why it is not known what is added
    turned: bool = False  # the weight is stored as (in, out), the update is made as (out, in)

    @property
    def kind(self) -> str:
        """Return what people call it."""
        return "DoRA" if _DIRECTED & set(self.parts) else "LoCon" if "mid" in self.parts else self.form.kind

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the weight's shape as far as the adapter tells it: the taps may be in the inputs."""
        try:
            shape = self.form.shape({role: part.shape for role, part in self.parts.items()})
        except LookupError:  # a factor with too few axes
            return ()
        return shape[::-1] if self.turned else shape

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether it is an update of a weight of that shape."""
        own = self.shape
        if not own or not shape:
            return False
        flat = 2 in (len(own), len(shape)) and [own[0], prod(own[1:])] == [shape[0], prod(shape[1:])]
        return own == shape or flat

    def factors(self) -> tuple[Array, Array] | None:
        """Return the scaled B and A of a plain pair of matrices, whose norm needs no product; None of other updates."""
        if self.kind != "LoRA" or len(self.shape) != 2:
            return None
        B, A = pair(self._values())
        return B * self.scale, A

    def product(self) -> Product:
        """Return the update as (outputs, inputs * taps).

        Raises:
            ValueError: When the shapes of its factors do not fit, or an entry is not finite.
        """
        return self.form.product(self._values()).times(self.scale)

    def merged(self, weight: Array) -> Product:
        """Return what the tuned layer applies, in the shape of `weight`."""
        stored = weight.T if self.turned else weight
        found = self.product().plus(stored.reshape(len(stored), -1)).reshape(*stored.shape)
        return self._back(self._directed(found) if self.kind == "DoRA" else found)

    def added(self, shape: tuple[int, ...]) -> Product:
        """Return the update in the shape of its weight."""
        return self._back(self.product().reshape(*(shape[::-1] if self.turned else shape)))

    def _back(self, product: Product) -> Product:
        return Product(product.values.T, product.error) if self.turned else product

    def _values(self) -> dict[str, Array]:
        found = {role: values_of(part) for role, part in self.parts.items()}
        if not isfinite(self.scale) and self.note:
            raise ValueError(self.note)
        if not (isfinite(self.scale) and all(np.isfinite(part).all() for part in found.values())):
            raise ValueError(f"the {self.kind} has entries, or a scale, that are not finite")
        return found

    def _directed(self, weight: Product) -> Product:
        """Return the weight with the norms that are stored: its outputs', or in some files its inputs'."""
        part = self.parts.get("magnitude") or self.parts["dora_scale"]
        outputs = weight.values.shape[0]
        if "magnitude" in self.parts or len(part.shape) < 2 or part.shape[0] == outputs:
            return directed(weight.reshape(outputs, -1), values_of(part)).reshape(*weight.values.shape)
        turned = np.swapaxes(weight.values, 0, 1)
        rows = directed(Product(turned.reshape(len(turned), -1), weight.error), values_of(part))
        return Product(np.swapaxes(rows.values.reshape(turned.shape), 0, 1), rows.error)


def find_updates(weights: Mapping[str, Weight], path: str) -> list[Update]:
    """Return what the adapters of a checkpoint add, scaled as its `adapter_config.json` or `alpha` tensors say.

    Raises:
        CheckpointError: When the configuration beside the file is not JSON of the right form.
    """
    layers: dict[str, dict[str, dict[str, Weight]]] = {}
    for name, weight in weights.items():
        layer, role, which = _parsed(name)
        if role:
            layers.setdefault(layer, {}).setdefault(which, {})[role] = weight
    config = _adapter_config(path) if layers else None
    found = (_update(layer, parts, config) for layer, several in layers.items() for parts in _together(several))
    return [update for update in found if update is not None]


def _together(several: Mapping[str, Mapping[str, Weight]]) -> list[Mapping[str, Weight]]:
    """Return the tensors of a layer's adapters: of one, however they are named, or of each where there are several."""
    roles = [role for parts in several.values() for role in parts]
    joined = {role: part for parts in several.values() for role, part in parts.items()}
    return [joined] if len(joined) == len(roles) else list(several.values())


def reason_against(name: str) -> str:
    """Return why a tensor that no update is made of is none, or "" when it belongs to no adapter by its name."""
    layer, role, _ = _parsed(name)
    if role in ("up", "down", "mid", "diff") or role.startswith(("hada", "lokr")):
        return f"a part of an adapter of {layer} whose other parts are missing, or that is not the only one"
    return "an adapter of a kind that is not multiplied out" if _OTHERS.search(name) else ""


def _parsed(name: str) -> tuple[str, str, str]:
    """Return the layer and the role of an adapter's tensor, and which adapter; no role for other tensors."""
    old = _PROCESSOR.match(name)
    if old:
        return f"{old['of']}.{'to_out.0' if old['to'] == 'to_out' else old['to']}", old["role"], ""
    for role, pattern in _PATTERNS.items():
        if match := pattern.match(name):
            return match["layer"], role, match.groupdict().get("which") or ""
    return "", "", ""


def _update(layer: str, parts: Mapping[str, Weight], config: Mapping[str, Any] | None) -> Update | None:
    table = {"table_up", "table_down"} <= set(parts) and not _DIRECTED & set(parts)
    if table:
        parts = {"up": parts["table_up"], "down": parts["table_down"]}
    shapes = {role: part.shape for role, part in parts.items()}
    forms = [form for form in FORMS if form.needs(shapes)]
    if not forms:
        return None
    kinds = ", ".join(form.kind for form in forms)
    trouble = f"updates of several kinds in one file ({kinds}): nothing says which are applied" if forms[1:] else ""
    used = {role: part for role, part in parts.items() if any(_uses(form, role) for form in forms)}
    turned = table or bool(config and config.get("fan_in_fan_out"))
    return Update(layer, forms[0], used, *_scale(layer, forms[0], used, config), trouble, turned)


def _uses(form: Form, role: str) -> bool:
    pattern = _USES.get(form.kind)
    return role in _COMMON or (bool(pattern.fullmatch(role)) if pattern else role == "diff")


def _adapter_config(path: str) -> Mapping[str, Any] | None:
    file = beside(Path(path)) / "adapter_config.json" if path else None
    if file is None or not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"Cannot read {str(file)!r}: {error}") from error
    return config if isinstance(config, dict) else {}


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST
    )  # JSON's integers may be larger than floats


def _alpha(config: Mapping[str, Any]) -> Any:
    return config.get("lora_alpha", config.get("alpha"))


def _scale(layer: str, form: Form, parts: Mapping[str, Weight], config: Mapping[str, Any] | None) -> tuple[float, str]:
    """Return the factor before the product, NaN where it cannot be read, and a note where it is a guess."""
    ranks = [parts[role].shape[0] for role in form.ranked if role in parts and parts[role].shape]
    if form.kind == "whole" or (not ranks and config is None):
        return 1.0, ""  # of two whole factors LyCORIS stores an alpha that stands for nothing
    alpha = parts.get("alpha")
    if alpha is not None and prod(alpha.shape) == 1 and ranks:
        try:
            return float(values_of(alpha).ravel()[0]) / max(1, ranks[0]), ""
        except (ValueError, OSError, MemoryError) as error:
            return nan, f"the scale of {layer} cannot be read: {error}"
    if config is None:
        return 1.0, "no alpha and no adapter_config.json: the scale is taken as 1"
    try:
        found = _configured(layer, config)
    except ValueError as error:
        return nan, str(error)
    if found is None:
        return 1.0, "its adapter_config.json has no lora_alpha: the scale is taken as 1"
    rank = max(1, ranks[0] if ranks else _integer(config.get("r")))
    return found / (sqrt(rank) if config.get("use_rslora") else rank), ""


def _configured(layer: str, config: Mapping[str, Any]) -> float | None:
    """Return the alpha of a layer: of the first pattern that matches its name as PEFT does it, or that of all.

    Raises:
        ValueError: When it is no number, or a pattern would take long to search for.
    """
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or len(patterns) > _PATTERNED or len(layer) > _PATTERNED:
        raise ValueError("the alpha_pattern of its adapter_config.json is no small table")
    name = _PEFT.sub("", layer)
    alpha = next((value for key, value in patterns.items() if _matches(key, name)), _alpha(config))
    if alpha is None:
        return None
    if _is_number(alpha):
        return float(alpha)
    raise ValueError(f"its adapter_config.json gives alpha as {str(alpha)[:40]!r}, which is no number in range")


def _matches(key: str, name: str) -> bool:
    simple = max(len(key), len(name)) <= _SEARCHED and _SIMPLE.fullmatch(key)
    if not (simple or _PLAIN.fullmatch(key)):
        raise ValueError(f"its adapter_config.json has the pattern {key[:40]!r}, which is not searched for here")
    try:
        return bool(re.match(rf"(.*\.)?({key})$", name))
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"its adapter_config.json has the pattern {key[:40]!r}, which is none") from error


def _integer(value: Any) -> int:
    return value if isinstance(value, int) else 1


def by_layer(base: Mapping[str, Weight]) -> dict[str, list[str]]:
    """Return the names of the weights of a model by what adapters call their layers."""
    found: dict[str, list[str]] = {}
    for name in base:
        found.setdefault(called(name.removesuffix(".weight")), []).append(name)
    return found


def called(layer: str) -> str:
    """Return a layer's name without prefixes, and with one kind of separator: kohya writes underscores for dots."""
    return _PREFIX.sub("", layer).replace(".", "_")


def as_in_base(new: Mapping[str, Weight], base: Mapping[str, Weight]) -> dict[str, Weight]:
    """Return the tensors of a file, those that PEFT saves whole by the names that they have in the base."""
    found: dict[str, Weight] = {}
    for name, weight in new.items():
        own = _PEFT.sub("", name)
        free = name not in base and own in base and own not in new and own not in found
        found[own if free else name] = weight._replace(name=own) if free else weight
    return found
