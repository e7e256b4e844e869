"""Whether a cut model is right, judged by its tensors alone, in the same way for every tool (structured_graph.py)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.pruning.capture import tensors


def tagged(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model).double()
    with torch.no_grad():
        for _, t in tensors(model):
            t.copy_(torch.arange(t.numel()).reshape(t.shape))
    return model


def grids(full: nn.Module, tags: nn.Module) -> dict[str, list[Tensor]] | None:
    """Per tensor the kept positions of every dimension, read off the tags; None where they are no grid."""
    shapes = {n: t.shape for n, t in tensors(full)}
    found = {}
    for name, t in tensors(tags):
        if name not in shapes or t.dim() != len(shapes[name]):
            return None
        # Flat: of an array (256, 128, 1, 1) numpy 2.4.6 gives wrong positions from its 8,193rd element on.
        flat = np.unravel_index(t.detach().long().numpy().ravel(), shapes[name]) if t.dim() else ()
        at = [a.reshape(t.shape) for a in flat]
        grid = [np.unique(a) for a in at]
        if t.dim() and not all(
            (a == g.reshape([-1 if e == d else 1 for e in range(t.dim())])).all() if a.shape[d] == len(g) else False
            for d, (a, g) in enumerate(zip(at, grid, strict=True))
        ):
            return None  # fmt: skip
        found[name] = [torch.from_numpy(g) for g in grid]
    return found


def silenced(full: nn.Module, kept: dict[str, list[Tensor]]) -> nn.Module:
    """The full model with everything outside the grids at zero, and norms over the kept channels."""
    model = copy.deepcopy(full)
    with torch.no_grad():
        for name, t in tensors(model):
            for d, index in enumerate(kept.get(name, [])):
                gone = torch.ones(t.shape[d], dtype=torch.bool)
                gone[index] = False
                t.index_fill_(d, gone.nonzero()[:, 0], 1.0 if name.endswith("running_var") else 0.0)
    for name, module in model.named_modules():
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)) and f"{name}.weight" in kept:
            index = kept[f"{name}.weight"][0]
            if len(index) < len(module.weight):
                module.forward = lambda x, m=module, i=index: _norm(m, i, x)
    return model


def _norm(m: Any, kept: Tensor, x: Tensor) -> Tensor:
    d = 1 if isinstance(m, nn.GroupNorm) or "2d" in type(m).__name__ else x.dim() - 1
    part = x.index_select(d, kept)
    if isinstance(m, nn.GroupNorm):
        groups = len(kept) if m.num_groups == m.num_channels else m.num_groups
        y = F.group_norm(part, groups, m.weight[kept], m.bias[kept], m.eps)
    elif isinstance(m, nn.RMSNorm):
        y = F.rms_norm(part, (len(kept),), m.weight[kept], m.eps)
    else:
        y = F.layer_norm(part.movedim(d, -1), (len(kept),), m.weight[kept], m.bias[kept], m.eps).movedim(-1, d)
    return torch.zeros_like(x).index_copy(d, kept, y)


def judge(full: nn.Module, inputs: tuple[Any, ...], cut: Callable[[nn.Module], nn.Module]) -> dict[str, Any]:
    """{"tags", "forward": right or not, "error"} of one cut, given as what makes a cut model of a full one."""
    try:
        small = cut(copy.deepcopy(full)).eval()
        kept = grids(full, cut(tagged(full)))
    except Exception as e:
        return {
            "tags": False,
            "forward": False,
            "error": f"{type(e).__name__}: {(str(e) or '-').splitlines()[0][:160]}",
        }
    if kept is None:
        return {"tags": False, "forward": False, "error": "what is left of a tensor is no grid of its elements"}
    with torch.no_grad():
        try:
            got = small(*inputs)
        except Exception as e:
            return {
                "tags": True,
                "forward": False,
                "error": f"forward: {(str(e) or type(e).__name__).splitlines()[0][:160]}",
            }
        expected = silenced(full, kept).eval()(*inputs)
    same = got.shape == expected.shape and bool((got - expected).abs().max() <= 1e-6 * expected.abs().max())
    return {"tags": True, "forward": same, "error": None if same else "silently other values"}
