"""opnorm: spectral normalization and operator-norm control of neural networks.

Importing this package imports no deep-learning framework; each public name is resolved on first use.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from opnorm import _registration

if TYPE_CHECKING:
    from opnorm.auditing.audits import audit
    from opnorm.auditing.report import Report
    from opnorm.bounds.brackets import Bounds, spectral_norm
    from opnorm.keras.attach import constrain
    from opnorm.keras.baking import bake
    from opnorm.keras.constraints import MaxSpectralNorm, SpectralNorm
    from opnorm.keras.geometry import KernelGeometry, kernels
    from opnorm.keras.models import project
    from opnorm.keras.monitor import SpectralMonitor
    from opnorm.keras.projections import Orthogonal, SpectralClip
    from opnorm.keras.regularizers import SpectralRegularizer
    from opnorm.keras.wrappers import SpectralNormalization
    from opnorm.networks.bound import NetworkBound
    from opnorm.networks.lipschitz import lipschitz_bound
    from opnorm.operators.convolution import Convolution
    from opnorm.operators.linear import BlockDiagonal, Diagonal, linear_operator, linear_operators

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
    "BlockDiagonal": "operators.linear",
    "Bounds": "bounds.brackets",
    "Convolution": "operators.convolution",
    "Diagonal": "operators.linear",
    "KernelGeometry": "keras.geometry",
    "MaxSpectralNorm": "keras.constraints",
    "NetworkBound": "networks.bound",
    "Orthogonal": "keras.projections",
    "Report": "auditing.report",
    "SpectralClip": "keras.projections",
    "SpectralMonitor": "keras.monitor",
    "SpectralNorm": "keras.constraints",
    "SpectralNormalization": "keras.wrappers",
    "SpectralRegularizer": "keras.regularizers",
    "audit": "auditing.audits",
    "bake": "keras.baking",
    "constrain": "keras.attach",
    "kernels": "keras.geometry",
    "linear_operator": "operators.linear",
    "linear_operators": "operators.linear",
    "lipschitz_bound": "networks.lipschitz",
    "project": "keras.models",
    "spectral_norm": "bounds.brackets",
}

_WITHOUT_KERAS = {"auditing", "bounds", "networks", "operators"}


def __getattr__(name: str) -> object:
    """Return the public name `name`, importing its home module now."""
    if name == "tf1":  # a module, and not in `__all__`: it needs TensorFlow
        return import_module("opnorm.tf1")
    if name not in _HOMES:
        raise AttributeError(f"module 'opnorm' has no attribute {name!r}")
    if _HOMES[name].partition(".")[0] not in _WITHOUT_KERAS:
        import_module("keras")  # first: what it registers imports modules that a half-imported one would be missing in
    return getattr(import_module(f"opnorm.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*globals(), "tf1"])


_registration.register_with_keras()
