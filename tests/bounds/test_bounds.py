import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from opnorm.bounds.brackets import Bounds, spectral_norm
from opnorm.operators.linear import BlockDiagonal, Diagonal, linear_operator, linear_operators

ROUNDING = 1e-12  # LAPACK's own relative error on these matrices (sides to 300) stays below 1e-13


def _orthogonal(rng, n, rank):
    return np.linalg.qr(rng.standard_normal((n, rank)))[0]


def _matrix(kind, rows, columns, rng):
    short = min(rows, columns)
    left, right = _orthogonal(rng, rows, short), _orthogonal(rng, columns, short)
    if kind == "gaussian":
        return rng.standard_normal((rows, columns))
    if kind == "rank one":
        return np.outer(rng.standard_normal(rows), rng.standard_normal(columns))
    if kind == "orthogonal":
        return left @ right.T
    if kind == "near ties":
        return left @ np.diag(1 - 1e-9 * np.arange(short)) @ right.T
    if kind == "one large":
        return left @ np.diag([1.0] + [1e-8] * (short - 1)) @ right.T
    if kind == "equal entries":
        return np.ones((rows, columns))
    return np.where(rng.random((rows, columns)) < 0.1, rng.standard_normal((rows, columns)), 0.0)  # sparse


KINDS = ["gaussian", "rank one", "orthogonal", "near ties", "one large", "equal entries", "sparse"]
SHAPES = [(1, 1), (1, 7), (7, 1), (5, 5), (40, 3), (3, 40), (200, 300), (300, 200)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_the_bracket_contains_the_norm_and_is_a_millionth_wide(kind, shape, dtype):
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    matrix = _matrix(kind, *shape, np.random.default_rng(0)).astype(dtype)
    truth = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)[0]
    lower, upper = spectral_norm(matrix)
    assert lower <= truth * (1 + ROUNDING)
    assert truth <= upper * (1 + ROUNDING)
    assert upper <= lower * (1 + 1e-6)  # T1


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(0, 2**32 - 1),
    st.integers(-290, 290),
    st.sampled_from(KINDS),
)
def test_every_drawn_matrix_of_any_size_and_scale_is_bracketed(rows, columns, seed, exponent, kind):
    matrix = _matrix(kind, rows, columns, np.random.default_rng(seed)) * 10.0**exponent
    truth = np.linalg.svd(matrix, compute_uv=False)[0]
    lower, upper = spectral_norm(matrix)
    assert lower <= truth * (1 + ROUNDING)
    assert truth <= upper * (1 + ROUNDING)
    assert upper <= lower * (1 + 1e-6)


@pytest.mark.parametrize("n", [513, 2048])
def test_large_matrices_of_known_norm_are_bracketed_to_a_millionth(n):
    row = np.random.default_rng(n).standard_normal(n)
    circulant = row[(np.arange(n)[:, None] + np.arange(n)) % n]  # its singular values are the magnitudes of the DFT
    truth = np.abs(np.fft.fft(row)).max()
    lower, upper = spectral_norm(circulant)
    assert lower <= truth * (1 + ROUNDING)
    assert truth <= upper * (1 + ROUNDING)
    assert upper <= lower * (1 + 1e-6)


def test_exact_norms_lie_inside_with_no_allowance_for_rounding():
    for n in (1, 3, 10, 100, 400):
        lower, upper = spectral_norm(np.ones((n, n)))
        assert lower <= n <= upper
    lower, upper = spectral_norm(np.diag([3.0, -5.0, 4.0]))
    assert lower <= 5 <= upper


@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e-30, 1e30, 1e300, 1.7e308])
def test_the_ends_round_outwards_where_float64_ends(scale):
    lower, upper = spectral_norm(np.diag([scale, scale]))
    assert lower <= scale <= upper
    lower, upper = spectral_norm(np.full((4, 4), scale))  # the norm, 4 * scale, may overflow: then upper is inf
    assert lower <= scale * 4.0 <= upper


def test_the_ends_round_outwards_among_subnormal_numbers():
    unit = 5e-324
    assert spectral_norm(np.full((1, 2), unit)).upper == 2 * unit  # the norm is 1.41 units
    assert spectral_norm(np.full((1, 3), unit)).lower == unit  # the norm is 1.73 units


def test_a_layer_of_ones_own_is_bounded_once_it_is_registered():
    class Mixer:
        weights = np.diag([2.0, 3.0])

    with pytest.raises(TypeError, match=r"linear_operator\.register\(Mixer"):
        linear_operator(Mixer())
    linear_operator.register(Mixer, lambda layer: aslinearoperator(layer.weights))
    lower, upper = spectral_norm(Mixer())
    assert lower <= 3 <= upper
    assert list(linear_operators(Mixer())) == ["kernel"]


def test_bounds_need_no_deep_learning_framework():
    code = "import sys, opnorm.bounds.brackets; print({'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_zero_has_norm_zero():
    assert spectral_norm(np.zeros((3, 4))) == Bounds(0.0, 0.0)


def test_integers_are_taken_exactly():
    lower, upper = spectral_norm(np.array([[3, 0], [4, 0]], dtype=np.int8))
    assert lower <= 5 <= upper <= 5 * (1 + 1e-6)


def test_a_vector_has_its_euclidean_norm():
    lower, upper = spectral_norm([3.0, 4.0])
    assert lower <= 5 <= upper <= 5 * (1 + 1e-6)


def test_a_kernel_of_many_axes_is_the_matrix_of_its_output_axes():
    kernel = np.random.default_rng(0).standard_normal((3, 3, 4, 5))
    for axis, matrix in [(-1, kernel.reshape(-1, 5)), ((2, 3), kernel.reshape(9, 20)), (0, kernel.reshape(3, -1))]:
        truth = np.linalg.svd(matrix, compute_uv=False)[0]
        lower, upper = spectral_norm(kernel, axis=axis)
        assert lower <= truth * (1 + ROUNDING)
        assert truth <= upper * (1 + ROUNDING)


def test_sparse_matrices_and_operators_are_bracketed_like_arrays():
    rng = np.random.default_rng(0)
    sparse = csr_array(np.where(rng.uniform(size=(40, 30)) < 0.2, rng.standard_normal((40, 30)), 0.0))
    plain = LinearOperator((40, 30), matvec=lambda x: sparse @ x, rmatvec=lambda y: sparse.T @ y, dtype=float)
    truth = np.linalg.svd(sparse.toarray(), compute_uv=False)[0]
    for given_as in (sparse, aslinearoperator(sparse), aslinearoperator(sparse.toarray()), plain, 1.0 * plain):
        lower, upper = spectral_norm(given_as)
        assert lower <= truth * (1 + ROUNDING)
        assert truth <= upper * (1 + ROUNDING)


def test_an_unknown_operator_too_big_to_write_out_is_not_bounded_from_above():
    factors = np.linspace(0, 1, 5000)
    unknown = LinearOperator(
        (5000, 5000), matvec=lambda x: factors * x.ravel(), rmatvec=lambda x: factors * x.ravel(), dtype=float
    )
    lower, upper = spectral_norm(unknown)
    assert 0.99 < lower <= 1
    assert upper == np.inf


def test_blocks_have_the_norm_of_the_largest_and_diagonals_of_the_largest_entry():
    rng = np.random.default_rng(0)
    matrices = [rng.standard_normal(shape) for shape in ((3, 4), (2, 2), (5, 1))]
    blocks = BlockDiagonal([aslinearoperator(m) for m in matrices])
    truth = max(np.linalg.svd(m, compute_uv=False)[0] for m in matrices)
    lower, upper = spectral_norm(blocks)
    assert lower <= truth * (1 + ROUNDING)
    assert truth <= upper * (1 + ROUNDING)
    assert spectral_norm(Diagonal([1.0, -3.0, 2.0])) == (3.0, 3.0)


@pytest.mark.parametrize("make", [lambda a: BlockDiagonal([aslinearoperator(a), aslinearoperator(2 * a)]), Diagonal])
def test_blocks_and_diagonals_move_to_the_other_side_of_the_product(make):
    rng = np.random.default_rng(0)
    operator = make(rng.standard_normal((3, 4)))
    x, y = rng.standard_normal(operator.shape[1]), rng.standard_normal(operator.shape[0])
    for adjoint in (operator.H, operator.T):
        assert abs((operator @ x) @ y - x @ (adjoint @ y)) <= 1e-10  # T6; entries are near 1
    assert abs(operator.rmatvec(y) @ x - y @ operator.matvec(x)) <= 1e-10


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.array([[1.0, np.nan]]), "finite"),
        (np.array([[1.0, np.inf]]), "finite"),
        (np.zeros((0, 3)), "empty"),
        (np.ones((2, 2), dtype=complex), "real"),
        (np.array(3.0), "matrix"),
        (np.array([["a"]]), "real"),
        (np.array([[True]]), "real"),
        (np.array([[2**60 + 1]]), "2\\*\\*53"),
        (np.ones((2, 2), dtype=np.longdouble), "real"),
    ],
)
def test_what_is_no_real_matrix_is_refused_by_name(value, said):
    with pytest.raises(ValueError, match=f"`x`.*{said}.*Received: "):
        spectral_norm(value)


@pytest.mark.parametrize("tolerance", [0, -1, np.nan, np.inf])
def test_a_tolerance_must_be_positive_and_finite(tolerance):
    with pytest.raises(ValueError, match=r"`tolerance`.*Received: "):
        spectral_norm(np.eye(2), tolerance=tolerance)


def test_masked_entries_are_refused_by_name():
    hidden = np.ma.masked_array(5 * np.eye(3), mask=np.eye(3) > 0)
    with pytest.raises(ValueError, match=r"Argument `x` must have no masked entries.*Received: 3 masked of 9"):
        spectral_norm(hidden)
    assert spectral_norm(hidden.filled(0)).upper == 0
    assert spectral_norm(np.ma.masked_array(np.eye(3))).lower == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("ends", [(2, 1), (float("nan"), 1.0), (0.0, float("nan")), (float("inf"), 1.0)])
def test_an_interval_that_holds_no_number_is_refused_with_its_ends(ends):
    with pytest.raises(ValueError, match=f"lower={ends[0]}, upper={ends[1]}"):
        Bounds(*ends)
