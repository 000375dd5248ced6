"""Third-party warnings that are not ours to mend, one by one; every other warning is an error."""

import os
from pathlib import Path

from hypothesis import settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up notes would drown pytest's summary

# Most of the JAX suite's time is XLA's compiler, and modules, workers and processes of a test share programs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# XLA's optimizations are a third of that time. The suite of Keras on JAX goes without them; `tests/jax`, which runs the
# same core, and users go with them.
if os.environ.get("KERAS_BACKEND") == "jax":
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# The same examples in every run, and no clock: the machines that run these tests are shared.
settings.register_profile("opnorm", derandomize=True, deadline=None, max_examples=120)
settings.load_profile("opnorm")

KNOWN = [
    # NumPy 2 asks arrays for `copy=`, which keras.Variable.__array__ does not take yet (Keras 3.15).
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    # PyTorch's own forward mode compiles its rules with the `torch.jit.script` that PyTorch 2.13 deprecates.
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning",
    # PyTorch's own Inductor imports classes with methods that PyTorch 2.13 deprecates.
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
]


def pytest_configure(config):
    for line in KNOWN:
        config.addinivalue_line("filterwarnings", line)
