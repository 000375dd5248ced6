"""opnorm: spectral normalization and operator-norm control of neural networks.

Importing this package imports no deep-learning framework; each public name is resolved on first use.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from opnorm import _registration

if TYPE_CHECKING:
    from opnorm.constraints import MaxSpectralNorm, SpectralNorm
    from opnorm.models import project

__version__ = version("opnorm")
__all__ = ["MaxSpectralNorm", "SpectralNorm", "project"]

_HOMES = {
    "MaxSpectralNorm": "constraints",
    "SpectralNorm": "constraints",
    "project": "models",
}


def __getattr__(name: str) -> object:
    """Return the public name `name`, importing its home module now."""
    if name == "tf1":  # a module, and not in `__all__`: it needs TensorFlow
        return import_module("opnorm.tf1")
    if name not in _HOMES:
        raise AttributeError(f"module 'opnorm' has no attribute {name!r}")
    return getattr(import_module(f"opnorm.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*globals(), "tf1"])


_registration.register_with_keras()
