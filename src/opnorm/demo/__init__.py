"""The demonstration: training on real digits with and without the constraints."""
