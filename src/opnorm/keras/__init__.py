"""The Keras front end: where the state lives, when a rule is called, which weights are kernels."""
