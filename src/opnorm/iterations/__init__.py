"""Training-time algorithms on tensors."""
