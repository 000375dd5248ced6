"""The norms that constraints aim at, as one writes them down."""

import copy
import pickle

import numpy as np
import pytest

import opnorm.rules as rules

CONSTRAINTS = {"value": rules.SpectralNorm, "max_value": rules.MaxSpectralNorm}


def halving(step):
    return 0.5**step


@pytest.mark.parametrize(("text", "size"), [("rms", 1.0), ("2 rms", 2.0), ("0.5rms", 0.5), (" 1e-2 rms ", 0.01)])
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_a_norm_by_shape_is_the_root_of_outputs_over_inputs(name, text, size):
    constraint = CONSTRAINTS[name](text)
    assert constraint.ball((16, 64)) == pytest.approx(2 * size)
    heads = CONSTRAINTS[name](text, axis=(-2, -1), groups=4)
    assert heads.ball((16, 4, 9)) == pytest.approx(0.75 * size)  # each head (16, 9)
    assert CONSTRAINTS[name](getattr(constraint, name)) == constraint  # what it writes down it reads
    made = constraint.project(np.random.default_rng(0).standard_normal((16, 64)))
    x = np.random.default_rng(1).standard_normal((1000, 16))
    assert np.all(np.sqrt(np.mean((x @ made) ** 2, 1)) <= size * 1.001 * np.sqrt(np.mean(x**2, 1)))


def test_a_norm_that_is_a_function_is_that_of_the_step():
    kernel = np.random.default_rng(0).standard_normal((9, 6))
    for kind in CONSTRAINTS.values():
        made, _ = kind(halving).update(kernel, None, 3)
        assert np.linalg.norm(made, 2) == pytest.approx(0.125, rel=1e-3)
    clip = rules.SpectralClip(halving)
    assert np.linalg.norm(clip.project(kernel, 1), 2) == pytest.approx(0.5, rel=1e-4)
    assert (clip.ball((9, 6)), clip.ball((9, 6), 2)) == (None, 0.25)
    for use in (clip.update, clip.project):
        with pytest.raises(
            ValueError, match=r"`step` must be given for a norm that is a function.*Received: step=None"
        ):
            use(kernel)
    for twin in (copy.deepcopy(clip), pickle.loads(pickle.dumps(clip))):
        assert twin == clip


@pytest.mark.parametrize(
    "value", [0, -1, np.inf, True, None, "", "0 rms", "-1 rms", "rms 2", "1e999 rms", [1.0]], ids=str
)
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_anything_else_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"Argument `{name}` must be a positive finite number.*Received: {name}="):
        CONSTRAINTS[name](value)


@pytest.mark.parametrize(
    "options",
    [
        {"max_value": 0.5, "min_value": 0.6},
        {"max_value": "rms", "min_value": 0.5},
        {"max_value": "rms", "min_value": "2 rms"},
        {"max_value": halving, "min_value": 0.5},
        {"min_value": halving},
        {"min_value": -0.5},
        {"min_value": 0.5, "margin": 0.1},
        {"min_value": 0.5, "operator": "convolution"},
    ],
    ids=[str(number) for number in range(8)],
)
def test_a_least_value_that_does_not_go_with_the_largest_is_refused(options):
    with pytest.raises(ValueError, match=r"Argument `min_value` must be .*Received: min_value="):
        rules.SpectralClip(**options)


def test_a_norm_by_shape_of_a_convolution_is_refused():
    for kind in (*CONSTRAINTS.values(), rules.SpectralClip):
        with pytest.raises(ValueError, match=r"value` must be a number, or a function, with operator='convolution'"):
            kind("rms", operator="convolution")
