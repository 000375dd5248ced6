"""Every argument of the calls in PyTorch's pickles: what `torch.load` gives is what is read, or there is a reason."""

import collections

import numpy as np
import pytest
import torch

from opnorm.auditing.differences import diff
from opnorm.checkpoints.opening import open_checkpoint

X = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Made:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def saved(path, value, **options):
    torch.save({"w": value}, path, **options)
    (weight,) = open_checkpoint(path).weights
    return weight


def tensor(*more, rebuild=torch._utils._rebuild_tensor_v2):
    storage = torch.storage.TypedStorage(wrap_storage=X.untyped_storage(), dtype=X.dtype, _internal=True)
    return Made(rebuild, storage, 0, (5, 4), (4, 1), False, collections.OrderedDict(), *more)


VIEWS = {
    "negated": torch._neg_view(X),
    "negated and turned": torch._neg_view(X).T,
    "part of a conjugate": torch.complex(X, 2 * X).conj().imag,
    "negated half": torch._neg_view(X.bfloat16()),
    "negated integers": torch._neg_view(torch.arange(6)),
    "a parameter": torch.nn.Parameter(torch._neg_view(X)),
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", VIEWS)
def test_a_lazily_negated_tensor_is_read_as_pytorch_reads_it(tmp_path, name, old):
    path = tmp_path / "a.pt"
    weight = saved(path, VIEWS[name], _use_new_zipfile_serialization=not old)
    truth = torch.load(path)["w"].detach().resolve_neg().double().numpy()
    np.testing.assert_array_equal(weight.read().astype(np.float64), truth)


def test_a_diff_sees_the_sign(tmp_path):
    torch.save({"w.weight": X}, tmp_path / "a.pt")
    torch.save({"w.weight": torch._neg_view(X)}, tmp_path / "b.pt")
    (row,) = diff(tmp_path / "a.pt", tmp_path / "b.pt").rows
    truth = 2 * np.linalg.norm(X.numpy(), 2)
    assert row.difference == pytest.approx((truth, truth), rel=2e-6)


@pytest.mark.parametrize("flags", [{"neg": False}, {"conj": True}, {}, None])
def test_what_changes_no_real_number_is_read_as_it_is(tmp_path, flags):
    np.testing.assert_array_equal(saved(tmp_path / "a.pt", tensor(flags)).read(), X.numpy())


@pytest.mark.parametrize("flags", [{"scale": True}, {"neg": 1}, {"neg": False, "more": X}])
def test_notes_that_are_not_known_are_a_reason(tmp_path, flags):
    weight = saved(tmp_path / "a.pt", tensor(flags))
    assert weight.geometry.unknown
    assert "says more of it" in weight.geometry.reason


def test_the_notes_of_a_tensor_with_its_own_dtype_are_read_too(tmp_path):
    value = tensor(torch.float64, {"neg": True}, rebuild=torch._utils._rebuild_tensor_v3)
    np.testing.assert_array_equal(saved(tmp_path / "a.pt", value).read(), -X.numpy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_tensor_of_another_device_has_the_dtype_that_it_is_turned_into(tmp_path, dtype):
    value = Made(torch._utils._rebuild_device_tensor_from_numpy, X.numpy(), dtype, "cpu", False)
    weight = saved(tmp_path / "a.pt", value)
    np.testing.assert_array_equal(weight.read().astype(np.float64), X.to(dtype).double().numpy())
    assert weight.dtype == str(dtype).removeprefix("torch.")


def test_attributes_that_set_the_numbers_are_a_reason(tmp_path):
    value = Made(torch._utils._rebuild_parameter_with_state, X, False, collections.OrderedDict(), {"data": 2 * X})
    assert "set by an attribute" in saved(tmp_path / "a.pt", value).geometry.reason
    value = Made(torch._utils._rebuild_parameter_with_state, X, False, collections.OrderedDict(), {"tag": 2})
    np.testing.assert_array_equal(saved(tmp_path / "b.pt", value).read(), X.numpy())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
@pytest.mark.parametrize("protocol", [2, 5])
def test_an_array_of_numpys_has_its_axes_in_their_order(tmp_path, order, protocol):
    array = np.arange(24.0).reshape(2, 3, 4).transpose(order)
    weight = saved(tmp_path / "a.pt", array, pickle_protocol=protocol)
    assert weight.shape == array.shape
    np.testing.assert_array_equal(weight.read(), array)
