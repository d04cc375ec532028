"""The layers that every model is built from, and how each library initializes them.

The radius of a filter sets how far a step turns it, so the published hyperparameters
belong to the published initialization. ``PYTORCH`` is that of nearly all of them.
"""

import math
from collections.abc import Callable, Sequence
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


class BatchNorm(nnx.BatchNorm):
    """Flax's batch norm over all axes but the last, traced in a third of the time.

    It computes in float32 at least and returns the type it was given, so that only the
    outcome is rounded to bfloat16, neither the statistics nor scale and bias.

    Attributes:
      parts: of a batch, one after another in it, that are normalized apart from each
        other. The running statistics are the means over the parts of their means and
        of their variances.
    """

    parts: int = 1

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalizes by the batch in training, else by the stored statistics."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train and self.parts > 1:
            return self._apart(wide).astype(x.dtype)
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = jnp.mean(wide, axes)
            var = jnp.maximum(jnp.mean(jnp.square(wide), axes) - jnp.square(mean), 0)
            self._store(self.mean, mean)
            self._store(self.var, var)
        else:
            mean, var = self.mean[...], self.var[...]
        return self._normalize(wide, mean, var).astype(x.dtype)

    def _apart(self, x: jax.Array) -> jax.Array:
        y = x.reshape(self.parts, x.shape[0] // self.parts, *x.shape[1:])
        axes = tuple(range(1, x.ndim))
        mean = jnp.mean(y, axes, keepdims=True)
        square = jnp.mean(jnp.square(y), axes, keepdims=True)
        var = jnp.maximum(square - jnp.square(mean), 0)
        self._store(self.mean, jnp.mean(mean.reshape(self.parts, -1), 0))
        self._store(self.var, jnp.mean(var.reshape(self.parts, -1), 0))
        return self._normalize(y, mean, var).reshape(x.shape)

    def _normalize(self, x: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
        assert self.scale is not None
        assert self.bias is not None
        factor = jax.lax.rsqrt(var + self.epsilon) * self.scale[...]
        # Backwards that is two sums over x. Of (x - mean) * factor + bias it were four.
        return x * factor + (self.bias[...] - mean * factor)

    def _store(self, average: nnx.BatchStat, new: jax.Array) -> None:
        # Not `average[...] =`: there Flax makes every tracer word an error message
        # that nobody reads, which took most of the time to trace a deep model.
        average.set_value(self.momentum * average[...] + (1 - self.momentum) * new)


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

    def batch_norm(self, features: int) -> "BatchNorm":
        """A batch norm with PyTorch's momentum and epsilon."""
        return BatchNorm(features, momentum=0.9, epsilon=1e-5, rngs=self.rngs)

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
            conv_general_dilated=_convolve,
            rngs=self.rngs,
        )

    def _logits_dtype(self) -> jnp.dtype:
        return jnp.promote_types(self.dtype, jnp.float32)


def relu(x: jax.Array) -> jax.Array:
    """The larger of ``x`` and 0, as a choice; NaN stays NaN.

    A maximum XLA does again for each that reads it, on a CPU, and with it all additions
    of shortcuts before it. What chooses by one array from another it does once.
    """
    return jnp.where(x <= 0, jnp.zeros((), x.dtype), x)


def mean_over_space(x: jax.Array) -> jax.Array:
    """Features (batch, height, width, channel) to float32 (batch, channel)."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.mean(x, axis=(1, 2), dtype=dtype)


def halve_by_max(x: jax.Array) -> jax.Array:
    """The maximum over 2x2 pixels; an odd row or column at the end stands for itself.

    Backwards much faster on a CPU than ``nnx.max_pool``, which looks for each maximum.
    """
    _, height, width, _ = x.shape
    if height % 2 or width % 2:
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), "edge")
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


def _convolve(
    images: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """A convolution; one product of matrices where the kernel is larger than the image.

    There a CPU falls back to plain loops: 3x3 over 2x2 pixels of 512 channels takes a
    hundred times as long.
    """
    sizes, window = images.shape[1:-1], kernel.shape[:-2]
    if all(size >= w for size, w in zip(sizes, window, strict=True)):
        return jax.lax.conv_general_dilated(images, kernel, strides, padding, **options)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(sizes, window, strides, padding)
    x = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    # All places where one weight of the window lies, for each of its weights.
    rows, columns = (
        [slice(n, n + size - w + 1, stride) for n in range(w)]
        for size, w, stride in zip(x.shape[1:-1], window, strides, strict=True)
    )
    patches = [x[:, row, column] for row in rows for column in columns]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])
