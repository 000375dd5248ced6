"""Proved brackets of operator norms, in float64."""
