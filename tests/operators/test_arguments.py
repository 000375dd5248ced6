"""What is no operator is refused with the argument's name and the value received."""

import numpy as np
import pytest
from scipy.sparse.linalg import aslinearoperator

from opnorm.bounds.brackets import spectral_norm
from opnorm.operators.convolution import Convolution
from opnorm.operators.linear import BlockDiagonal, Diagonal, linear_operator

STRANGE = ["x", b"x", None, object, {}, [[1, 2], [3]], [None], 10**400]


@pytest.mark.parametrize("value", STRANGE, ids=repr)
def test_what_is_no_array_is_refused_by_name(value):
    for name, call in (("x", spectral_norm), ("kernel", Convolution), ("factors", Diagonal)):
        with pytest.raises((ValueError, TypeError), match=f"`{name}`.*Received: "):
            call(value)


@pytest.mark.parametrize("value", ["x", None, 3, [], ["x"], [None], [np.ones(3)]], ids=repr)
def test_what_are_no_blocks_is_refused_by_name(value):
    with pytest.raises((ValueError, TypeError), match=r"`blocks`.*Received: "):
        BlockDiagonal(value)


def test_matrices_may_be_blocks():
    rng = np.random.default_rng(0)
    matrices = [rng.standard_normal((2, 3)), rng.standard_normal((4, 1))]
    mixed = BlockDiagonal([matrices[0], aslinearoperator(matrices[1])])
    assert spectral_norm(mixed) == spectral_norm(BlockDiagonal(list(map(aslinearoperator, matrices))))


@pytest.mark.parametrize("axis", [7, -5, (), (0, 0), (0, -4), "x", None, 1.5, True], ids=repr)
def test_an_axis_that_the_kernel_does_not_have_is_refused(axis):
    with pytest.raises(ValueError, match=r"`axis`.*Received: "):
        spectral_norm(np.ones((3, 3, 2, 4)), axis=axis)


@pytest.mark.parametrize("tolerance", [1e-17, 1e200, 1e308, "x", True, [1.0], 10**400, -(10**400)], ids=repr)
def test_a_tolerance_outside_of_its_range_is_refused(tolerance):
    for x in (np.eye(2), Convolution(np.ones((3, 1, 1)))):
        with pytest.raises(ValueError, match=r"`tolerance`.*1e-15 to 1000.*Received: "):
            spectral_norm(x, tolerance=tolerance)


@pytest.mark.parametrize("tolerance", [1e-15, 1e3])
def test_the_ends_of_the_range_give_a_bracket(tolerance):
    lower, upper = spectral_norm(np.diag([3.0, 1.0]), tolerance=tolerance)
    assert lower <= 3 <= upper


@pytest.mark.parametrize("number", [2**53 - 1, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1])
def test_integers_that_float64_skips_are_rounded_outwards_or_refused(number):
    lower, upper = spectral_norm(Diagonal(np.array([number])))
    assert int(lower) <= abs(number) <= int(upper)  # Python compares integers exactly
    if abs(number) > 2**53:
        with pytest.raises(ValueError, match=r"2\*\*53.*Received: "):
            spectral_norm(np.array([[number]]))


@pytest.mark.parametrize("name", ["strides", "dilation_rate", "groups", "input_shape"])
@pytest.mark.parametrize("value", [True, 10**400, "x", b"x", np.ones((2, 2))], ids=repr)
def test_counts_of_a_convolution_are_integers(name, value):
    with pytest.raises(ValueError, match=f"`{name}`.*Received: "):
        Convolution(np.ones((3, 3, 2, 2)), **{name: value})


def test_a_padding_in_an_array_is_read_as_pairs():
    kernel = np.ones((3, 3, 1, 1))
    assert Convolution(kernel, padding=np.array([[1, 0], [2, 3]])).padding == ((1, 0), (2, 3))
    with pytest.raises(ValueError, match="`padding`"):
        Convolution(kernel, padding=np.ones((2, 2)))


def test_what_has_no_operator_is_refused_by_name():
    with pytest.raises(TypeError, match=r"`layer`.*Received: 'x'"):
        linear_operator("x")
