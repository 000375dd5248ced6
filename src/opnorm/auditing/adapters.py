"""Adapters found in a file by the names of their tensors: LoRA, LoCon, LoHa, LoKr, each with or without DoRA."""

import re
from collections.abc import Mapping
from math import isfinite, prod
from typing import NamedTuple

import numpy as np

from opnorm.auditing.adapter_config import Config, Configs, is_turned, scale_of, trouble_of
from opnorm.auditing.adapter_names import role_of
from opnorm.auditing.forms import FORMS, Form, pair
from opnorm.auditing.lora import Product, directed
from opnorm.auditing.measure import values_of
from opnorm.checkpoints.records import Weight
from opnorm.checks import Array

Parts = Mapping[str, Weight]  # by role

_USES = {
    "LoRA": re.compile("up|down|mid"),
    "LoRA of experts": re.compile("mlx_[ab]"),
    "LoHa": re.compile("hada_.*"),
    "LoKr": re.compile("lokr_.*"),
}
_COMMON = {"alpha", "magnitude", "dora_scale"}  # roles beside every form
_DIRECTED = {"magnitude", "dora_scale"}
_OUTPUT = re.compile(r"\.base_layer\.out_proj$")  # of PyTorch's MultiheadAttention, in PEFT's files
_ADDED_TWICE = "peft 0.21 adds the update of this output projection twice, where it is defined to be added once"
_TABLE = re.compile(r"emb|(^|[._])(wte|wpe)$")  # layers of MLX whose weight is (tokens, features)


class Update(NamedTuple):
    """What an adapter adds to the weight of a layer."""

    layer: str
    form: Form
    parts: Parts
    scale: float
    note: str = ""
    trouble: str = ""  # why it is not known what is added
    turned: bool = False  # the weight is stored as (in, out), the update is made as (out, in)
    adapter: str = ""  # its name, where the file gives one
    config: Config | None = None  # its adapter_config.json

    @property
    def kind(self) -> str:
        """Return what people call it."""
        return "DoRA" if _DIRECTED & set(self.parts) else "LoCon" if "mid" in self.parts else self.form.kind

    @property
    def rank(self) -> int | None:
        """Return the rank of what is added, at most; None where it may have any: DoRA scales the whole weight."""
        known = self.kind in ("LoRA", "LoCon") and len(self.parts["up"].shape) > 1
        return self.parts["up"].shape[1] if known else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the weight's shape as far as the adapter tells it: the taps may be in the inputs."""
        try:
            shape = self.form.shape({role: part.shape for role, part in self.parts.items()})
        except LookupError:  # a factor with too few axes
            return ()
        return shape[::-1] if self.turned else shape

    def fitted(self, shape: tuple[int, ...]) -> "Update | None":
        """Return it as the update of a weight of that shape, None where it is none.

        Of the two ways to store a matrix the configuration's is taken where both fit.
        """
        if self._fits(shape):
            return self
        other = self._replace(turned=not self.turned)
        plain = self.form.kind == "LoRA" and len(self.shape) == 2
        return other if plain and other.shape == shape else None

    def _fits(self, shape: tuple[int, ...]) -> bool:
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

    def merged(self, weight: Product) -> Product:
        """Return what the tuned layer applies, in the shape of `weight`."""
        stored = weight.values.T if self.turned else weight.values
        found = self.product().plus(stored.reshape(len(stored), -1), weight.error).reshape(*stored.shape)
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
        CheckpointError: When the configuration in the folder, or beside the file, is not JSON of the right form.
    """
    layers: dict[str, dict[str, dict[str, Weight]]] = {}
    for name, weight in weights.items():
        layer, role, which = role_of(name)
        if role:
            layers.setdefault(layer, {}).setdefault(which, {})[role] = weight
    configs = Configs(path if layers else "")
    found = (
        _update(layer, parts, configs.of(layer, which), which)
        for layer, several in layers.items()
        for which, parts in _together(several).items()
    )
    return [update for update in found if update is not None]


def _together(several: Mapping[str, Parts]) -> Mapping[str, Parts]:
    """Return the tensors of a layer's adapters by their names: of one, however they are named, or of each."""
    roles = [role for parts in several.values() for role in parts]
    joined = {role: part for parts in several.values() for role, part in parts.items()}
    names = [which for which in several if which]
    return {names[0] if names else "": joined} if len(joined) == len(roles) and len(names) < 2 else several


def _update(layer: str, parts: Parts, config: Config | None, adapter: str) -> Update | None:
    turned = "table_up" in parts
    parts = _renamed(layer, parts)
    shapes = {role: part.shape for role, part in parts.items()}
    forms = [form for form in FORMS if form.needs(shapes)]
    if not forms:
        return None
    kinds = ", ".join(form.kind for form in forms)
    trouble = f"updates of several kinds in one file ({kinds}): nothing says which are applied" if forms[1:] else ""
    used = {role: part for role, part in parts.items() if any(_uses(form, role) for form in forms)}
    scale, note = scale_of(layer, forms[0], used, config)
    trouble = trouble or (_ADDED_TWICE if _OUTPUT.search(layer) else "")
    return Update(
        layer, forms[0], used, scale, note, trouble or trouble_of(config), turned or is_turned(config), adapter, config
    )


def _renamed(layer: str, parts: Parts) -> Parts:
    """Return the parts by the roles of a convolution's or a matrix's pair: an embedding's, and MLX's, are others'."""
    if {"table_up", "table_down"} <= set(parts):
        return {"up": parts["table_up"], "down": parts["table_down"], **_chosen(parts, "magnitude", "magnitude")}
    if {"mlx_a", "mlx_b"} <= set(parts):
        magnitude = _chosen(parts, "mlx_m", "magnitude")
        a, b = parts["mlx_a"], parts["mlx_b"]
        if len(a.shape) != 2:  # (experts, rank, inputs)
            return {"mlx_a": a, "mlx_b": b, **magnitude}
        up, down = (a, b) if _TABLE.search(layer) else (_transposed(b), _transposed(a))
        return {"up": up, "down": down, **magnitude}
    return parts


def _chosen(parts: Parts, role: str, as_role: str) -> Parts:
    return {as_role: parts[role]} if role in parts else {}


def _transposed(weight: Weight) -> Weight:
    return weight._replace(shape=weight.shape[::-1], read=lambda: weight.read().T)


def _uses(form: Form, role: str) -> bool:
    pattern = _USES.get(form.kind)
    return role in _COMMON or (bool(pattern.fullmatch(role)) if pattern else role == "diff")
