"""Operators that may stand for every image size: such an operator has a norm, but nothing to be applied to."""

from typing import Any

from scipy.sparse.linalg import LinearOperator


class SizedOperator(LinearOperator):
    """A LinearOperator that says clearly, when applied, that it was made without a size.

    Args:
        shape: (rows, columns), or None when the operator stands for every size.
        dtype: NumPy dtype of the products.
    """

    def __init__(self, dtype: Any, shape: tuple[int, int] | None):
        self.has_size = shape is not None
        # SciPy's operators cannot be without a shape; its stubs give the base class no __init__.
        super().__init__(dtype, shape or (0, 0))  # type: ignore[call-arg]

    def matvec(self, x: Any) -> Any:
        """Return `A x`; needs a size."""
        self._require_size()
        return super().matvec(x)

    def matmat(self, X: Any) -> Any:
        """Return `A X`; needs a size."""
        self._require_size()
        return super().matmat(X)

    def rmatvec(self, x: Any) -> Any:
        """Return `A* x`; needs a size."""
        self._require_size()
        return super().rmatvec(x)

    def rmatmat(self, X: Any) -> Any:
        """Return `A* X`; needs a size."""
        self._require_size()
        return super().rmatmat(X)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.shape)) if self.has_size else "every image size"
        return f"<{self._named()}: {size}>"

    def _named(self) -> str:
        """Return what the operator is, without its size."""
        return type(self).__name__

    def _require_size(self) -> None:
        if not self.has_size:
            raise ValueError(
                "An operator without `input_shape` stands for every image size: it has a norm but cannot be applied. "
                "Received: input_shape=None"
            )


class Adjoint(SizedOperator):
    """The adjoint of the real `operator`, with the same norm: what a transposed convolution multiplies its input with.

    Args:
        operator: A real SizedOperator.
    """

    def __init__(self, operator: SizedOperator):
        self.operator = operator
        super().__init__(operator.dtype, operator.shape[::-1] if operator.has_size else None)

    def _named(self) -> str:
        return f"Adjoint of a {self.operator._named()}"

    def _matvec(self, x: Any) -> Any:
        return self.operator.rmatvec(x)

    def _matmat(self, X: Any) -> Any:
        return self.operator.rmatmat(X)

    def _rmatvec(self, x: Any) -> Any:
        return self.operator.matvec(x)

    def _rmatmat(self, X: Any) -> Any:
        return self.operator.matmat(X)

    def _adjoint(self) -> LinearOperator:
        return self.operator

    _transpose = _adjoint
