"""Readers of checkpoints, one file a format: lazy, and nothing from a file is ever executed."""
