"""Modules that ask sizes which way to go: what is fixed by the example decides, what it holds does not."""

import numpy as np
import pytest
import torch
from torch import nn

from opnorm.networks.lipschitz import lipschitz_bound

ASKED = {
    "channels": lambda x: x.shape[1] == 6,
    "groups": lambda x: int(x.shape[-1]) % 2 == 0,
    "root": lambda x: float(x.shape[1]) ** 0.5 > 2,
}
REFUSED = {
    "values": lambda x: x.sum() > 0,
    "both": lambda x: x.shape[1] * x.sum() > 0,
    "count": lambda x: x.nonzero().shape[1] * x.numel() > 3,
    "batch": lambda x: x.shape[0] == 1,
    "batch from behind": lambda x: x.size(-2) == 1,
    "batch elsewhere": lambda x: x.t().shape[1] == 1,
}
TAKEN = {  # numbers that are taken out of tensors, which PyTorch's tracer lets pass
    "list": lambda x: x * max(x[0].tolist()),
    "array": lambda x: x.clamp(max=float(np.percentile(x.detach().numpy(), 90))),
    "data": lambda x: x * x.data,
    "text": lambda x: x * float(f"{x[0, 0]:.3f}"),
    "equal": lambda x: 5 * x if torch.equal(x, x.round()) else x,
}
POINTS = np.random.default_rng(0).standard_normal((2, 6)).astype("float32")


class Asking(nn.Module):
    def __init__(self, question):
        super().__init__()
        self.question = question

    def forward(self, x):
        return 3 * x if self.question(x) else 5 * x


@pytest.mark.parametrize("name", ASKED)
def test_a_module_may_ask_for_the_size_of_its_example(name):
    bound = lipschitz_bound(Asking(ASKED[name]), POINTS)
    assert bound.upper == pytest.approx(3)
    assert bound.lower == pytest.approx(3)
    assert "__bool__" not in torch.Tensor.__dict__


@pytest.mark.parametrize("name", REFUSED)
def test_a_module_may_ask_for_nothing_else(name):
    with pytest.raises(ValueError, match=r"Converting a tensor|the size of the batch decides"):
        lipschitz_bound(Asking(REFUSED[name]), POINTS)
    assert "__bool__" not in torch.Tensor.__dict__


class Taking(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("name", TAKEN)
def test_numbers_that_a_module_takes_out_of_tensors_are_no_constants(name):
    with pytest.raises(ValueError, match=r"Converting a tensor|its trace is another one for other numbers"):
        lipschitz_bound(Taking(TAKEN[name]), POINTS)


class Sorted(nn.Module):
    """Groups of two sorted, as Lipschitz libraries write it."""

    def forward(self, x):
        if x.shape[1] % 2 > 0:
            raise ValueError("not pairs")
        pairs = x.view(x.shape[0], x.shape[1] // 2, 2)
        return torch.cat([pairs.amin(2, keepdim=True), pairs.amax(2, keepdim=True)], dim=2).flatten(1)


class Shares(nn.Module):
    """A residual block whose two shares are learned."""

    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(0.5))
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.ReLU())

    def forward(self, x):
        share = torch.sigmoid(self.alpha)
        return share * x + (1 - share) * self.inner(x)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(6, 8), Sorted(), nn.Linear(8, 3)),
        Shares(),
        nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 2, 3, padding=1, padding_mode="circular")),
    ],
    ids=["sorted", "shares", "circular"],
)
def test_what_lipschitz_libraries_write_has_a_bound(module):
    torch.manual_seed(0)
    bound = lipschitz_bound(module, POINTS)
    x = torch.from_numpy(POINTS)
    largest = max(
        torch.linalg.matrix_norm(torch.autograd.functional.jacobian(module, one[None]).reshape(-1, 6), 2) for one in x
    )
    assert bound.unknown == ()
    assert largest <= bound.upper * (1 + 1e-6)
    assert bound.upper < 2 * largest


def padded(mode):
    return lambda x: x + nn.functional.pad(x[:, :, 1:-1, 1:-1], (1, 1, 1, 1), mode=mode)


def enlarged(x):
    return nn.functional.pixel_shuffle(x, 2) + nn.functional.interpolate(x[:, :1], scale_factor=2)


SHAPED = {
    "zeros around": (padded("constant"), (2, 5, 5), 2),
    "a mirrored border": (padded("reflect"), (2, 5, 5), 4),
    "a view": (lambda x: x + x.view(-1, 3, 2).relu().view(-1, 6), (6,), 2),
    "a larger image": (enlarged, (4, 3, 3), 3),
}  # fmt: skip


class Shaped(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("name", SHAPED)
def test_branches_of_a_batch_of_any_size_meet_in_one_shape(name):
    function, shape, most = SHAPED[name]
    points = np.random.default_rng(0).standard_normal((2, *shape)).astype("float32")
    bound = lipschitz_bound(Shaped(function), points)
    assert bound.unknown == ()
    assert bound.lower <= bound.upper * (1 + 1e-6)
    assert bound.upper <= most * (1 + 1e-9)
