"""tf_keras: the constraint in `fit`, in every way that tf_keras trains, saves and loads."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import opnorm

X = np.random.default_rng(0).standard_normal((320, 20)).astype("float32")
Y = (X[:, :1] > 0).astype("float32")
KERNELS = 3


def sigma(kernel):
    kernel = tf.cast(kernel, tf.float64).numpy()
    return np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0]


def sigmas(model):
    return [sigma(layer.kernel) for layer in model.layers[:KERNELS]]


def network(constraint, widths=(32, 32, 8), policy=None):
    layers = [tf_keras.layers.Dense(w, activation="relu", kernel_constraint=constraint, dtype=policy) for w in widths]
    model = tf_keras.Sequential([*layers, tf_keras.layers.Dense(1, dtype="float32")])
    model.build((None, 20))
    return model


def fitted(constraint, optimizer="adam", epochs=5, policy=None, **options):
    model = network(constraint, policy=policy)
    model.compile(optimizer, "mse", **options)
    model.fit(X, Y, batch_size=32, epochs=epochs, verbose=0)  # 10 steps an epoch
    return model


def vectors(constraint):
    return [value.numpy() for name, value in sorted(vars(constraint).items()) if isinstance(value, tf.Variable)]


@pytest.mark.parametrize(
    "options", [{}, {"run_eagerly": True}, {"jit_compile": True}, {"optimizer": tf_keras.optimizers.legacy.Adam()}]
)
def test_after_fifty_steps_of_fit_every_kernel_is_at_the_target(options):
    constraint = opnorm.tf1.SpectralNorm(2.0)
    model = fitted(constraint, **options)
    np.testing.assert_allclose(sigmas(model), 2, rtol=1e-2)  # C22
    assert [u.shape for u in vectors(constraint)] == [(32,), (32,), (8,)]
    assert len(model.weights) == 8  # u is no weight: files and `set_weights` lists stay as they are


@pytest.mark.parametrize(("policy", "state"), [("mixed_bfloat16", "float32"), ("float64", "float64")])
def test_u_is_float32_under_mixed_precision_and_the_kernel_is_not_rounded(policy, state):
    constraint = opnorm.tf1.SpectralNorm()
    model = fitted(constraint, policy=policy)
    np.testing.assert_allclose(sigmas(model), 1, rtol=1e-2)  # C22
    assert {u.dtype.name for u in vectors(constraint)} == {state}
    kernel = model.layers[0].kernel.numpy()
    assert kernel.dtype == state
    assert (tf.cast(tf.cast(kernel, tf.bfloat16), state).numpy() != kernel).any()


def test_two_optimizers_in_functions_traced_at_different_times_share_the_vectors():
    constraint = opnorm.tf1.SpectralNorm()
    model = network(constraint)

    def stepper(optimizer):
        @tf.function
        def step(x, y):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(x) - y) ** 2)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

        return step

    adam, sgd = stepper(tf_keras.optimizers.Adam()), stepper(tf_keras.optimizers.SGD(0.01))
    for i in range(25):
        adam(X[:32], Y[:32])
        if i >= 10:
            sgd(X[32:64], Y[32:64])
    assert len(vectors(constraint)) == KERNELS
    np.testing.assert_allclose(sigmas(model), 1, rtol=1e-2)  # C22


def test_layers_of_equal_names_in_two_models_do_not_share_state():
    constraint = opnorm.tf1.SpectralNorm()
    for width in (8, 4):
        model = tf_keras.Sequential([tf_keras.layers.Dense(width, name="d", kernel_constraint=constraint)])
        model.compile("adam", "mse")
        model.fit(X, X[:, :width], epochs=5, verbose=0)
        np.testing.assert_allclose(sigma(model.layers[0].kernel), 1, rtol=1e-2)  # C22
    assert [u.shape for u in vectors(constraint)] == [(8,), (4,)]


def test_frozen_kernels_and_predictions_change_nothing():
    constraint = opnorm.tf1.SpectralNorm()
    model = network(constraint)
    model.layers[0].trainable = False
    model.compile("adam", "mse")
    before = model.layers[0].kernel.numpy()
    model.fit(X, Y, epochs=1, verbose=0)
    np.testing.assert_array_equal(model.layers[0].kernel, before)
    assert len(vectors(constraint)) == KERNELS - 1
    state = [*model.get_weights(), *vectors(constraint)]
    model.predict(X, verbose=0)
    model.evaluate(X, Y, verbose=0)
    for old, new in zip(state, [*model.get_weights(), *vectors(constraint)], strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_tensorflow_checkpoint_holds_the_vectors(tmp_path):
    constraint = opnorm.tf1.SpectralNorm()
    fitted(constraint).save_weights(str(tmp_path / "weights"))
    loaded = opnorm.tf1.SpectralNorm(warmup_iterations=0, perturbation=0)
    model = network(loaded)
    model.load_weights(str(tmp_path / "weights")).expect_partial()  # the vectors wait for their kernels' first update
    for layer in model.layers[:KERNELS]:
        layer.kernel_constraint(layer.kernel)
    for layer, saved, moved in zip(model.layers, vectors(constraint), vectors(loaded), strict=False):
        kernel = layer.kernel.numpy().astype("float64")
        expected = kernel.T @ (kernel @ saved)  # exactly one iteration from the saved vector, not from a new one
        np.testing.assert_allclose(moved, expected / np.linalg.norm(expected), atol=1e-6)  # float32 against float64
    assert len(vectors(loaded)) == KERNELS


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")  # tf_keras advises its newer format
@pytest.mark.parametrize("file", ["model.keras", "saved_model", "model.h5"])
def test_a_saved_model_loads_and_trains_on_with_its_vectors_warmed_up_again(tmp_path, file):
    fitted(opnorm.tf1.SpectralNorm(2.0)).save(str(tmp_path / file))
    # tf_keras looks up registered constraints by name in all of its formats but this one
    named = {"SpectralNorm": opnorm.tf1.SpectralNorm} if file.endswith("h5") else None
    model = tf_keras.models.load_model(str(tmp_path / file), custom_objects=named)
    assert isinstance(model.layers[0].kernel_constraint, opnorm.tf1.SpectralNorm)
    model.fit(X[:32], Y[:32], batch_size=32, verbose=0)  # one step
    np.testing.assert_allclose(sigmas(model), 2, rtol=1e-2)  # C22


def test_replicas_hold_identical_kernels_at_the_target():
    code = """
import numpy as np, tensorflow as tf, tf_keras, opnorm
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
with tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"]).scope():
    layers = [tf_keras.layers.Dense(32, kernel_constraint=opnorm.tf1.SpectralNorm()) for _ in range(2)]
    model = tf_keras.Sequential([*layers, tf_keras.layers.Dense(1)])
    model.compile("adam", "mse")
x = np.random.default_rng(0).standard_normal((320, 20)).astype("float32")
model.fit(x, x[:, :1], batch_size=32, epochs=5, verbose=0)
for layer in layers:
    first, second = (v.numpy() for v in layer.kernel.values)
    assert (first == second).all()
    assert abs(np.linalg.svd(first.astype("float64"))[1][0] - 1) <= 1e-2  # C22
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_graph_mode_needs_no_initializer_in_fit_and_no_keras_3():
    code = """
import sys, numpy as np, tensorflow as tf, opnorm
tf.compat.v1.disable_v2_behavior()
constraint = opnorm.tf1.SpectralNorm()
layer = tf.compat.v1.layers.dense(tf.ones([2, 3]), 4, kernel_constraint=constraint)
tf.compat.v1.train.AdamOptimizer().minimize(tf.reduce_sum(layer))
import tf_keras
model = tf_keras.Sequential([tf_keras.layers.Dense(16, kernel_constraint=constraint) for _ in range(3)])
model.compile("adam", "mse")
x = np.random.default_rng(0).standard_normal((320, 20)).astype("float32")
model.fit(x, x[:, :16], batch_size=32, epochs=5, verbose=0)
assert sum(v.name.endswith("/u:0") for v in tf.compat.v1.global_variables()) == 4
for kernel in tf_keras.backend.batch_get_value([layer.kernel for layer in model.layers]):
    assert abs(np.linalg.svd(kernel.astype("float64"))[1][0] - 1) <= 1e-2  # C22
assert "keras" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
