"""XLA optimizes little while these tests run: compiling is nearly all of their time."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _compiled_quickly():
    before = jax.config.jax_disable_most_optimizations
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
