"""The models by name, and which of their weights are scale-invariant.

A model is a Flax NNX module called as ``model(images, train=...)``, images (batch,
height, width, channel) in, logits (batch, class) out. Convolutions that a batch norm
follows carry no bias. A new model needs a line in ``MODELS``, and names of layers that
``RULES`` knows: the last one, which nothing normalizes, is called ``head``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from flax import nnx

import spherical_optax as so
from experiments.models.convnet import ConvNet
from experiments.models.densenet import DenseNet
from experiments.models.layers import FLAX, BatchNorm
from experiments.models.resnet import ResNet
from experiments.models.vgg import VGG
from spherical_optax.labels import leaves_with_paths

_RESNET18 = partial(ResNet, widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2))
_VGG16 = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)

MODELS: dict[str, Callable[..., nnx.Module]] = {
    # for digits
    "small_resnet": partial(
        ResNet, widths=(16, 32, 64), blocks=(1, 1, 1), defaults=FLAX
    ),
    # for Fashion-MNIST
    "convnet": partial(ConvNet, widths=(8, 16, 32, 64)),
    # for images of 32x32
    "resnet20": partial(ResNet, widths=(16, 32, 64), blocks=(3, 3, 3)),
    "resnet18": _RESNET18,
    "vgg16": partial(VGG, stages=_VGG16),
    "densenet121": partial(DenseNet, growth=32, blocks=(6, 12, 24, 16)),
    # for ImageNet
    "resnet18_imagenet": partial(_RESNET18, large_images=True),
}
"""Name to constructor, called with ``channels, num_classes, rngs`` and ``dtype``."""

RULES = {
    # Nothing normalizes the logits, not even where a convolution computes them.
    r"head/(kernel|bias)": "euclidean",
    r"(.*/)?(stem|conv\d*|shortcut)/kernel": "filter",
    r"(.*/)?(norm\d*|stem_norm|shortcut_norm)/(scale|bias)": "euclidean",
}
"""From the path of a leaf, as ``stage1/block0/conv1/kernel``, to its label."""

_UNCOVERED = ""


def normalize_apart(
    model: Callable[..., nnx.Module], parts: int
) -> Callable[..., nnx.Module]:
    """A constructor of the same model, whose batch norms see parts of a batch.

    Args:
      model: constructor.
      parts: how many, one after another in a batch, which they share evenly.
    """

    def make(**options: Any) -> nnx.Module:
        made = model(**options)
        for _, layer in nnx.iter_graph(made):
            if isinstance(layer, BatchNorm):
                layer.parts = parts
        return made

    return make


def label_spheres(params: Any) -> Any:
    """The labels of a model's parameters, as the spherical optimizers take them.

    A leaf that no rule knows is an error: taken for euclidean, a convolution would be
    trained as if it were not on a sphere, and nothing would tell.

    Raises:
      ValueError: a leaf is covered by no rule; the message names its path.
    """
    labels = so.label_by_path(RULES, default=_UNCOVERED)(params)
    shapes = dict(leaves_with_paths(params))
    for path, label in leaves_with_paths(labels):
        if label == _UNCOVERED:
            raise ValueError(
                f"the leaf {path!r} of shape {tuple(shapes[path].shape)}: no rule says"
                " whether it is on a sphere; name its layer as in RULES of"
                f" experiments/models/__init__.py, or add to these: {', '.join(RULES)}"
            )
    return labels
