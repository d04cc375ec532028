"""The data sets, their splits and their augmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from experiments.data import (
    Dataset,
    Split,
    check_dataset_name,
    check_labels,
    crop_and_flip,
    dataset_label,
    load_dataset,
    load_streamed,
    normalize,
    random_flip,
    random_shift,
    validation_indices,
    validation_split,
)
from experiments.data.dataset import channel_statistics
from experiments.data.recipes import RECIPES
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


# Augmentation of the published experiments


def test_random_flip_mirrors_each_image_on_its_own():
    images = jax.random.randint(jax.random.key(0), (200, 5, 6, 3), 0, 255, jnp.uint8)
    flipped = np.asarray(random_flip(jax.random.key(1), images))
    mirrored = np.asarray(images)[:, :, ::-1]
    was_flipped = (flipped == mirrored).all((1, 2, 3))
    was_kept = (flipped == np.asarray(images)).all((1, 2, 3))
    assert (was_flipped ^ was_kept).all()
    assert 60 < was_flipped.sum() < 140


def test_crop_and_flip_is_a_crop_of_the_padded_image_or_its_mirror():
    images = jax.random.randint(jax.random.key(0), (300, 32, 32, 3), 1, 255, jnp.uint8)
    changed = np.asarray(jax.jit(crop_and_flip)(jax.random.key(1), images))
    assert changed.dtype == np.uint8
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    seen = set()
    for before, after in zip(padded, changed, strict=True):
        # The pixel in the middle of the image betrays the place of the crop.
        places = [
            (y, x, mirrored)
            for mirrored, view in ((0, after), (1, after[:, ::-1]))
            for y in range(9)
            for x in range(9)
            if np.array_equal(before[y + 16, x + 16], view[16, 16])
            and np.array_equal(before[y : y + 32, x : x + 32], view)
        ]
        assert len(places) == 1
        seen.update(places)
    assert {y for y, _, _ in seen} == {x for _, x, _ in seen} == set(range(9))
    assert {mirrored for _, _, mirrored in seen} == {0, 1}


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_cropped_and_flipped_the_rest_is_not(name):
    assert RECIPES[name].augment is crop_and_flip
    others = set(RECIPES) - {"cifar10", "cifar100"}
    images = jnp.arange(4 * 64, dtype=jnp.uint8).reshape(4, 8, 8, 1)
    for other in others:
        assert RECIPES[other].augment(jax.random.key(0), images) is images


def test_svhn_is_scaled_to_unit_range_only():
    mean, std = RECIPES["svhn_cropped"].in_bytes()
    dataset = Dataset("x", 2, *[Split(np.zeros(1), np.zeros(1))] * 2, mean, std, None)
    images = jnp.full((1, 2, 2, 3), 255, jnp.uint8)
    assert (normalize(dataset, images) == 1).all()
    assert (normalize(dataset, 0 * images) == 0).all()


# The validation split


def dataset_of(count):
    images = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    split = Split(images, np.arange(count, dtype=np.int32))
    return Dataset("x", count, split, split, (0.0,), (1.0,), random_flip)


def test_validation_split_parts_the_training_images():
    train, validation = validation_split(dataset_of(100), seed=0)
    assert (len(train), len(validation)) == (95, 5)
    both = np.concatenate([train.labels, validation.labels])
    assert sorted(both) == list(range(100))
    for part in (train, validation):
        assert (np.diff(part.labels) > 0).all()
        assert np.array_equal(part.images.ravel(), part.labels)


def test_validation_split_is_a_function_of_the_seed():
    def held_out(seed):
        return validation_split(dataset_of(200), seed)[1].labels.tolist()

    assert held_out(7) == held_out(7)
    assert len({tuple(held_out(seed)) for seed in range(50)}) == 50
    counts = np.bincount(np.ravel([held_out(seed) for seed in range(400)]))
    assert len(counts) == 200
    assert 5 <= counts.min() < counts.max() <= 42  # 20 on average


def test_validation_split_stays_the_same_for_ever():
    assert validation_indices(50_000, 0)[1][:5].tolist() == [39, 63, 77, 137, 149]


@pytest.mark.parametrize("fraction", [0.0, 0.001, 1.0, -0.1])
def test_validation_split_needs_both_parts(fraction):
    with pytest.raises(UsageError, match=f"validation fraction {fraction} of 100"):
        validation_split(dataset_of(100), 0, fraction)


# Names


def test_names():
    for name in ("digits", "cifar10", "imagenet2012", "folder:some/path"):
        check_dataset_name(name)
    with pytest.raises(UsageError, match=r"'cifar'; known: digits, .*, folder:PATH$"):
        check_dataset_name("cifar")
    with pytest.raises(UsageError, match="folder:PATH: names no folder"):
        check_dataset_name("folder:")
    assert dataset_label("cifar10") == "cifar10"
    assert dataset_label("folder:/a/b/cifar10-jpeg.tar.xz") == "cifar10-jpeg"
    assert dataset_label("folder:/a/b/my.photos/") == "my"
    assert dataset_label("folder:/") == "folder"


def test_a_folder_keeps_the_dots_of_its_name(tmp_path):
    (tmp_path / "v1.2").mkdir()
    assert dataset_label(f"folder:{tmp_path}/v1.2") == "v1.2"


def test_options_that_do_not_go_together():
    with pytest.raises(UsageError, match="--image-size: only for folder:PATH"):
        load_dataset("digits", image_size=8)
    with pytest.raises(UsageError, match="imagenet2012: too large for memory"):
        load_dataset("imagenet2012")
    with pytest.raises(UsageError, match="'cifar10'; known: imagenet2012"):
        load_streamed("cifar10")


# Statistics and labels


def test_channel_statistics():
    images = np.random.default_rng(0).integers(0, 256, (2500, 3, 4, 3), np.uint8)
    images[..., 2] = 9
    mean, std = channel_statistics(images)
    assert mean == pytest.approx(images.reshape(-1, 3).mean(0))
    assert std[:2] == pytest.approx(images.reshape(-1, 3).std(0)[:2])
    assert std[2] == 1.0


@pytest.mark.parametrize("label", [-1, 10])
def test_label_out_of_range(label):
    with pytest.raises(UsageError, match=f"here: image 2 has label {label}; the label"):
        check_labels(np.array([0, 9, label]), 10, "here")
    check_labels(np.array([0, 9]), 10, "here")
