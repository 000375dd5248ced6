"""Modules on a ball: transformers have finite bounds there, never below autograd's Jacobians."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it

import opnorm


class Block(nn.Module):
    """A transformer's block, its norms first."""

    def __init__(self, width=12, heads=2):
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.perceptron = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))

    def forward(self, x):
        y = self.first(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.perceptron(self.second(x))


class ViT(nn.Module):
    """Patches, a class token, positions, a block, a head."""

    def __init__(self, width=12):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 3, 3)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 5, width))
        self.block, self.norm, self.head = Block(width), nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.block(x))[:, 0])


class ScaledDotProduct(nn.Module):
    """Attention as `scaled_dot_product_attention`, one projection for all three."""

    def __init__(self):
        super().__init__()
        self.joint, self.output = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        batch, tokens, width = x.shape
        query, key, value = (
            part.view(batch, tokens, 2, width // 2).transpose(1, 2) for part in self.joint(x).chunk(3, -1)
        )
        found = F.scaled_dot_product_attention(query, key, value)
        return self.output(found.transpose(1, 2).reshape(batch, tokens, width))


class Written(ScaledDotProduct):
    """The same written out, with a gated perceptron behind a root mean square."""

    def forward(self, x):
        batch, tokens, width = x.shape
        query, key, value = self.joint(x).reshape(batch, tokens, 3, width).unbind(2)
        x = torch.softmax(query @ key.transpose(-2, -1) / width**0.5, -1) @ value
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-2)
        return F.silu(self.output(x)) * x


def jacobian(module, x):
    exact = module.double()
    found = torch.autograd.functional.jacobian(exact, x[None]).reshape(-1, x.numel())
    module.float()
    return float(torch.linalg.matrix_norm(found, 2))


def steepest(module, x, radius, count=6):
    generator = torch.Generator().manual_seed(1)
    moves = torch.randn((count, *x.shape), generator=generator, dtype=torch.float64)
    return max(jacobian(module, x + radius * move / move.norm()) for move in moves)


CASES = {
    "block": (Block, (3, 12), 2e-3),
    "vit": (ViT, (1, 6, 6), 2e-4),
    "scaled_dot_product": (ScaledDotProduct, (3, 8), 5e-2),
    "written": (Written, (3, 8), 1e-2),
}


@pytest.mark.parametrize("name", CASES)
def test_attention_has_a_finite_bound_on_a_ball_and_no_jacobian_there_is_above_it(name):
    make, shape, radius = CASES[name]
    torch.manual_seed(0)
    module = make().eval()
    x = torch.randn(shape, dtype=torch.float64)
    at, near, far = (opnorm.lipschitz_bound(module, around=x, radius=r) for r in (0.0, radius, 1.0))
    exact = jacobian(module, x)
    assert at.lower <= exact * (1 + 1e-6)  # of constants that the exporter rounds to float32
    assert exact * (1 - 1e-6) <= at.upper <= exact * (1 + 1e-3)  # of rounding errors on the way
    assert steepest(module, x, radius) <= near.upper <= 3 * exact
    assert near.unknown == ()
    assert far.upper is None or far.upper >= near.upper


def test_a_module_leaves_attention_s_fast_way_as_it_was():
    opnorm.lipschitz_bound(Block(), around=np.ones((2, 12)), radius=0.0)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    ("around", "match"),
    [
        (np.ones(5), "`around` must be what the module takes"),
        ([1.0], "`around` must be what the module takes"),
        ("text", "finite floating-point numbers"),
        (np.full(4, np.nan), "finite floating-point numbers"),
        (np.ones(4, dtype=int), "finite floating-point numbers"),
    ],
)
def test_a_centre_that_is_no_example_is_refused(around, match):
    with pytest.raises(ValueError, match=match):
        opnorm.lipschitz_bound(nn.Linear(4, 2), around=around, radius=0.1)


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(1, keepdim=True)


def test_an_example_has_its_batch_axis_or_not():
    """A module that takes any shape gives another result where a batch of one is taken for an example of one row."""
    exact = np.linalg.norm(np.eye(4) - 0.25, 2)
    for example in (np.ones(4), np.ones((1, 4))):
        assert opnorm.lipschitz_bound(Centred(), around=example, radius=0.1).lower == pytest.approx(exact)
    rows = opnorm.lipschitz_bound(Centred(), around=np.ones((1, 3, 4)), radius=0.1)  # of three rows, not one image
    assert rows.lower == pytest.approx(np.linalg.norm(np.eye(3) - 1 / 3, 2))
    image = opnorm.lipschitz_bound(nn.Conv2d(1, 2, 3), around=np.ones((1, 4, 4), np.float32), radius=0.1)
    batch = opnorm.lipschitz_bound(nn.Conv2d(1, 2, 3), around=np.ones((1, 1, 4, 4), np.float32), radius=0.1)
    assert image.lower is not None
    assert batch.lower is not None


class Two(nn.Module):
    def forward(self, a, b):
        return a + b


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (Two(), "`data` must be what the module takes, which has one input"),
        (torch.jit.script(nn.Linear(4, 2)), r"`model` must be a module that can be copied.*torch.jit.script"),
    ],
)
def test_a_module_that_cannot_be_traced_is_refused_by_name(module, match):
    with pytest.raises(ValueError, match=match):
        opnorm.lipschitz_bound(module, np.ones((1, 4), np.float32))


def test_points_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="`data` must hold at least one point of finite"):
        opnorm.lipschitz_bound(nn.Linear(4, 2), np.full((1, 4), np.inf, np.float32))


def test_a_compiled_module_has_the_bound_of_what_was_compiled():
    module = nn.Linear(4, 2)
    bound, compiled = (opnorm.lipschitz_bound(m, np.ones((1, 4), np.float32)) for m in (module, torch.compile(module)))
    assert compiled.upper == bound.upper


def test_a_layer_of_a_transformer_is_followed_by_its_program(capfd):
    """Its trace is one that PyTorch does not write; with `onnxscript` there is its program."""
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    module = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double().eval()
    x = torch.randn(3, 8, dtype=torch.float64)
    at, near = (opnorm.lipschitz_bound(module, around=x, radius=r) for r in (0.0, 1e-3))
    exact = jacobian(module, x)
    assert at.lower <= exact * (1 + 1e-6)
    assert exact * (1 - 1e-6) <= at.upper <= exact * (1 + 1e-3)
    assert steepest(module, x, 1e-3) <= near.upper <= 2 * exact
    assert capfd.readouterr() == ("", "")


def test_data_and_a_ball_are_not_given_together():
    with pytest.raises(ValueError, match="`data`"):
        opnorm.lipschitz_bound(nn.Linear(4, 2), np.ones((1, 4)), around=np.ones(4), radius=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_batch_normalization_is_the_module_s_own_and_not_rounded_into_its_kernel(seed):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)).eval()
    with torch.no_grad():
        module[1].running_var.uniform_(0.1, 3.0)
        module[1].weight.uniform_(0.5, 3.0)
    bound = opnorm.lipschitz_bound(module, around=np.zeros((2, 4, 4), np.float32), radius=0.0)
    module.double()
    jacobian = torch.autograd.functional.jacobian(module, torch.zeros(1, 2, 4, 4, dtype=torch.float64))
    truth = np.linalg.norm(jacobian.reshape(48, 32).numpy(), 2)
    assert bound.lower <= truth * (1 + 1e-13)
    assert truth <= bound.upper * (1 + 1e-13)
    assert bound.upper <= bound.lower * (1 + 2e-8)


class Causal(nn.Module):
    """Attention to what came before, as people write it."""

    def __init__(self, how):
        super().__init__()
        self.how, self.inner = how, nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.inner(x).chunk(3, -1)
        if self.how == "scaled_dot_product":
            return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        scores = q @ k.transpose(-1, -2) / 8**0.5
        if self.how == "filled":
            scores = scores.masked_fill(torch.ones(4, 4, dtype=torch.bool).triu(1), float("-inf"))
        if self.how == "added":
            scores = scores + torch.full((4, 4), float("-inf"), dtype=x.dtype).triu(1)
        return scores.softmax(-1) @ v


@pytest.mark.parametrize("how", ["scaled_dot_product", "filled", "added"])
@pytest.mark.parametrize("radius", [1e-3, 0.1])
def test_what_a_mask_leaves_out_has_no_part_in_a_bound_on_a_ball(how, radius):
    torch.manual_seed(0)
    module = Causal(how).double().eval()
    x = torch.randn(4, 8, dtype=torch.float64)
    at, near = (opnorm.lipschitz_bound(module, around=x, radius=r) for r in (0.0, radius))
    exact = jacobian(module, x)
    assert at.lower <= exact * (1 + 1e-6)
    assert exact * (1 - 1e-6) <= at.upper <= exact * (1 + 1e-6)
    assert steepest(module, x, radius) <= near.upper


def test_minus_infinity_is_read_by_a_softmax_alone():
    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

        def forward(self, x):
            return torch.relu(x + self.mask)

    bound = opnorm.lipschitz_bound(Read(), around=np.ones(2, np.float32), radius=0.1)
    assert bound.lower is None
    assert any("it reads minus infinity" in note for note in bound.notes)
