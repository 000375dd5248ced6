"""Einsum equations of layers: which axes of the kernel are summed over, which are kept, which are shared."""

import numpy as np
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from opnorm.checks import Array
from opnorm.operators.linear import BlockDiagonal


def einsum_operator(kernel: Array, equation: str) -> LinearOperator:
    """Return the operator that `einsum(equation, x, kernel)` applies to each position of x."""
    shared, summed, kept = einsum_axes(equation)
    blocks = kernel.transpose(*shared, *summed, *kept)
    shape = [int(np.prod([kernel.shape[i] for i in axes])) for axes in (shared, summed, kept)]
    operators = [aslinearoperator(block.T) for block in blocks.reshape(shape)]
    return operators[0] if not shared else BlockDiagonal(operators)


def einsum_axes(equation: str) -> tuple[list[int], list[int], list[int]]:
    """Return the kernel's axes by their role: in all three terms, summed with the input, kept in the output.

    The last two stand in the order of the input's and the output's letters.

    Raises:
        ValueError: When the equation is not one matrix (or one for each shared index) applied to every position.
    """
    inputs, kernel, outputs = equation.replace("...", "").replace(" ", "").replace("->", ",").split(",")
    shared = [letter for letter in kernel if letter in inputs and letter in outputs]
    summed = [letter for letter in inputs if letter in kernel and letter not in outputs]
    kept = [letter for letter in outputs if letter in kernel and letter not in inputs]
    alone = [letter for letter in inputs if letter not in kernel + outputs]
    if alone or sorted(shared + summed + kept) != sorted(kernel):
        raise ValueError(
            "Argument `layer` must have an equation that sums only over axes that input and kernel share. "
            f"Received: equation={equation!r}"
        )
    return tuple([kernel.index(letter) for letter in letters] for letters in (shared, summed, kept))  # type: ignore[return-value]
