"""Shared by the tests of operators and bounds."""

from hypothesis import settings

# The same examples in every run, and no clock: the machines that run these tests are shared.
settings.register_profile("opnorm", derandomize=True, deadline=None, max_examples=120)
settings.load_profile("opnorm")
