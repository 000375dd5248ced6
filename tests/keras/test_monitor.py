"""The monitor logs the norms of the kernels as they are at that moment, and disturbs nothing."""

import csv
import math

import cases
import dense
import keras
import numpy as np
import pytest

import opnorm
from opnorm.keras import watch
from opnorm.keras.monitor import SpectralMonitor

L = keras.layers


class Witness(keras.callbacks.Callback):
    """Stands behind the monitor: compares what it logged with the kernels of the moment."""

    def __init__(self):
        super().__init__()
        self.truth, self.logged = [], []

    def on_train_batch_end(self, batch, logs=None):
        names = {f"spectral/{v.path}": v for v in self.model.trainable_variables if len(v.shape) > 1}
        if names.keys() <= logs.keys():
            self.truth.append([dense.norm(v) for v in names.values()])
            self.logged.append([logs[name] for name in names])


def fit(model, data, *callbacks, epochs=1, optimizer=None, **compile_options):
    model.compile(optimizer or keras.optimizers.SGD(0.05), "mse", **compile_options)
    return model.fit(*data, batch_size=8, epochs=epochs, verbose=0, callbacks=list(callbacks)).history


def test_it_logs_the_norms_of_the_moment(mlp, data):
    witness, monitor = Witness(), SpectralMonitor(every=3)
    fit(mlp(constrained=False), data, monitor, witness, epochs=2)
    assert len(witness.truth) == 5  # batches 3, 6, 9, 12, 15
    assert np.ptp(np.array(witness.truth), axis=0).max() > 0.3  # stale values would be seen
    # Sigma settles once half a step gains less than 1e-4: sqrt(1e-4 / 2) = 7e-3 at worst
    np.testing.assert_allclose(witness.logged, witness.truth, rtol=7e-3)
    assert [step for step, _ in monitor.history] == [3, 6, 8, 9, 12, 15, 16]


def test_it_does_not_change_what_is_trained(mlp, data):
    weights = []
    for callbacks in ([], [SpectralMonitor(every=1, exact_every=1)]):
        keras.utils.set_random_seed(0)
        model = mlp(opnorm.SpectralNorm(seed=0))
        fit(model, data, *callbacks, optimizer=keras.optimizers.Adam(0.01))
        weights.append([dense.array(v) for v in model.weights])
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_loggers_behind_it_and_the_history_have_every_column(mlp, data, tmp_path):
    model = mlp(constrained=False)
    logger = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = fit(model, data, SpectralMonitor(exact_every=2), logger, epochs=3)
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for variable in model.trainable_variables[::2]:
        norm, lower, upper = (f"{name}/{variable.path}" for name in ("spectral", "spectral_lower", "spectral_upper"))
        assert [float(row[norm]) for row in rows] == history[norm]
        assert history[norm][2] == pytest.approx(dense.norm(variable), rel=7e-3)  # as above
        assert history[lower][2] <= dense.norm(variable) * (1 + 1e-12)  # float64's rounding
        assert history[upper][2] >= dense.norm(variable) * (1 - 1e-12)
        assert [math.isnan(x) for x in history[lower]] == [False, True, False]


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras: `steps_per_execution` must be 1 with PyTorch")
def test_one_call_for_several_batches_counts_them_all(mlp, data):
    monitor = SpectralMonitor(every=3)
    fit(mlp(constrained=False), data, monitor, steps_per_execution=2)
    assert [step for step, _ in monitor.history] == [4, 6, 8]


def test_patterns_choose_the_kernels(mlp, data):
    model = mlp(constrained=False)
    first, second = (layer.kernel.path for layer in model.layers)
    for options, expected in (
        ({"include": "*/kernel"}, {first, second}),
        ({"include": [first]}, {first}),
        ({"exclude": second}, {first}),
        ({"include": lambda layer, name: layer is model.layers[1]}, {second}),
    ):
        monitor = SpectralMonitor(**options)
        fit(model, data, monitor)
        assert {name for _, norms in monitor.history for name in norms} == expected
    with pytest.raises(ValueError, match=r"`include` must match a kernel.*include='\*/bias'"):
        fit(model, data, SpectralMonitor(include="*/bias"))


def test_a_norm_that_leaves_its_ball_is_told_once(mlp, data):
    model = mlp(opnorm.MaxSpectralNorm(0.5))
    kernel = model.layers[0].kernel
    spoil = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: kernel.assign(3 * dense.array(kernel)))
    with pytest.warns(UserWarning, match=rf"'{kernel.path}' has norm 1\.\d+ after 8 batches.*radius 0.5") as caught:
        fit(model, data, spoil, SpectralMonitor(every=1), epochs=3)
    assert sum("ball" in str(warning.message) for warning in caught) == 1


def test_kernels_in_their_balls_are_not_told(mlp, data):
    fit(mlp(opnorm.SpectralClip(0.5)), data, SpectralMonitor(every=1), epochs=2)  # a warning would be an error here
    fit(mlp(opnorm.Orthogonal()), data, SpectralMonitor(every=1))


def grid_norm(kernel, points=48):
    """Return the largest norm of the symbol on a fine grid, float64: 1 / cos(2 pi / 96)^2 = 1.0043 below it at most."""
    frequencies = 2 * np.pi * np.arange(points) / points
    a, b = (np.exp(-1j * np.outer(frequencies, np.arange(k))) for k in kernel.shape[:2])
    return np.linalg.norm(np.einsum("xa,yb,abio->xyio", a, b, kernel.astype("float64")), 2, axis=(2, 3)).max()


def test_a_convolution_is_measured_as_its_layer_or_its_constraint_means_it():
    inner = keras.Sequential([keras.layers.Conv2D(4, 3, name="nested")])
    constraint = opnorm.SpectralNorm(operator="convolution")
    model = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            inner,
            keras.layers.Conv2D(4, 3, name="constrained", kernel_constraint=constraint),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    data = cases.gaussian(16, 8, 8, 4), cases.gaussian(16, 3)
    history = fit(model, data, SpectralMonitor(operator="convolution", exact_every=1))
    nested, constrained, last = (layer.kernel for layer in (inner.layers[0], model.layers[1], model.layers[3]))
    for kernel in (nested, constrained):
        truth = grid_norm(dense.array(kernel))
        # sigma may be 1.3 % below, and the grid 0.43 %; the bracket is a percent wide
        assert truth * (1 - 0.013) <= history[f"spectral/{kernel.path}"][0] <= truth * 1.0044
        assert history[f"spectral_lower/{kernel.path}"][0] <= truth * 1.0044
        assert history[f"spectral_upper/{kernel.path}"][0] >= truth * (1 - 1e-12)
    assert history[f"spectral/{last.path}"][0] == pytest.approx(dense.norm(last), rel=7e-3)  # as above


LAYERS = {  # each with the matrices, of shape (height, width, inputs, outputs) and so on, whose largest norm it has
    "depthwise": (L.DepthwiseConv2D(3, depth_multiplier=2), (6, 6, 4), lambda k: np.moveaxis(k, -2, 0)),
    "grouped": (L.Conv2D(4, 3, groups=2), (6, 6, 4), lambda k: np.split(k, 2, -1)),
    "transposed": (L.Conv2DTranspose(3, 3), (4, 4, 2), lambda k: [np.moveaxis(k, -2, -1)]),
    "einsum": (L.EinsumDense("abc,cde->abde", (None, 2, 5)), (3, 6), lambda k: [k.reshape(6, 10)]),
    "embedding": (L.Embedding(9, 4), (5,), lambda k: [k]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_measured_as_the_matrix_that_it_applies(name):
    layer, shape, blocks = LAYERS[name]
    model = keras.Sequential([keras.Input(shape), type(layer).from_config(layer.get_config())])
    kernel = model.weights[0]
    kernel.assign(cases.gaussian(*kernel.shape))
    [one], passed_over = watch.watched(model, "matrix", None, None)
    truth = max(dense.norm(block) for block in blocks(cases.gaussian(*kernel.shape)))
    assert float(cases.op_by_op(one.estimate)()) == pytest.approx(truth, rel=7e-3)  # as above
    lower, upper = one.proved()
    assert lower * (1 - 1e-12) <= truth <= upper * (1 + 1e-12)  # float64's rounding
    assert passed_over == []


def test_a_depthwise_kernel_is_measured_as_its_convolution():
    layer = L.DepthwiseConv2D(3, depth_multiplier=2)
    model = keras.Sequential([keras.Input((6, 6, 2)), layer])
    kernel = dense.array(layer.kernel).copy()
    [one], _ = watch.watched(model, "convolution", None, None)
    truth = max(grid_norm(kernel[:, :, [i]]) for i in range(2))
    sigma = float(cases.op_by_op(one.estimate)())
    assert truth * (1 - 0.013) <= sigma <= truth * 1.0044  # as above
    lower, upper = one.proved()
    assert lower <= truth * 1.0044
    assert upper >= truth * (1 - 1e-12)


def test_a_wrapped_kernel_is_measured_as_the_wrapper_makes_it(data):
    start = keras.initializers.RandomNormal(stddev=1.0, seed=1)  # of a norm near 7
    frozen = opnorm.SpectralNormalization(L.Dense(4))
    frozen.trainable = False
    part = opnorm.SpectralNormalization(L.Dense(16, "tanh", kernel_initializer=start), value=0.7, name="wrapped")
    model = keras.Sequential([keras.Input((12,)), part, frozen])
    monitor = SpectralMonitor(exact_every=1)
    history = fit(model, data, monitor)
    kernel = part.layer.kernel
    stored = dense.array(kernel).copy()
    with part.normalized():
        applied = dense.norm(kernel.value)
    [name] = monitor.history[-1][1]  # the frozen one is not there
    assert name == f"{kernel.path}/normalized"
    assert history[f"spectral/{name}"][0] == pytest.approx(0.7, rel=7e-3)  # as above
    assert history[f"spectral_lower/{name}"][0] == pytest.approx(applied, rel=1e-6)  # float32's rounding
    assert dense.norm(kernel) > 2
    assert " 0.7 " in str(monitor)
    np.testing.assert_array_equal(dense.array(kernel), stored)


def test_weights_without_a_rule_are_passed_over_by_name(data):
    class Own(L.Layer):
        def build(self, shape):
            self.weight = self.add_weight(shape=(shape[-1], 4), name="weight")

        def call(self, x):
            return x @ self.weight

    monitor = SpectralMonitor()
    fit(keras.Sequential([keras.Input((12,)), Own(name="own")]), data, monitor)
    assert [one.path for one in monitor.passed_over] == ["own/weight"]
    assert monitor.history[-1][1] == {}


def test_a_kernel_that_is_not_finite_has_no_norm(mlp, data):
    model = mlp(constrained=False)
    model.layers[0].kernel.assign(np.full((12, 16), np.nan))
    history = fit(model, data, SpectralMonitor(exact_every=1))
    assert all(
        math.isnan(history[f"{name}/{model.layers[0].kernel.path}"][0]) for name in ("spectral", "spectral_upper")
    )


def test_kernels_of_one_path_keep_apart(data):
    class Pair(keras.Model):
        def __init__(self):
            super().__init__(name="pair")
            self.one, self.other = keras.layers.Dense(16, name="dense"), keras.layers.Dense(4, name="dense")

        def call(self, x):
            return self.other(self.one(x))

    model = Pair()
    monitor = SpectralMonitor()
    fit(model, data, monitor)
    norms = monitor.history[-1][1]
    assert list(norms) == ["pair/dense/kernel", "pair/dense/kernel_1"]
    wanted = [dense.norm(layer.kernel) for layer in (model.one, model.other)]
    np.testing.assert_allclose(list(norms.values()), wanted, rtol=7e-3)  # as above


def test_the_table_and_the_figure_show_every_kernel(mlp, data):
    model = mlp(opnorm.SpectralNorm(0.75))
    monitor = SpectralMonitor(every=4, exact_every=1)
    fit(model, data, monitor)
    for layer in model.layers:
        line = next(line for line in str(monitor).splitlines() if line.startswith(layer.kernel.path))
        _, first, last, largest, ball, lower, upper = line.split()
        assert float(ball) == 0.75
        assert float(first) <= float(largest) >= float(last) == pytest.approx(0.75, rel=1e-3)  # as in C2
        assert float(lower) == pytest.approx(0.75, rel=1e-3) == float(upper)
        assert f"<td>{layer.kernel.path}</td>" in monitor._repr_html_()
    assert [list(trace.x) for trace in monitor.plot().data] == [[4, 8]] * 2


def test_without_a_list_it_still_measures_at_the_epochs_end(mlp, data):
    model, monitor = mlp(constrained=False), SpectralMonitor(every=2)
    model.compile("sgd", "mse")
    options = {"batch_size": 8, "verbose": 0, "callbacks": monitor}
    if keras.backend.backend() != "tensorflow":  # Keras hands the batches to another thread there
        with pytest.warns(UserWarning, match="should be a list"):
            model.fit(*data, **options)
    else:
        model.fit(*data, **options)
    assert monitor.history[-1][0] == 8
    assert monitor.history[-1][1][model.layers[0].kernel.path] == pytest.approx(
        dense.norm(model.layers[0].kernel), rel=7e-3
    )


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="nothing is traced with PyTorch")
def test_the_estimate_is_traced_once_for_each_shape(mlp, data, monkeypatch):
    traced = []
    find = watch.find_norms
    monkeypatch.setattr(
        watch, "find_norms", lambda asked, kernels, *args: traced.extend(kernels) or find(asked, kernels, *args)
    )
    fit(mlp(constrained=False, width=17), data, SpectralMonitor(every=1), epochs=2)
    assert len(traced) == 2


@pytest.mark.parametrize(("name", "value"), [("every", 0), ("operator", "conv"), ("exact_every", 1.5)])
def test_wrong_arguments_are_named_with_their_value(name, value):
    with pytest.raises(ValueError, match=rf"`{name}`.*Received: {name}={value!r}"):
        SpectralMonitor(**{name: value})
