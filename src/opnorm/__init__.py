"""opnorm: spectral normalization and operator-norm control of neural networks.

Training with Keras 3: the constraints `SpectralNorm`, `MaxSpectralNorm`, `SpectralClip`, `Orthogonal`; the wrapper of
layers `SpectralNormalization`; the penalty `SpectralRegularizer`; the callback `SpectralMonitor`; for whole models
`constrain`, `project`, `bake`, and `kernels`, which says what a layer makes of its weights.

Plain PyTorch: `opnorm.torch`. Plain JAX, with optax: `opnorm.jax`. TF1-style code, graph mode, tf_keras: `opnorm.tf1`.

Truth, in float64 and without a framework: `spectral_norm` returns `Bounds`; `linear_operator`, `linear_operators`,
`Convolution`, `BlockDiagonal` and `Diagonal` are the operators behind it; `audit` and `lipschitz_bound` take models and
files of weights, `diff` two of them, and return a `Report`, a `NetworkBound` and a `DiffReport`; `certify` says how far
an input may move before a model's answer can change.

Importing this package imports no deep-learning framework; each public name is resolved on first use.
"""

import os
import sys
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from threading import RLock
from types import ModuleType
from typing import TYPE_CHECKING, Any

from opnorm import _registration

if TYPE_CHECKING:
    from opnorm import jax as jax
    from opnorm import tf1 as tf1
    from opnorm import torch as torch
    from opnorm.auditing.audits import audit
    from opnorm.auditing.comparison import DiffReport
    from opnorm.auditing.differences import diff
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
    from opnorm.networks.certificate import Certificate
    from opnorm.networks.certify import certify
    from opnorm.networks.lipschitz import lipschitz_bound
    from opnorm.operators.convolution import Convolution
    from opnorm.operators.linear import BlockDiagonal, Diagonal, linear_operator, linear_operators

__version__ = version("opnorm")
__all__ = [
    "BlockDiagonal",
    "Bounds",
    "Certificate",
    "Convolution",
    "Diagonal",
    "DiffReport",
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
    "certify",
    "constrain",
    "diff",
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
    "Certificate": "networks.certificate",
    "Convolution": "operators.convolution",
    "Diagonal": "operators.linear",
    "DiffReport": "auditing.comparison",
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
    "certify": "networks.certify",
    "constrain": "keras.attach",
    "diff": "auditing.differences",
    "kernels": "keras.geometry",
    "linear_operator": "operators.linear",
    "linear_operators": "operators.linear",
    "lipschitz_bound": "networks.lipschitz",
    "project": "keras.models",
    "spectral_norm": "bounds.brackets",
}

_WITHOUT_KERAS = {"auditing", "bounds", "networks", "operators"}

# Modules for one framework each, not in `__all__`: each needs a framework that `import *` must not ask for.
_SUBMODULES = tuple(name for name in ("jax", "tf1", "torch") if find_spec(f"opnorm.{name}"))


# A child that is forked while another thread imports would wait for ever for a half-imported module.
_importing = RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_importing.acquire, after_in_parent=_importing.release, after_in_child=_importing.release
    )


class _Missing(ModuleType):
    """A submodule whose import failed: every use of it imports it again, and so raises the same `ImportError`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # `hasattr`, `help` and `inspect` ask for these, and are told that there are none
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(import_module(self.__name__), name)


# What the lack of a module means to one who asked for a name of Keras's.
_HINTS = {
    "keras": "This name is for Keras 3; plain PyTorch has it in `opnorm.torch`, plain JAX in `opnorm.jax`.",
    "tensorflow": "Keras takes TensorFlow unless KERAS_BACKEND, set before Keras is imported, says jax or torch.",
}


def _hint(name: str, error: ImportError) -> str:
    told = None if name in _SUBMODULES else _HINTS.get((error.name or "").partition(".")[0])
    return f". {told}" if told else ""


def _imported(name: str) -> object:
    if name in _SUBMODULES:
        return import_module(f"opnorm.{name}")
    if _HOMES[name].partition(".")[0] not in _WITHOUT_KERAS:
        import_module("keras")  # first: what it registers imports modules that a half-imported one would be missing in
        return getattr(import_module(f"opnorm.{_HOMES[name]}"), name)
    with _importing:
        return getattr(import_module(f"opnorm.{_HOMES[name]}"), name)


if not TYPE_CHECKING:  # hidden from type checkers: to them a module with `__getattr__` has every name there is

    def __getattr__(name: str) -> object:
        """Return the public name or submodule `name`, importing it now; `hasattr` gets no other error of it."""
        if name not in _HOMES and name not in _SUBMODULES:
            raise AttributeError(f"module 'opnorm' has no attribute {name!r}")
        try:
            return _imported(name)
        except ImportError as error:
            # `from opnorm import name` asks here first: of any other error it would say no more than "cannot import".
            if sys._getframe(1).f_code.co_name == "_handle_fromlist":
                if hint := _hint(name, error):
                    error.add_note(hint.removeprefix(". "))
                raise
            if name in _SUBMODULES:
                return _Missing(f"opnorm.{name}", str(error))
            raise AttributeError(f"`opnorm.{name}` cannot be imported: {error}{_hint(name, error)}") from error


def __dir__() -> list[str]:
    """List the public names and submodules."""
    return sorted({*__all__, *_SUBMODULES, *(name for name in globals() if name.startswith("__"))})


_registration.register_with_keras()
