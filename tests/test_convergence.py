"""Every optimizer reaches the bottom of the targets that Optax tests its own on."""

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spherical_optax import geometry

STEPS = 10_000


def abs_sq(x):
    return jnp.square(jnp.real(x)) + jnp.square(jnp.imag(x))


def parabola(dtype):
    start = jnp.array([-1.0, 10.0, 1.0], dtype)
    goal = jnp.array([1.0, -1.0, 1.0], dtype)
    if jnp.iscomplexobj(goal):
        goal = goal * (1 + 1j)
    return start, goal, lambda x: jnp.sum(abs_sq(x - goal))


def rosenbrock(dtype):
    a = jnp.asarray(1 + 1j if dtype == jnp.complex64 else 1, dtype)
    goal = jnp.stack([a, a**2])

    def loss(x):
        return abs_sq(a - x[0]) + 100 * abs_sq(x[1] - x[0] ** 2)

    return jnp.zeros(2, dtype), goal, loss


def matrix(dtype):
    goal = jnp.array([[3.0, -2.0], [1.0, 4.0]], dtype)
    return jnp.zeros((2, 2), dtype), goal, lambda x: jnp.sum(abs_sq(x - goal))


def mixed(dtype):
    goal = (jnp.array([1.0, -1.0, 2.0], dtype), jnp.eye(2, dtype=dtype))
    start = jax.tree.map(jnp.zeros_like, goal)

    def loss(params):
        return sum(jnp.sum(abs_sq(x - y)) for x, y in zip(params, goal, strict=True))

    return start, goal, loss


TARGETS = {
    "parabola": parabola,
    "rosenbrock": rosenbrock,
    "matrix": matrix,
    "mixed": mixed,
}


def minimize(optimizer, start, loss):
    def step(carry, _):
        params, state = carry
        # JAX's gradient of a real function of complex numbers is the conjugate of
        # the direction of steepest ascent.
        grads = jax.tree.map(jnp.conj, jax.grad(loss)(params))
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(params):
        carry = (params, optimizer.init(params))
        return jax.lax.scan(step, carry, length=STEPS)[0]

    return run(start)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64], ids=["real", "complex"])
@pytest.mark.parametrize(
    ("case", "target"),
    [
        pytest.param(case, target, id=f"{case.id}-{target}")
        for case in cases.CASES
        for target in case.solves
        if target in TARGETS
    ],
)
def test_reaches_the_bottom(case, target, dtype):
    start, goal, loss = TARGETS[target](dtype)
    params, _ = minimize(case.make_optimizer(), start, loss)
    chex.assert_trees_all_close(params, goal, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize(
    "case", [c for c in cases.CASES if "sphere" in c.solves], ids=cases.case_id
)
def test_turns_weights_on_spheres_to_their_goal(case):
    """The loss depends on the direction of each depthwise group alone."""
    rng = np.random.default_rng(0)
    start, goal = (cases.random_leaf(rng, (3, 3, 2, 4), "float32") for _ in range(2))

    def cosine(x):
        norms = geometry.norm(x, (-2, -1)) * geometry.norm(goal, (-2, -1))
        return geometry.dot(x, goal, (-2, -1)) / norms

    params, _ = minimize(
        case.make_optimizer(),
        {"conv": start},
        lambda params: jnp.sum(1 - cosine(params["conv"])),
    )
    assert float(jnp.min(cosine(start))) < 0.5
    assert float(jnp.min(cosine(params["conv"]))) > 0.999


def test_every_case_has_a_target():
    assert all(case.solves for case in cases.CASES)
    for case in cases.OPTIMIZERS:
        assert {"parabola", "rosenbrock"} <= set(case.solves) or "sphere" in case.solves
