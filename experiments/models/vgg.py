"""VGG networks for small images, with batch norm after every convolution."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from experiments.models.layers import Layers, halve_by_max, mean_over_space, relu


class VGG(nnx.Module):
    """Stages of 3x3 convolutions, each ending in max pooling, then a linear head.

    Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image
    Recognition, 2015 (https://arxiv.org/abs/1409.1556).

    Differences: the paper has three linear layers with dropout and no batch norm; the
    variant for small images that is published with the results reproduced here has one
    linear layer, no dropout, and PyTorch's initialization.

    Args:
      stages: channels of each convolution of each stage.
      channels: of the images.
      num_classes: number of logits.
      rngs: decides the initial weights.
      dtype: of the computation; weights, statistics and logits are float32.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[int]],
        *,
        channels: int,
        num_classes: int,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        layers = Layers(rngs, dtype)
        self.depths = tuple(len(widths) for widths in stages)
        inputs = channels
        for s, widths in enumerate(stages, start=1):
            stage = nnx.Dict()
            for n, width in enumerate(widths, start=1):
                stage[f"conv{n}"] = layers.conv(inputs, width, 3)
                stage[f"norm{n}"] = layers.batch_norm(width)
                inputs = width
            setattr(self, f"stage{s}", stage)
        self.head = layers.linear_head(inputs, num_classes)

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images (batch, height, width, channel) to logits (batch, class)."""
        x = images
        for s, depth in enumerate(self.depths, start=1):
            stage = getattr(self, f"stage{s}")
            for n in range(1, depth + 1):
                conv, norm = stage[f"conv{n}"], stage[f"norm{n}"]
                x = relu(norm(conv(x), train=train))
            x = halve_by_max(x)
        return self.head(mean_over_space(x))
