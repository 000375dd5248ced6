"""Lipschitz bounds of whole networks, from graphs of layers."""
