"""Residual networks, with batch norm after every convolution."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from experiments.models.layers import (
    PYTORCH,
    Defaults,
    Layers,
    mean_over_space,
    relu,
)

_MARGIN: Any = ((1, 1), (1, 1))  # one pixel on every side


class ResNet(nnx.Module):
    """A stem, stages of basic blocks, the mean over space, a linear head.

    Every stage but the first halves the resolution. A shortcut around a block is a 1x1
    convolution with batch norm where the shape changes (option B of the paper), and
    otherwise nothing.

    He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2016
    (https://arxiv.org/abs/1512.03385).

    Args:
      widths: channels of each stage.
      blocks: blocks of each stage.
      large_images: a 7x7 stem of stride 2 with max pooling, as for ImageNet, instead of
        a 3x3 stem that keeps the resolution.
      defaults: how weights are initialized and convolutions padded. The experiments
        with CIFAR that are reproduced here have ``PYTORCH``.
      channels: of the images.
      num_classes: number of logits.
      rngs: decides the initial weights.
      dtype: of the computation; weights, statistics and logits are float32.
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: Sequence[int],
        *,
        large_images: bool = False,
        defaults: Defaults = PYTORCH,
        channels: int,
        num_classes: int,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        layers = Layers(rngs, dtype, defaults)
        size, stride = (7, 2) if large_images else (3, 1)
        self.stem = layers.conv(channels, widths[0], size, stride)
        self.stem_norm = layers.batch_norm(widths[0])
        self.pools = large_images
        self.blocks = tuple(blocks)
        inputs = widths[0]
        for s, (width, depth) in enumerate(zip(widths, blocks, strict=True), start=1):
            stage = nnx.Dict()
            for b in range(depth):
                stride = 2 if s > 1 and b == 0 else 1
                stage[f"block{b}"] = BasicBlock(inputs, width, stride, layers)
                inputs = width
            setattr(self, f"stage{s}", stage)
        self.head = layers.linear_head(inputs, num_classes)

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images (batch, height, width, channel) to logits (batch, class)."""
        x = relu(self.stem_norm(self.stem(images), train=train))
        if self.pools:
            x = nnx.max_pool(x, (3, 3), (2, 2), padding=_MARGIN)
        for s, depth in enumerate(self.blocks, start=1):
            stage = getattr(self, f"stage{s}")
            for b in range(depth):
                x = stage[f"block{b}"](x, train=train)
        return self.head(mean_over_space(x))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions; a 1x1 convolution around them where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, layers: Layers) -> None:
        self.conv1 = layers.conv(inputs, outputs, 3, stride)
        self.norm1 = layers.batch_norm(outputs)
        self.conv2 = layers.conv(outputs, outputs, 3)
        self.norm2 = layers.batch_norm(outputs)
        self.has_shortcut = stride != 1 or inputs != outputs
        if self.has_shortcut:
            self.shortcut = layers.conv(inputs, outputs, 1, stride)
            self.shortcut_norm = layers.batch_norm(outputs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Features (batch, height, width, channel) to features."""
        y = relu(self.norm1(self.conv1(x), train=train))
        y = self.norm2(self.conv2(y), train=train)
        if self.has_shortcut:
            x = self.shortcut_norm(self.shortcut(x), train=train)
        return relu(x + y)
