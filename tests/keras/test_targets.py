"""Norms by shape and by the step, singular values with a lower end, Muon, and the logits of attention layers."""

import json

import dense
import keras
import numpy as np
import pytest
from cases import gaussian

import opnorm

L = keras.layers
BACKEND = keras.backend.backend()


@keras.saving.register_keras_serializable("tests")
def halving(step):
    return 4 * 0.5**step


def values(kernel):
    return np.linalg.svd(dense.array(kernel).astype("float64"), compute_uv=False)


def by_shape(kernel):
    return (kernel.shape[1] / kernel.shape[0]) ** 0.5


def kernels(model):
    return [layer.kernel for layer in model.layers]


def test_in_fit_each_kernel_is_held_at_the_norm_of_its_own_shape(mlp, data, tmp_path):
    model = mlp(opnorm.MaxSpectralNorm("0.5 rms"))  # it starts at norms near 7
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    model.fit(*data, batch_size=16, epochs=3, verbose=0, callbacks=[opnorm.SpectralMonitor()])  # warns of a wrong ball
    for kernel in kernels(model):
        assert 0.45 <= dense.norm(kernel) / by_shape(kernel) <= 0.5 * 1.001
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [layer.kernel_constraint.max_value for layer in loaded.layers] == ["0.5 rms"] * 2
    rows = [row for row in opnorm.audit(tmp_path / "model.keras").rows if row.constraint]
    assert [row.constraint["met"] for row in rows] == ["yes", "yes"]
    np.testing.assert_allclose([row.constraint["value"] for row in rows], [0.5 * by_shape(k) for k in kernels(model)])


def test_heads_have_the_norm_of_their_own_shape():
    constraint = opnorm.SpectralNorm("rms", axis=(-2, -1), groups=4, blockwise=True)
    made = dense.array(constraint.project(gaussian(16, 4, 9)))
    np.testing.assert_allclose(np.linalg.norm(made.swapaxes(0, 1), 2, axis=(1, 2)), 0.75, rtol=1e-3)


def scheduled(kind, mlp, optimizer):
    schedule = keras.optimizers.schedules.ExponentialDecay(4.0, 1, 0.8)
    model = mlp(kind(schedule))
    model.compile(optimizer, "mse")
    return model, schedule


@pytest.mark.parametrize("kind", [opnorm.SpectralNorm, opnorm.SpectralClip], ids=lambda kind: kind.__name__)
def test_a_schedule_is_followed_by_real_updates_and_in_a_saved_model(mlp, data, tmp_path, kind):
    model, schedule = scheduled(kind, mlp, keras.optimizers.SGD(1e-4, gradient_accumulation_steps=2))
    for step in range(3):
        for _ in range(2):
            model.train_on_batch(*data)
        for kernel in kernels(model):
            assert dense.norm(kernel) == pytest.approx(float(schedule(step)), rel=1e-3 if step else 2e-2)  # C5
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for _ in range(2):
        loaded.train_on_batch(*data)
    for kernel in kernels(loaded):
        assert dense.norm(kernel) == pytest.approx(float(schedule(3)), rel=1e-3)
        kernel.assign(3 * dense.array(kernel))
    opnorm.project(loaded)
    assert dense.norm(kernels(loaded)[0]) == pytest.approx(float(schedule(3)), rel=1e-3)


def test_a_training_step_is_traced_once_whatever_the_norm(mlp, data):
    calls = []

    def norm(step):
        calls.append(step)
        return 3.0 / (1 + step)

    model = mlp(opnorm.SpectralNorm(norm))
    model.compile(keras.optimizers.SGD(1e-4), "mse")
    monitor = opnorm.SpectralMonitor(every=1)
    model.fit(*data, batch_size=16, epochs=3, verbose=0, callbacks=[monitor])  # a ball of another step would warn
    logged = [max(norms.values()) for _, norms in monitor.history]
    np.testing.assert_allclose(logged, 3.0 / np.arange(1, 13), rtol=2e-2)
    traced = [step for step in calls if not _is_known(step)]
    assert len(traced) <= 4  # two kernels, traced once, and once more where a framework looks at shapes first


def _is_known(step):
    if BACKEND == "jax":
        import jax

        return not isinstance(step, jax.core.Tracer)
    return hasattr(step, "numpy")


def test_a_function_is_written_by_its_registered_name():
    stored = json.loads(json.dumps(keras.constraints.serialize(opnorm.MaxSpectralNorm(halving))))
    twin = keras.constraints.deserialize(stored)
    assert twin.max_value is halving
    assert dense.norm(twin.project(gaussian(9, 6), 3)) == pytest.approx(0.5, rel=1e-3)
    with pytest.raises(ValueError, match="`step` must be given for a norm that is a function"):
        twin.project(gaussian(9, 6))


def test_constrain_gives_every_kernel_the_same_schedule():
    model = keras.Sequential([keras.Input((6,)), L.Dense(8), L.Dense(3)])
    table = opnorm.constrain(model, opnorm.SpectralNorm(lambda step: 2.0))
    assert len({id(row.constraint.value) for row in table}) == 1
    opnorm.project(model)
    assert dense.norm(kernels(model)[0]) == pytest.approx(2.0, rel=1e-3)


def test_in_fit_singular_values_stay_between_both_ends(mlp, data, tmp_path):
    model = mlp(opnorm.SpectralClip("rms", min_value="0.5 rms"))
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.fit(*data, batch_size=16, epochs=2, verbose=0)
    for kernel in kernels(model):
        found = values(kernel) / by_shape(kernel)
        assert 0.5 * 0.999 <= found.min() <= found.max() <= 1.0001
    model.save(tmp_path / "model.keras")
    config = keras.models.load_model(tmp_path / "model.keras").layers[0].kernel_constraint.get_config()
    assert (config["max_value"], config["min_value"]) == ("rms", "0.5 rms")


def test_a_cap_holds_after_each_step_of_muon(mlp, data):
    model = mlp(opnorm.MaxSpectralNorm("rms"))
    model.compile(keras.optimizers.Muon(0.1), "mse")
    norms = []
    for _ in range(8):
        model.train_on_batch(*data)
        norms.append([dense.norm(kernel) / by_shape(kernel) for kernel in kernels(model)])
    assert np.max(norms) <= 1.02  # C5: of the first, cold update
    assert np.max(norms[1:]) <= 1.001
    assert np.max(norms[-1]) > 0.99  # Muon pushes against it


ATTENTIONS = {
    "MultiHeadAttention": lambda: L.MultiHeadAttention(4, 3, name="attention"),
    "GroupQueryAttention": lambda: L.GroupQueryAttention(3, 4, 2, name="attention"),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_the_monitor_has_the_norm_of_query_times_key_of_the_largest_head(name):
    inputs = keras.Input((5, 6))
    model = keras.Model(inputs, L.Dense(2)(ATTENTIONS[name]()(inputs, inputs)))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    history = model.fit(
        gaussian(8, 5, 6), gaussian(8, 5, 2), verbose=0, callbacks=[opnorm.SpectralMonitor(exact_every=1)]
    ).history
    query, key = (
        dense.array(w).astype("float64") for w in model.weights if w.path.endswith(("query/kernel", "key/kernel"))
    )
    key = np.repeat(key, 4 // key.shape[1], axis=1)
    truth = max(np.linalg.norm(query[:, head] @ key[:, head].T, 2) for head in range(4))
    assert history["spectral/query_key"] == history["spectral/attention/query_key"]
    assert truth * (1 - 7e-3) <= history["spectral/query_key"][0] <= truth * (1 + 1e-5)  # as of kernels; float32
    lower, upper = (history[f"spectral_{end}/query_key"][0] for end in ("lower", "upper"))
    assert lower <= truth * (1 + 1e-12)
    assert truth * (1 - 1e-12) <= upper <= lower * (1 + 1e-5)  # NumPy's rounding, and what a bracket leaves
