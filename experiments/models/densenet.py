"""Densely connected networks for small images."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from experiments.models.layers import Layers, mean_over_space, relu


class DenseNet(nnx.Module):
    """Stages in which every block adds its channels to those of all before it.

    Between two stages a transition halves channels and resolution. Batch norm comes
    before each convolution. What a convolution computes is normalized channel by
    channel wherever it is read, so the filters are scale-invariant all the same.

    Huang, Liu, van der Maaten, Weinberger: Densely Connected Convolutional Networks,
    2017 (https://arxiv.org/abs/1608.06993); here DenseNet-BC.

    Differences: the stem is a 3x3 convolution of twice the growth, without pooling; the
    initialization is PyTorch's. So it is in the variant for CIFAR whose results are
    reproduced here.

    Args:
      growth: channels that a block adds.
      blocks: blocks of each stage.
      channels: of the images.
      num_classes: number of logits.
      rngs: decides the initial weights.
      dtype: of the computation; weights, statistics and logits are float32.
    """

    def __init__(
        self,
        growth: int,
        blocks: Sequence[int],
        *,
        channels: int,
        num_classes: int,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        layers = Layers(rngs, dtype)
        self.blocks = tuple(blocks)
        width = 2 * growth
        self.stem = layers.conv(channels, width, 3)
        for s, depth in enumerate(blocks, start=1):
            if s > 1:
                setattr(self, f"transition{s - 1}", Transition(width, layers))
                width //= 2
            stage = nnx.Dict()
            for b in range(depth):
                stage[f"block{b}"] = DenseBlock(width, growth, layers)
                width += growth
            setattr(self, f"stage{s}", stage)
        self.norm = layers.batch_norm(width)
        self.head = layers.linear_head(width, num_classes)

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images (batch, height, width, channel) to logits (batch, class)."""
        x = self.stem(images)
        for s, depth in enumerate(self.blocks, start=1):
            if s > 1:
                x = getattr(self, f"transition{s - 1}")(x, train=train)
            stage = getattr(self, f"stage{s}")
            for b in range(depth):
                new = stage[f"block{b}"](x, train=train)
                x = jnp.concatenate([x, new], axis=-1)
        x = relu(self.norm(x, train=train))
        return self.head(mean_over_space(x))


class DenseBlock(nnx.Module):
    """A 1x1 convolution to four times the growth, then a 3x3 convolution."""

    def __init__(self, inputs: int, growth: int, layers: Layers) -> None:
        self.norm1 = layers.batch_norm(inputs)
        self.conv1 = layers.conv(inputs, 4 * growth, 1)
        self.norm2 = layers.batch_norm(4 * growth)
        self.conv2 = layers.conv(4 * growth, growth, 3)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Features of all blocks before it to those that it adds."""
        y = self.conv1(relu(self.norm1(x, train=train)))
        return self.conv2(relu(self.norm2(y, train=train)))


class Transition(nnx.Module):
    """A 1x1 convolution to half the channels, and the mean over 2x2 pixels."""

    def __init__(self, inputs: int, layers: Layers) -> None:
        self.norm = layers.batch_norm(inputs)
        self.conv = layers.conv(inputs, inputs // 2, 1)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Features (batch, height, width, channel) to half of each but the batch."""
        x = self.conv(relu(self.norm(x, train=train)))
        return nnx.avg_pool(x, (2, 2), (2, 2))
