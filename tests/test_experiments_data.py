"""The data sets, their splits and their augmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from experiments.data import load_dataset, normalize, random_shift
from experiments.errors import UsageError


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def test_unknown_data_set():
    with pytest.raises(UsageError, match="'mars'; known: digits"):
        load_dataset("mars")


def test_digits_are_split_by_class_and_nothing_is_lost(digits):
    assert (len(digits.train), len(digits.test)) == (1442, 355)
    shares = np.bincount(digits.test.labels) / np.bincount(
        np.concatenate([digits.train.labels, digits.test.labels])
    )
    assert np.all(np.abs(shares - 0.2) < 0.01)

    def rows(images):
        return sorted(map(bytes, images.reshape(len(images), -1)))

    images = np.concatenate([digits.train.images, digits.test.images])
    assert images.dtype == np.uint8
    assert rows(images) == rows(load_digits().images.astype(np.uint8))


def test_digits_are_the_same_each_time(digits):
    again = load_dataset("digits")
    assert np.array_equal(again.train.images, digits.train.images)
    assert np.array_equal(again.test.labels, digits.test.labels)


def test_normalize(digits):
    images = normalize(digits, jnp.asarray(digits.train.images))
    assert images.dtype == jnp.float32
    assert abs(images.mean()) < 1e-4
    assert images.std() == pytest.approx(1, rel=1e-4)


def test_random_shift_moves_each_image_on_its_own():
    images = jax.random.randint(jax.random.key(0), (200, 5, 6, 2), 1, 255, jnp.uint8)
    moved = jax.jit(random_shift, static_argnums=2)(jax.random.key(1), images, 1)
    assert moved.shape == images.shape
    assert moved.dtype == jnp.uint8
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    seen = set()
    for before, after in zip(padded, np.asarray(moved), strict=True):
        places = [
            (y, x)
            for y in range(3)
            for x in range(3)
            if np.array_equal(before[y : y + 5, x : x + 6], after)
        ]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == 9


def test_random_shift_depends_on_the_key_alone():
    images = jnp.arange(4 * 64, dtype=jnp.uint8).reshape(4, 8, 8, 1)
    compiled = jax.jit(random_shift, static_argnums=2)

    def shift(seed):
        return compiled(jax.random.key(seed), images, 2)

    assert jnp.array_equal(shift(0), shift(0))
    assert not jnp.array_equal(shift(0), shift(1))
