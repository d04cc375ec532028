"""The headline results of the five sources, each a study that one command repeats.

``python -m experiments.studies`` makes a page of all; ``python -m experiments.studies
spherical`` runs one. A study is a module here with a ``STUDY``; what came of it lies in
``experiments/results/studies/``.
"""
