"""What a step of each optimizer costs, measured against others in alternating runs.

``python -m experiments.bench --help`` explains the command. Where things are:

* ``rows``: what is compared with what, JAX and PyTorch, in one table
* ``trees``: weights and gradients to measure on
* ``clock``: runs that alternate, medians and quartiles
* ``limit``: what takes too long is given up
* ``step``, ``compiling``, ``memory``, ``training``, ``scaling``, ``bandwidth``: one
  measurement each
* ``store``: finished rows in a JSON file, and what is left to do
* ``machine``: where and with which versions
* ``torch_side``, ``torch_optimizers``, ``torch_models``: the other side, if installed
* ``tables``, ``figures``: how results are shown
"""
