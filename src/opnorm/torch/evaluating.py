"""|W u| as one operation, which Inductor calls as it is: evaluated models compile faster for it."""

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("opnorm::image", mutates_args=())  # type: ignore[untyped-decorator]
def image(blocks: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return |W u| of each block, `(groups,)`, and the unit vectors along W u, `(groups, rows)`.

    Args:
        blocks: `(groups, rows, columns)`, of the vectors' dtype.
        u: `(groups, columns)`.
    """
    images = (blocks @ u[..., None])[..., 0].double()  # squares of 1e-30 and 1e+30 would leave the range
    norms = images.norm(dim=1)
    units = images / torch.where(norms > 0, norms, 1.0)[:, None]
    return norms.to(u.dtype), units.to(u.dtype)


@image.register_fake  # type: ignore[untyped-decorator]
def _(blocks: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    return blocks.new_empty(blocks.shape[0], dtype=u.dtype), blocks.new_empty(blocks.shape[:2], dtype=u.dtype)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[1], output[1])


def _derivative(ctx: Any, norms: Tensor, units: Tensor) -> tuple[Tensor, None]:
    u, v = ctx.saved_tensors  # d |W u| = v^T dW u
    return norms[:, None, None] * v[..., None] * u[:, None], None


image.register_autograd(_derivative, setup_context=_keep)
