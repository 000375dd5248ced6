"""LoRA adapters: pairs of small matrices that stand for an update `scale * B @ A`, and the norm of that product."""

import json
import re
from collections.abc import Mapping
from math import prod, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import blas, qr

from opnorm.auditing.measure import values_of
from opnorm.bounds.brackets import MATRIX_TOLERANCE
from opnorm.bounds.certificates import down, gamma, up
from opnorm.bounds.matrices import bracket_matrix
from opnorm.checkpoints.records import CheckpointError, Weight
from opnorm.checks import Array

_DOWN = re.compile(r"^(?P<stem>.+)\.(lora_A|lora_down)(\.\w+)?\.weight$")
_UP = re.compile(r"^(?P<stem>.+)\.(lora_B|lora_up)(\.\w+)?\.weight$")
_PREFIXES = ("", "base_model.model.", "base_model.")  # that PEFT puts before the names of the model it wraps
_HOUSEHOLDER = 20  # covers the small constant in the backward error of a QR factorization, gamma(c m n)


class Pair(NamedTuple):
    """The update `scale * up @ down` of the weight `stem`."""

    stem: str
    down: Weight  # A, (rank, inputs) or (rank, inputs, *spatial)
    up: Weight  # B, (outputs, rank) or (outputs, rank, 1, ...)
    scale: float
    note: str = ""


def find_pairs(weights: Mapping[str, Weight], path: str) -> list[Pair]:
    """Return the LoRA pairs of a checkpoint, with the scale that its `adapter_config.json` or `alpha` tensors give.

    Raises:
        CheckpointError: When the configuration beside the file is not JSON of the right form.
    """
    downs = {match["stem"]: weight for name, weight in weights.items() if (match := _DOWN.match(name))}
    ups = {match["stem"]: weight for name, weight in weights.items() if (match := _UP.match(name))}
    config = _adapter_config(path)
    return [
        Pair(stem, downs[stem], ups[stem], *_scale(stem, downs[stem].shape[0], weights, config))
        for stem in downs
        if stem in ups
    ]


def _adapter_config(path: str) -> Mapping[str, Any] | None:
    beside = Path(path).with_name("adapter_config.json")
    if not beside.is_file():
        return None
    try:
        config = json.loads(beside.read_text(encoding="utf-8"))
        return config if isinstance(config, dict) and isinstance(config.get("lora_alpha"), int | float) else None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"Cannot read {beside.name!r}: {error}") from error


def _scale(stem: str, rank: int, weights: Mapping[str, Weight], config: Mapping[str, Any] | None) -> tuple[float, str]:
    """Return the factor before `B @ A`, and a note where it is a guess."""
    alpha = weights.get(f"{stem}.alpha")
    if alpha is not None and prod(alpha.shape) == 1:
        return float(values_of(alpha).ravel()[0]) / rank, ""
    if config is None:
        return 1.0, "no alpha and no adapter_config.json: the scale is taken as 1"
    pattern = config.get("alpha_pattern")
    pattern = pattern if isinstance(pattern, dict) else {}
    own = [value for key, value in pattern.items() if stem.endswith(key) and isinstance(value, int | float)]
    return float(own[0] if own else config["lora_alpha"]) / (sqrt(rank) if config.get("use_rslora") else rank), ""


def base_name(pair: Pair, base: Mapping[str, Weight]) -> str | None:
    """Return the name of the weight of `base` that the pair updates, None when there is none of that shape."""
    for prefix in _PREFIXES:
        name = pair.stem.removeprefix(prefix) + ".weight"
        if name in base and base[name].shape == update_shape(pair):
            return name
    return None


def update_shape(pair: Pair) -> tuple[int, ...]:
    """Return the shape of the update: (outputs, inputs, *spatial)."""
    return (*pair.up.shape[:1], *pair.down.shape[1:])


def factors(pair: Pair) -> tuple[Array, Array]:
    """Return `scale * B`, (outputs, rank), and A, (rank, inputs), in float64.

    Raises:
        ValueError: When their shapes do not fit, or an entry is not finite.
    """
    B, A = values_of(pair.up), values_of(pair.down)
    A = A.reshape(len(A), -1)
    if B.ndim < 2 or B.size != len(B) * len(A):
        raise ValueError(f"the shapes {pair.up.shape} and {pair.down.shape} are no low-rank pair")
    B = B.reshape(len(B), -1) * pair.scale
    if not (np.isfinite(A).all() and np.isfinite(B).all()):
        raise ValueError("the pair has entries that are not finite")
    return B, A


def bracket_product(B: Array, A: Array) -> tuple[float, float]:
    """Return `(lower, upper)` around `||B A||`, proved, from a matrix of the size of the rank.

    With B = Q R and A^T = P S, both by Householder's method, `||B A|| = ||R S^T||`. The rounding errors of the
    factorizations are at most gamma(c m n) times the Frobenius norms (Higham, theorem 19.4), and widen the bracket.

    Args:
        B: (outputs, rank).
        A: (rank, inputs).
    """
    if min(len(B), A.shape[1]) <= len(A):
        return bracket_matrix(B @ A, MATRIX_TOLERANCE)
    R, S = qr(B, mode="r")[0][: len(A)], qr(A.T, mode="r")[0][: len(A)]
    lower, upper = bracket_matrix(R @ S.T, MATRIX_TOLERANCE)
    sizes = float(blas.dnrm2(B.ravel())) * float(blas.dnrm2(A.ravel()))
    error = 3 * gamma(_HOUSEHOLDER * (B.size + A.size)) * sizes
    return down(lower - error) if lower > error else 0.0, up(upper + error)
