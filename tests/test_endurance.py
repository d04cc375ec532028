"""A million steps of a cheap problem: what is promised for one step holds after all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import spherical_optax as so

STEPS = 1_000_000
ON_SPHERE = {
    "adamh": so.adamh(1e-3),
    "hyperball": so.hyperball(optax.trace(0.9), 1e-3),
    "muonh": so.muonh(1e-3),
    "rotational": so.rotational(optax.scale_by_adam(), 1e-3, 0.1),
}
TRANSPORTED = {
    "adamg": so.adamg(1e-3),
    "adamsrt": so.adamsrt(1e-4),
    "sgdmrt": so.sgdmrt(1e-4, momentum=0.9),
}
OPTIMIZERS = {
    **ON_SPHERE,
    **TRANSPORTED,
    "adams": so.adams(1e-4),
    "adamp": so.adamp(1e-4),
    "sgdp": so.sgdp(1e-4, momentum=0.9),
    "swats": so.swats(1e-4, threshold=1e-5),
    "adabound": so.adabound(1e-4),
    "lamb": so.lamb(1e-4),
    "adam_abs": so.adam_abs(1e-4),
}


@jax.jit
def trained(start, targets):
    """Weights and states after a million steps towards directions, with noise."""

    def gradient(x, step, target):
        norm = jnp.sqrt(so.geometry.dot(x, x, (-1,)))
        noise = jnp.sin(step * jnp.arange(1.0, x.size + 1)).reshape(x.shape)
        return so.geometry.project(x, noise - target, (-1,)) / norm

    def body(step, carried):
        moved = {}
        for name, (x, state) in carried.items():
            updates, state = OPTIMIZERS[name].update(
                gradient(x, step.astype(float), targets[name]), state, x
            )
            moved[name] = optax.apply_updates(x, updates), state
        return moved

    first = {name: (start, opt.init(start)) for name, opt in OPTIMIZERS.items()}
    return jax.lax.fori_loop(0, STEPS, body, first)


def test_nothing_drifts_in_a_million_steps():
    rng = np.random.default_rng(0)
    start, target = (jnp.asarray(rng.normal(size=(3, 1, 2)), jnp.float32) for _ in "ab")
    # Under Rotational the mean of a group fades, whatever the gradient says of it.
    centred = so.geometry.center(target, (-1,))
    targets = {**dict.fromkeys(OPTIMIZERS, target), "rotational": centred}
    ended = trained(start, targets)
    norms = {k: so.geometry.norm(x, (-1,)) for k, (x, _) in ended.items()}
    initial = so.geometry.norm(start, (-1,))
    for name in ON_SPHERE:
        np.testing.assert_allclose(norms[name], initial, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(norms["adamg"], 1, rtol=1e-6)
    for name in ("adamsrt", "sgdmrt"):
        assert bool(jnp.all(norms[name] > initial)), name
    for name in TRANSPORTED:  # so that momentum stays tangent
        x, state = ended[name]
        moments = optax.tree.get_all_with_path(
            state, "trace" if name == "sgdmrt" else "mu"
        )
        (m,) = jax.tree.leaves([tree for _, tree in moments])[:1]
        along = so.geometry.dot(m, x, (-1,))
        length = so.geometry.norm(m, (-1,)) * norms[name]
        assert bool(jnp.all(length > 0))
        assert bool(jnp.all(jnp.abs(along) <= 1e-5 * length)), name
    for name, (x, state) in ended.items():
        assert all(bool(jnp.all(jnp.isfinite(a))) for a in jax.tree.leaves((x, state)))
        pull = so.geometry.dot(x, targets[name], (-1,)) / norms[name]
        most = so.geometry.norm(targets[name], (-1,))
        assert bool(jnp.all(pull > 0.9 * most)), name
    counts = [c for _, s in ended.values() for _, c in counters(s)]
    assert counts
    assert all(int(c) == STEPS for c in counts)


def counters(state):
    return optax.tree.get_all_with_path(state, "count")
