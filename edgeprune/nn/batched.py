"""One network for many clients at once: every layer holds a weight for each of them, its input their batches in a row.

    x [clients * batch, ...], the first client's samples first; parameters and buffers [clients, ...], named as before

A layer's product is one batched matrix product over all clients, a convolution's over the columns under its window
(im2col). Layers without weights see one long batch. For training, in float32; masks are the caller's (the weights are
dense, with zeros).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.errors import EdgePruneError

Pair = tuple[int, int]


class _Batched(nn.Module):
    """What the three kinds share: ``layer``'s parameters and buffers, empty, with the clients in front."""

    def __init__(self, layer: nn.Module, clients: int, device: torch.device) -> None:
        super().__init__()
        self.clients = clients
        for name, p in layer.named_parameters(recurse=False):
            made = torch.empty((clients, *p.shape), dtype=p.dtype, device=device)
            self.register_parameter(name, nn.Parameter(made, requires_grad=p.requires_grad))
        for name, b in layer.named_buffers(recurse=False):
            self.register_buffer(name, torch.empty((clients, *b.shape), dtype=b.dtype, device=device))
        for name in ("weight", "bias"):
            if name not in self._parameters:
                self.register_parameter(name, None)

    def _apart(self, x: Tensor) -> Tensor:
        """[clients * batch, ...] as [clients, batch, ...]."""
        return x.reshape(self.clients, -1, *x.shape[1:])


class BatchedLinear(_Batched):
    """nn.Linear of every client."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def forward(self, x: Tensor) -> Tensor:
        """[clients * batch, ..., inputs] to [clients * batch, ..., outputs]."""
        apart = self._apart(x).flatten(1, -2)
        if self.bias is None:
            out = torch.bmm(apart, self.weight.mT)
        else:
            out = torch.baddbmm(self.bias[:, None], apart, self.weight.mT)
        return out.reshape(*x.shape[:-1], -1)


class BatchedConv2d(_Batched):
    """nn.Conv2d of every client, padded with zeros if at all."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, layer: nn.Conv2d, clients: int, device: torch.device) -> None:
        super().__init__(layer, clients, device)
        self.stride, self.dilation, self.groups = _pair(layer.stride), _pair(layer.dilation), layer.groups
        self.padding = layer.padding if isinstance(layer.padding, str) else _pair(layer.padding)

    def forward(self, x: Tensor) -> Tensor:
        """(clients * batch, in_channels, H, W) to (clients * batch, out_channels, H', W')."""
        if self.groups == 1 and self.dilation == (1, 1) and not isinstance(self.padding, str):
            flat: Tensor = _Conv.apply(x, self.weight, self.stride, self.padding)
            if self.bias is not None:
                flat = flat + self._for_each(self.bias, x)
            taps = self.weight.shape[3:]
            every = zip(x.shape[2:], self.padding, taps, self.stride, strict=True)
            return flat.unflatten(2, [(n + 2 * p - k) // s + 1 for n, p, k, s in every])
        # Whatever else there is: the clients as groups of one convolution.
        side = _side_by_side(x, self.clients)
        bias = None if self.bias is None else self.bias.flatten()
        groups = self.clients * self.groups
        weight = self.weight.flatten(0, 1)
        out = functional.conv2d(side, weight, bias, self.stride, self.padding, self.dilation, groups)
        return _in_a_row(out, self.clients)

    def _for_each(self, bias: Tensor, x: Tensor) -> Tensor:
        each = bias[:, None].expand(-1, len(x) // self.clients, -1)
        return each.reshape(len(x), -1, 1)


class _Conv(torch.autograd.Function):
    """Every picture's columns [inputs * taps, places] under its client's filters [outputs, inputs * taps]: [pictures,
    outputs, places]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
        taps = weight.shape[3:]
        cols = _columns(x, (taps[0], taps[1]), stride, padding)
        filters = _for_pictures(weight, len(x))
        ctx.save_for_backward(cols, weight)
        ctx.shape, ctx.taps, ctx.stride, ctx.padding = x.shape, taps, stride, padding
        return torch.bmm(filters, cols)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        cols, weight = ctx.saved_tensors
        (out,) = grads
        into, of_weight = None, None
        if ctx.needs_input_grad[1]:
            each = torch.bmm(out, cols.mT)
            of_weight = each.view(weight.shape[0], -1, *weight.shape[1:]).sum(1)
        if ctx.needs_input_grad[0]:
            back = torch.bmm(_for_pictures(weight, len(cols)).mT, out)
            into = functional.fold(back, ctx.shape[2:], ctx.taps, padding=ctx.padding, stride=ctx.stride)
        return into, of_weight, None, None


def _columns(x: Tensor, taps: Pair, stride: Pair, padding: Pair) -> Tensor:
    """[pictures, inputs * taps, places]. (functional.unfold launches a kernel a picture on CUDA.)"""
    if padding != (0, 0):
        x = functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    windows = x.unfold(2, taps[0], stride[0]).unfold(3, taps[1], stride[1])  # N, C, H', W', kh, kw
    return windows.permute(0, 1, 4, 5, 2, 3).reshape(len(x), x.shape[1] * taps[0] * taps[1], -1)


def _for_pictures(weight: Tensor, pictures: int) -> Tensor:
    """[clients, outputs, ...] as [pictures, outputs, inputs * taps]: each picture its client's."""
    clients = weight.shape[0]
    flat = weight.reshape(clients, 1, weight.shape[1], -1)
    return flat.expand(-1, pictures // clients, -1, -1).reshape(pictures, weight.shape[1], -1)


class BatchedBatchNorm(_Batched):
    """nn.BatchNorm1d or 2d of every client: its statistics are those of its own batch."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    num_batches_tracked: Tensor

    def __init__(self, layer: nn.BatchNorm1d | nn.BatchNorm2d, clients: int, device: torch.device) -> None:
        super().__init__(layer, clients, device)
        self.eps, self.momentum = layer.eps, layer.momentum
        self.tracks = layer.track_running_stats

    def forward(self, x: Tensor) -> Tensor:
        """(clients * batch, channels, ...), normalised; in training the running statistics follow."""
        mean, var = (getattr(self, f"running_{name}").view(-1) if self.tracks else None for name in ("mean", "var"))
        if self.training and self.tracks:
            self.num_batches_tracked.add_(1)
        weight, bias = (None if p is None else p.flatten() for p in (self.weight, self.bias))
        side = _side_by_side(x, self.clients)
        assert self.momentum is not None
        out = functional.batch_norm(
            side, mean, var, weight, bias, self.training or not self.tracks, self.momentum, self.eps
        )
        return _in_a_row(out, self.clients)


def _side_by_side(x: Tensor, clients: int) -> Tensor:
    """[clients * batch, channels, ...] as [batch, clients * channels, ...]."""
    return x.reshape(clients, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)


def _in_a_row(x: Tensor, clients: int) -> Tensor:
    """The way back."""
    return x.reshape(len(x), clients, -1, *x.shape[2:]).transpose(0, 1).flatten(0, 1)


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


# ---- a whole model --------------------------------------------------------------------------------------------------


def batched(model: nn.Module, clients: int, device: torch.device) -> nn.Module:
    """A copy of the dense ``model`` for so many clients, its weights empty (:func:`load_states`).

    Raises EdgePruneError for a layer with weights that is no nn.Linear, nn.Conv2d or nn.BatchNorm of one or two
    dimensions, for one that draws at random, and for weights that layers share.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if len(names) != len(list(model.parameters())):
        raise EdgePruneError("batched training: layers of this model share weights; use run.executor = 'serial'")
    return _convert(copy.deepcopy(model), "", clients, device).train()


def _convert(module: nn.Module, name: str, clients: int, device: torch.device) -> nn.Module:
    if type(module) is nn.Linear:
        return BatchedLinear(module, clients, device)
    if type(module) is nn.Conv2d and module.padding_mode == "zeros":
        return BatchedConv2d(module, clients, device)
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.momentum is not None:
        return BatchedBatchNorm(module, clients, device)
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    random = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    if own or random:
        raise EdgePruneError(
            f"batched training: {name or 'the model'} is a {type(module).__name__}, which cannot be batched over "
            "clients; use run.executor = 'serial'"
        )
    for child_name, child in module.named_children():
        setattr(module, child_name, _convert(child, f"{name}.{child_name}".lstrip("."), clients, device))
    return module


def load_states(model: nn.Module, states: Sequence[Mapping[str, Tensor]]) -> None:
    """Fill a :func:`batched` model with one dense state dictionary for each client."""
    with torch.no_grad():
        for name, mine in model.state_dict().items():
            each = [state[name] for state in states]
            if all(other is each[0] or torch.equal(other, each[0]) for other in each[1:]):
                mine.copy_(each[0].to(mine.device))  # what all were sent crosses to the device once
            else:
                mine.copy_(torch.stack(each).to(mine.device))


def split_states(model: nn.Module) -> list[dict[str, Tensor]]:
    """The state dictionary of each client, dense and on the CPU."""
    whole = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    clients = len(next(iter(whole.values())))
    return [{name: tensor[i] for name, tensor in whole.items()} for i in range(clients)]


def unpacked_masks(masks: Sequence[Tensor], shape: Sequence[int], device: torch.device) -> Tensor:
    """Bitmaps (uint8, lowest bit first), one for each client, as a bool tensor [clients, *shape]; [1, *shape] where all
    are the same."""
    if all(other is masks[0] or torch.equal(other, masks[0]) for other in masks[1:]):
        masks = masks[:1]
    bits = torch.stack(list(masks)).to(device)
    shifts = torch.arange(8, dtype=torch.uint8, device=device)
    flat = bits[:, :, None].bitwise_right_shift(shifts).bitwise_and_(1).flatten(1)
    return flat[:, : math.prod(shape)].bool().reshape(-1, *shape)
