"""opnorm: spectral normalization and operator-norm control of neural networks.

Importing this package imports no deep-learning framework; each public name is resolved on first use.
"""

from importlib import import_module
from importlib.metadata import version

from opnorm import _registration

__version__ = version("opnorm")

_HOMES = {
    "SpectralNorm": "constraints",
    "MaxSpectralNorm": "constraints",
    "project": "models",
    "tf1": None,
}

__all__ = ["MaxSpectralNorm", "SpectralNorm", "project", "tf1"]  # noqa: F822 - resolved by __getattr__


def __getattr__(name: str) -> object:
    """Return the public name `name`, importing its home module now."""
    if name not in _HOMES:
        raise AttributeError(f"module 'opnorm' has no attribute {name!r}")
    home = _HOMES[name]
    if home is None:
        return import_module(f"opnorm.{name}")
    value = getattr(import_module(f"opnorm.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*globals(), *__all__])


_registration.register_with_keras()
