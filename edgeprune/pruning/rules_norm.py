"""Coupling rules of normalisation: by channel (batch norm), over channels (layer, RMS and group norm), of weights."""

from __future__ import annotations

from edgeprune.pruning.atoms import Layout
from edgeprune.pruning.coupling import Call, Coupling, rule, shape_of, shapes_of


@rule("aten.batch_norm", "aten.instance_norm", "aten._native_batch_norm_legit",
      "aten._native_batch_norm_legit_no_training", "aten._native_batch_norm_legit_functional",
      "aten.native_batch_norm", "aten.cudnn_batch_norm", "aten._batch_norm_with_update",
      "aten._batch_norm_no_update")  # fmt: skip
def batch_norm(c: Coupling, call: Call) -> Layout | list[Layout]:
    """Each channel by its own statistics: dimension 1 meets the four vectors."""
    x = c.layout(call["input"])
    if call.get("weight") is not None:
        c.role(c.layout(call["weight"])[0], "scale")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call.get(name) is not None:
            c.couple(call, x[1], c.layout(call[name])[0])
    if call.name in ("aten.batch_norm", "aten.instance_norm"):
        return x
    per_channel = shape_of(call["input"])[1:2]  # statistics; in evaluation some of them are empty
    return [x, *((x[1],) if s == per_channel else (None,) * len(s) for s in shapes_of(call.node)[1:])]


@rule("aten.layer_norm", "aten.native_layer_norm", "aten.rms_norm", "aten._fused_rms_norm")
def layer_norm(c: Coupling, call: Call) -> Layout | list[Layout]:
    """Statistics over the last dimensions: with channels removed they are those of the kept ones, or all stay whole."""
    x = c.layout(call["input"])
    first = len(x) - len(call["normalized_shape"])
    vectors = [c.layout(call[n]) for n in ("weight", "bias") if call.get(n) is not None]
    if c.norms == "cut":
        for vector in vectors:
            for ids, own in zip(x[first:], vector, strict=True):
                c.couple(call, ids, own)
        c.normed.append(call.node)
    else:
        for layout in (x[first:], *vectors):
            c.whole_dims(call, layout, range(len(layout)), 'normalises over these channels; norms="cut" cuts them')
    return _with_statistics(call, x)


@rule("aten.group_norm", "aten.native_group_norm")
def group_norm(c: Coupling, call: Call) -> Layout | list[Layout]:
    """Statistics over the channels of each group: all groups lose the same local channels."""
    x = list(c.layout(call["input"]))
    groups = call.get("num_groups") or call["group"]
    vectors = [c.layout(call[n])[0] for n in ("weight", "bias") if call.get(n) is not None]
    for own in vectors:
        c.couple(call, x[1], own)
    if c.norms == "whole":
        c.whole(call, x[1], 'normalises over these channels; norms="cut" cuts them')
    elif groups < shape_of(call["input"])[1]:
        c.equal_pattern(call, x[1], groups)
        c.normed.append(call.node)
    return _with_statistics(call, tuple(x))


@rule("aten._weight_norm", "aten._weight_norm_interface")
def weight_norm(c: Coupling, call: Call) -> Layout | list[Layout]:
    """A weight over its norm, a norm and a gain for each position of ``dim``: of what is kept, or all stays."""
    v, g = c.layout(call["v"]), c.layout(call["g"])
    dim = call.get("dim") or 0
    own = dim if dim >= 0 and g else None  # -1: one norm over all of it
    for d, ids in enumerate(v):
        if d == own:
            c.couple(call, ids, g[d])
        elif c.norms == "whole":
            c.whole(call, ids, 'normalises over these weights; norms="auto" cuts them')
    if c.norms != "whole":
        c.normed.append(call.node)
    return v if call.name == "aten._weight_norm" else [v, g]


def _with_statistics(call: Call, x: Layout) -> Layout | list[Layout]:
    shapes = shapes_of(call.node)
    return [x, *((None,) * len(s) for s in shapes[1:])] if isinstance(call.node.meta.get("val"), (tuple, list)) else x
