"""Networks on a ball around one input: values with what they may become, Jacobians with what they may be off by."""
