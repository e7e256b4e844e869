"""Small convolutional networks. A batch-norm follows every convolution, its scale being what ranks the channels, but in
FedDST's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.nn.chain import Chain
from edgeprune.nn.exits import ExitHead, Exits
from edgeprune.nn.pooling import MaxPool2d


def conv_bn_relu(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """3x3 convolution without bias, batch-norm, ReLU."""
    return [
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


def digits_cnn(widths: Sequence[int] = (64, 128, 256), classes: int = 10) -> nn.Module:
    """[N, 1, 8, 8] -> [N, classes]; most of its work is at 4x4 pixels, so a narrow version is really fast."""
    a, b, c = widths
    return nn.Sequential(
        *conv_bn_relu(1, a),
        nn.MaxPool2d(2),
        *conv_bn_relu(a, b),
        *conv_bn_relu(b, c),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(c, classes),
    )


def fashion_cnn(widths: Sequence[int] = (32, 64, 192), classes: int = 10) -> nn.Module:
    """[N, 1, 28, 28] -> [N, classes]. It ends on 3x3 places, not on their average: clothes differ by what is where."""
    a, b, c = widths
    return nn.Sequential(
        *conv_bn_relu(1, a, stride=2),
        *conv_bn_relu(a, b),
        nn.MaxPool2d(2),
        *conv_bn_relu(b, c),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(c * 9, classes),
    )


def vgg_like(widths: Sequence[int | str] = (32, 32, "pool", 64, 64, "pool", 128, 128), classes: int = 10) -> nn.Module:
    """[N, 3, 32, 32] -> [N, classes]: VGG's pattern; a global average takes the place of its large linears."""
    layers: list[nn.Module] = []
    channels = 3
    for width in widths:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += conv_bn_relu(channels, width)
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2016); a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def resnet_like(widths: Sequence[int] = (16, 32, 64, 128), blocks: int = 2, classes: int = 10) -> nn.Module:
    """[N, 3, 32, 32] -> [N, classes]: ResNet-18 for small images; widths (64, 128, 256, 512) give the full one."""
    layers: list[nn.Module] = [*conv_bn_relu(3, widths[0])]
    channels = widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            layers.append(BasicBlock(channels, width, 2 if stage and not block else 1))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class HarNet(nn.Module):
    """[N, 9, 128] -> [N, classes]: four convolutions over time, each of which halves it."""

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        inputs = (9, *widths)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv1d(i, o, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(o), nn.ReLU(inplace=True))
            for i, o in zip(inputs, widths, strict=False)
        )
        self.head = ExitHead(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.head(x)


def har_net(widths: Sequence[int] = (64, 96, 128, 192), classes: int = 6) -> nn.Module:
    """A network for accelerometers with an exit behind each of its first three convolutions."""
    heads = {f"stages.{i}": ExitHead(width, classes) for i, width in enumerate(widths[:-1])}
    return Exits(HarNet(widths, classes), heads, torch.zeros(1, 9, 128))


def feddst_cifar(
    classes: int = 10,
    channels: int = 3,
    pixels: int = 32,
    widths: Sequence[int] = (6, 16, 120, 84),
    pool: type[nn.Module] = MaxPool2d,
) -> nn.Module:
    """[N, 3, 32, 32] -> [N, classes]: the network of FedDST's CIFAR-10 runs (781,770 weights, 236 biases).

    ``pool``: nn.MaxPool2d for torch's own, or ours, which gives the same values sooner.
    """
    a, b, c, d = widths
    side = pixels - 12  # two 5x5 convolutions and two 3x3 pools of stride 1, none padded
    return Chain(
        nn.Conv2d(channels, a, 5),
        nn.ReLU(inplace=True),
        pool(3, 1),
        nn.Conv2d(a, b, 5),
        nn.ReLU(inplace=True),
        pool(3, 1),
        nn.Flatten(),
        nn.Linear(b * side * side, c),
        nn.ReLU(inplace=True),
        nn.Linear(c, d),
        nn.ReLU(inplace=True),
        nn.Linear(d, classes),
    )
