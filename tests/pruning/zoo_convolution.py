"""Small forms of the convolutional networks that users have; each keeps what couples the channels of the real one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pruning_cases import BottleneckNet, Densenet, Inception, Lenet, Mobilenet, Resnet, Unet, Vgg, conv_bn
from torch import nn


class Fire(nn.Module):
    """SqueezeNet: a narrow layer feeds two whose results stand side by side."""

    def __init__(self, i, squeeze, expand):
        super().__init__()
        self.squeeze = nn.Conv2d(i, squeeze, 1)
        self.one, self.three = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.squeeze(x), inplace=True)
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


class Squeezenet(nn.Module):
    """The classifier is a convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2)
        self.fires = nn.Sequential(Fire(8, 4, 6), Fire(12, 4, 6), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(12, 5, 8))
        self.classifier = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(16, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, x):
        return self.classifier(self.fires(F.relu(self.stem(x)))).flatten(1)


class Inverted(nn.Module):
    """MobileNetV2 and MnasNet (no gate), EfficientNet (gate from the block's input width, stochastic depth)."""

    def __init__(self, i, o, expand, kernel=3, stride=1, gate=False, act=nn.ReLU6, drop=0.0):
        super().__init__()
        mid = i * expand
        layers = [] if expand == 1 else [nn.Conv2d(i, mid, 1, bias=False), nn.BatchNorm2d(mid), act()]
        layers += [nn.Conv2d(mid, mid, kernel, stride, kernel // 2, groups=mid, bias=False), nn.BatchNorm2d(mid), act()]
        self.expand = nn.Sequential(*layers)
        self.gate = nn.Sequential(nn.Conv2d(mid, max(2, i // 4), 1), nn.SiLU(), nn.Conv2d(max(2, i // 4), mid, 1))
        self.gate = self.gate if gate else None
        self.project = nn.Sequential(nn.Conv2d(mid, o, 1, bias=False), nn.BatchNorm2d(o))
        self.same, self.drop = i == o and stride == 1, drop

    def forward(self, x):
        y = self.expand(x)
        if self.gate is not None:
            y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        y = self.project(y)
        if self.same and self.training and self.drop:
            y = y * torch.empty(y.shape[0], 1, 1, 1, dtype=y.dtype).bernoulli_(1 - self.drop) / (1 - self.drop)
        return x + y if self.same else y


class InvertedNet(nn.Module):
    def __init__(self, **how):
        super().__init__()
        self.stem = conv_bn(3, 8, stride=2)
        rows = ((8, 6, 1), (6, 8, 6), (8, 8, 6), (8, 12, 3), (12, 12, 3))
        self.blocks = nn.Sequential(*(Inverted(i, o, e, 5 if e == 3 else 3, **how) for i, o, e in rows))
        self.last, self.fc = nn.Conv2d(12, 24, 1), nn.Sequential(nn.Dropout(0.2), nn.Linear(24, 5))

    def forward(self, x):
        return self.fc(F.silu(self.last(self.blocks(x if self.stem is None else self.stem(x)))).mean((2, 3)))


class ConvnextBlock(nn.Module):
    """Depthwise 7 x 7, layer norm with the channels last, four times the width inside, a scale for each channel."""

    def __init__(self, width):
        super().__init__()
        self.depth, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.rand(width, 1, 1))

    def forward(self, x):
        y = self.down(F.gelu(self.up(self.norm(self.depth(x).permute(0, 2, 3, 1)))))
        return x + self.scale * y.permute(0, 3, 1, 2)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class Convnext(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), LayerNorm2d(8))
        self.stages = nn.Sequential(
            ConvnextBlock(8), ConvnextBlock(8), LayerNorm2d(8), nn.Conv2d(8, 12, 2, 2), ConvnextBlock(12)
        )
        self.head = nn.Sequential(LayerNorm2d(12), nn.Flatten(1), nn.Linear(12, 5))

    def forward(self, x):
        return self.head(F.adaptive_avg_pool2d(self.stages(self.stem(x)), 1))


class RegnetBlock(nn.Module):
    """Grouped 3 x 3 between two pointwise layers of the same width, with a gate."""

    def __init__(self, i, o, per_group, stride=1):
        super().__init__()
        self.a, self.b = conv_bn(i, o, 1), conv_bn(o, o, 3, stride, o // per_group)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(o, 3, 1), nn.ReLU(), nn.Conv2d(3, o, 1))
        self.c = nn.Sequential(nn.Conv2d(o, o, 1, bias=False), nn.BatchNorm2d(o))
        self.short = nn.Identity() if i == o and stride == 1 else nn.Conv2d(i, o, 1, stride)

    def forward(self, x):
        y = self.b(self.a(x))
        return F.relu(self.short(x) + self.c(y * self.gate(y).sigmoid()))


class Regnet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.fc = conv_bn(3, 8, stride=2), nn.Linear(24, 5)
        self.trunk = nn.Sequential(RegnetBlock(8, 16, 4, 2), RegnetBlock(16, 16, 4), RegnetBlock(16, 24, 6, 2))

    def forward(self, x):
        return self.fc(self.trunk(self.stem(x)).mean((2, 3)))


class ShuffleUnit(nn.Module):
    """ShuffleNetV2: half of the channels pass, or both halves come from the input where it is halved in size."""

    def __init__(self, i, o, stride):
        super().__init__()
        half, self.stride = o // 2, stride
        first = i if stride > 1 else half
        self.left = nn.Sequential()
        if stride > 1:
            depth = nn.Conv2d(i, i, 3, stride, 1, groups=i, bias=False)
            self.left = nn.Sequential(depth, nn.BatchNorm2d(i), conv_bn(i, half, 1))
        depth = nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False)
        self.right = nn.Sequential(conv_bn(first, half, 1), depth, nn.BatchNorm2d(half), conv_bn(half, half, 1))

    def forward(self, x):
        left, right = (x, x) if self.stride > 1 else x.chunk(2, dim=1)
        x = torch.cat((self.left(left), self.right(right)), dim=1)
        n, c, h, w = x.size()
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class Shufflenet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.fc = conv_bn(3, 8), nn.Linear(20, 5)
        self.stages = nn.Sequential(ShuffleUnit(8, 16, 2), ShuffleUnit(16, 16, 1), ShuffleUnit(16, 24, 2))
        self.last = conv_bn(24, 20, 1)

    def forward(self, x):
        return self.fc(self.last(self.stages(self.stem(x))).mean([2, 3]))


class GroupNormUnet(nn.Module):
    """As in diffusion models: group norms, a residual, pixel shuffle up, attention of one head at the bottom."""

    def __init__(self):
        super().__init__()
        self.down, self.norm1 = nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8)
        self.deep, self.norm2 = nn.Conv2d(8, 12, 3, 2, 1), nn.GroupNorm(3, 12)
        self.same, self.norm3 = nn.Conv2d(12, 12, 3, padding=1), nn.GroupNorm(12, 12)
        self.up2, self.up1 = nn.Conv2d(12, 8 * 4, 1), nn.ConvTranspose2d(16, 6, 4, 2, 1, groups=2)
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        a = F.silu(self.norm1(self.down(x)))
        b = F.silu(self.norm2(self.deep(a)))
        b = b + F.silu(self.norm3(self.same(b)))
        return self.out(F.silu(self.up1(torch.cat([F.pixel_shuffle(self.up2(b), 2), a], 1))))


IMAGE = (2, 3, 16, 16)
CONVOLUTION = {
    "small-cnn": Lenet,
    "unet": Unet,
    "unet-group-norm": GroupNormUnet,
    "resnet18": Resnet,
    "resnet50": BottleneckNet,
    "vgg11-bn": Vgg,
    "mobilenet-v2": InvertedNet,
    "mobilenet-v3": Mobilenet,
    "efficientnet": lambda: InvertedNet(gate=True, act=nn.SiLU, drop=0.2),
    "densenet": Densenet,
    "googlenet": Inception,
    "squeezenet": Squeezenet,
    "mnasnet": lambda: InvertedNet(act=nn.ReLU),
    "convnext": Convnext,
    "regnet": Regnet,
    "resnext": lambda: BottleneckNet(2),
    "shufflenet-v2": Shufflenet,
}
