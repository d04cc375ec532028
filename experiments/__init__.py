"""Experiments with the optimizers of spherical_optax.

``python -m experiments.train --help`` is the way in.
"""
