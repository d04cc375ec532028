"""The layers that every model is built from, and how each library initializes them.

The radius of a filter sets how far a step turns it, so the published hyperparameters
belong to the published initialization. ``PYTORCH`` is that of nearly all of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

Initializer = Callable[..., jax.Array]
"""From a random key, a shape and a type to an array."""


def uniform(fan_in: int) -> Initializer:
    """Kaiming uniform with slope ``sqrt(5)``: between ``-+1 / sqrt(fan_in)``."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def kaiming_normal(fan_in: int, slope: float = 0.0) -> Initializer:
    """Normal, for activations that are a leaky ReLU of this slope."""
    return nnx.initializers.normal(math.sqrt(2 / (1 + slope**2) / fan_in))


class Defaults(NamedTuple):
    """What a library does where its user says nothing.

    The initializers are functions of the fan-in: how many inputs a unit sums over.
    """

    kernel: Callable[[int], Initializer]  # of a convolution
    matrix: Callable[[int], Initializer]  # of a linear layer
    bias: Callable[[int], Initializer]  # of either
    padding: Callable[[int], int | str]  # of a convolution, from the kernel's size


PYTORCH = Defaults(uniform, uniform, uniform, padding=lambda size: size // 2)
"""PyTorch's: a convolution pads both sides alike."""

FLAX = Defaults(
    kernel=lambda _: nnx.initializers.he_normal(),
    matrix=lambda _: nnx.initializers.lecun_normal(),
    bias=lambda _: nnx.initializers.zeros,
    padding=lambda _: "SAME",
)
"""Flax's, but for kernels that suit a ReLU."""


@dataclass(frozen=True)
class Layers:
    """Makes the layers of one model.

    Attributes:
      rngs: decides the initial weights.
      dtype: of the computation; weights and statistics are float32.
      defaults: how weights are initialized and convolutions padded.
    """

    rngs: nnx.Rngs
    dtype: DTypeLike = jnp.float32
    defaults: Defaults = PYTORCH

    def conv(self, inputs: int, outputs: int, size: int, stride: int = 1) -> nnx.Conv:
        """A convolution for a batch norm to follow: it has no bias."""
        return self._conv(inputs, outputs, size, stride, self.dtype, use_bias=False)

    def batch_norm(self, features: int) -> nnx.BatchNorm:
        """A batch norm with PyTorch's momentum; within it, all is float32."""
        return nnx.BatchNorm(
            features,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            promote_dtype=_as_they_are,
            rngs=self.rngs,
        )

    def linear_head(self, inputs: int, classes: int) -> nnx.Linear:
        """The last layer of most models, from features to float32 logits."""
        return nnx.Linear(
            inputs,
            classes,
            kernel_init=self.defaults.matrix(inputs),
            bias_init=self.defaults.bias(inputs),
            dtype=self._logits_dtype(),
            rngs=self.rngs,
        )

    def conv_head(self, inputs: int, classes: int, size: int, stride: int) -> nnx.Conv:
        """A convolution as the last layer, with a bias, to float32 logits."""
        dtype = self._logits_dtype()
        return self._conv(inputs, classes, size, stride, dtype, use_bias=True)

    def _conv(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int,
        dtype: DTypeLike,
        use_bias: bool,
    ) -> nnx.Conv:
        fan_in = size * size * inputs
        return nnx.Conv(
            inputs,
            outputs,
            (size, size),
            strides=stride,
            padding=self.defaults.padding(size),
            use_bias=use_bias,
            kernel_init=self.defaults.kernel(fan_in),
            bias_init=self.defaults.bias(fan_in),
            dtype=dtype,
            rngs=self.rngs,
        )

    def _logits_dtype(self) -> jnp.dtype:
        return jnp.promote_types(self.dtype, jnp.float32)


def mean_over_space(x: jax.Array) -> jax.Array:
    """Features (batch, height, width, channel) to float32 (batch, channel)."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.mean(x, axis=(1, 2), dtype=dtype)


def _as_they_are(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """Keeps Flax from rounding stored statistics, scale and bias to bfloat16.

    Batch norm computes in the widest type it is given and rounds the outcome alone.
    """
    del dtype, inexact
    return arrays
