"""The benchmark's side of JAX: many steps in one program."""

import chex
import jax

from experiments.bench import jax_side
from experiments.bench.rows import ROWS
from experiments.bench.trees import kernels, random_trees
from experiments.compiling import compile_ahead


def test_steps_in_one_program_are_those_one_by_one():
    trees = random_trees(kernels(10_000, 2))
    optimizer = ROWS["adamsrt"].make(trees.labels, learning_rate=0.1)
    params, grads = jax.tree.map(jax.numpy.array, (trees.params, trees.grads))
    held = params, jax.jit(optimizer.init)(params)
    step = jax_side.step_of(optimizer)
    together = compile_ahead(jax_side.many_steps(step, 3), *held, grads)
    # In the loop all is done at every step, the sums of equal gradients too.
    outside = together.as_text().partition("ENTRY")[2]
    assert " while(" in outside
    assert " fusion(" not in outside
    expected = together(*held, grads)
    for _ in range(3):
        held = jax.jit(step)(*held, grads)
    chex.assert_trees_all_close(held, expected, rtol=1e-5)
