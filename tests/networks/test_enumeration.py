"""Small ReLU networks of two inputs: the bracket holds their exact constant, found region by region."""

import numpy as np
import pytest
from regions import lipschitz_constant, regions

from opnorm.networks.lipschitz import lipschitz_bound

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")  # an extra of opnorm's


def drawn(widths, seed):
    rng = np.random.default_rng(seed)
    matrices = [rng.standard_normal(shape) / np.sqrt(shape[1]) for shape in zip(widths[1:], widths, strict=False)]
    return matrices, [rng.standard_normal(len(W)) for W in matrices]


def module(matrices, biases, slope):
    layers = []
    for W, bias in zip(matrices, biases, strict=True):
        layers += [torch.nn.Linear(*W.shape[::-1], dtype=torch.float64), torch.nn.LeakyReLU(slope)]
        layers[-2].weight.data, layers[-2].bias.data = torch.tensor(W), torch.tensor(bias)
    return torch.nn.Sequential(*layers[:-1])


def test_regions_are_found_one_by_one():
    # |x| + |y|: four quadrants, the gradient (1, 1) in each.
    W, last = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]]), np.ones((1, 4))
    found = list(regions([W, last], [np.zeros(4), np.zeros(1)]))
    assert len(found) == 4
    np.testing.assert_allclose(np.abs(np.concatenate(found)), 1.0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("slope", [0.0, 0.3])
@pytest.mark.parametrize("widths", [(2, 12, 1), (2, 6, 6, 3), (2, 5, 5, 5, 2)])
def test_the_bracket_holds_the_exact_constant(widths, slope, seed):
    matrices, biases = drawn(widths, seed)
    exact, count = lipschitz_constant(matrices, biases, slope)
    assert count > widths[1]
    points = torch.tensor(np.random.default_rng(seed).standard_normal((4, 2)))
    bound = lipschitz_bound(module(matrices, biases, slope), points)
    assert bound.lower * (1 - 1e-9) <= exact <= bound.upper
    product = np.prod([np.linalg.norm(W, 2) for W in matrices])
    assert bound.upper < product
