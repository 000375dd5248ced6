"""The legacy tests need a process of their own: `TF_USE_LEGACY_KERAS=1 pytest tests/tf1`."""

import os

import pytest

# TensorFlow chooses its Keras once, when it is imported: in any other process these tests cannot run.
collect_ignore_glob = [] if os.environ.get("TF_USE_LEGACY_KERAS") == "1" else ["test_*.py"]

IGNORED_WARNINGS = [
    # tf_keras says so at every call of the functions that these tests are about.
    r"ignore:`tf\.layers\.\w+` is deprecated:UserWarning",
]


def pytest_configure(config: pytest.Config) -> None:
    for line in IGNORED_WARNINGS:
        config.addinivalue_line("filterwarnings", line)
