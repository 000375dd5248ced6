"""Operators in a prompt: what they are made of, and for which size."""

import numpy as np
import pytest

import opnorm
from opnorm.operators.sizes import Adjoint

K = np.ones((3, 5, 2, 4))
SHOWN = {
    "<Convolution of a 3x5x2x4 kernel: every image size>": {},
    "<Convolution of a 3x5x2x4 kernel, input_shape=(8, 9): 288x144>": {"input_shape": (8, 9)},
    "<Convolution of a 3x5x2x4 kernel, strides=(2, 2): every image size>": {"strides": 2},
    "<Convolution of a 3x5x2x4 kernel, strides=(2, 1), groups=2: every image size>": {"strides": (2, 1), "groups": 2},
    "<Convolution of a 3x5x2x4 kernel, padding='valid', dilation_rate=(1, 2): every image size>": {
        "padding": "valid",
        "dilation_rate": (1, 2),
    },
    "<Convolution of a 3x5x2x4 kernel, padding=((0, 1), (2, 3)): every image size>": {"padding": [(0, 1), (2, 3)]},
}


@pytest.mark.parametrize("text", SHOWN)
def test_a_convolution_shows_its_kernel_its_arguments_and_its_size(text):
    assert repr(opnorm.Convolution(K, **SHOWN[text])) == text


def test_an_adjoint_shows_whose_it_is():
    assert repr(Adjoint(opnorm.Convolution(K))) == "<Adjoint of a Convolution of a 3x5x2x4 kernel: every image size>"
    sized = Adjoint(opnorm.Convolution(K[:, 0], 8))
    assert repr(sized) == "<Adjoint of a Convolution of a 3x2x4 kernel, input_shape=(8,): 16x32>"


def test_what_numpy_makes_of_operators_shows_too():
    assert "every image size" not in repr(opnorm.Convolution(K, (8, 9)).H)
    assert repr(opnorm.Diagonal([1.0, 2.0])) == "<2x2 Diagonal with dtype=float64>"
