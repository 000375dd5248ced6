"""Which matrix or convolution a module makes of its kernels: what `constrain` holds, against the explicit one."""

import pytest
import torch
from modules import MODULES, SEPARATE, SLIDING, explicit_norm, norm, step_without_change
from torch import nn

import opnorm
from opnorm.torch import KernelGeometry, SpectralClip, SpectralNorm, constrain, kernels


@pytest.mark.parametrize("name", MODULES)
def test_each_module_is_constrained_as_the_matrix_that_it_applies(name):
    torch.manual_seed(0)
    build, blocks = MODULES[name]
    module = build()
    optimizer = step_without_change(module)
    rows = constrain(module, optimizer, SpectralNorm(2.0))
    optimizer.step()
    assert {row.path for row in rows if row.constraint is not None} == set(blocks)
    for path, cut in blocks.items():
        assert max(map(norm, cut(module.get_parameter(path)))) == pytest.approx(2.0, rel=2e-3), path


@pytest.mark.parametrize("name", SEPARATE)
def test_blocks_that_are_maps_of_their_own_have_a_norm_each(name):
    torch.manual_seed(0)
    build, blocks, options = SEPARATE[name]
    module = build()
    optimizer = step_without_change(module)
    constrain(module, optimizer, SpectralNorm(2.0, **options))
    optimizer.step()
    for path, cut in blocks.items():
        norms = [norm(part) for part in cut(module.get_parameter(path))]
        assert norms == pytest.approx([2.0] * len(norms), rel=2e-3), path


@pytest.mark.parametrize("name", SLIDING)
@pytest.mark.parametrize("rule", [SpectralNorm, SpectralClip])
def test_a_convolution_is_constrained_as_what_slides(name, rule):
    torch.manual_seed(0)
    build, shape = SLIDING[name]
    module = build()
    with torch.no_grad():
        module.weight *= 3
    optimizer = step_without_change(module)
    (row,) = constrain(module, optimizer, rule(operator="convolution"))
    optimizer.step()
    assert row.operator == "convolution"
    assert explicit_norm(module, shape) <= 1.01
    proved = opnorm.spectral_norm(opnorm.linear_operator(module))
    if name != "dilated and strided":  # there every stride is allowed for
        assert proved.upper >= 0.97
    assert proved.lower <= 1.01


def test_stacks_of_experts_are_known_by_their_name():
    class MixtralExperts(nn.Module):  # as transformers has them
        def __init__(self):
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 5))
            self.down_proj = nn.Parameter(torch.randn(3, 5, 4))

    experts = MixtralExperts()
    optimizer = step_without_change(experts)
    constrain(experts, optimizer, SpectralNorm())
    optimizer.step()
    for stack in (experts.gate_up_proj, experts.down_proj):
        assert [norm(one) for one in stack] == pytest.approx([1.0] * 3, rel=1e-3)


def test_a_type_that_is_taught_is_constrained_block_by_block():
    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 6, 5))  # (experts, in, out)
            self.scale = nn.Parameter(torch.ones(3, 1))

    @kernels.register
    def _(module: Mixture):
        return (KernelGeometry("weight", (0, -1), groups=3, blockwise=True),)

    experts = Mixture()
    optimizer = step_without_change(experts)
    constrain(experts, optimizer, SpectralNorm())
    optimizer.step()
    assert [norm(one) for one in experts.weight] == pytest.approx([1.0] * 3, rel=1e-3)


def test_tied_kernels_are_constrained_once_and_the_table_says_so():
    model = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 10, bias=False))
    model[1].weight = model[0].weight
    optimizer = step_without_change(model)
    rows = constrain(model, optimizer, SpectralNorm())
    optimizer.step()
    assert [row.note for row in rows] == ["", "tied to '0.weight'"]
    assert norm(model[1].weight) == pytest.approx(1.0, rel=1e-3)
