"""The constraints without Keras take the arguments of those with it, and make the same rules of them."""

from inspect import signature

import pytest
from cases import ALL

import opnorm
from opnorm import rules


@pytest.mark.parametrize("name", ALL)
def test_a_constraint_has_the_same_arguments_with_and_without_keras(name):
    ours, plain = (
        {one.name: (one.default, one.kind) for one in signature(getattr(home, name)).parameters.values()}
        for home in (opnorm, rules)
    )
    assert ours == plain
    assert getattr(opnorm, name)().rule == getattr(rules, name)().rule
