"""`torch.compile` and `torch.export`: of models, and of the step."""

import pytest
import torch
from modules import batches, mlp, norm, weights
from torch import nn

from opnorm.torch import SpectralNorm, constrain, spectral_normalization

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated"),
]


@pytest.fixture(autouse=True)
def _forget_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


LAYERS = {
    "linear": (lambda: nn.Linear(30, 20), (4, 30)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (1, 4, 8, 8)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (1, 4, 8, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_evaluated_model_compiles_in_one_graph_and_exports(name):
    build, shape = LAYERS[name]
    layer, x = spectral_normalization(build()).eval(), torch.randn(shape)
    wanted = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), wanted, rtol=1e-3, atol=1e-4)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), wanted, rtol=1e-3, atol=1e-4)


def test_a_compiled_model_trains_at_its_norm():
    model = mlp()
    for part in model[::2]:
        spectral_normalization(part)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    off = []
    for images, labels in batches(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(compiled(images), labels).backward()
        kept = [part.parametrizations.weight for part in model[::2]]
        with torch.no_grad():
            off += [abs(norm(part.original) / float(_sigma(part)) - 1) for part in kept]
        optimizer.step()
    assert max(off) <= 0.02


@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
def test_what_was_trained_is_evaluated_alike_compiled_and_not(factor):
    layer = nn.Linear(30, 20)
    with torch.no_grad():
        layer.weight.mul_(factor)
    spectral_normalization(layer)
    optimizer = torch.optim.SGD(layer.parameters(), 0.05 if factor == 1.0 else 0.0)
    for _ in range(5):
        optimizer.zero_grad()
        layer(torch.randn(8, 30)).square().sum().backward()
        optimizer.step()
    layer.eval()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    x = torch.randn(8, 30)
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-2, atol=1e-3)


def _sigma(part):
    """Return the norm that the last call divided by: the image of the first vector that it kept."""
    return (part.original.mT @ part[0].vectors[0]).norm()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of Dynamo's own look
def test_a_convolution_that_slides_is_compiled_around_its_search():
    layer, x = spectral_normalization(nn.Conv2d(3, 4, 3), operator="convolution"), torch.randn(1, 3, 8, 8)
    compiled = torch.compile(layer, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_a_compiled_step_constrains_as_one_that_is_not():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    constrain(model, optimizer, SpectralNorm())

    @torch.compile(backend="eager")
    def step(images, labels):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    for images, labels in batches(3):
        step(images, labels)
        assert [norm(weight) for weight in weights(model)] == pytest.approx([1.0] * 3, rel=1e-3)
