"""The forms of adapters: which tensors make one, what they multiply out to, its shape and its rank."""

from collections.abc import Callable, Mapping
from math import prod
from typing import NamedTuple

from opnorm.auditing.lora import Product
from opnorm.checks import Array

Parts = Mapping[str, Array]  # an adapter's tensors by role, in float64
Shapes = Mapping[str, tuple[int, ...]]  # theirs
Shape = tuple[int, ...]


class Form(NamedTuple):
    """One way to write an update in a few small tensors."""

    kind: str
    needs: Callable[[Shapes], bool]  # whether these tensors are one
    product: Callable[[Parts], Product]  # the update, (outputs, inputs * taps)
    shape: Callable[[Shapes], Shape]  # (outputs, inputs, *spatial); the taps may be in the inputs
    ranked: tuple[str, ...]  # the tensors that have an axis of the rank's length, the first that is there
    rank_axis: int = 0  # which


def _low_rank(parts: Parts) -> Product:
    if "mid" in parts:
        return _tucker(parts["mid"], _flat(parts["up"]).values, _flat(parts["down"]).values)
    B, A = pair(parts)
    return Product(B) @ Product(A)


def pair(parts: Parts) -> tuple[Array, Array]:
    """Return B, (outputs, rank), and A, (rank, inputs * taps)."""
    B, A = _flat(parts["up"]).values, _flat(parts["down"]).values
    if B.shape[1] != len(A):
        raise ValueError(f"the shapes {parts['up'].shape} and {parts['down'].shape} are no low-rank pair")
    return B, A


def _low_rank_shape(shapes: Shapes) -> Shape:
    return (shapes["up"][0], shapes["down"][1], *shapes.get("mid", shapes["down"])[2:])


def _by_expert(parts: Parts) -> Product:
    """Return the product of each expert, (experts, outputs * inputs)."""
    B, A = parts["mlx_b"], parts["mlx_a"]
    if B.ndim != 3 or A.ndim != 3 or len(B) != len(A) or B.shape[2] != A.shape[1]:
        raise ValueError(f"the shapes {B.shape} and {A.shape} are no low-rank pairs")
    return (Product(B) @ Product(A)).reshape(len(B), -1)


def _hadamard(parts: Parts) -> Product:
    first, second = (_factored(parts, f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}") for i in (1, 2))
    if first.values.shape != second.values.shape:
        raise ValueError(f"factors of the shapes {first.values.shape} and {second.values.shape} have no product")
    return first * second


def _hadamard_shape(shapes: Shapes) -> Shape:
    return _factored_shape(shapes, "hada_w1_a", "hada_w1_b", "hada_t1")


def _kronecker(parts: Parts) -> Product:
    """Return kron(w1, w2), of which each may itself be a product."""
    first, second = (
        _flat(parts[f"lokr_w{i}"])
        if f"lokr_w{i}" in parts
        else _factored(parts, f"lokr_w{i}_a", f"lokr_w{i}_b", f"lokr_t{i}")
        for i in (1, 2)
    )
    return first.kron(second)


def _kronecker_shape(shapes: Shapes) -> Shape:
    first, second = (
        shapes.get(f"lokr_w{i}") or _factored_shape(shapes, f"lokr_w{i}_a", f"lokr_w{i}_b", f"lokr_t{i}")
        for i in (1, 2)
    )
    return (first[0] * second[0], first[1] * second[1], *second[2:])


def _is_kronecker(shapes: Shapes) -> bool:
    return all(f"lokr_w{i}" in shapes or {f"lokr_w{i}_a", f"lokr_w{i}_b"} <= set(shapes) for i in (1, 2))


def _factored(parts: Parts, left: str, right: str, core: str) -> Product:
    """Return left @ right, or with a core, beside which both stand as (rank, ...), the core between them."""
    a, b = parts[left], parts[right]
    if core in parts:
        return _tucker(parts[core], a.T, b)
    if a.ndim != 2 or a.shape[1] != len(b):
        raise ValueError(f"the shapes {a.shape} and {b.shape} are no low-rank pair")
    return Product(a) @ _flat(b)


def _factored_shape(shapes: Shapes, left: str, right: str, core: str) -> Shape:
    if core in shapes:
        return (shapes[left][1], shapes[right][1], *shapes[core][2:])
    return (shapes[left][0], *shapes[right][1:])


def _tucker(core: Array, left: Array, right: Array) -> Product:
    """Return sum over p, q of left[:, p] core[p, q, *spatial] right[q, :], (outputs, inputs * taps)."""
    if left.ndim != 2 or right.ndim != 2 or core.shape[:2] != (left.shape[1], len(right)):
        raise ValueError(f"a core of the shape {core.shape} does not join {left.shape} and {right.shape}")
    (p, q), taps = core.shape[:2], prod(core.shape[2:])
    inner = Product(left) @ Product(core.reshape(p, -1))  # (outputs, q * taps)
    turned = Product(inner.values.reshape(len(left), q, taps).transpose(0, 2, 1).reshape(-1, q), inner.error)
    whole = turned @ Product(right)  # (outputs * taps, inputs)
    values = whole.values.reshape(len(left), taps, -1).transpose(0, 2, 1)
    return Product(values.reshape(len(left), -1), whole.error)


def _flat(array: Array) -> Product:
    return Product(array.reshape(len(array), -1))


BY_EXPERT = Form(
    "LoRA of experts",
    lambda s: {"mlx_a", "mlx_b"} <= set(s),
    _by_expert,
    lambda s: (s["mlx_b"][0], s["mlx_b"][1], s["mlx_a"][2]),
    ("mlx_a",),
    rank_axis=1,
)
FORMS = (
    Form("LoRA", lambda s: {"up", "down"} <= set(s), _low_rank, _low_rank_shape, ("down",)),
    BY_EXPERT,
    Form(
        "LoHa",
        lambda s: {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"} <= set(s),
        _hadamard,
        _hadamard_shape,
        ("hada_w1_b",),
    ),
    Form("LoKr", _is_kronecker, _kronecker, _kronecker_shape, ("lokr_w1_b", "lokr_w2_b")),
    Form("whole", lambda s: "diff" in s, lambda parts: _flat(parts["diff"]), lambda s: s["diff"], ()),
)
