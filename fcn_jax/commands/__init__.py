"""The commands of ``python -m fcn_jax``, a module each.

Each has ``add_options(parser)`` and ``run(args)``, which returns the exit status.
"""
