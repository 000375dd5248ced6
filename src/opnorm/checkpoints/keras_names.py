"""The names of weights in `.h5` files, which Keras 1 began with the layer's, as the roles that Keras 2 and 3 have."""

from collections.abc import Iterable, Sequence

from opnorm.checkpoints.keras_layers import Layer

_ROLES = {
    "W": "kernel",
    "b": "bias",
    "U": "recurrent_kernel",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",  # of its name Keras 1 says that it "actually holds the running variance"
    "alphas": "alpha",
}


def by_role(names: Iterable[str], owner: Layer | None, path: Sequence[str]) -> dict[str, str]:
    """Return the names of a layer's weights by role; one that tells no role is its own.

    Args:
        names: The names in the file: "kernel", "dense_1_W".
        owner: The layer they belong to, as far as anything tells.
        path: The names of the layers above, and of the group they stand in.
    """
    names = list(names)
    found: dict[str, str] = {}
    for name in names:
        role = _role(name, owner, path) if owner else name
        found[name if role in found or role in names else role] = name
    return found


def _role(name: str, owner: Layer, path: Sequence[str]) -> str:
    starts = [f"{start}_" for start in (owner.name, *path[::-1]) if start and name.startswith(f"{start}_")]
    short = name.removeprefix(starts[0]) if starts else name
    role = _ROLES.get(short, short) if starts else name
    return "embeddings" if role == "kernel" and owner.kind == "Embedding" else role
