"""The tensor operations that the iterations need."""
