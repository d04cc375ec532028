"""Augmentation on the device: functions of a random key and a batch of images.

Images are bytes, and stay bytes; normalization comes after. Each function is made of
array operations alone, so that it compiles into the training step.
"""

import jax
import jax.numpy as jnp


def unchanged(key: jax.Array, images: jax.Array) -> jax.Array:
    """No augmentation."""
    del key
    return images


def random_shift(key: jax.Array, images: jax.Array, pixels: int) -> jax.Array:
    """Moves each image by up to ``pixels`` in both directions; zeros move in.

    The same as padding with ``pixels`` zeros on each side and cropping at random.
    """
    batch, height, width, channels = images.shape
    margin = ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0))
    corners = jax.random.randint(key, (batch, 2), 0, 2 * pixels + 1)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(
            image, (corner[0], corner[1], 0), (height, width, channels)
        )

    return jax.vmap(crop)(jnp.pad(images, margin), corners)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability 1/2."""
    flipped = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


def shift_by_one(key: jax.Array, images: jax.Array) -> jax.Array:
    """For the tiny digits: a shift by one pixel at most."""
    return random_shift(key, images, pixels=1)


def crop_and_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """The augmentation of CIFAR: zero-pad by 4, crop at random, flip at random."""
    shift_key, flip_key = jax.random.split(key)
    return random_flip(flip_key, random_shift(shift_key, images, pixels=4))
