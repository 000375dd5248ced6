"""What a name alone may tell: only what stands where the formats put it, and has its shape, is skipped."""

import pytest
import torch
from bracketed import status, weights
from safetensors.torch import save_file

NAMED = [
    ("optimus.encoder.weight", (4, 4), torch.float32, "bounded"),
    ("optimizer.encoder.weight", (4, 4), torch.float32, "bounded"),
    ("momentum_encoder.proj", (4, 4), torch.float32, "bounded"),
    ("step.weight", (4, 4), torch.float32, "bounded"),
    ("count", (4, 4), torch.float32, "bounded"),
    ("optimizer.state.0.exp_avg", (4, 4), torch.float32, "skipped"),
    ("optimizer_state_dict.state.0.momentum_buffer", (4, 4), torch.float32, "skipped"),
    ("layer.weight", (4, 4), torch.complex64, "unknown"),
    ("layer.weight", (4, 4), torch.int8, "unknown"),
    ("layer.weight", (4, 4), torch.int64, "unknown"),
    ("layer.weight", (16,), torch.uint8, "unknown"),
    ("mask_proj.weight", (4, 4), torch.uint8, "unknown"),
    ("relative_position_index", (4, 4), torch.int64, "skipped"),
    ("attn.mask", (4, 4), torch.bool, "skipped"),
    ("pos_embed", (1, 4, 4), torch.float32, "skipped"),
    ("optimizer.attn.in_proj_weight", (4, 4), torch.float32, "bounded"),
    ("momentum.kernel", (4, 4), torch.float32, "bounded"),
    ("net.optim.W", (4, 4), torch.float32, "bounded"),
    ("net.exp_avg.W", (4, 4), torch.float32, "bounded"),
    ("net.moments.proj", (4, 4), torch.float32, "bounded"),
    ("state.layer.m", (4, 4), torch.float32, "bounded"),
    ("state.0.row_var", (4, 1), torch.float32, "skipped"),  # PyTorch's Adafactor
    ("optimizer.state.0.col_var", (1, 4), torch.float32, "skipped"),
    ("optimizer_states.0.state.3.exp_avg_sq", (4, 4), torch.float32, "skipped"),  # Lightning
    ("optimizer.state.net.0.weight.exp_avg", (4, 4), torch.float32, "skipped"),  # FSDP
    ("optimizer.state.exp_avg.module.weight", (4, 4), torch.float32, "skipped"),  # Megatron
    ("d_optim.state.0.anything", (4, 4), torch.float32, "skipped"),
    ("opt_state.0.mu.Dense_0.kernel", (4, 4), torch.float32, "skipped"),  # Optax
    ("opt.0.0.mu.Dense_0.kernel", (4, 4), torch.float32, "skipped"),
    ("opt.1.vectors.Dense_0.kernel", (4, 8), torch.float32, "skipped"),  # our own, in Optax's and in PyTorch's
    ("o.state.1.spectral_vectors", (4, 8), torch.float32, "skipped"),
    ("opt.0.weight", (4, 4), torch.float32, "bounded"),  # a module of that name
    ("hyper.bias_proj", (4, 4), torch.float32, "bounded"),
    ("lin.bias_weight", (4, 4), torch.float32, "bounded"),
    ("experts.bias", (4, 4), torch.float32, "bounded"),
    ("lin.bias", (1, 4), torch.float32, "skipped"),
    ("mask_proj", (64, 64), torch.int8, "unknown"),
    ("gate_shape", (64, 64), torch.int8, "unknown"),
    ("x.position", (64, 64), torch.int8, "unknown"),
    ("x.index", (64, 64), torch.int32, "unknown"),
    ("position_ids", (1, 64), torch.int32, "skipped"),
    ("position_ids", (1, 64), torch.int64, "skipped"),
    ("_flat_param", (16,), torch.float32, "unknown"),
    ("layer.weight", (2, 2, 2, 2, 2, 2), torch.float32, "unknown"),
    ("blocks.0.ls1.gamma", (4,), torch.float32, "bounded"),
]


@pytest.mark.parametrize(("name", "shape", "dtype", "expected"), NAMED)
def test_only_what_has_no_norm_is_skipped(tmp_path, name, shape, dtype, expected):
    save_file({name: torch.ones(shape).to(dtype)}, tmp_path / "a.safetensors")
    assert status(weights(tmp_path / "a.safetensors")[name]) == expected


def test_a_bias_with_the_axes_of_its_kernels_outputs_is_one(tmp_path):
    """Flax's and Keras's attention: a kernel (in, heads, features), a bias (heads, features)."""
    tensors = {"query.kernel": torch.ones(6, 2, 3), "query.bias": torch.ones(2, 3), "key.bias": torch.ones(2, 3)}
    save_file(tensors, tmp_path / "a.safetensors")
    found = weights(tmp_path / "a.safetensors")
    assert (status(found["query.bias"]), status(found["key.bias"])) == ("skipped", "bounded")
