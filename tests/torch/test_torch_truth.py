"""Operators, audits and Lipschitz bounds of PyTorch's modules, proved, without Keras."""

import sys
import warnings

import numpy as np
import pytest
import torch
from modules import MODULES, SEPARATE, array, mlp, norm, weights
from torch import nn
from torch.nn.utils import parametrizations

import opnorm
from opnorm.checkpoints.files import CheckpointError
from opnorm.torch import SpectralNorm, constrain, monitor, spectral_normalization

WHOLE = [name for name in MODULES if "conv" not in name and "grouped" not in name and "transposed" not in name]
WHOLE.remove("depthwise")


@pytest.mark.parametrize("name", WHOLE)
def test_every_kernel_has_an_operator_of_its_norm(name):
    build, blocks = MODULES[name]
    module = build()
    maps = opnorm.linear_operators(module)
    assert set(maps) == set(blocks)
    for path, cut in blocks.items():
        lower, upper = opnorm.spectral_norm(maps[path])
        assert lower <= max(map(norm, cut(module.get_parameter(path)))) <= upper


def test_matrices_that_share_a_parameter_are_told_apart():
    attention = nn.MultiheadAttention(8, 2)
    names = ["in_proj_weight/0", "in_proj_weight/1", "in_proj_weight/2", "out_proj.weight"]
    assert list(opnorm.linear_operators(attention)) == names
    assert len(opnorm.linear_operators(attention, gates=True)) == 7
    lstm = nn.LSTM(5, 4)
    gates = opnorm.linear_operators(lstm, gates=True)
    wanted = [norm(part) for part in SEPARATE["gates"][1]["weight_ih_l0"](lstm.weight_ih_l0)]
    assert [opnorm.spectral_norm(gates[f"weight_ih_l0/{i}"]).upper for i in range(4)] == pytest.approx(wanted)


CONVOLUTIONS = {
    "plain": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 9, 9)),
    "strided": (lambda: nn.Conv2d(2, 3, 3, stride=2), (2, 17, 17)),
    "strided, dilated": (lambda: nn.Conv1d(2, 3, 3, stride=2, dilation=2), (2, 40)),
    "grouped": (lambda: nn.Conv1d(4, 6, 3, groups=2), (4, 40)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 2, 3, stride=2), (3, 9, 9)),
    "transposed, groups": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), (4, 40)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_bracket_of_a_convolution_holds_its_explicit_matrix(name):
    from modules import explicit_norm

    build, shape = CONVOLUTIONS[name]
    module = build()
    lower, upper = opnorm.spectral_norm(module)
    assert 0.9 * lower <= explicit_norm(module, shape) <= upper


def test_a_batch_normalization_is_a_diagonal():
    layer = nn.BatchNorm2d(4)
    layer.running_var.copy_(torch.tensor([0.25, 1.0, 4.0, 9.0]))
    assert opnorm.spectral_norm(layer).upper == pytest.approx(2.0, rel=1e-4)


def test_what_is_no_single_map_or_not_known_says_so():
    with pytest.raises(ValueError, match=r"one linear map; Sequential has the kernels 0\.weight, 2\.weight, 4\.weight"):
        opnorm.linear_operator(mlp())
    with pytest.raises(ValueError, match="one linear map"):
        opnorm.linear_operator(nn.LSTM(3, 4))
    with pytest.raises(TypeError, match=r"`opnorm.torch.kernels.register`"):
        opnorm.linear_operator(nn.ReLU())
    with pytest.raises(TypeError, match=r"`opnorm.torch.kernels.register`"):
        opnorm.linear_operators(nn.ReLU())
    with pytest.raises(ValueError, match="padding_mode='reflect'"):
        opnorm.spectral_norm(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))


def test_a_normalized_kernel_is_the_one_that_its_module_multiplies_with():
    layer = spectral_normalization(nn.Linear(9, 6), value=3.0)
    assert opnorm.spectral_norm(layer).upper == pytest.approx(3.0, rel=1e-3)
    assert opnorm.spectral_norm(parametrizations.spectral_norm(nn.Linear(9, 6))).upper == pytest.approx(1.0, rel=0.1)


def model():
    torch.manual_seed(0)
    parts = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*parts, spectral_normalization(nn.Linear(64, 10), value=2.0), nn.LayerNorm(10))


def test_an_audit_of_a_module_has_a_row_for_every_tensor_of_its_state_dict():
    whole = model()
    rows = {row.name: row for row in opnorm.audit(whole).rows}
    assert list(rows) == list(whole.state_dict())
    assert rows["5.parametrizations.weight.original"].lower == pytest.approx(2.0, rel=1e-3)
    assert not rows["0.weight"].assumed
    assert rows["0.weight"].kind == "Conv2d"
    assert rows["1.weight"].upper == pytest.approx(float(1 / np.sqrt(1 + 1e-5)), rel=1e-6)
    skipped = {"0.bias", "1.bias", "5.parametrizations.weight.0.vectors", "6.weight"}
    assert {rows[name].status for name in skipped} == {"skipped"}


def test_what_an_audit_cannot_bound_has_its_reason():
    whole = nn.Sequential(
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), nn.LSTM(3, 4), nn.MultiheadAttention(4, 2)
    )
    rows = {row.name: row for row in opnorm.audit(whole).rows}
    assert rows["0.weight"].status == "failed"
    assert rows["0.weight"].reason.startswith("the padding 'circular' repeats pixels")
    assert rows["1.weight_hh_l0"].upper == pytest.approx(norm(whole[1].weight_hh_l0))
    blocks = SEPARATE["attention"][1]["in_proj_weight"](whole[2].in_proj_weight)
    assert rows["2.in_proj_weight"].upper == pytest.approx(max(map(norm, blocks)))


def test_an_audit_of_a_state_dict_reads_it_as_a_file(tmp_path):
    state = mlp().state_dict()
    torch.save(state, tmp_path / "model.pt")
    live, stored = (opnorm.audit(one).rows for one in (state, tmp_path / "model.pt"))
    assert [(*row[:6], row.lower, row.upper) for row in live] == [(*row[:6], row.lower, row.upper) for row in stored]
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    assert opnorm.audit(half).rows[0].dtype == "bfloat16"
    with pytest.raises(ValueError, match="flat state dict"):
        opnorm.audit({"model": state})
    assert "no tensor" in opnorm.audit({"extra": object()}).rows[0].reason


def test_the_lipschitz_constant_of_a_module_lies_in_its_bound():
    whole = model()[:-1]
    before = whole.training, {name: one.clone() for name, one in whole.state_dict().items()}
    data = torch.randn(5, 1, 8, 8)
    bound = opnorm.lipschitz_bound(whole, data)
    assert whole.training is before[0]
    assert all(torch.equal(before[1][name], one) for name, one in whole.state_dict().items())
    whole.eval()
    slopes = [torch.autograd.functional.jacobian(whole, point[None]).reshape(10, 64) for point in data]
    assert bound.lower == pytest.approx(max(map(norm, slopes)), rel=1e-2)
    assert bound.lower <= bound.upper
    assert bound.unknown == ()


def test_without_onnx_a_bound_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(CheckpointError, match=r"needs onnx: pip install 'opnorm\[audit\]'"):
        opnorm.lipschitz_bound(mlp(), torch.randn(2, 16))


def test_several_outputs_of_a_module_are_one_vector():
    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            y = self.one(x)
            return {"y": y, "more": (self.two(torch.tanh(y)), x)}

    module = Forked()
    bound = opnorm.lipschitz_bound(module, torch.zeros(1, 3))
    with torch.no_grad():
        module.one.bias.zero_()
        W, V = module.one.weight, module.two.weight
        slope = torch.cat([W, V @ W, torch.eye(3)])  # tanh has slope 1 at 0
    assert opnorm.lipschitz_bound(module, torch.zeros(1, 3)).lower == pytest.approx(norm(slope), rel=1e-3)
    assert norm(slope) <= bound.upper * (1 + 1e-6)


def test_a_module_without_derivatives_forward_has_a_lower_end_still():
    torch.manual_seed(0)
    module = nn.Sequential(nn.LSTM(3, 4, batch_first=True), First())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Exporting a model to ONNX with a batch_size other than 1")
        bound = opnorm.lipschitz_bound(module, torch.randn(1, 5, 3))
    assert bound.lower > 0
    assert bound.upper is None
    assert bound.unknown


class First(nn.Module):
    def forward(self, outputs):
        return outputs[0]


def test_a_module_whose_graph_is_not_to_be_had_says_so(capsys):
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    class Complex(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x[:, None] * x[..., None]).abs()

    with pytest.raises(ValueError, match=r"`torch.onnx.export\(..., dynamo=False\)`"):
        opnorm.lipschitz_bound(Branching(), torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"`torch.onnx.export\(..., dynamo=False\)`"):
        opnorm.lipschitz_bound(Complex(), torch.randn(2, 3))
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="`data` must hold at least one point"):
        opnorm.lipschitz_bound(mlp())
    with pytest.raises(ValueError, match="`data` must hold at least one point"):
        opnorm.lipschitz_bound(mlp(), torch.ones(2, 16, dtype=torch.int64))


def test_the_monitor_is_a_dictionary_of_norms_against_their_balls():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    plain = monitor(model)
    assert [plain[f"spectral/{i}.weight"] for i in (0, 2, 4)] == pytest.approx([*map(norm, weights(model))], rel=1e-2)
    assert plain["spectral/largest"] == max(value for name, value in plain.items() if name.endswith("weight"))
    assert plain["spectral/outside"] == 0
    constrain(model, optimizer, SpectralNorm(0.1), include="0.weight")
    logs = monitor(model, proved=True, exclude="4")
    assert logs["spectral/outside"] == 1
    lower, upper = logs["spectral_lower/0.weight"], logs["spectral_upper/0.weight"]
    assert lower <= norm(model[0].weight) <= upper
    assert "spectral/4.weight" not in logs
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    assert np.isnan(monitor(model)["spectral/largest"])


@pytest.mark.parametrize("operator", ["matrix", "convolution"])
def test_the_monitor_measures_a_convolution_as_it_is_told(operator):
    layer = nn.Conv2d(3, 4, 3)
    logs = monitor(layer, operator=operator, proved=True)
    matrix = np.linalg.norm(array(layer.weight).reshape(4, -1), 2)
    assert (logs["spectral/weight"] > 1.05 * matrix) == (operator == "convolution")
    assert logs["spectral/weight"] <= logs["spectral_upper/weight"]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_the_monitor_measures_eight_bits(dtype):
    module = nn.Linear(8, 4)
    module.weight = nn.Parameter(torch.randn(4, 8).to(dtype))
    assert monitor(module)["spectral/weight"] == pytest.approx(norm(module.weight), rel=1e-3)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_a_sparse_kernel_is_passed_over_with_the_reason():
    module = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    module[0].weight = nn.Parameter(torch.randn(4, 8).to_sparse_csr())
    rows = constrain(module, torch.optim.SGD(module.parameters(), 0.1), SpectralNorm())
    assert [row.note for row in rows] == ["sparse: torch.sparse_csr", ""]
    assert "spectral/1.weight" in monitor(module)
