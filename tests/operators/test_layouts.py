"""Kernels in the order of PyTorch and in any other: the operator is the same."""

import numpy as np
import pytest

from opnorm.bounds.brackets import spectral_norm
from opnorm.operators.convolution import Convolution

RNG = np.random.default_rng(0)
ROUNDING = 1e-12


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("layout", ["HWIO", "OIHW", "oihw", "IOHW", "OHWI", "IHWO"])
def test_a_layout_says_where_the_channels_are_for_any_number_of_spatial_axes(rank, layout):
    spatial = (2, 3, 4)[:rank]
    kernel = RNG.standard_normal((*spatial, 5, 6))
    places = {"I": rank, "O": rank + 1, "S": tuple(range(rank))}
    order = [places[letter] for letter in layout.upper().replace("HW", "S")]
    given = kernel.transpose([axis for part in order for axis in ((part,) if isinstance(part, int) else part)])
    np.testing.assert_array_equal(Convolution(given, layout=layout).kernel, kernel)
    truth = np.linalg.svd(kernel.reshape(-1, 6), compute_uv=False)[0]
    lower, upper = spectral_norm(given, layout=layout)
    assert lower <= truth * (1 + ROUNDING)
    assert truth <= upper * (1 + ROUNDING)


@pytest.mark.parametrize("name", ["Conv1d", "Conv2d", "Conv3d"])
def test_the_weight_of_a_torch_layer_is_read_as_its_layer_applies_it(name):
    torch = pytest.importorskip("torch")
    layer = getattr(torch.nn, name)(3, 4, 3, padding=1, bias=False).double()
    rank = int(name[4])
    size = (5, 6, 4)[:rank]
    operator = Convolution(layer.weight, size, layout="OIHW")
    x = RNG.standard_normal((*size, 3))
    with torch.no_grad():
        expected = np.moveaxis(layer(torch.tensor(np.moveaxis(x, -1, 0))[None])[0].numpy(), 0, -1)
    np.testing.assert_allclose((operator @ x.ravel()).reshape(*size, 4), expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 3, 5, 5), (4, 3, 2, 2, 2)])
def test_a_torch_tensor_without_a_layout_is_refused_with_the_remedy(shape):
    torch = pytest.importorskip("torch")
    for weight in (torch.ones(shape), torch.nn.Parameter(torch.ones(shape))):
        for call in (spectral_norm, Convolution):
            with pytest.raises(ValueError, match=r'`layout`.*"OIHW".*Received: '):
                call(weight)
    assert spectral_norm(torch.ones(shape), layout="OIHW").lower > 0
    assert spectral_norm(torch.ones(shape), axis=0) == spectral_norm(torch.ones(shape), layout="OIHW")
    assert spectral_norm(torch.eye(3)).lower > 0.99  # of a matrix the order does not matter


@pytest.mark.parametrize("layout", ["", "OI", "HIWO", "OIIW", "OIHH", "O HI", 5, ("O", "I", "H")])
def test_a_layout_that_is_none_is_refused(layout):
    for call in (spectral_norm, Convolution):
        with pytest.raises(ValueError, match=r"`layout`.*Received: "):
            call(np.ones((3, 3, 2, 2)), layout=layout)


def test_a_layout_stands_alone():
    with pytest.raises(ValueError, match="`axis`"):
        spectral_norm(np.ones((3, 3, 2, 2)), layout="OIHW", axis=1)
    for x in (np.eye(3), Convolution(np.ones((3, 1, 1)))):
        with pytest.raises(ValueError, match="`layout`"):
            spectral_norm(x, layout="OIHW")


@pytest.mark.parametrize(("kind", "sizes"), [("Linear", (3, 2)), ("Conv2d", (3, 2, 3))])
def test_a_module_of_pytorch_tells_its_layout_itself(kind, sizes):
    torch = pytest.importorskip("torch")
    module = getattr(torch.nn, kind)(*sizes)
    given = {"layout": "OIHW"} if kind == "Conv2d" else {}
    wanted = spectral_norm(Convolution(module.weight, **given) if given else module.weight)
    assert spectral_norm(module) == pytest.approx(wanted)
