"""The front end of plain PyTorch: constraints after an optimizer's step, a parametrization, a monitor; without Keras.

    optimizer = torch.optim.Adam(critic.parameters())
    opnorm.torch.constrain(critic, optimizer, opnorm.torch.SpectralNorm())

A rule is a pure function with state; the state of a kernel is in `optimizer.state[parameter]`.
"""

from opnorm.rules import MaxSpectralNorm, Orthogonal, SpectralClip, SpectralNorm
from opnorm.torch.attachments import Attachment, Attachments
from opnorm.torch.constraining import constrain
from opnorm.torch.geometry import KernelGeometry, kernels
from opnorm.torch.monitoring import monitor
from opnorm.torch.parametrization import SpectralNormalization, spectral_normalization
from opnorm.torch.projecting import project

__all__ = [
    "Attachment",
    "Attachments",
    "KernelGeometry",
    "MaxSpectralNorm",
    "Orthogonal",
    "SpectralClip",
    "SpectralNorm",
    "SpectralNormalization",
    "constrain",
    "kernels",
    "monitor",
    "project",
    "spectral_normalization",
]


def __dir__() -> list[str]:
    """List the public names and the modules of callbacks."""
    return sorted({*__all__, "lightning", "transformers", *(name for name in globals() if name.startswith("__"))})
