"""Training loops of the backends' own: by `project` after a step, or by a state carried along."""

import warnings

import keras
import numpy as np
import pytest
from dense import array, norm
from keras import ops

import opnorm

BACKEND = keras.backend.backend()
EXACT = 1e-3  # the design's tolerance
STEPS = 40
LIVING = {"power_iterations": 1, "warmup_iterations": 0}  # sigma is right only if the state is carried along


def kernels(model):
    return [layer.kernel for layer in model.layers]


def norms(model):
    return [norm(kernel) for kernel in kernels(model)]


def loss_of(model, data):
    return ops.mean(ops.square(model(ops.convert_to_tensor(data[0])) - ops.convert_to_tensor(data[1])))


def test_project_brings_every_kernel_to_its_norm(mlp):
    model = mlp(opnorm.SpectralNorm(0.5))
    model.layers[1].kernel.constraint = keras.constraints.MaxNorm(0.25)
    biases = [array(layer.bias) for layer in model.layers]
    opnorm.project(model)
    assert norm(model.layers[0].kernel) == pytest.approx(0.5, abs=0.5 * EXACT)
    columns = np.linalg.norm(array(model.layers[1].kernel), axis=0)
    assert columns == pytest.approx(0.25 * np.ones(4), abs=1e-6)  # Keras's own constraint, float32 rounding
    assert all(np.array_equal(array(layer.bias), b) for layer, b in zip(model.layers, biases, strict=True))


def test_project_leaves_frozen_layers_alone(mlp):
    model = mlp()
    model.layers[0].trainable = False
    before = array(model.layers[0].kernel)
    opnorm.project(model)
    assert np.array_equal(array(model.layers[0].kernel), before)
    assert norms(model)[1] == pytest.approx(1, abs=EXACT)


def test_projecting_a_model_whose_kernels_are_all_frozen_says_that_nothing_was_done(mlp):
    model = mlp()
    model.trainable = False
    with pytest.warns(UserWarning, match=r"left all \d constrained kernels .* frozen. Remedy: set `trainable = True`"):
        opnorm.project(model)


def test_an_update_without_a_state_starts_afresh_and_a_wrong_one_is_refused():
    kernel = np.random.default_rng(0).standard_normal((6, 4)).astype("float32")
    for constraint in opnorm.SpectralNorm(), opnorm.SpectralClip(margin=0.1), opnorm.Orthogonal():
        result, _ = constraint.update(kernel)
        assert 0.89 <= norm(result) <= 1 + EXACT
    with pytest.raises(ValueError, match=r"Argument `state` must have the shape .*\(2, 4\). Received: state=\(3, 3\)"):
        opnorm.SpectralNorm().update(kernel, np.ones((3, 3)))
    with pytest.raises(
        ValueError, match=r"Argument `kernel` must be an array, tensor or variable; .*Received: kernel='abc'"
    ):
        opnorm.SpectralNorm().project("abc")


@pytest.mark.parametrize(
    ("first", "then", "target", "told"),
    [
        (opnorm.SpectralNorm(), opnorm.Orthogonal(), 1.0, False),
        (opnorm.SpectralNorm(), opnorm.SpectralClip(0.9), 0.9, False),
        (opnorm.SpectralNorm(), opnorm.SpectralNorm(0.9), 0.9, False),
        (opnorm.SpectralNorm(), opnorm.SpectralNorm(0.9, axis=0), 0.9, True),
        (opnorm.SpectralClip(0.9), opnorm.MaxSpectralNorm(0.8), 0.8, True),
    ],
    ids=repr,
)
def test_a_constraint_put_in_place_of_another_acts_and_says_where_it_has_no_state(first, then, target, told):
    layer = keras.layers.Dense(8, kernel_constraint=first)
    layer.build((None, 4))
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build([layer.kernel])
    optimizer.apply([ops.zeros((4, 8))])
    layer.kernel.constraint = then
    layer.kernel.assign(3 * layer.kernel)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        optimizer.apply([ops.zeros((4, 8))])
    assert bool([w for w in record if "Remedy" in str(w.message)]) == told
    assert norm(layer.kernel) == pytest.approx(target, rel=EXACT)


@pytest.mark.skipif(BACKEND != "torch", reason="torch.autocast")
def test_automatic_mixed_precision_around_an_update_does_not_reach_the_constraints():
    import torch

    for constraint in opnorm.SpectralNorm(), opnorm.SpectralClip(), opnorm.Orthogonal():
        layer = keras.layers.Dense(300, kernel_constraint=constraint)
        layer.build((None, 200))
        optimizer = keras.optimizers.Adam(1e-3)
        optimizer.build([layer.kernel])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            optimizer.apply([torch.randn(200, 300)])
        assert norm(layer.kernel) == pytest.approx(1.0, rel=EXACT)


def test_a_carried_state_is_as_good_as_an_optimizer_variable(mlp):
    constraint = opnorm.SpectralNorm(**LIVING)
    rng = np.random.default_rng(3)
    kernel = ops.convert_to_tensor(rng.standard_normal((32, 24)).astype("float32"))
    state = ops.convert_to_tensor(constraint.initial_state(kernel))
    first, _ = constraint.update(kernel, state)
    assert norm(first) > 1.05  # one iteration from a random vector is not enough
    for _ in range(STEPS):
        kernel = kernel - ops.convert_to_tensor(1e-3 * rng.standard_normal((32, 24)).astype("float32"))
        kernel, state = constraint.update(kernel, state)
    assert norm(kernel) == pytest.approx(1, abs=EXACT)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="GradientTape")
@pytest.mark.parametrize("built", ["before the loop", "while it is traced"])
def test_keras_optimizers_constrain_in_a_traced_gradient_tape_loop(mlp, data, built):
    import tensorflow as tf

    model, optimizer = mlp(opnorm.SpectralNorm(**LIVING)), keras.optimizers.Adam(1e-3)
    if built == "before the loop":
        optimizer.build(model.trainable_variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = loss_of(model, data)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )

    for _ in range(STEPS):
        step()
    assert norms(model) == pytest.approx([1, 1], abs=EXACT)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="GradientTape")
def test_project_serves_a_gradient_tape_loop_without_an_optimizer(mlp, data):
    import tensorflow as tf

    model = mlp()
    for _ in range(2):
        with tf.GradientTape() as tape:
            loss = loss_of(model, data)
        for variable, gradient in zip(
            model.trainable_variables, tape.gradient(loss, model.trainable_variables), strict=True
        ):
            variable.assign_sub(0.01 * gradient)
        opnorm.project(model)
        assert norms(model) == pytest.approx([1, 1], abs=EXACT)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.train.Checkpoint")
def test_a_tensorflow_checkpoint_restores_the_vectors(mlp, data, tmp_path):
    import tensorflow as tf

    def trained(steps):
        model, optimizer = mlp(), keras.optimizers.Adam(1e-3)
        model.compile(optimizer, "mse")
        optimizer.build(model.trainable_variables)
        for _ in range(steps):
            model.train_on_batch(*data)
        return tf.train.Checkpoint(model=model, optimizer=optimizer), optimizer

    (saved, before), (fresh, after) = trained(5), trained(0)
    fresh.restore(saved.save(str(tmp_path / "checkpoint"))).assert_consumed()
    names = [v.name for v in before.variables if v.name.endswith("_u")]
    assert len(names) == 2
    for one, other in zip(before.variables, after.variables, strict=True):
        assert np.array_equal(array(one), array(other)), one.path


@pytest.mark.skipif(BACKEND != "torch", reason="torch.optim")
@pytest.mark.parametrize("form", ["project", "state"])
def test_a_torch_optim_loop_is_constrained(mlp, data, form):
    import torch

    model = mlp(opnorm.SpectralNorm(**LIVING))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    carried = [k.constraint.initial_state(k, index) for index, k in enumerate(kernels(model))]
    for _ in range(STEPS if form == "state" else 2):
        optimizer.zero_grad()
        loss_of(model, data).backward()
        optimizer.step()
        if form == "project":
            opnorm.project(model)
            assert norms(model) == pytest.approx([1, 1], abs=EXACT)
        else:
            for index, kernel in enumerate(kernels(model)):
                new, carried[index] = kernel.constraint.update(kernel.value, carried[index])
                assert not new.requires_grad  # no graph grows from step to step
                kernel.assign(new)
    assert norms(model) == pytest.approx([1, 1], abs=EXACT)
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


@pytest.mark.skipif(BACKEND != "jax", reason="optax")
@pytest.mark.parametrize("form", ["project", "state"])
def test_an_optax_loop_is_constrained(mlp, data, form):
    import jax
    import optax

    model = mlp(opnorm.SpectralNorm(**LIVING))
    variables, constraints = model.trainable_variables, [v.constraint for v in model.trainable_variables]
    optimizer = optax.adam(1e-3)

    def loss(values):
        predicted, _ = model.stateless_call(values, [], data[0])
        return ops.mean(ops.square(predicted - data[1]))

    @jax.jit
    def step(values, momenta, carried):
        updates, momenta = optimizer.update(jax.grad(loss)(values), momenta)
        values = optax.apply_updates(values, updates)
        if form == "state":
            pairs = [c.update(w, u) if c else (w, u) for c, w, u in zip(constraints, values, carried, strict=True)]
            values, carried = map(list, zip(*pairs, strict=True))
        return values, momenta, carried

    values = [v.value for v in variables]
    carried = [
        c.initial_state(v, i) if c else None for i, (c, v) in enumerate(zip(constraints, variables, strict=True))
    ]
    momenta = optimizer.init(values)
    for _ in range(STEPS if form == "state" else 2):
        values, momenta, carried = step(values, momenta, carried)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        if form == "project":
            opnorm.project(model)
            assert norms(model) == pytest.approx([1, 1], abs=EXACT)
            values = [v.value for v in variables]
    assert norms(model) == pytest.approx([1, 1], abs=EXACT)
