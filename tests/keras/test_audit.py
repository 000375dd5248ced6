import keras
import numpy as np
from scipy.linalg import svdvals

from opnorm.auditing.audits import audit
from opnorm.keras.constraints import MaxSpectralNorm, SpectralNorm


def built():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            keras.layers.Conv2D(4, 3, strides=2, kernel_constraint=SpectralNorm(), name="first"),
            keras.layers.Flatten(),
            keras.layers.Dense(3, kernel_constraint=MaxSpectralNorm(100.0), name="second"),
        ]
    )


def test_a_model_and_its_file_have_the_same_rows(tmp_path):
    model = built()
    model.save(tmp_path / "model.keras")
    live, saved = audit(model), audit(tmp_path / "model.keras")
    kernels = [[row for row in report.rows if row.status == "bounded"] for report in (live, saved)]
    assert len(kernels[0]) == 2
    for a, b in zip(*kernels, strict=True):
        assert a._replace(name="", seconds=0) == b._replace(name="", seconds=0)


def test_a_row_shows_the_declared_constraint_and_whether_it_is_met():
    model = built()
    kernel = model.get_layer("first").kernel
    kernel.assign(np.random.default_rng(0).standard_normal(kernel.shape))
    first, second = (row for row in audit(model).rows if row.status == "bounded")
    sigma = svdvals(keras.ops.convert_to_numpy(kernel).astype("float64").reshape(-1, 4))[0]
    assert abs(sigma - 1) > 0.05  # untrained: far from its target
    assert (first.constraint["name"], first.constraint["value"], first.constraint["met"]) == ("SpectralNorm", 1.0, "no")
    assert (second.constraint["value"], second.constraint["met"]) == (100.0, "yes")


def test_a_constraint_is_met_after_training():
    model = built()
    model.compile(optimizer="sgd", loss="mse")
    rng = np.random.default_rng(0)
    model.fit(rng.standard_normal((4, 8, 8, 2)), rng.standard_normal((4, 3)), verbose=0)
    first, _ = (row for row in audit(model).rows if row.status == "bounded")
    assert first.constraint["met"] == "yes"


def test_a_subclass_is_not_taken_for_its_base():
    """Its call may be ten times that of Keras's class: only what is registered for the subclass speaks for it."""

    class Dense(keras.layers.Dense):
        def call(self, x):
            return 10 * super().call(x)

    model = keras.Sequential([keras.Input((4,)), Dense(3)])
    assert {row.status for row in audit(model).rows if row.name.endswith("kernel")} == {"failed"}
