"""What the table of measured labels shows, and losses that cannot be measured."""

import itertools
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from normalized_models import (
    MODELS,
    E,
    F,
    batch_norm,
    batch_of,
    head,
    relu,
    start,
    vectors,
)

import spherical_optax as so


def detect(name, **options):
    loss, shapes, _ = MODELS[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="no gradient reaches")
        return so.detect_invariance(loss, start(shapes), batch_of(shapes), **options)


# ---------------------------------------------------------------- the table


def test_the_table_prints():
    labels, table = detect("norm_two_layers_later", explain=True)
    assert labels == MODELS["norm_two_layers_later"][2]
    lines = str(table).splitlines()
    assert lines[0].split("  ")[0] == "path"
    assert [line.split()[:2] for line in lines[2:]] == [
        [path, label] for path, label in sorted(labels.items())
    ]
    assert len({line.index(line.split()[1]) for line in lines[2:]}) == 1
    assert max(map(len, lines)) == len(lines[1]) < 80
    for row in table:
        assert row.worst_cosine < 1e-3 if row.label != E else row.worst_cosine > 1e-2
        assert np.isnan(row.worst_loss_change) == (row.label == E)
        assert row.known
    assert len(table) == len(labels)
    assert table[0] in list(table)
    assert "norm_two" not in repr(table)
    assert "path='b'" in repr(table)


def test_the_loss_decides_in_the_end():
    """The gradient alone would call these invariant."""
    _, table = detect("orthogonal_gradient_alone", explain=True)
    row = next(row for row in table if row.path == "k")
    assert row.label == E
    assert row.worst_cosine < 1e-4
    assert row.worst_loss_change > 1e-2


def test_a_tighter_tolerance_allows_for_less():
    """Than what the epsilon inside of a normalization does."""
    assert set(detect("norm_two_layers_later", tolerance=1e-9).values()) == {E}


# ---------------------------------------------------------------- what it refuses


def refused(loss, match, **options):
    params = start({"k": (12, 4)})
    with pytest.raises(ValueError, match=match) as caught:
        so.detect_invariance(loss, params, vectors(), **options)
    assert "\n" not in str(caught.value)


def plain(params, x):
    return head(x, params["k"])


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda loss: loss[None], r"shape \(1,\)"),
        (lambda loss: (loss, {}), "tuple"),
        (lambda loss: None, "NoneType"),
        (lambda loss: 1, "int32"),
        (lambda loss: loss + 0j, "complex64"),
    ],
)
def test_no_real_number(change, got):
    refused(
        lambda params, x: change(plain(params, x)),
        f"loss_fn must return one real number, got .*{got}",
    )


@pytest.mark.parametrize(
    ("change", "got"),
    [(float, "float"), (lambda x: x.item(), "float"), (np.asarray, "ndarray")],
)
def test_a_number_without_gradient(change, got):
    """No number of JAX: it would seem that no weight matters."""
    refused(
        lambda params, x: change(plain(params, x)),
        rf"^loss_fn must return one real number that JAX has computed, got {got}: ",
    )


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_not_finite(value):
    refused(lambda *x: plain(*x) * value, "loss_fn must be finite at params, got")


def test_nowhere_finite_but_at_the_parameters():
    k = start({"k": (12, 4)})["k"]

    def loss(params, x):
        return plain(params, x) + jnp.where(jnp.all(params["k"] == k), 0, jnp.nan)

    refused(loss, "loss_fn must be finite near params")


COUNT = itertools.count()


def keys_that_change(params, x):
    return plain(params, x + jax.random.normal(jax.random.key(next(COUNT)), x.shape))


def host_noise(params, x):
    noise = np.random.default_rng().normal(size=x.shape).astype(np.float32)
    return plain(params, x + noise)


def random_callback(params, x):
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    noise = io_callback(lambda: np.float32(np.random.default_rng().normal()), shape)
    return plain(params, x) * noise


@pytest.mark.parametrize("loss", [keys_that_change, host_noise, random_callback])
def test_random_from_call_to_call(loss):
    message = "loss_fn must return the same number for the same input, got"
    refused(loss, re.escape(message))


KEYS = [jax.random.key(0)]


def key_of_its_own(params, x):
    KEYS[0], key = jax.random.split(KEYS[0])
    return plain(params, x + jax.random.normal(key, x.shape))


def noise_behind_a_branch(params, x):
    noise = np.random.default_rng().normal(size=x.shape).astype(np.float32)
    value = plain(params, x + noise)
    return value if value > 0 else -value


@pytest.mark.parametrize("loss", [key_of_its_own, noise_behind_a_branch])
def test_random_in_ways_that_no_program_can_be(loss):
    refused(loss, "loss_fn must return the same number for the same input")


def test_a_loss_that_looks_at_values():
    """It cannot be compiled, and is measured all the same."""

    def loss(params, x):
        value = head(relu(batch_norm(x @ params["k"])), params["kh"])
        return value if value > 0 else -value

    params = start({"k": (12, 16), "kh": (16, 4)})
    assert so.detect_invariance(loss, params, vectors()) == {"k": F, "kh": E}


def test_a_fixed_key_is_fine():
    def loss(params, x):
        kept = jax.random.bernoulli(jax.random.key(0), 0.8, (16, 16))
        return head(kept * relu(batch_norm(x @ params["k"])), params["kh"])

    params = start({"k": (12, 16), "kh": (16, 4)})
    assert so.detect_invariance(loss, params, vectors()) == {"k": F, "kh": E}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"tolerance": 0.0}, "^tolerance must be"),
        ({"channel_axes": {"filter": (-1,)}}, "^channel_axes must have a label"),
        ({"channel_axes": 3}, "^channel_axes must be"),
    ],
)
def test_bad_arguments(options, match):
    refused(plain, match, **options)


def test_no_function():
    with pytest.raises(ValueError, match=r"^loss_fn must be a function, got 3$"):
        so.detect_invariance(3, {})


def test_nothing_to_measure():
    assert so.detect_invariance(lambda _: 1.0, {}) == {}
    assert so.detect_invariance(lambda _: 1.0, {"n": jnp.arange(3)}) == {"n": E}
