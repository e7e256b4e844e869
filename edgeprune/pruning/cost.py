"""Multiply-adds of convolutions, linear and recurrent layers: measured on a model, or computed from a plan alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgeprune.nn.copying import copied
from edgeprune.pruning.capture import batch_size, cloned, unfused_attention

if TYPE_CHECKING:
    from edgeprune.pruning.graph import ChannelGraph
    from edgeprune.pruning.submodel import SubmodelPlan


def plan_macs(graph: ChannelGraph, plan: SubmodelPlan) -> int:
    """Multiply-adds of the sub-model for one sample; equals ``macs(extract(model, plan), example_inputs)``."""
    return graph.macs(plan.counts, plan.dropped)


def macs(model: nn.Module, example_inputs: tuple[Any, ...] | Tensor) -> int:
    """Multiply-adds of convolutions, linear and recurrent layers, products of matrices and attention for one sample.

    Runs the model once in evaluation mode, on a copy. ``example_inputs``: as for ChannelGraph.trace; the first
    dimension of the first tensor that has several is the batch, which is divided out.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    counter = _Counter()
    with torch.no_grad(), torch.random.fork_rng(devices=[]), unfused_attention(), counter:
        copied("macs", model).eval()(*cloned(inputs))
    return counter.total // batch_size(inputs)


class _Counter(TorchDispatchMode):
    """Sees every operation with the shapes it really has."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket)
        if name == "aten.convolution":
            x, weight, transposed = args[0], args[1], args[6]
            at = x.dim() - weight.dim() + 1
            shape = x.shape if transposed else out.shape
            self.total += weight.numel() * (math.prod(shape) // shape[at])
        elif name in ("aten.mm", "aten.addmm"):
            a, b = args[-2:]
            self.total += a.shape[0] * b.numel()
        elif name in ("aten.bmm", "aten.baddbmm"):
            a, b = args[-2:]
            self.total += a.numel() * b.shape[-1]
        elif name == "aten.mkldnn_rnn_layer":  # the CPU's LSTM: weights from the input and from the state
            x, *weights = args[:3]
            self.total += math.prod(x.shape[:-1]) * sum(weight.numel() for weight in weights)
        elif name.startswith("aten._scaled_dot_product") and "math" not in name:
            q, k, v = args[:3]
            self.total += (q.numel() + q.numel() // q.shape[-1] * v.shape[-1]) * k.shape[-2]
        return out
