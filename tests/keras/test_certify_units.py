"""What a certificate assumes of logits that Keras computes holds in float64 too."""

import keras
import numpy as np
import pytest

from opnorm.keras.logits import logits


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64")  # JAX's, which takes float32 then
def test_the_logits_of_a_model_in_float64_are_as_near_as_is_assumed():
    rng = np.random.default_rng(0)
    inputs = keras.Input((36,), dtype="float64")
    dense = keras.layers.Dense(4, dtype="float64")
    model = keras.Model(inputs, dense(inputs))
    kernel, points = rng.standard_normal((36, 4)), 20 * rng.standard_normal((50, 36))
    dense.set_weights([kernel, np.zeros(4)])
    exact = points.astype(np.longdouble) @ kernel
    found, unit = logits(model, points, is_shortened=False)
    assert np.all(np.abs(found - exact) <= np.sqrt(unit) * np.max(np.abs(exact), axis=1, keepdims=True))
