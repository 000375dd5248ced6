"""The constraint in every way Keras has to train: it acts, or says that it does not."""

import warnings
from functools import partial

import keras
import numpy as np
import pytest
from dense import array, norm
from keras import ops

import opnorm
from opnorm.keras.slots import state_of

LIVING = {"power_iterations": 1, "warmup_iterations": 0}  # sigma is right only if u survives from step to step
EXACT = 1e-3  # the design's tolerance for a kernel that has trained for tens of steps
FIRST = 1e-2  # a first update: from 1.0 to 1.02 of the target by the design, half of it allowed here


def kernels(model):
    return [layer.kernel for layer in model.layers]


def vectors(optimizer):
    return [v for v in optimizer.variables if v.name.endswith("_u")]


SETTINGS = {"run_eagerly": True}, {"jit_compile": False}, {"jit_compile": True}, {"steps_per_execution": 4}
if keras.backend.backend() == "torch":  # compiling takes a minute of C++ (traced only: the next test), one step is all
    SETTINGS = SETTINGS[:2]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings))
def test_the_vector_lives_however_fit_runs_its_steps(mlp, data, settings):
    model = mlp(opnorm.SpectralNorm(**LIVING))
    model.compile(keras.optimizers.Adam(1e-3), "mse", **settings)
    model.fit(*data, batch_size=16, epochs=8, verbose=0)
    for kernel in kernels(model):
        assert norm(kernel) == pytest.approx(1, abs=EXACT)
        assert state_of(model.optimizer, kernel) is not None


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch.compile")
@pytest.mark.filterwarnings("ignore:.*lru_cache:UserWarning", "ignore:.*torch.jit.script:DeprecationWarning")
def test_the_vector_lives_in_a_compiled_torch_step(data, monkeypatch):
    import torch

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # traced, but no C++ to wait for
    layer = keras.layers.Dense(4, kernel_constraint=opnorm.SpectralNorm(**LIVING))
    model = keras.Sequential([keras.Input((12,)), layer])
    model.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=True)
    model.fit(*data, batch_size=8, epochs=2, verbose=0)
    assert norm(layer.kernel) == pytest.approx(1, abs=EXACT)


BUILT_IN = ["Adadelta", "Adafactor", "Adagrad", "Adam", "Adamax", "AdamW", "Ftrl", "Lamb", "Lion", "Muon", "Nadam"]


@pytest.mark.parametrize("name", [*BUILT_IN, "RMSprop", "ScheduleFreeAdamW", "SGD"])
def test_every_optimizer_of_keras_keeps_a_vector_for_every_kernel(mlp, name):
    model = mlp()
    optimizer = getattr(keras.optimizers, name)(learning_rate=1e-4)
    optimizer.build(model.trainable_variables)
    start = [array(v) for v in vectors(optimizer)]
    optimizer.apply([ops.ones(v.shape) for v in model.trainable_variables])
    assert [norm(k) for k in kernels(model)] == pytest.approx([1, 1], abs=FIRST)
    for kernel, u in zip(kernels(model), start, strict=True):
        assert np.abs(array(state_of(optimizer, kernel)) - u).max() > 0.01  # it moved


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="Keras 3.12 has none")
def test_of_many_optimizers_under_one_only_the_one_that_updates_a_kernel_keeps_its_vector(mlp, data):
    model = mlp(opnorm.SpectralNorm(**LIVING))
    inner = {model.layers[0].kernel.path: keras.optimizers.SGD(1e-3)}
    optimizer = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(keras.optimizers.Adam(1e-3), inner))
    model.compile(optimizer, "mse")
    model.fit(*data, batch_size=16, epochs=8, verbose=0)
    assert [norm(k) for k in kernels(model)] == pytest.approx([1, 1], abs=EXACT)
    assert len(vectors(optimizer)) == 2


@pytest.mark.parametrize("wrap", [lambda inner: inner, keras.optimizers.LossScaleOptimizer], ids=["plain", "scaled"])
def test_accumulating_gradients_changes_the_kernel_only_by_real_updates(mlp, data, wrap):
    model = mlp()
    inner = keras.optimizers.Adam(1e-3, gradient_accumulation_steps=4)
    model.compile(wrap(inner), "mse")
    model.optimizer.build(model.trainable_variables)
    everything = [*kernels(model), *(state_of(inner, k) for k in kernels(model))]
    for step in range(12):
        before = [array(v) for v in everything]
        model.train_on_batch(data[0][step : step + 8], data[1][step : step + 8])
        for variable, old in zip(everything, before, strict=True):
            assert np.array_equal(array(variable), old) == (step % 4 != 3), variable.path
        if step >= 3:
            assert [norm(k) for k in kernels(model)] == pytest.approx([1, 1], abs=EXACT)


@pytest.mark.parametrize("wrap", [lambda inner: inner, keras.optimizers.LossScaleOptimizer], ids=["plain", "scaled"])
def test_averaged_weights_satisfy_the_constraint_at_the_end_of_fit(mlp, data, wrap):
    model = mlp()
    inner = keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9)
    model.compile(wrap(inner), "mse")
    model.fit(*data, batch_size=8, epochs=2, verbose=0)
    averages = [v for v in inner.variables if v.name.endswith("kernel_average")]
    for kernel, average in zip(kernels(model), map(array, averages), strict=True):
        assert norm(kernel) == pytest.approx(1, abs=EXACT)
        assert norm(average) > 1.05  # else there was nothing to do
        # It is the average that was scaled, not the last iterate that was kept.
        assert array(kernel) * norm(average) / norm(kernel) == pytest.approx(average, abs=1e-5)  # float32 rounding


def test_weights_overwritten_by_their_average_satisfy_the_constraint_after_every_step(mlp, data):
    model = mlp()
    model.compile(keras.optimizers.Adam(1e-2, use_ema=True, ema_overwrite_frequency=3), "mse")
    for _ in range(7):
        model.train_on_batch(*data)
        assert [norm(k) for k in kernels(model)] == pytest.approx([1, 1], abs=EXACT)


class HandWritten(keras.optimizers.SGD):
    """Gradient descent with an `apply` of its own."""

    def apply(self, grads, trainable_variables=None):
        for gradient, variable in zip(grads, trainable_variables or self._trainable_variables, strict=True):
            variable.assign(variable - 1e-3 * gradient)
            if variable.constraint is not None:
                variable.assign(variable.constraint(variable))


def remedies(record):
    return [str(w.message) for w in record if "Remedy" in str(w.message)]


def test_a_hand_written_optimizer_constrains_correctly_and_warns_once(mlp, data):
    model = mlp()
    model.compile(HandWritten(1e-3), "mse")
    with pytest.warns(UserWarning, match="Remedy") as record:
        model.fit(*data, batch_size=32, epochs=2, verbose=0)
    [text] = remedies(record)
    assert "let the optimizer's own `build` and `apply` call `super()`" in text
    assert [norm(k) for k in kernels(model)] == pytest.approx([1, 1], abs=EXACT)


def test_a_constraint_attached_after_the_optimizer_was_built_acts_and_warns_once(mlp, data):
    model = mlp(constrained=False)
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    model.optimizer.build(model.trainable_variables)
    kernels(model)[0].constraint = opnorm.SpectralNorm(**LIVING)
    with pytest.warns(UserWarning, match="Remedy") as record:
        model.fit(*data, batch_size=32, epochs=2, verbose=0)
    [text] = remedies(record)
    assert "before the optimizer is built" in text
    assert norm(kernels(model)[0]) == pytest.approx(1, abs=EXACT)
    assert norm(kernels(model)[1]) > 2  # not asked for


def test_compiling_again_after_attaching_a_constraint_is_the_remedy(mlp, data):
    model = mlp(constrained=False)
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    model.fit(*data, batch_size=32, verbose=0)
    for kernel in kernels(model):
        kernel.constraint = opnorm.SpectralNorm(**LIVING)
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(*data, batch_size=16, epochs=8, verbose=0)
    assert [norm(k) for k in kernels(model)] == pytest.approx([1, 1], abs=EXACT)


def test_a_second_compile_gives_the_new_optimizer_its_own_vectors(mlp, data):
    model = mlp(opnorm.SpectralNorm(**LIVING))
    optimizers = [keras.optimizers.Adam(1e-3), keras.optimizers.SGD(1e-3)]
    for optimizer in optimizers:
        model.compile(optimizer, "mse")
        model.fit(*data, batch_size=16, epochs=8, verbose=0)
        assert [norm(k) for k in kernels(model)] == pytest.approx([1, 1], abs=EXACT)
    for kernel in kernels(model):
        first, second = (state_of(optimizer, kernel) for optimizer in optimizers)
        assert first is not second
        assert abs(array(first)[0] @ array(second)[0]) == pytest.approx(1, abs=0.01)  # both the leading direction
    assert [len(vectors(optimizer)) for optimizer in optimizers] == [2, 2]


def test_two_optimizers_may_take_turns_on_one_kernel(mlp):
    model = mlp()
    optimizers = [keras.optimizers.Adam(1e-3), keras.optimizers.SGD(1e-3)]
    for step in range(6):
        optimizers[step % 2].apply([ops.ones(v.shape) for v in model.trainable_variables], model.trainable_variables)
        assert [norm(k) for k in kernels(model)] == pytest.approx([1, 1], abs=EXACT if step > 3 else FIRST)
    for kernel in kernels(model):
        assert state_of(optimizers[0], kernel) is not state_of(optimizers[1], kernel)


def softplus(x):
    return np.logaddexp(0, x)


def critic_loss_in_float64(weights, real, fake):
    """Return the truth for the test below: two dense layers and the GAN's loss, by NumPy."""
    W1, b1, W2, b2 = weights
    scores = [np.tanh(x @ W1 + b1) @ W2 + b2 for x in (real, fake)]
    return softplus(-scores[0]).mean() + softplus(scores[1]).mean()


def finite_differences(weights, position, real, fake, step=1e-6):
    gradient = np.zeros_like(weights[position])
    for index in np.ndindex(gradient.shape):
        ends = []
        for sign in (1, -1):
            moved = [w.copy() for w in weights]
            moved[position][index] += sign * step
            ends.append(critic_loss_in_float64(moved, real, fake))
        gradient[index] = (ends[0] - ends[1]) / (2 * step)
    return gradient


def test_a_gan_step_takes_the_gradient_at_the_stored_weights(mlp, data, gradients):
    critic, generator = mlp(stddev=0.3, width=8), keras.layers.Dense(12)
    real, noise = data[0][:16], data[1][:16]
    generator.build(noise.shape)
    turns = [  # one optimizer each; the critic sees real and fake data in one step
        (keras.optimizers.Adam(1e-3), critic, lambda fake: softplus_of(-critic(real)) + softplus_of(critic(fake))),
        (keras.optimizers.Adam(1e-3), generator, lambda fake: softplus_of(-critic(fake))),
    ]
    for step in range(3):
        for optimizer, player, loss in turns:
            before = [array(v).astype("float64") for v in critic.trainable_variables]
            gradient = gradients(lambda loss=loss: loss(generator(noise)), player.trainable_variables)
            for variable, old in zip(critic.trainable_variables, before, strict=True):
                assert np.array_equal(array(variable), old)  # two forwards and a backward wrote nothing
            if player is critic and step == 1:
                fake = array(generator(noise)).astype("float64")
                for position in (0, 2):
                    truth = finite_differences(before, position, real.astype("float64"), fake)
                    assert array(gradient[position]) == pytest.approx(truth, abs=1e-6)  # float32 of numbers near 0.1
            optimizer.apply(gradient, player.trainable_variables)
    assert [norm(k) for k in kernels(critic)] == pytest.approx([1, 1], abs=EXACT)


def softplus_of(x):
    return ops.mean(ops.softplus(x))
