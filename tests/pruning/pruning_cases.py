"""Small networks, one for each way in which channels hang together, and the tools that all tests of pruning share."""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import edgeprune
from edgeprune.pruning import ChannelGraph, SubmodelPlan


def conv_bn(i, o, k=3, stride=1, groups=1):
    return nn.Sequential(nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o), nn.ReLU())


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, 4))

    def forward(self, x):
        return self.layers(x.flatten(1))


class Lenet(nn.Module):
    """No batch norm, dropout, flatten with a block of 16 columns to each channel, written as view(size(0), -1)."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 10, 3, padding=1)
        self.f1, self.f2 = nn.Linear(10 * 16, 20), nn.Linear(20, 5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        x = F.max_pool2d(F.relu(self.c2(x)), 2)
        x = x.view(x.size(0), -1)
        return self.f2(self.drop(F.relu(self.f1(x))))


class Vgg(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            conv_bn(3, 8), conv_bn(8, 8), nn.MaxPool2d(2), conv_bn(8, 16), nn.MaxPool2d(2), conv_bn(16, 12)
        )
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(12 * 4, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 5))

    def forward(self, x):
        return self.head(self.pool(self.features(x)))


class Basic(nn.Module):
    def __init__(self, i, o, stride=1):
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.c2, self.b2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.short = nn.Identity()
        if stride > 1 or i != o:
            self.short = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x):
        return F.relu(self.b2(self.c2(F.relu(self.b1(self.c1(x))))) + self.short(x))


class Resnet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.blocks = nn.Sequential(Basic(8, 8), Basic(8, 12, 2), Basic(12, 12))
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class Bottleneck(nn.Module):
    """``groups`` > 1 is the ResNeXt form."""

    def __init__(self, i, width, o, stride=1, groups=1):
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(i, width, 1),
            conv_bn(width, width, 3, stride, groups),
            nn.Conv2d(width, o, 1, bias=False),
            nn.BatchNorm2d(o),
        )
        self.short = nn.Identity() if i == o else nn.Sequential(nn.Conv2d(i, o, 1, stride), nn.BatchNorm2d(o))

    def forward(self, x):
        return (self.body(x) + self.short(x)).relu_()


class BottleneckNet(nn.Module):
    def __init__(self, groups=1):
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.layer1 = nn.Sequential(Bottleneck(8, 8, 16, groups=groups), Bottleneck(16, 8, 16, groups=groups))
        self.layer2 = nn.Sequential(Bottleneck(16, 12, 20, 2, groups), Bottleneck(20, 12, 20, groups=groups))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(20, 5)

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(self.layer2(self.layer1(self.stem(x)))), 1))


class InvertedResidual(nn.Module):
    """With a squeeze-and-excite gate."""

    def __init__(self, i, hidden, o, stride=1):
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(i, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish())
        self.depth = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()
        )
        self.squeeze, self.excite = nn.Conv2d(hidden, 4, 1), nn.Conv2d(4, hidden, 1)
        self.project = nn.Sequential(nn.Conv2d(hidden, o, 1, bias=False), nn.BatchNorm2d(o))
        self.same = i == o and stride == 1

    def forward(self, x):
        y = self.depth(self.expand(x))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        y = self.project(y)
        return x + y if self.same else y


class Mobilenet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            conv_bn(3, 8), InvertedResidual(8, 16, 8), InvertedResidual(8, 20, 12, 2), InvertedResidual(12, 24, 12)
        )
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        return self.fc(F.silu(self.features(x)).mean([2, 3]))


class Densenet(nn.Module):
    """Every layer reads all before it; batch norm over the concatenation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1, bias=False) for i in range(3))
        self.norm, self.fc = nn.BatchNorm2d(20), nn.Linear(20 * 4, 5)

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.norm(x)), 2).flatten(1))


class Inception(nn.Module):
    """Branches of unequal width, one of them the bare input, and a sum over the concatenation."""

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.a, self.b = conv_bn(8, 6, 1), nn.Sequential(conv_bn(8, 5, 1), conv_bn(5, 7))
        self.c = conv_bn(8, 4, 1)
        self.mix = nn.Conv2d(8 + 6 + 7 + 4 + 3, 28, 1, bias=False)
        self.fc = nn.Linear(28, 5)

    def forward(self, image):
        x = self.stem(image)
        x = torch.cat([x, self.a(x), self.b(x), self.c(F.max_pool2d(x, 3, 1, 1)), image], 1)
        return self.fc((x + self.mix(x)).amax((2, 3)))


class Unet(nn.Module):
    """Transposed convolution, resizing, skip connections; its output is an image."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.deep = conv_bn(3, 6), conv_bn(6, 10), conv_bn(10, 14)
        self.up2, self.after2 = nn.ConvTranspose2d(14, 10, 2, 2), conv_bn(20, 8)
        self.up1, self.after1 = nn.Upsample(scale_factor=2), conv_bn(14, 6)
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.deep(F.avg_pool2d(b, 2))
        b = self.after2(torch.cat([self.up2(c), b], 1))
        return self.out(self.after1(torch.cat([self.up1(b), a], 1)))


class Multiplier(nn.Module):
    """Depthwise convolutions that make three of each channel, plain and transposed; channels last and back."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 18, 3, padding=1, groups=6)
        self.c = nn.Conv2d(18, 5, 1)
        self.d = nn.ConvTranspose2d(5, 5, 2, 2, groups=5)
        self.e, self.slope, self.f = nn.Linear(5, 7), nn.PReLU(7), nn.Conv2d(7, 4, 1)

    def forward(self, x):
        x = F.relu(self.d(F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))))))
        x = self.e(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.f(self.slope(x)).mean((2, 3))


class Shuffle(nn.Module):
    """Two branches, one half split off, channels interleaved: all by view with sizes taken from the tensor."""

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 12)
        self.branch = nn.Sequential(conv_bn(6, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6), conv_bn(6, 6, 1))
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        left, right = self.stem(x).chunk(2, 1)
        x = torch.cat([left, self.branch(right)], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(x.mean((2, 3)))


class PaddedShortcut(nn.Module):
    """A shortcut without weights: every second pixel, zero channels put around by number."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.fc = conv_bn(3, 6), nn.Conv2d(6, 10, 3, 2, 1), nn.Linear(10, 5)

    def forward(self, x):
        x = self.stem(x)
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.fc(F.relu(self.body(x) + short).mean((2, 3)))


CASES = {
    "mlp": (Mlp, (2, 3, 2, 2)),
    "lenet": (Lenet, (2, 3, 16, 16)),
    "vgg": (Vgg, (2, 3, 16, 16)),
    "resnet": (Resnet, (2, 3, 8, 8)),
    "bottleneck": (BottleneckNet, (2, 3, 8, 8)),
    "resnext": (functools.partial(BottleneckNet, 2), (2, 3, 8, 8)),
    "mobilenet": (Mobilenet, (2, 3, 8, 8)),
    "densenet": (Densenet, (2, 3, 8, 8)),
    "inception": (Inception, (2, 3, 8, 8)),
    "unet": (Unet, (2, 3, 16, 16)),
    "multiplier": (Multiplier, (2, 3, 6, 6)),
    "shuffle": (Shuffle, (2, 3, 6, 6)),
    "padded-shortcut": (PaddedShortcut, (2, 3, 8, 8)),
}


@functools.cache
def traced(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...], ChannelGraph]:
    """The network with random weights and statistics, an input, and its graph. Shared: tests must not change them."""
    factory, shape = CASES[name]
    torch.manual_seed(0)
    model, x = factory(), torch.randn(shape)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model, (x,), ChannelGraph.trace(model, (x,))


def random_plan(graph: ChannelGraph, seed: int) -> SubmodelPlan:
    """A random non-empty set of channels in every group."""
    rng = np.random.default_rng(seed)
    kept = {}
    for name, size in graph.map.groups.items():
        count = int(rng.integers(1, size + 1))
        kept[name] = tuple(sorted(rng.choice(size, count, replace=False).tolist()))
    return SubmodelPlan(graph.map, kept)


def positions(plan: SubmodelPlan, tensor: str) -> list[list[int]]:
    """The kept positions of every dimension, spelt out one channel at a time (independent of the package's indices)."""
    result = []
    for axis in plan.axes[tensor]:
        kept, at = [], 0
        for s in axis:
            for _ in range(s.repeat):
                for channel in range(s.size):
                    stays = s.group is None or channel in plan.kept[s.group]
                    kept += range(at, at + s.block) if stays else []
                    at += s.block
        result.append(kept)
    return result


IMAGE = (2, 3, 8, 8)


def made(forward, **modules):
    """A network with these modules and this forward(self, x)."""
    net = type("Net", (nn.Module,), {"forward": forward})()
    for name, module in modules.items():
        setattr(net, name, module)
    return net


def trace(forward, shape=IMAGE, **modules):
    """The graph of such a network; its sub-model at half is run too."""
    net = made(forward, **modules)
    torch.manual_seed(0)
    x = torch.randn(shape)
    graph = ChannelGraph.trace(net, (x,))
    sub = edgeprune.prune(net, (x,), keep=0.5 if graph.prunable else 1, graph=graph)
    assert sub.model.eval()(x).shape == net.eval()(x).shape
    return sub.graph


def reasons(graph):
    """Why each group that stays whole does."""
    return {n: str(g.reason) for n, g in graph.groups.items() if not g.prunable}
