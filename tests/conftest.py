"""Settings of all tests."""

from hypothesis import settings

# The same examples on every machine, and no deadline: these machines may be slow.
settings.register_profile("fcn_jax", derandomize=True, deadline=None)
settings.load_profile("fcn_jax")
