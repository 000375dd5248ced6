"""Rows, reports and differences of checkpoints."""
