"""Bad input: an error or a warning of one line, that names the module, what was received and the remedy."""

import gc
import subprocess
import sys
from inspect import signature

import pytest
import torch
from modules import mlp, trained
from torch import nn
from torch.nn.utils import parametrizations

import opnorm
import opnorm.torch as ot
from opnorm.torch import SpectralNorm, constrain, monitor, project, spectral_normalization

CONSTRAINTS = (ot.SpectralNorm, ot.MaxSpectralNorm, ot.SpectralClip, ot.Orthogonal)
WRONG = {
    "value": [0, -1.0, float("nan"), "1", True],
    "max_value": [0, float("inf"), None],
    "min_value": [-0.5, 2.0, "rms", True],
    "operator": ["reshaped", "", None],
    "strides": [0, 1.5, (), "two"],
    "groups": [0, True],
    "power_iterations": [0, 1.5],
    "warmup_iterations": [-1, None],
    "tolerance": [0, "small"],
    "perturbation": [-1e-3, 1.0],
    "margin": [-0.1, 1.0],
    "blockwise": [1, None],
    "companion": ["yes"],
    "seed": [-1, 0.5],
    "axis": [(), (-1, -1), 1.5],
}


def sgd(module):
    return torch.optim.SGD(module.parameters(), 0.1)


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_a_wrong_argument_is_named_with_the_value_received(kind):
    for name in signature(kind).parameters:
        for value in WRONG[name]:
            with pytest.raises(ValueError, match=rf"Argument `{name}` must .*\. Received: {name}="):
                kind(**{name: value})


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_an_argument_of_another_package_s_name_is_told_from_those_there_are(kind):
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'n_power_iterations'; it takes .*axis, groups"):
        kind(n_power_iterations=5)
    assert "axis" in str(signature(kind))


def test_rules_of_other_front_ends_and_classes_are_told_from_rules():
    class SpectralNorm:
        """Called as opnorm.torch's, as Keras's is."""

    for wrong, origin in ((SpectralNorm(), f"of {__name__}"), (ot.SpectralNorm, "a class, not called")):
        must = rf"`rule` must be one of opnorm\.torch's constraints, such as `opnorm\.torch\.Spectral.*, {origin}$"
        with pytest.raises(ValueError, match=must):
            constrain(module := mlp(), sgd(module), wrong)
        with pytest.raises(ValueError, match=must):
            project(mlp(), wrong)


def test_a_module_in_the_place_of_the_norm_and_a_rule_that_is_called_are_told_what_to_do():
    for wrong in (nn.Linear(2, 2), mlp(), nn.Linear, nn.Linear(2, 2).weight, SpectralNorm()):
        for kind in (ot.SpectralNorm, ot.MaxSpectralNorm, ot.SpectralClip):
            with pytest.raises(ValueError, match=r"function of the step; make the constraint first, as `SpectralNorm"):
                kind(wrong)
    for kind in CONSTRAINTS:
        with pytest.raises(TypeError, match=r"not callable: it is what `opnorm\.torch\.constrain\(module"):
            kind()(nn.Linear(2, 2))
        with pytest.raises(ValueError, match=r"`kernel` must be .* not what holds it: of a layer its `weight`"):
            kind().update(nn.Linear(2, 2))


def test_a_module_that_the_optimizer_does_not_own_is_refused():
    with pytest.raises(ValueError, match=r"`optimizer` must own a kernel.*SGD, which updates none of a Sequential's"):
        constrain(mlp(), sgd(mlp()), SpectralNorm())


def test_a_kernel_that_the_optimizer_does_not_own_is_warned_of():
    model = mlp()
    with pytest.warns(UserWarning, match=r"SGD does not update 2 of the kernels, '2.weight' the first.*`exclude` them"):
        rows = constrain(model, sgd(model[0]), SpectralNorm())
    assert [row.note for row in rows] == ["", "not in the optimizer", "not in the optimizer"]


@pytest.mark.parametrize("replaced", ["assign", "parameter", "parametrized"])
def test_a_parameter_that_was_replaced_stops_the_next_step(replaced):
    model = mlp()
    optimizer = sgd(model)
    constrain(model, optimizer, SpectralNorm())
    trained(model, optimizer)
    if replaced == "assign":
        model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    elif replaced == "parameter":
        model[0].weight = nn.Parameter(torch.randn(24, 16))
    else:
        spectral_normalization(model[0])
    with pytest.raises(RuntimeError, match=r"'0.weight' of .*Linear is not the parameter.*Remedy: call `remove\(\)`"):
        optimizer.step()


def test_moving_a_module_keeps_its_parameters_and_the_constraint():
    model = mlp()
    optimizer = sgd(model)
    constrain(model, optimizer, SpectralNorm())
    trained(model, optimizer)
    model.to("cpu", torch.float64)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert torch.linalg.matrix_norm(model[0].weight, 2).item() == pytest.approx(1.0, rel=1e-3)


def test_a_parameter_constrained_twice_is_refused():
    model = mlp()
    optimizer = sgd(model)
    constrain(model, optimizer, SpectralNorm(), include="0")
    for other in (optimizer, sgd(model)):
        with pytest.raises(ValueError, match=r"'0.weight', constrained twice"):
            constrain(model, other, SpectralNorm())
    constrain(model, optimizer, SpectralNorm(), exclude="0")


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (nn.Sequential(nn.ReLU(), nn.LayerNorm(3)), "it has no parameter that may be one"),
        (parametrizations.spectral_norm(nn.Linear(3, 2)), "weight: parametrized: made of another parameter"),
        (nn.ParameterList([nn.Parameter(torch.ones(2, 2))]), "0: no rule: register the module's type"),
    ],
)
def test_a_module_without_a_kernel_to_constrain_says_why(module, why):
    optimizer = torch.optim.SGD([*module.parameters(), nn.Parameter(torch.ones(1))], 0.1)
    with pytest.raises(ValueError, match=f"must have a kernel to constrain.*{why}"):
        constrain(module, optimizer, SpectralNorm())


def test_a_kernel_that_an_older_hook_makes_is_passed_over():
    with pytest.warns(FutureWarning):
        hooked = nn.utils.weight_norm(nn.Linear(3, 2))
    model = nn.Sequential(hooked, nn.Linear(2, 2))
    rows = constrain(model, sgd(model), SpectralNorm())
    assert rows[0].note.startswith("no parameter: made of others in the forward pass")


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_module_is_to_be_called_first():
    lazy = nn.LazyLinear(3)
    with pytest.raises(ValueError, match="must be initialised: call it on data first"):
        constrain(lazy, torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1), SpectralNorm())


def test_flattened_kernels_are_refused():
    class FullyShardedDataParallel(nn.Sequential):  # called as FSDP1's wrapper
        pass

    model = FullyShardedDataParallel(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"which flattens its kernels: use `torch.distributed.fsdp.fully_shard`"):
        constrain(model, sgd(model), SpectralNorm())


def test_an_optimizer_inside_of_a_wrapper_is_the_one_that_steps():
    class Wrapper:  # as accelerate has it
        def __init__(self, optimizer):
            self.optimizer = optimizer

    model = mlp()
    optimizer = sgd(model)
    constrain(model, Wrapper(optimizer), SpectralNorm())
    trained(model, optimizer)
    assert torch.linalg.matrix_norm(model[0].weight, 2).item() == pytest.approx(1.0, rel=1e-3)


def test_other_arguments_are_refused_by_name():
    model = mlp()
    for call, name in (
        (lambda: constrain("model", sgd(model), SpectralNorm()), "module"),
        (lambda: constrain(model, "Adam", SpectralNorm()), "optimizer"),
        (lambda: constrain(model, sgd(model), "spectral"), "rule"),
        (lambda: constrain(model, sgd(model), SpectralNorm(), include="nothing"), "include"),
        (lambda: constrain(model, sgd(model), SpectralNorm(), exclude=3), "exclude"),
        (lambda: project("model"), "module"),
        (lambda: project(model), "rule"),
        (lambda: project(nn.ReLU(), SpectralNorm()), "rule"),
        (lambda: project(model, 1.0), "rule"),
        (lambda: monitor("model"), "module"),
        (lambda: monitor(model, operator="sliding"), "operator"),
        (lambda: monitor(model, proved="yes"), "proved"),
        (lambda: spectral_normalization("layer"), "module"),
        (lambda: spectral_normalization(nn.Linear(2, 2), "bias"), "name"),
        (lambda: spectral_normalization(nn.Linear(2, 2), vectors=0), "vectors"),
        (lambda: spectral_normalization(nn.ReLU()), "name"),
        (lambda: spectral_normalization(spectral_normalization(nn.Linear(2, 2))), "name"),
        (lambda: spectral_normalization(parametrizations.orthogonal(nn.Linear(2, 2))), "name"),
        (lambda: SpectralNorm().update(torch.ones(2, 2, 3)), "axis"),
        (lambda: SpectralNorm().update(torch.ones(2, 2, dtype=torch.int64)), "kernel"),
        (lambda: SpectralNorm().update(torch.ones(2, 2, dtype=torch.complex64)), "kernel"),
        (lambda: SpectralNorm().update("kernel"), "kernel"),
        (lambda: SpectralNorm().update(torch.ones(2, 2), torch.ones(5, 5)), "state"),
    ):
        with pytest.raises(ValueError, match=rf"Argument `{name}` must "):
            call()


PROGRAM = """
import sys
sys.modules["keras"] = sys.modules["tensorflow"] = sys.modules["jax"] = None  # importing them fails
import torch
import opnorm.torch as ot
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), ot.spectral_normalization(torch.nn.Linear(8, 4)))
optimizer = torch.optim.Adam(model.parameters())
assert "scipy" not in sys.modules  # which takes longer to import than the rest
ot.constrain(model, optimizer, ot.SpectralNorm(2.0))
model(torch.randn(4, 8)).sum().backward()
optimizer.step()
ot.project(model)
ot.monitor(model, proved=True)
import opnorm
print(round(opnorm.spectral_norm(model[0]).upper, 2), opnorm.torch is ot)
opnorm.audit(model), opnorm.linear_operators(model), opnorm.lipschitz_bound(model, torch.randn(3, 8))
"""


def test_all_of_it_works_where_keras_cannot_be_imported():
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True)
    assert result.stdout.split() == ["2.0", "True"], result.stderr


def test_an_optimizer_whose_parameters_were_replaced_stops_the_next_step():
    model = mlp()
    optimizer = sgd(model)
    constrain(model, optimizer, SpectralNorm())
    masters = [nn.Parameter(parameter.detach().clone()) for parameter in model.parameters()]
    optimizer.param_groups[0]["params"] = masters  # as packages for half precision do
    with pytest.raises(RuntimeError, match=r"'0.weight' of Linear is no longer a parameter.*Remedy: call `remove\(\)`"):
        optimizer.step()


def test_the_cells_of_a_notebook_run_again():
    model = mlp()
    gc.disable()
    try:
        for _ in range(2):
            optimizer = sgd(model)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
            rows = constrain(model, optimizer, SpectralNorm())
            trained(model, optimizer)
            scheduler.step()
    finally:
        gc.enable()
    assert all(row.constraint for row in rows)


@pytest.mark.parametrize(
    "asked",
    [lambda m: constrain(m, sgd(m), SpectralNorm()), lambda m: project(m, SpectralNorm()), monitor, opnorm.audit],
)
def test_a_module_on_the_meta_device_is_to_be_taken_off_it_first(asked):
    with pytest.raises(
        ValueError, match=r"must be initialised: take it off the meta device.*'0.weight' without values"
    ):
        asked(nn.Sequential(nn.Linear(3, 2, device="meta")))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_an_empty_kernel_is_not_normalized(shape):
    module = nn.Linear(1, 1)
    module.weight = nn.Parameter(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"`name` must be of a parameter; this one is empty: its shape is"):
        spectral_normalization(module)
