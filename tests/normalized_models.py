"""Small losses whose invariances are known, each with its parameters' shapes.

``MODELS`` maps a name to ``(loss, shapes, expected labels)``. Leaves whose name starts
with ``b`` start as zeros and those with ``s`` as ones, as biases and scales do.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

F, L, E = "filter", "layer", "euclidean"
MODELS: dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, str]]] = {}


def model(expected: dict[str, str], **shapes: tuple[int, ...]):
    """Adds a loss to the table."""

    def add(loss):
        MODELS[loss.__name__] = (loss, shapes, expected)
        return loss

    return add


def start(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Parameters as initializers give them."""
    rng = np.random.default_rng(seed)

    def leaf(name, shape):
        if name[0] in "bs":
            return np.full(shape, float(name[0] == "s"), np.float32)
        return np.float32(rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1])))

    return {name: leaf(name, shape) for name, shape in shapes.items()}


def images(channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(9)
    return rng.normal(size=(6, 6, 6, channels)).astype(np.float32)


def vectors() -> np.ndarray:
    return np.random.default_rng(9).normal(size=(16, 12)).astype(np.float32)


def batch_of(shapes: dict[str, tuple[int, ...]]) -> np.ndarray:
    """Images for convolutions, vectors otherwise."""
    conv = any(len(shape) == 4 for shape in shapes.values())
    return images() if conv else vectors()


def normalize(x, axes, eps=1e-5):
    centred = x - x.mean(axes, keepdims=True)
    return centred / jnp.sqrt(x.var(axes, keepdims=True) + eps)


def batch_norm(x):
    return normalize(x, tuple(range(x.ndim - 1)))


def layer_norm(x):
    return normalize(x, -1)


def rms_norm(x):
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


def group_norm(x, groups=2):
    grouped = x.reshape(*x.shape[:3], groups, -1)
    return normalize(grouped, (1, 2, 4)).reshape(x.shape)


def conv(x, kernel, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def head(x, kernel):
    """Cross entropy of a linear layer with labels 0, 1, 2, ..., round and round."""
    logits = (x.mean((1, 2)) if x.ndim == 4 else x) @ kernel
    labels = jnp.arange(logits.shape[0]) % logits.shape[1]
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
    return -picked.mean()


relu = jax.nn.relu
K, HEAD = (3, 3, 3, 8), (8, 4)
D, OUT = (12, 16), (16, 4)


@model(
    {"k1": F, "b0": E, "s1": E, "b1": E, "k2": F, "kh": E},
    **{"k1": K, "b0": (8,), "s1": (8,), "b1": (8,), "k2": (3, 3, 8, 8), "kh": HEAD},
)
def convolutions_with_batch_norm(p, x):
    x = relu(batch_norm(conv(x, p["k1"]) + p["b0"]) * p["s1"] + p["b1"])
    return head(relu(batch_norm(conv(x, p["k2"]))), p["kh"])


@model({"k": L, "s": E, "b": E, "kh": E}, k=K, s=(8,), b=(8,), kh=HEAD)
def group_norm_right_behind(p, x):
    return head(relu(group_norm(conv(x, p["k"])) * p["s"] + p["b"]), p["kh"])


@model({"k": E, "b": E, "kh": E}, k=K, b=(8,), kh=HEAD)
def bias_before_group_norm(p, x):
    return head(relu(group_norm(conv(x, p["k"]) + p["b"])), p["kh"])


@model({"k1": L, "k2": F, "b": E, "kh": E}, k1=K, k2=(3, 3, 8, 8), b=(8,), kh=HEAD)
def norm_two_layers_later(p, x):
    return head(
        relu(batch_norm(conv(relu(conv(x, p["k1"])), p["k2"])) + p["b"]), p["kh"]
    )


@model(
    {"k0": E, "k1": F, "k2": E, "s": E, "b": E, "kh": E},
    **{"k0": K, "k1": (3, 3, 8, 8), "k2": (3, 3, 8, 8), "s": (8,), "b": (8,)},
    kh=HEAD,
)
def pre_activation_block(p, x):
    x = conv(x, p["k0"])
    y = conv(relu(batch_norm(x) * p["s"] + p["b"]), p["k1"])
    x = x + conv(relu(batch_norm(y)), p["k2"])
    return head(relu(batch_norm(x)), p["kh"])


@model({"k": F, "s": E, "b": E, "kh": E}, k=K, s=(8,), b=(8,), kh=HEAD)
def standardized_weights(p, x):
    k = normalize(p["k"], (0, 1, 2), 1e-10)
    return head(relu(conv(x, k) * p["s"] + p["b"]), p["kh"])


@model({"kd": F, "kp": F, "kh": E}, kd=(3, 3, 1, 9), kp=(1, 1, 9, 8), kh=HEAD)
def depthwise_and_pointwise(p, x):
    x = relu(batch_norm(conv(jnp.tile(x, 3), p["kd"], groups=9)) + 0.3)
    return head(relu(batch_norm(conv(x, p["kp"]))), p["kh"])


@model({"k": F, "kh": E}, k=(3, 3, 3, 3), kh=(3, 4))
def shared_kernel(p, x):
    for _ in range(2):
        x = relu(batch_norm(conv(x, p["k"])))
    return head(x, p["kh"])


@model({"k": E, "kh": E}, k=(3, 3, 3, 3), kh=(3, 4))
def shared_kernel_once_without_norm(p, x):
    return head(relu(conv(relu(batch_norm(conv(x, p["k"]))), p["k"])), p["kh"])


@model({"v": F, "s": E, "b": E, "kh": E}, v=D, s=(16,), b=(16,), kh=OUT)
def weight_norm(p, x):
    w = p["s"] * p["v"] / jnp.linalg.norm(p["v"], axis=0)
    return head(relu(x @ w + p["b"]), p["kh"])


@model({"k": F, "kh": F}, k=D, kh=OUT)
def cosine_head(p, x):
    x = relu(batch_norm(x @ p["k"]))
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    return head(x, 8 * p["kh"] / jnp.linalg.norm(p["kh"], axis=0))


@model({"k": L, "kh": E}, k=D, kh=OUT)
def spectral_norm(p, x):
    u = jnp.ones(12)
    for _ in range(3):
        v = p["k"].T @ u
        u = p["k"] @ v / jnp.linalg.norm(v)
        u, v = u / jnp.linalg.norm(u), v / jnp.linalg.norm(v)
    u, v = jax.lax.stop_gradient((u, v))
    return head(relu(x @ (p["k"] / (u @ p["k"] @ v)) + 0.2), p["kh"])


@model({"k1": E, "b1": E, "kh": E}, k1=D, b1=(16,), kh=OUT)
def no_norm(p, x):
    return head(relu(x @ p["k1"] + p["b1"]), p["kh"])


@model({"k": L, "kh": E}, k=D, kh=OUT)
def layer_norm_right_behind(p, x):
    return head(relu(layer_norm(x @ p["k"])), p["kh"])


@model({"k": E, "b": E, "kh": E}, k=D, b=(16,), kh=OUT)
def bias_before_layer_norm(p, x):
    return head(relu(layer_norm(x @ p["k"] + p["b"])), p["kh"])


@model({"emb": L, "kh": E}, emb=(10, 16), kh=OUT)
def embedding_before_layer_norm(p, x):
    return head(layer_norm(p["emb"][jnp.arange(16) % 7]), p["kh"])


@model({"emb": E, "pos": E, "kh": E}, emb=(10, 16), pos=(16, 16), kh=OUT)
def sum_of_embeddings(p, x):
    return head(layer_norm(p["emb"][jnp.arange(16) % 7] + p["pos"]), p["kh"])


@model({"k": E, "kh": E}, k=D, kh=OUT)
def one_filter_without_norm(p, x):
    y = x @ p["k"]
    y = jnp.concatenate([batch_norm(y[:, :15]), y[:, 15:]], axis=1)
    return head(relu(y), p["kh"])


@model({"k": E, "kh": E}, k=D, kh=OUT)
def running_statistics(p, x):
    return head(relu((x @ p["k"] - 0.1) / 1.1), p["kh"])


@model({"k": E, "kh": E}, k=D, kh=OUT)
def penalty_on_the_weights(p, x):
    return head(relu(batch_norm(x @ p["k"])), p["kh"]) + 5e-4 * jnp.sum(p["k"] ** 2)


@model({"k": E, "kh": E}, k=D, kh=OUT)
def orthogonal_gradient_alone(p, x):
    norms = jnp.linalg.norm(p["k"], axis=0)
    return head(relu(x @ (p["k"] / norms * jax.lax.stop_gradient(norms))), p["kh"])


@model({"k": E, "kh": E}, k=D, kh=OUT)
def signs_with_a_gradient_passed_through(p, x):
    signs = p["k"] + jax.lax.stop_gradient(jnp.sign(p["k"]) - p["k"])
    return head(relu(x @ signs), p["kh"])
