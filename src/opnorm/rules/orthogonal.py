"""A kernel replaced by the nearest (semi-)orthogonal matrix."""

from collections.abc import Sequence
from dataclasses import dataclass

from opnorm.backends import Tensor
from opnorm.iterations.clipping import orthogonalize
from opnorm.iterations.matrices import output_shape
from opnorm.rules.norms import Operator
from opnorm.rules.projecting import projected
from opnorm.rules.targets import Levels


@dataclass(frozen=True)
class Orthogonalize:
    """W = U S V^T <- U V^T, of each block.

    Args:
        operator: What the singular values are of: a matrix.
    """

    operator: Operator

    def start(self, shape: tuple[int, ...], seed: tuple[int, ...]) -> None:
        """Return None: an update starts from the kernel alone. Raise if the operator does not fit the shape."""
        output_shape(shape, self.operator.axis, self.operator.groups)

    @property
    def converged(self) -> "Orthogonalize":
        """The rule itself."""
        return self

    @staticmethod
    def find(
        rules: Sequence["Orthogonalize"], kernels: Sequence[Tensor], states: Sequence[Tensor], levels: Levels = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return None for every kernel, and no states: nothing is to be found beforehand."""
        return [None] * len(kernels), [None] * len(kernels)

    def act(self, kernel: Tensor, found: Tensor) -> Tensor:
        """Return the orthogonal kernel."""
        return projected(kernel, self.operator, orthogonalize)
