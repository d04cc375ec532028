# pyright: reportMissingImports=false
"""The residual networks of ``experiments.models`` in PyTorch, for small images."""

from collections.abc import Sequence

import torch
from torch import nn

SHAPES: dict[str, tuple[Sequence[int], Sequence[int]]] = {
    "resnet20": ((16, 32, 64), (3, 3, 3)),
    "resnet18": ((64, 128, 256, 512), (2, 2, 2, 2)),
}
"""Name to the widths of the stages and how many blocks each has."""


class ResNet(nn.Module):
    """A stem, stages of basic blocks, the mean over space, a linear head."""

    def __init__(
        self,
        widths: Sequence[int],
        blocks: Sequence[int],
        channels: int = 3,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.stem = _conv(channels, widths[0], 3)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        stages, inputs = [], widths[0]
        for width, depth in zip(widths, blocks, strict=True):
            for number in range(depth):
                stride = 2 if stages and number == 0 else 1
                stages.append(BasicBlock(inputs, width, stride))
                inputs = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (batch, channel, height, width) to logits (batch, class)."""
        x = torch.relu(self.stem_norm(self.stem(images)))
        x = self.stages(x)
        return self.head(x.mean(dim=(2, 3)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; a 1x1 convolution around them where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs, 3)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.has_shortcut = stride != 1 or inputs != outputs
        if self.has_shortcut:
            self.shortcut = _conv(inputs, outputs, 1, stride)
            self.shortcut_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (batch, channel, height, width) to features."""
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.has_shortcut:
            x = self.shortcut_norm(self.shortcut(x))
        return torch.relu(x + y)


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution for a batch norm to follow: it has no bias."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
