"""Kernels written as their rules say: one by one, so that no copy of all of them is held."""

from collections.abc import Sequence
from typing import Any

import keras

from opnorm.rules import Rule, overwrite


def write(kernels: Sequence[keras.Variable], rules: Sequence[Rule], found: Sequence[Any]) -> None:
    """Assign to each variable what its rule makes of it."""
    for kernel, rule, what in zip(kernels, rules, found, strict=True):
        if keras.config.backend() == "torch":
            overwrite(rule, kernel.value.detach(), what)  # in place: `assign` takes a second copy, and time
        else:
            kernel.assign(rule.act(kernel.value, what))
