"""What the monitor says of many kernels: the largest, and how many are out of their ball; all of them on request."""

import io
from contextlib import redirect_stdout

import dense
import keras
import numpy as np
import pytest
from cases import gaussian

import opnorm

L = keras.layers
DATA = gaussian(16, 6), gaussian(16, 2)


def deep(kernels, constraint=None):
    options = {"kernel_constraint": constraint}
    hidden = [L.Dense(6, "tanh", **options) for _ in range(kernels - 1)]
    return keras.Sequential([keras.Input((6,)), *hidden, L.Dense(2, **options)])


def fit(model, monitor, *others, epochs=1, verbose=0):
    model.compile(keras.optimizers.SGD(0.01), "mse")
    options = {"batch_size": 4, "epochs": epochs, "verbose": verbose}
    return model.fit(*DATA, callbacks=[monitor, *others], **options).history


def spectral(history):
    return {key for key in history if key.startswith("spectral")}


def test_fifty_four_kernels_are_told_in_two_words():
    model, monitor = deep(54), opnorm.SpectralMonitor(every=2)
    history = fit(model, monitor)
    assert spectral(history) == {"spectral/largest", "spectral/outside"}
    truth = [dense.norm(layer.kernel) for layer in model.layers]
    assert history["spectral/largest"] == pytest.approx([max(truth)], rel=7e-3)  # where sigma settles
    assert [step for step, _ in monitor.history] == [2, 4]
    np.testing.assert_allclose(list(monitor.history[-1][1].values()), truth, rtol=7e-3)  # as above
    assert all(layer.kernel.path in str(monitor) for layer in model.layers)


def test_the_progress_line_has_no_path_of_a_kernel():
    model = deep(54)
    with redirect_stdout(io.StringIO()) as printed:
        fit(model, opnorm.SpectralMonitor(every=1), verbose=2)
    assert "spectral/largest" in printed.getvalue()
    assert "/kernel" not in printed.getvalue()


@pytest.mark.parametrize(
    ("kernels", "per_kernel", "each"),
    [(8, None, True), (9, None, False), (9, True, True), (2, False, False)],
)
def test_each_kernel_is_told_where_there_are_few_or_on_request(kernels, per_kernel, each):
    model = deep(kernels)
    history = fit(model, opnorm.SpectralMonitor(per_kernel=per_kernel, exact_every=1))
    paths = ["largest", *(layer.kernel.path for layer in model.layers if each)]
    wanted = {f"spectral{kind}/{path}" for kind in ("", "_lower", "_upper") for path in paths}
    assert spectral(history) == wanted | {"spectral/outside"}


def test_how_many_are_outside_is_counted_at_each_measurement():
    model = deep(10, opnorm.MaxSpectralNorm(0.5))
    spoilt = [layer.kernel for layer in model.layers[:3]]

    def spoil(epoch, logs):
        if epoch == 1:
            for kernel in spoilt:
                kernel.assign(2 * dense.array(kernel) / dense.norm(kernel))

    model.compile(keras.optimizers.SGD(0.01), "mse")
    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=spoil), opnorm.SpectralMonitor()]
    with pytest.warns(UserWarning, match="outside the ball"):
        history = model.fit(*DATA, epochs=3, verbose=0, callbacks=callbacks).history
    assert history["spectral/outside"] == [0, 3, 0]
    assert history["spectral/largest"] == pytest.approx([0.5, 2.0, 0.5], rel=7e-3)  # where sigma settles


def test_a_kernel_that_is_not_finite_is_outside_and_the_largest_is_nan():
    model = deep(10, opnorm.MaxSpectralNorm(0.5))
    model.layers[4].kernel.assign(np.full((6, 6), np.nan))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    history = model.fit(*DATA, verbose=0, callbacks=[opnorm.SpectralMonitor(exact_every=1)]).history
    assert np.isnan([history[f"spectral{kind}/largest"][0] for kind in ("", "_lower", "_upper")]).all()
    assert history["spectral/outside"][0] >= 1


def test_the_largest_norm_lies_in_the_interval_that_is_proved_for_it():
    model = deep(12)
    history = fit(model, opnorm.SpectralMonitor(exact_every=2), epochs=2)
    lower, upper = history["spectral_lower/largest"], history["spectral_upper/largest"]
    assert np.isnan([lower[1], upper[1]]).all()
    fresh = deep(12)
    last = fit(fresh, opnorm.SpectralMonitor(exact_every=1))
    truth = max(dense.norm(layer.kernel) for layer in fresh.layers)
    assert last["spectral_lower/largest"][0] * (1 - 1e-12) <= truth  # float64's rounding
    assert truth <= last["spectral_upper/largest"][0] * (1 + 1e-12)


def test_a_wrong_argument_is_named():
    with pytest.raises(ValueError, match=r"`per_kernel` must be True, False or None. Received: per_kernel='all'"):
        opnorm.SpectralMonitor(per_kernel="all")
