"""Convolutions that decide for every input which of their channels it needs (adaptive dynamic pruning, v1).

    s = mean of x over its pixels        g = ReLU(W_g s + b_g),  b_g = 1 at first
    g keeps its round(keep * channels) largest values of each sample, the others become 0
    y = ReLU(BN(conv(x)) * g)

Training multiplies by the zeros, so that gradients flow; in evaluation the layers of a :class:`GatedNet` can compute
the channels that are on alone (``gathered``): their rows and columns of the weights are gathered, for each sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeprune import ops
from edgeprune.errors import EdgePruneError

Compact = tuple[Tensor, Tensor | None]
"""Features [N, k, H, W] of the channels [N, k] (None: all of them, in order)."""


class GatedConv2d(nn.Module):
    """[N, inputs, H, W] -> [N, outputs, H', W'], at most round(``keep`` * outputs) channels of each sample not zero.

    A physically smaller copy (pruning.extract) keeps the number of channels that are on, as far as it has so many.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, padding: int = 1, keep: float = 0.7
    ) -> None:
        super().__init__()
        if not 0 < keep <= 1:
            raise EdgePruneError(f"GatedConv2d: keep is {keep}; it is the share of channels that are on, in (0, 1]")
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.gate = nn.Linear(inputs, outputs)
        nn.init.ones_(self.gate.bias)
        # A float, so that surgery does not take it for the size of some dimension.
        self.channels_on = float(max(1, round(keep * outputs)))
        self._seen: list[Tensor] | None = None

    def on(self) -> int:
        """How many channels of a sample are computed."""
        return min(int(self.channels_on), self.conv.out_channels)

    def gates(self, pooled: Tensor) -> Tensor:
        """g [N, outputs] from s [N, inputs]: zero where a channel is off."""
        g = functional.relu(self.gate(pooled))
        if self.on() < g.shape[1]:
            # Not by comparison with the smallest that stays: where nothing comes in, all gates are 1.
            strength, chosen = g.topk(self.on(), dim=1)
            g = torch.zeros_like(g).scatter(1, chosen, strength)
        if self._seen is not None:
            self._seen.append(g.detach().sum(0))
        return g

    def forward(self, x: Tensor) -> Tensor:
        g = self.gates(x.mean((2, 3)))
        return functional.relu(self.bn(self.conv(x)) * g[:, :, None, None])

    def forward_gathered(self, compact: Compact) -> Compact:
        """The same in evaluation from and to the channels that are on; nothing else is computed."""
        x, into = compact
        pooled = x.mean((2, 3))
        if into is not None:
            pooled = pooled.new_zeros(len(x), self.conv.in_channels).scatter_(1, into, pooled)
        g = functional.relu(self.gate(pooled))
        chosen = g.topk(self.on(), dim=1).indices.sort(1).values
        strength = g.gather(1, chosen)
        # Sample by sample: one grouped convolution over all of them gathers and runs several times as long.
        each = []
        for i, mine in enumerate(chosen):
            weight = ops.gather(self.conv.weight.detach(), (mine, None if into is None else into[i], None, None))
            each.append(functional.conv2d(x[i : i + 1], weight, None, self.conv.stride, self.conv.padding))
        out = torch.cat(each)
        scale, shift = self._norm()
        scale, shift = scale[chosen] * strength, shift[chosen] * strength
        return functional.relu(out * scale[:, :, None, None] + shift[:, :, None, None]), chosen

    def _norm(self) -> tuple[Tensor, Tensor]:
        """Batch-norm in evaluation as a scale and a shift of every channel."""
        assert self.bn.running_mean is not None and self.bn.running_var is not None
        scale = self.bn.weight * torch.rsqrt(self.bn.running_var + self.bn.eps)
        return scale, self.bn.bias - self.bn.running_mean * scale


class GatedNet(nn.Module):
    """Gated convolutions and pools one after the other, then a global average and a linear layer.

    ``gathered``: in evaluation compute only the channels that are on. Same values as without, up to rounding.
    """

    def __init__(self, layers: Iterable[nn.Module], classes: int) -> None:
        super().__init__()
        self.features = nn.ModuleList(layers)
        last = [m for m in self.features if isinstance(m, GatedConv2d)]
        if not last:
            raise EdgePruneError("GatedNet: there is no GatedConv2d among its layers")
        self.head = nn.Linear(last[-1].conv.out_channels, classes)
        self.gathered = False

    def forward(self, x: Tensor) -> Tensor:
        if self.gathered and not self.training:
            return self._gathered(x)
        for layer in self.features:
            x = layer(x)
        return self.head(x.mean((2, 3)))

    def _gathered(self, x: Tensor) -> Tensor:
        compact: Compact = (x, None)
        for layer in self.features:
            if isinstance(layer, GatedConv2d):
                compact = layer.forward_gathered(compact)
            else:  # works on every channel by itself
                compact = (layer(compact[0]), compact[1])
        values, chosen = compact[0].mean((2, 3)), compact[1]
        if chosen is not None:
            values = values.new_zeros(len(values), self.head.in_features).scatter_(1, chosen, values)
        return self.head(values)


def gated_layers(model: nn.Module) -> dict[str, GatedConv2d]:
    """The gated convolutions of ``model`` by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, GatedConv2d)}


@contextmanager
def recording(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """While it lasts every forward pass adds its gates, summed over the batch [outputs], to a layer's list."""
    layers = gated_layers(model)
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    for name, layer in layers.items():
        layer._seen = seen[name]
    try:
        yield seen
    finally:
        for layer in layers.values():
            layer._seen = None


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode while it lasts; every module is as it was afterwards."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


@torch.no_grad()
def gate_statistics(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """By layer the mean gate of every channel over all samples, in double: how much these data use it."""
    total = 0
    with _evaluating(model), recording(model) as seen:
        for batch in batches:
            model(batch)
            total += len(batch)
    return {name: torch.stack(found).double().sum(0) / max(total, 1) for name, found in seen.items()}


def active_macs(model: GatedNet, x: Tensor) -> tuple[int, int]:
    """Multiply-adds of one sample of ``x``'s shape: (with the channels that are on alone, gates included; of the same
    network without gates). All gated layers but the first read what the one before them left on."""
    sizes: dict[str, Sequence[int]] = {}
    handles = [
        layer.conv.register_forward_hook(lambda m, a, out, name=name: sizes.update({name: out.shape}))
        for name, layer in gated_layers(model).items()
    ]
    gathered, model.gathered = model.gathered, False
    try:
        with torch.no_grad(), _evaluating(model):
            model(x)
    finally:
        model.gathered = gathered
        for handle in handles:
            handle.remove()
    active = dense = 0
    read: int | None = None
    for name, layer in gated_layers(model).items():
        pixels = sizes[name][2] * sizes[name][3] * layer.conv.kernel_size[0] * layer.conv.kernel_size[1]
        inputs, outputs = layer.conv.in_channels, layer.conv.out_channels
        dense += pixels * inputs * outputs
        active += pixels * (inputs if read is None else read) * layer.on() + inputs * outputs
        read = layer.on()
    for module in model.children():
        if isinstance(module, nn.Linear):
            dense += module.in_features * module.out_features
            active += (read or module.in_features) * module.out_features
    return active, dense
