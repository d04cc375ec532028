"""The models by name, and which of their weights are scale-invariant.

A model is a Flax NNX module called as ``model(images, train=...)``, images (batch,
height, width, channel) in, logits (batch, class) out. Convolutions that a batch norm
follows carry no bias. A new model needs a line in ``MODELS``; its last layer, which
nothing normalizes, is to be called ``head``.
"""

from collections.abc import Callable
from functools import partial

from flax import nnx

import spherical_optax as so
from experiments.models.convnet import ConvNet
from experiments.models.densenet import DenseNet
from experiments.models.layers import FLAX
from experiments.models.resnet import ResNet
from experiments.models.vgg import VGG

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

label_spheres = so.label_by_path(
    {
        # Nothing normalizes the logits, not even where a convolution computes them.
        "head/.*": "euclidean",
        r"(.*/)?(stem|conv\d*|shortcut)/kernel": "filter",
    }
)
"""From a model's parameters to their labels, as the spherical optimizers take them."""
