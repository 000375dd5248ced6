"""What the file does not say: every reading of a tensor is bracketed, and the layer's norm lies between them."""

import numpy as np
import pytest
import torch
from bracketed import between, brackets, weights
from explicit import explicit_matrix, norm
from safetensors.torch import save_file

from opnorm.auditing.audits import audit
from opnorm.cli.check import verdict


def one(tmp_path, tensors, name):
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "a.safetensors")
    return weights(tmp_path / "a.safetensors")[name]


def matrix(layer, channels, size=8):
    rank = layer.weight.ndim - 2
    shape = (channels, *[size] * rank)
    basis = torch.eye(int(np.prod(shape))).reshape(-1, *shape)
    with torch.no_grad():
        return layer(basis).reshape(len(basis), -1).double().numpy()


LAYERS = [
    (torch.nn.Conv2d(4, 6, 3, padding=1, bias=False), 4),
    (torch.nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), 6),
    (torch.nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False), 4),
    (torch.nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False), 8),
    (torch.nn.Conv2d(2, 6, 3, padding=1, stride=2, bias=False), 2),
    (torch.nn.Conv2d(2, 6, 3, stride=3, bias=False), 2),
    (torch.nn.Conv2d(2, 3, 3, padding=2, dilation=2, bias=False), 2),
    (torch.nn.Conv1d(8, 8, 5, padding=2, groups=8, stride=2, bias=False), 8),
    (torch.nn.ConvTranspose2d(4, 3, 3, stride=2, bias=False), 4),
    (torch.nn.ConvTranspose2d(4, 4, 3, groups=4, bias=False), 4),
]


@pytest.mark.parametrize(("layer", "channels"), LAYERS)
@pytest.mark.parametrize("sign", ["random", "positive"])
def test_the_norm_of_a_convolution_lies_between_the_readings_of_its_kernel(tmp_path, layer, channels, sign):
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape) if sign == "random" else torch.rand(layer.weight.shape))
    weight = one(tmp_path, {"net.conv.weight": layer.weight.detach()}, "net.conv.weight")
    lower, upper = between(weight)
    truth = norm(matrix(layer, channels))
    assert lower * (1 - 1e-6) <= truth <= upper * (1 + 1e-6)  # PyTorch's float32
    assert weight.geometry.assumed


@pytest.mark.parametrize(
    ("name", "shape", "groups", "strides"),
    [
        ("Conv_0.kernel", (3, 3, 4, 6), 1, (1, 1)),
        ("Conv_0.kernel", (3, 3, 2, 6), 3, (2, 2)),
        ("conv/kernel:0", (3, 3, 1, 6), 6, (1, 1)),
        ("sep/depthwise_kernel", (3, 3, 5, 2), 5, (2, 2)),
        ("conv.kernel", (3, 3, 5, 1), 5, (1, 1)),  # a depthwise one, or one of a single output
        ("conv.kernel", (3, 3, 5, 1), 1, (3, 3)),
    ],
)
def test_the_norm_lies_between_the_readings_of_a_kernel_stored_as_keras_does(tmp_path, name, shape, groups, strides):
    kernel = torch.rand(shape) - 0.2
    lower, upper = between(one(tmp_path, {name: kernel}, name))
    depthwise = groups == shape[2] > 1
    joint = kernel.double().numpy().reshape(3, 3, 1, -1) if depthwise else kernel.double().numpy()
    truth = norm(explicit_matrix(joint, (8, 8), strides, "same", (1, 1), groups))
    assert lower <= truth * (1 + 1e-9)
    assert truth <= upper * (1 + 1e-9)


@pytest.mark.parametrize("name", ["conv_dw.weight", "features.1.weight", "stem.dwconv.weight"])
def test_a_depthwise_identity_is_not_proved_to_be_more_than_one(tmp_path, name):
    kernel = torch.zeros(32, 1, 3, 3)
    kernel[:, 0, 1, 1] = 1
    weight = one(tmp_path, {name: kernel}, name)
    lower, upper = between(weight)
    assert lower == pytest.approx(1, rel=1e-6)
    named = "dw" in name
    assert upper == pytest.approx(1 if named else 32**0.5, rel=2e-2)


@pytest.mark.parametrize("scale", [1e-200, 1, 1e200])
def test_of_the_blocks_of_a_kernel_the_largest_counts(tmp_path, scale):
    """Many of them cannot be the largest, and are left out; a single row of large entries can."""
    kernel = np.random.default_rng(0).standard_normal((3, 3, 16, 4)) * scale
    kernel[..., 7, 1] = 2.5 * scale
    np.savez(tmp_path / "a.npz", depthwise_kernel=kernel)
    found = brackets(weights(tmp_path / "a.npz")["depthwise_kernel"])[1]
    truth = max(norm(block) for block in kernel.reshape(9, 16, 4).transpose(1, 0, 2))
    assert found.lower <= truth * (1 + 1e-12)
    assert truth <= found.upper * (1 + 1e-12)
    assert found.upper <= found.lower * (1 + 2e-6)


def test_a_stack_of_more_matrices_than_can_be_proved_says_so(tmp_path):
    np.savez(tmp_path / "a.npz", experts=np.ones((20_000, 1, 2)))
    (row,) = audit(tmp_path / "a.npz").rows
    assert (row.status, row.reason) == ("failed", "20000 matrices side by side, more than 16384")


def test_each_output_of_a_kernel_may_be_a_group_of_its_own(tmp_path):
    """The channels that a file happens to have bound no groups: layers beside this one may have none."""
    tensors = {"a.conv.weight": torch.randn(64, 4, 3, 3), "b.conv.weight": torch.randn(64, 48, 1, 1)}
    save_file(tensors, tmp_path / "a.safetensors")
    found = weights(tmp_path / "a.safetensors")
    for name, kernel in tensors.items():
        (least,) = found[name].geometry.readings
        assert "a group for each output" in least.text
        truth = kernel.double().flatten(1).norm(dim=1).max().item()
        assert brackets(found[name])[1].lower == pytest.approx(truth, rel=2e-6)


@pytest.mark.parametrize(
    ("layer", "channels"),
    [
        (torch.nn.ConvTranspose2d(6, 9, 2, stride=2, groups=3, bias=False), 6),
        (torch.nn.Conv2d(35, 7, 1, groups=7, bias=False), 35),
        (torch.nn.Conv1d(6, 2, 3, groups=2, stride=3, bias=False), 6),
    ],
)
def test_a_grouped_convolution_alone_in_its_file_is_not_called_violated(tmp_path, layer, channels):
    """No bias and no neighbour tells its channels; a limit below its largest filter is violated all the same."""
    with torch.no_grad():
        layer.weight.copy_(torch.rand(layer.weight.shape))
    save_file({"up.conv.weight": layer.weight.detach()}, tmp_path / "a.safetensors")
    truth = norm(matrix(layer, channels, 12 if layer.weight.ndim == 3 else 4))
    filters = layer.weight.double().flatten(1).norm(dim=1).max().item()
    (row,) = audit(tmp_path / "a.safetensors").rows
    assert verdict(row, truth * 1.001).startswith("not proved")
    assert verdict(row, filters * 0.99).startswith("violated")


def test_a_kernel_of_one_tap_and_one_output_has_one_reading(tmp_path):
    weight = one(tmp_path, {"conv.weight": torch.randn(1, 5, 1, 1)}, "conv.weight")
    assert weight.geometry.readings == ()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mlp.experts.gate_up_proj", (4, 6, 10)),
        ("block_sparse_moe.w1", (4, 10, 6)),
        ("weight", (4, 6, 100)),
    ],
)
def test_experts_have_the_norm_of_the_largest_of_them(tmp_path, name, shape):
    stack = torch.randn(shape)
    weight = one(tmp_path, {name: stack}, name)
    found = brackets(weight)[0]
    truth = max(norm(expert) for expert in stack.double().numpy())
    assert found.lower <= truth * (1 + 1e-12)
    assert truth <= found.upper * (1 + 1e-12)
    assert found.upper <= found.lower * (1 + 2e-6)


def test_three_axes_that_nothing_names_are_bracketed_in_all_readings(tmp_path):
    kernel = torch.randn(8, 6, 5)
    lower, upper = between(one(tmp_path, {"layer.0.weight": kernel}, "layer.0.weight"))
    array = kernel.double().numpy()
    layer = torch.nn.Conv1d(6, 8, 5, padding=2, bias=False)
    layer.weight.data.copy_(kernel)
    for truth in (
        max(map(norm, array)),  # a stack
        norm(array.reshape(8, -1)),
        norm(array.reshape(-1, 5)),
        norm(matrix(layer, 6, 30)),
    ):
        assert lower <= truth * (1 + 1e-6)
        assert truth <= upper * (1 + 1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "equation"),
    [
        ("blocks.0.attn.W_Q", (4, 8, 128), "bnd,hdk->bnhk"),  # TransformerLens: all heads read one input
        ("blocks.0.attn.W_Q", (2, 3, 65), "bnd,hdk->bnhk"),
        ("blocks.0.attn.W_O", (4, 65, 8), "bnhk,hkd->bnd"),
        ("w", (2, 70, 3), "bnh,hdk->bndk"),
        ("attn.w_qkv", (3, 3, 4, 4), "bnd,ghdk->bnghk"),
        ("attn.kernel", (3, 3, 4, 4), "bnd,ghdk->bnghk"),
        ("attn.w", (2, 3, 4, 5), "bngk,ghdk->bnhd"),
        ("attn.w", (2, 3, 4, 5), "bngh,ghdk->bndk"),
        ("attn.w", (2, 3, 2, 3, 2), "bnga,ghdka->bnhdk"),
        ("attn.w", (2, 3, 2, 3, 2), "bnk,ghdka->bnghda"),
    ],
)
@pytest.mark.parametrize("kind", ["identity", "random"])
def test_an_einsum_of_any_axes_lies_between_the_readings(tmp_path, name, shape, equation, kind):
    kernel = torch.randn(shape)
    inputs = equation.split(",")[0][2:]
    axes = equation.split(",")[1].split("->")[0]
    order = [axes.index(one) for one in inputs] + [i for i, one in enumerate(axes) if one not in inputs]
    count = int(np.prod([shape[axes.index(one)] for one in inputs]))
    if kind == "identity":  # every input goes to every other axis: the norm is as large as may be
        eye = torch.zeros([shape[i] for i in order]).reshape(count, -1)
        eye[0] = 1
        kernel = eye.reshape([shape[i] for i in order]).permute(list(np.argsort(order)))
    basis = torch.eye(count).reshape(1, count, *[shape[axes.index(one)] for one in inputs])
    truth = norm(torch.einsum(equation, basis.double(), kernel.double()).reshape(count, -1).numpy())
    lower, upper = between(one(tmp_path, {name: kernel}, name))
    assert lower <= truth * (1 + 1e-9)
    assert truth <= upper * (1 + 1e-9)


def test_the_norm_of_heads_that_share_one_input_is_not_taken_for_that_of_one_head(tmp_path):
    query = torch.zeros(4, 8, 128)
    query[range(4), 0, range(4)] = 1
    truth = norm(torch.einsum("nd,hdk->nhk", torch.eye(8), query).reshape(8, -1).double().numpy())
    assert truth == pytest.approx(2)
    assert between(one(tmp_path, {"blocks.0.attn.W_Q": query}, "blocks.0.attn.W_Q"))[1] >= 2
    thirds = torch.zeros(3, 3, 4, 4)
    thirds[:, :, 0, 0] = torch.eye(3) / 3**0.5
    assert between(one(tmp_path, {"attn.w_qkv": thirds}, "attn.w_qkv"))[1] >= 1


def test_a_name_that_says_convolution_is_read_as_one_only(tmp_path):
    for name in ("conv1.weight", "layer2.0.downsample.0.weight", "features.3.weight", "patch_embed.proj.weight"):
        assert len(one(tmp_path, {name: torch.randn(4, 3, 3, 3)}, name).geometry.readings) == 1
    assert len(one(tmp_path, {"converter.w": torch.randn(4, 3, 3, 3)}, "converter.w").geometry.readings) > 1


def test_a_batch_normalization_is_bracketed_with_both_usual_epsilons(tmp_path):
    layer = torch.nn.BatchNorm2d(3, eps=1e-3).eval()
    layer.running_var.copy_(torch.tensor([1e-6, 0.5, 2.0]))
    torch.save(layer.state_dict(), tmp_path / "a.pt")
    weight = weights(tmp_path / "a.pt")["weight"]
    small, large = brackets(weight)
    assert small.lower == pytest.approx(1 / np.sqrt(1e-6 + 1e-5), rel=1e-6)
    basis = torch.eye(3).reshape(3, 3, 1, 1)
    truth = (layer(basis) - layer(torch.zeros(1, 3, 1, 1))).abs().max().item()
    assert large.lower == pytest.approx(truth, rel=1e-4)  # PyTorch's float32
    assert "epsilon is not in the file" in weight.geometry.text


def test_a_batch_normalization_without_a_scale_has_its_variances_norm(tmp_path):
    layer = torch.nn.BatchNorm2d(3, affine=False).eval()
    layer.running_var.copy_(torch.tensor([0.04, 0.5, 2.0]))
    torch.save(layer.state_dict(), tmp_path / "a.pt")
    assert brackets(weights(tmp_path / "a.pt")["running_var"])[0].lower == pytest.approx(5, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "shape", "bias", "ratio"),
    [
        ("h.0.attn.c_attn.weight", (8, 24), 24, 8 / 24),  # GPT-2: (in, out)
        ("h.0.attn.c_attn.weight", (24, 8), 24, 8 / 24),  # a Linear of that name
        ("h.0.attn.c_attn.weight", (8, 24), None, None),
        ("h.0.attn.c_proj.weight", (8, 8), None, 1),
        ("fc.weight", (8, 24), 8, 24 / 8),
        ("fc.weight", (8, 24), None, 24 / 8),
        ("w", (8, 24), None, None),
    ],
)
def test_the_norm_of_root_mean_squares_is_given_where_the_orientation_is_known(tmp_path, name, shape, bias, ratio):
    tensors = {name: torch.randn(shape)}
    if bias:
        tensors[name.replace("weight", "bias")] = torch.zeros(bias)
    save_file(tensors, tmp_path / "a.safetensors")
    row = next(row for row in audit(tmp_path / "a.safetensors").rows if row.name == name)
    truth = norm(tensors[name].double().numpy())
    assert row.lower == pytest.approx(truth, rel=2e-6)
    assert row.rms_norm == (None if ratio is None else pytest.approx(truth * ratio**0.5, rel=2e-6))


@pytest.mark.parametrize("keras", [False, True])
def test_a_convolution_with_two_axes_may_be_a_depthwise_one(tmp_path, keras):
    kernel = torch.tensor([[1.0, 1, 1, 1], [0, 2, -1, 0]])
    name = "conv1d.kernel" if keras else "conv1d.weight"
    lower, upper = between(one(tmp_path, {name: kernel.T if keras else kernel}, name))
    assert lower == pytest.approx(5**0.5, rel=1e-6)  # windows that do not overlap: the largest row
    assert 4 <= upper <= 4.05  # the sum of the taps of one channel, on a constant
