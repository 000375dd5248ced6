"""A wrong argument is refused in Keras's style: the argument's name, its rule, the value received."""

import math
from inspect import signature

import keras
import numpy as np
import pytest
from cases import ALL, EVERY, gaussian
from keras import layers

import opnorm
from opnorm.rules import SpectralNorm

every_constraint = pytest.mark.parametrize("constraint_name", ALL)

WRONG = {
    "operator": ["reshaped", "", None],
    "strides": [0, 1.5, (2, 0), (), "two"],
    "groups": [0, -1, 1.5, True],
    "power_iterations": [0, -1, 1.5, True, "1"],
    "warmup_iterations": [-1, 0.5, None],
    "tolerance": [0, -1e-3, math.inf, math.nan, "small"],
    "perturbation": [-1e-3, 1.0, math.nan],
    "seed": [-1, 0.5, "zero"],
    "axis": [(), (-1, -1), 1.5, "channels_last", (0.5,)],
}


def expected(name, value):
    return rf"Argument `{name}` must .*\. Received: {name}={{}}$".format(
        "".join(f"\\{c}" if c in "().[]" else c for c in repr(value))
    )


@pytest.mark.parametrize("constraint_name", EVERY)
@pytest.mark.parametrize("value", [0, 0.0, -1, math.inf, -math.inf, math.nan, "1", None, True], ids=repr)
def test_target_that_is_not_positive_and_finite_is_refused(constraint_name, value):
    build = EVERY[constraint_name].build
    name = next(iter(signature(build).parameters))
    with pytest.raises(ValueError, match=expected(name, value)):
        build(value)


@pytest.mark.parametrize(
    ("constraint_name", "name", "value"),
    [(c, n, v) for c in ALL for n, values in ALL[c].options(WRONG).items() for v in values],
    ids=repr,
)
def test_wrong_option_is_refused(constraint_name, name, value):
    with pytest.raises(ValueError, match=expected(name, value)):
        ALL[constraint_name].build(1.0, **{name: value})


@every_constraint
@pytest.mark.parametrize(
    ("name", "value"), [("axis", 2), ("axis", (0, -3)), ("axis", (1, -1)), ("groups", 3)], ids=repr
)
def test_option_that_does_not_fit_the_kernel_is_refused_by_name(constraint_name, name, value):
    constraint = ALL[constraint_name].build(1.0, **{name: value})
    kernel = gaussian(6, 8)
    for use in (constraint.initial_state, constraint.project):
        with pytest.raises(ValueError, match=expected(name, value)):
            use(kernel)


@every_constraint
def test_scalar_weight_is_refused(constraint_name):
    with pytest.raises(ValueError, match="Argument `axis` must"):
        ALL[constraint_name].build(1.0).project(np.float32(2.0))


def test_model_that_is_not_built_is_refused():
    with pytest.raises(ValueError, match="Argument `model` must be built"):
        opnorm.project(keras.Sequential([layers.Dense(3)]))


class NoKeras:
    weight = None


@pytest.mark.parametrize(
    "function", [opnorm.project, opnorm.bake, lambda model: opnorm.constrain(model, opnorm.SpectralNorm())]
)
def test_a_model_of_another_framework_is_sent_to_its_front_end(function):
    with pytest.raises(
        ValueError, match=r"`model` must be a Keras model or layer; PyTorch has `opnorm.torch.constrain`"
    ):
        function(NoKeras())


def test_a_class_and_a_rule_of_another_front_end_are_told_from_constraints():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3)])
    with pytest.raises(ValueError, match=r"opnorm\.SpectralNorm\(\).*, a class, not called$"):
        opnorm.constrain(model, opnorm.SpectralNorm)
    with pytest.raises(ValueError, match=r"constraint=SpectralNorm\(\), of opnorm\.torch and opnorm\.jax$"):
        opnorm.constrain(model, SpectralNorm())


@pytest.mark.parametrize("constraint_name", EVERY)
def test_a_layer_or_a_kernel_in_the_place_of_the_norm_is_told_from_a_schedule(constraint_name):
    build = EVERY[constraint_name].build
    for wrong in (layers.Dense(3), keras.Sequential([layers.Dense(3)]), layers.Dense, opnorm.SpectralNorm(), np.eye(3)):
        with pytest.raises(ValueError, match=r"function of the step; make the constraint first, as `SpectralNorm\(\)`"):
            build(wrong)


@pytest.mark.parametrize("kind", [opnorm.SpectralNorm, opnorm.MaxSpectralNorm, opnorm.SpectralClip, opnorm.Orthogonal])
def test_an_argument_of_another_package_s_name_is_told_from_those_there_are(kind):
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'coeff'; it takes .*axis"):
        kind(coeff=0.9)
    assert "axis" in str(signature(kind))


def test_a_constraint_of_ones_own_takes_what_it_likes():
    class Halved(opnorm.SpectralNorm):
        def __init__(self, **options):
            super().__init__(0.5, **{name: value for name, value in options.items() if name != "note"})

    assert Halved(note="half", axis=0).axis == 0


def test_a_layer_in_the_place_of_a_kernel_is_told_from_one():
    for wrong in layers.Dense(3), keras.Sequential([keras.Input((2,)), layers.Dense(3)]):
        for use in (opnorm.SpectralNorm(), opnorm.SpectralClip().project, opnorm.SpectralRegularizer()):
            with pytest.raises(ValueError, match=r"`kernel` must be .*; a layer takes `kernel_constraint=`.*Received:"):
                use(wrong)


def test_a_constraint_and_a_penalty_in_the_place_of_each_other_are_refused():
    for arguments, named in (
        ({"kernel_regularizer": opnorm.SpectralNorm()}, "`kernel_regularizer` must be a penalty such as"),
        ({"kernel_constraint": opnorm.SpectralRegularizer()}, "`kernel_constraint` must be a constraint such as"),
    ):
        model = keras.Sequential([keras.Input((2,)), layers.Dense(3, **arguments)])
        model.compile("sgd", "mse")
        with pytest.raises(ValueError, match=named):
            model.fit(np.ones((4, 2)), np.ones((4, 3)), verbose=0)


def test_a_model_without_constraints_is_not_projected_in_silence():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3, name="free")], name="unbound")
    with pytest.warns(UserWarning, match="no kernel of 'unbound' has a constraint"):
        opnorm.project(model)


def test_the_norm_of_a_model_is_that_of_no_single_map():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3), layers.Dense(3)])
    with pytest.raises(ValueError, match=r"`x` must be .* `opnorm.linear_operators` has those of a model"):
        opnorm.spectral_norm(model)
    with pytest.raises(ValueError, match=r"`x` must be one array, not a mapping .* `opnorm.audit` takes those"):
        opnorm.spectral_norm({"kernel": np.eye(2)})
