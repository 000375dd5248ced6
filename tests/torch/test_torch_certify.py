"""Certificates of PyTorch modules and of ONNX files: no attack succeeds inside a radius."""

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import opnorm

pytest.importorskip("onnx")  # an extra of opnorm's
DOUBLE = torch.float64


class Gated(nn.Module):
    """Squeeze-and-excitation: no constant for all inputs."""

    def __init__(self):
        super().__init__()
        self.conv, self.gate, self.last = nn.Conv2d(1, 6, 3, 2, 1), nn.Linear(6, 6), nn.Linear(96, 10)

    def forward(self, x):
        h = torch.relu(self.conv(x))
        h = h * torch.sigmoid(self.gate(h.mean((2, 3))))[:, :, None, None]
        return torch.softmax(self.last(h.flatten(1)), 1)


def pooled():
    layers = [nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.GELU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(96, 10))


MODULES = {"pooled": pooled, "gated": Gated}


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(labels)


@pytest.fixture(scope="module", params=MODULES)
def trained(request, digits):
    torch.manual_seed(0)
    module, (images, labels) = MODULES[request.param](), digits
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(6):
        for batch in torch.randperm(1500).split(50):
            optimizer.zero_grad()
            scores = module(images[batch])
            scores = scores.log() if request.param == "gated" else torch.log_softmax(scores, 1)
            nn.functional.nll_loss(scores, labels[batch]).backward()
            optimizer.step()
    return module.eval()


def broken(module, x, label, radius, steps=30):
    """Return whether an attack by projected gradients changes the answer within the radius, in float64."""
    x = x.to(DOUBLE)
    moved = x + 1e-3 * radius * torch.randn_like(x)
    for _ in range(steps):
        moved.requires_grad_(True)
        scores = module(moved[None])[0]
        others = torch.cat([scores[:label], scores[label + 1 :]])
        if others.max() >= scores[label]:
            return True
        (gradient,) = torch.autograd.grad(others.max() - scores[label], moved)
        step = moved.detach() + radius / 5 * gradient / gradient.norm() - x
        moved = x + step * min(1.0, radius / float(step.norm()))
    return False


def test_no_attack_succeeds_inside_a_radius_and_most_do_at_ten_times_it(trained, digits):
    images, labels = digits[0][1500:1512], digits[1][1500:1512]
    certificate = opnorm.certify(trained, images, labels, time_limit=30)
    with torch.no_grad():
        assert np.array_equal(certificate.predictions, trained(images).argmax(1).numpy())
    assert certificate.notes == ()
    right = certificate.predictions == labels.numpy()
    assert np.array_equal(certificate.radius > 0, right)
    exact = copy.deepcopy(trained).double()
    found = list(zip(images[right], labels[right], certificate.radius[right], strict=True))
    assert not any(broken(exact, x, int(y), 0.9999 * r) for x, y, r in found)
    assert sum(broken(exact, x, int(y), 10 * r) for x, y, r in found) > len(found) / 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's exporter, which this one is
def test_a_file_has_the_certificate_of_its_module(trained, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("opnorm.networks.certify._EACH", 60.0)  # or the clock says how far multipliers are sought
    monkeypatch.setattr("opnorm.networks.balls.radii._SECONDS", 60.0)
    images = digits[0][1500:1501]
    options = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}, "dynamo": False}
    torch.onnx.export(trained, (images[:1],), str(tmp_path / "model.onnx"), **options)
    own, file = (opnorm.certify(m, images, time_limit=None) for m in (trained, tmp_path / "model.onnx"))
    assert file.radius == pytest.approx(own.radius, rel=1e-4)  # batch normalization is folded in float32 there
    assert np.array_equal(file.predictions, own.predictions)


@pytest.mark.parametrize(
    ("make", "x", "match"),
    [
        (lambda: nn.Linear(4, 3), np.ones((2, 5), np.float32), "`x` must be what the module takes"),
        (lambda: nn.Linear(4, 3), np.ones((2, 4), int), "`x`"),
        (lambda: nn.Linear(4, 1), np.ones((2, 4), np.float32), "two logits"),
        (lambda: nn.GRU(4, 3), np.ones((2, 2, 4), np.float32), "`model`"),
        (lambda: nn.Embedding(4, 3), np.ones((2, 4), np.float32), "`x` must be what the module takes"),
        (lambda: print, np.ones((2, 4), np.float32), "`model`.*PyTorch"),
    ],
)
def test_what_cannot_be_certified_is_refused_by_name(make, x, match):
    with pytest.raises(ValueError, match=match):
        opnorm.certify(make(), x)
