"""A small plain network for Fashion-MNIST."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from experiments.models.layers import PYTORCH, Layers, kaiming_normal, mean_over_space

_SLOPE, _SHIFT = 0.1, 0.4


class ConvNet(nnx.Module):
    """3x3 convolutions of stride 2; the last one gives the logits.

    Batch norm and the activation ``leaky_relu(x, 0.1) - 0.4`` follow all of them but
    the last, which has a bias instead: its filters are not scale-invariant. It takes
    images of up to 32x32 down to one pixel.

    From the lesson on optimizers from scratch of fast.ai's course "From Deep Learning
    Foundations to Stable Diffusion", 2022 (https://course.fast.ai/Lessons/part2.html).
    Kernels are initialized as Kaiming normal for that slope, by He, Zhang, Ren, Sun:
    Delving Deep into Rectifiers, 2015 (https://arxiv.org/abs/1502.01852).

    Args:
      widths: channels of each convolution but the last.
      channels: of the images.
      num_classes: number of logits.
      rngs: decides the initial weights.
      dtype: of the computation; weights, statistics and logits are float32.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        channels: int,
        num_classes: int,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        kernel = partial(kaiming_normal, slope=_SLOPE)
        layers = Layers(rngs, dtype, PYTORCH._replace(kernel=kernel))
        self.depth = len(widths)
        inputs = channels
        for n, width in enumerate(widths, start=1):
            setattr(self, f"conv{n}", layers.conv(inputs, width, 3, stride=2))
            setattr(self, f"norm{n}", layers.batch_norm(width))
            inputs = width
        self.head = layers.conv_head(inputs, num_classes, 3, stride=2)

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images (batch, height, width, channel) to logits (batch, class)."""
        x = images
        for n in range(1, self.depth + 1):
            conv, norm = getattr(self, f"conv{n}"), getattr(self, f"norm{n}")
            x = norm(conv(x), train=train)
            x = nnx.leaky_relu(x, _SLOPE) - _SHIFT
        return mean_over_space(self.head(x))
