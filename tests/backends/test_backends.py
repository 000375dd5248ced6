"""One file a framework, with the same names, each doing what NumPy's does."""

from importlib import import_module
from inspect import isroutine
from typing import NamedTuple

import numpy as np
import pytest
from frameworks import FRAMEWORKS, array, tensor

from opnorm.backends import of

NOT_OURS = {"Any", "Callable", "Sequence", "Tensor", "np"}
NAMES = set(vars(import_module("opnorm.backends.numpy"))) - NOT_OURS
NAMES = {name for name in NAMES if not name.startswith("_")}
X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype("float32")
Y = np.random.default_rng(1).standard_normal((2, 3, 4)).astype("float32")


def shared(x):
    """Return a symmetric matrix for each of two blocks."""
    return x @ x.transpose(0, 2, 1)


CALLS = {  # a call of each operation, on the module and on a function that makes tensors
    "all_of": lambda xp, t: xp.all_of(t(X) > -9),
    "any_of": lambda xp, t: xp.any_of(t(X) > 9),
    "arctan2": lambda xp, t: xp.arctan2(t(X), t(Y)),
    "argmax": lambda xp, t: xp.argmax(t(X)),
    "cast": lambda xp, t: xp.cast(t(X), "float16"),
    "compiled": lambda xp, t: xp.compiled(scaled)(3.0, t(X)),
    "concatenate": lambda xp, t: xp.concatenate([t(X), t(Y)], axis=-1),
    "cond": lambda xp, t: xp.cond(xp.any_of(t(X) > 0), lambda: t(X), lambda: t(Y)),
    "constant": lambda xp, t: t(X) + xp.constant(np.arange(4.0), t(X)),
    "cos": lambda xp, t: xp.cos(t(X)),
    "detach": lambda xp, t: xp.detach(t(X)),
    "dot": lambda xp, t: xp.dot(t(X), t(Y)),
    "dtype": lambda xp, t: np.array([xp.dtype(t(X)) == "float32", xp.dtype(t(X.astype("float16"))) == "float16"]),
    "eigh": lambda xp, t: xp.eigh(t(shared(X)))[0],
    "einsum": lambda xp, t: xp.einsum("rgc,kgc->kgr", t(X), t(Y)),
    "has_lapack": lambda xp, t: np.array([isinstance(xp.has_lapack(t(X)), bool)]),
    "images": lambda xp, t: xp.images(t(X[0]), t(Y[0])),
    "isfinite": lambda xp, t: xp.isfinite(t(np.array([1.0, np.nan, np.inf], "float32"))),
    "known": lambda xp, t: np.array([bool(flag) for flag in xp.known([xp.any_of(t(X) > 0), xp.all_of(t(X) > -9)])]),
    "largest": lambda xp, t: xp.largest(t(X), (0, 2)),
    "length": lambda xp, t: xp.length(t(X)),
    "preimages": lambda xp, t: xp.preimages(t(X[0]), t(Y[0, :, :3])),
    "repeat": lambda xp, t: xp.repeat([2.0, 3.0], lambda factor, x: factor * x + 1, t(X)),
    "repeat_while": lambda xp, t: (
        xp.repeat_while(
            lambda pair: xp.any_of(pair.x < 5), lambda pair: Pair(2 * pair.x, pair.y + 1), Pair(t(abs(X) + 1), t(Y)), 7
        ).y
    ),
    "reshape": lambda xp, t: xp.reshape(t(X), (-1, 4)),
    "rows": lambda xp, t: xp.rows(t(X), t(np.array([[2, 0], [1, 1]]))),
    "shape": lambda xp, t: np.array(xp.shape(t(X))),
    "sin": lambda xp, t: xp.sin(t(X)),
    "sqrt": lambda xp, t: xp.sqrt(abs(t(X))),
    "svd": lambda xp, t: xp.svd(t(X[0]))[1],
    "table": lambda xp, t: xp.table(t(X), np.eye, 3),
    "take": lambda xp, t: xp.take(t(X), t(np.array([[1, 0], [1, 1]]))),
    "top_k": lambda xp, t: xp.top_k(t(X), 2),
    "total": lambda xp, t: xp.total(t(X), (1, 2)),
    "transpose": lambda xp, t: xp.transpose(t(X), (1, 0, 2)),
    "where": lambda xp, t: xp.where(t(X) > 0, t(X), 0.0) + xp.where(t(X) > 0, 1.0, t(Y)),
    "widened": lambda xp, t: xp.widened(t(X), 6),
}


def scaled(factor, x):
    return factor * x


class Pair(NamedTuple):
    x: object
    y: object


def test_every_operation_is_called_here():
    assert set(CALLS) == NAMES


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_framework_has_every_operation_and_no_other(framework):
    module = import_module(f"opnorm.backends.{framework}")
    functions = {name: one for name, one in vars(module).items() if isroutine(one) and not name.startswith("_")}
    assert {name for name in NAMES if not hasattr(module, name)} == set()
    assert {name for name, one in functions.items() if one.__module__ == module.__name__} <= NAMES


@pytest.mark.parametrize("framework", FRAMEWORKS[1:])
@pytest.mark.parametrize("name", CALLS)
def test_an_operation_does_what_numpy_does(name, framework):
    expected = CALLS[name](of(X), lambda x: x)
    made = tensor(framework, X)
    assert of(made).__name__ == f"opnorm.backends.{framework}"
    result = array(CALLS[name](of(made), lambda x: tensor(framework, x)))
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)  # float32; eigenvalues of 3 x 3


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_numbers_beside_a_float64_tensor_are_float64(framework):
    if framework == "jax":
        pytest.skip("JAX has float64 only by a global flag")
    x = tensor(framework, X.astype("float64"))
    for result in (of(x).where(x > 0, x, 0.1), of(x).where(x > 0, 0.1, x), of(x).constant(np.float32([0.1]), x)):
        assert of(x).dtype(result) == "float64"


def test_what_is_no_tensor_is_refused_by_its_type():
    with pytest.raises(TypeError, match=r"NumPy, TensorFlow, JAX or PyTorch. Received: <class 'list'>"):
        of([1.0])


def test_the_tracers_of_jax_are_known_by_their_type():
    import jax

    seen = []
    jax.jit(lambda x: seen.append(of(x).__name__) or x)(X)
    jax.vmap(lambda x: seen.append(of(x).__name__) or x)(X)
    jax.grad(lambda x: (seen.append(of(x).__name__), x.sum())[1])(X)
    assert set(seen) == {"opnorm.backends.jax"}
