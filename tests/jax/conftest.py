"""XLA optimizes little while these tests run: compiling is nearly all of their time."""

import jax
import pytest

_SWITCH = "jax_disable_most_optimizations"


@pytest.fixture(autouse=True, scope="module")
def _compiled_quickly():
    before = jax.config.read(_SWITCH)
    jax.config.update(_SWITCH, True)
    yield
    jax.config.update(_SWITCH, before)
