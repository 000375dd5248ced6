"""Weights as SciPy linear operators: matrices, blocks, convolutions, einsum equations."""
