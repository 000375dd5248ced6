"""opnorm: spectral normalization and operator-norm control of neural networks.

Importing this package imports no deep-learning framework; each public name is resolved on first use.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from opnorm import _registration

if TYPE_CHECKING:
    from opnorm.attach import constrain
    from opnorm.auditing import audit
    from opnorm.baking import bake
    from opnorm.bounds import Bounds, spectral_norm
    from opnorm.callbacks import SpectralMonitor
    from opnorm.constraints import MaxSpectralNorm, SpectralNorm
    from opnorm.convolution import Convolution
    from opnorm.geometry import KernelGeometry, kernels
    from opnorm.lipschitz import lipschitz_bound
    from opnorm.models import project
    from opnorm.network import NetworkBound
    from opnorm.operators import BlockDiagonal, Diagonal, linear_operator, linear_operators
    from opnorm.projections import Orthogonal, SpectralClip
    from opnorm.regularizers import SpectralRegularizer
    from opnorm.report import Report
    from opnorm.wrappers import SpectralNormalization

__version__ = version("opnorm")
__all__ = [
    "BlockDiagonal",
    "Bounds",
    "Convolution",
    "Diagonal",
    "KernelGeometry",
    "MaxSpectralNorm",
    "NetworkBound",
    "Orthogonal",
    "Report",
    "SpectralClip",
    "SpectralMonitor",
    "SpectralNorm",
    "SpectralNormalization",
    "SpectralRegularizer",
    "audit",
    "bake",
    "constrain",
    "kernels",
    "linear_operator",
    "linear_operators",
    "lipschitz_bound",
    "project",
    "spectral_norm",
]

_HOMES = {
    "BlockDiagonal": "operators",
    "Bounds": "bounds",
    "Convolution": "convolution",
    "Diagonal": "operators",
    "KernelGeometry": "geometry",
    "MaxSpectralNorm": "constraints",
    "NetworkBound": "network",
    "Orthogonal": "projections",
    "Report": "report",
    "SpectralClip": "projections",
    "SpectralMonitor": "callbacks",
    "SpectralNorm": "constraints",
    "SpectralNormalization": "wrappers",
    "SpectralRegularizer": "regularizers",
    "audit": "auditing",
    "bake": "baking",
    "constrain": "attach",
    "kernels": "geometry",
    "linear_operator": "operators",
    "linear_operators": "operators",
    "lipschitz_bound": "lipschitz",
    "project": "models",
    "spectral_norm": "bounds",
}

_WITHOUT_KERAS = {"auditing", "bounds", "convolution", "lipschitz", "network", "operators", "report"}


def __getattr__(name: str) -> object:
    """Return the public name `name`, importing its home module now."""
    if name == "tf1":  # a module, and not in `__all__`: it needs TensorFlow
        return import_module("opnorm.tf1")
    if name not in _HOMES:
        raise AttributeError(f"module 'opnorm' has no attribute {name!r}")
    if _HOMES[name] not in _WITHOUT_KERAS:
        import_module("keras")  # first: what it registers imports modules that a half-imported one would be missing in
    return getattr(import_module(f"opnorm.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*globals(), "tf1"])


_registration.register_with_keras()
