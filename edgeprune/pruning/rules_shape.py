"""Coupling rules of what moves, cuts and joins dimensions: views, permutations, cat, chunk, slices, padding."""

from __future__ import annotations

import operator

import numpy as np
from torch.fx import Node

from edgeprune.pruning.atoms import Ids, Layout
from edgeprune.pruning.coupling import Call, Coupling, operation_name, rule, shape_of, shapes_of
from edgeprune.pruning.reshape import reshape
from edgeprune.pruning.rules import dim_of, dims_of, spatial_whole


@rule("aten.view", "aten.reshape", "aten._unsafe_view", "aten.flatten", "aten.unflatten", "aten.unsqueeze",
      "aten._reshape_alias", "aten.view_as", "aten.reshape_as")  # fmt: skip
def view(c: Coupling, call: Call) -> Layout:
    """Row-major channel arithmetic; see reshape.py."""
    x = next(call.tensors())
    return reshape(c, call, c.layout(x), shape_of(x), shape_of(call.node))


@rule("aten.squeeze")
def squeeze(c: Coupling, call: Call) -> Layout:
    """It would also drop a channel dimension pruned to one, so those that it may drop stay whole."""
    x, shape, dim = c.layout(call["self"]), shape_of(call["self"]), call.get("dim")
    why = "squeeze() without a dimension could drop the channels; name the dimension"
    if dim is not None:
        why = "squeeze() of this dimension would drop the last channel left; leave it out"
    c.whole_dims(call, x, dims_of(dim, len(x)), why)
    return reshape(c, call, x, shape, shape_of(call.node))


@rule("aten.permute", "aten.transpose", "aten.t", "aten.numpy_T", "aten.movedim", "aten.swapaxes", "aten.swapdims",
      "aten.mT")  # fmt: skip
def permute(c: Coupling, call: Call) -> Layout | None:
    """Dimensions change places."""
    x = c.layout(next(call.tensors()))
    rank = len(x)
    order = list(range(rank))
    if call.name == "aten.permute":
        order = [dim_of(d, rank) for d in call["dims"]]
    elif call.name in ("aten.transpose", "aten.swapdims", "aten.swapaxes"):
        names = ("axis0", "axis1") if call.name == "aten.swapaxes" else ("dim0", "dim1")
        a, b = (dim_of(call[n], rank) for n in names)
        order[a], order[b] = b, a
    elif call.name == "aten.mT":
        order[-2:] = [rank - 1, rank - 2]
    elif call.name == "aten.movedim":
        moved, to = ([call[n]] if isinstance(call[n], int) else list(call[n]) for n in ("source", "destination"))
        source, target = [dim_of(d, rank) for d in moved], [dim_of(d, rank) for d in to]
        rest = iter(d for d in range(rank) if d not in source)
        order = [source[target.index(d)] if d in target else next(rest) for d in range(rank)]
    else:
        order.reverse()
    return tuple(x[d] for d in order)


@rule("aten.expand", "aten.repeat", "aten.tile")
def expand(c: Coupling, call: Call) -> Layout:
    """A dimension of one that is spread is nobody's channel yet; it follows what it meets next."""
    x, shape, out = c.layout(call["self"]), shape_of(call["self"]), shape_of(call.node)
    result = []
    for d, size in enumerate(out):
        at = d - len(out)
        have = shape[at] if len(shape) >= -at else 1
        ids = x[at] if have > 1 else None
        if ids is not None and size != have:
            ids = np.tile(ids, size // have)
        result.append(c.spread(size) if have == 1 and size > 1 and call.name == "aten.expand" else ids)
    return tuple(result)


@rule("aten.repeat_interleave")
def repeat_interleave(c: Coupling, call: Call) -> Layout | None:
    """Every position of one dimension several times over; as often as a tensor says: it stays whole."""
    x, dim, times = c.layout(call.get("self")), call.get("dim"), call["repeats"]
    if not x:
        return None
    if dim is None or not isinstance(times, int):
        c.whole_dims(call, x, dims_of(dim, len(x)), "repeated as often as a tensor says, or as one row")
        return None if dim is None else tuple(None if e == dim_of(dim, len(x)) else ids for e, ids in enumerate(x))
    d = dim_of(dim, len(x))
    ids = x[d]
    if shape_of(call["self"])[d] == 1 < times:
        return (*x[:d], c.spread(times), *x[d + 1 :])
    return (*x[:d], None if ids is None else np.repeat(ids, times), *x[d + 1 :])


@rule("aten.triu", "aten.tril")
def triangle(c: Coupling, call: Call) -> Layout:
    """Positions of the last two dimensions by number: both stay whole."""
    x = c.layout(call["self"])
    return spatial_whole(c, call, x, len(x) - 2)


@rule("aten.view_as_complex")
def view_as_complex(c: Coupling, call: Call) -> Layout:
    """The last dimension, of two, becomes one number."""
    x = c.layout(call["self"])
    c.whole(call, x[-1], "becomes a complex number")
    return x[:-1]


@rule("aten.view_as_real")
def view_as_real(c: Coupling, call: Call) -> Layout:
    """Each number becomes a dimension of two."""
    return (*c.layout(call["self"]), None)


@rule("aten.unfold")
def unfold(c: Coupling, call: Call) -> Layout:
    """Windows over one dimension, their positions in a new last one: both stay whole."""
    x = c.layout(call["self"])
    d = dim_of(call["dimension"], len(x))
    c.whole(call, x[d], "windows over these positions")
    return (*(None if e == d else ids for e, ids in enumerate(x)), None)


@rule("aten.im2col")
def im2col(c: Coupling, call: Call) -> Layout:
    """[.., C, H, W] to [.., C kh kw, positions]: each channel becomes a block."""
    x = spatial_whole(c, call, c.layout(call["self"]), len(c.layout(call["self"])) - 2)
    each = call["kernel_size"][0] * call["kernel_size"][-1]
    return (*x[:-3], None if x[-3] is None else np.repeat(x[-3], each), None)


@rule("aten.zeros", "aten.ones", "aten.full", "aten.new_zeros", "aten.new_ones", "aten.new_full",
      "aten.empty", "aten.new_empty", "aten.rand", "aten.randn")  # fmt: skip
def constant(c: Coupling, call: Call) -> Layout:
    """One number everywhere: follows what it meets (that its size was not written as a number, the check run shows)."""
    return tuple(c.atoms.new(size) if size > 1 else None for size in shape_of(call.node))


@rule("aten.cat", "aten.concat", "aten.concatenate", "aten.hstack")
def cat(c: Coupling, call: Call) -> Layout:
    """Channels one after the other; the other dimensions meet."""
    parts = [n for n in call["tensors"] if shape_of(n) != (0,)]
    rank = len(shape_of(parts[0]))
    d = dim_of(call.get("dim", int(call.name == "aten.hstack" and rank > 1)), rank)
    result: list[object] = []
    for e in range(rank):
        ids = [c.layout(n)[e] for n in parts]
        if e != d:
            for other in ids[1:]:
                c.couple(call, ids[0], other)
            result.append(ids[0])
        elif any(i is not None for i in ids):
            filled = [np.zeros(shape_of(n)[d], np.int64) if i is None else i for n, i in zip(parts, ids, strict=True)]
            result.append(np.concatenate(filled))
        else:
            result.append(None)
    return tuple(result)  # type: ignore[arg-type]


@rule("aten.stack")
def stack(c: Coupling, call: Call) -> Layout:
    """A new dimension; the others meet."""
    parts = call["tensors"]
    first = c.layout(parts[0])
    for other in parts[1:]:
        for a, b in zip(first, c.layout(other), strict=True):
            c.couple(call, a, b)
    d = dim_of(call.get("dim", 0), len(first) + 1)
    return (*first[:d], None, *first[d:])


@rule("aten.chunk", "aten.split", "aten.split_with_sizes", "aten.tensor_split")
def chunk(c: Coupling, call: Call) -> list[Layout]:
    """Equal parts of a channel dimension lose the same channels; unequal ones go their own ways where their sizes are
    given one by one (they must be attributes of a module then, not numbers: the check run shows)."""
    x, shapes = c.layout(call["self"]), shapes_of(call.node)
    d = dim_of(call.get("dim", 0), len(x))
    sizes = [shape[d] for shape in shapes]
    ids = x[d]
    parts: list[Ids | None] = [None] * len(shapes)
    given = next((call.args[n] for n in ("split_sizes", "split_size", "indices") if n in call.args), None)
    if ids is not None and len(set(sizes)) > 1 and not isinstance(given, (list, tuple)):
        c.whole(call, ids, "the parts are not of one size, and with fewer channels they would be cut elsewhere")
    elif ids is not None and len(set(sizes)) > 1:
        parts = [p if len(p) > 1 else None for p in np.split(ids, np.cumsum(sizes)[:-1])]
        for alone in (p for p in np.split(ids, np.cumsum(sizes)[:-1]) if len(p) == 1):
            c.whole(call, alone, "a single channel is split off")
    elif ids is not None and c.equal_pattern(call, ids, len(shapes)) is not None:
        parts = list(ids.reshape(len(shapes), -1))
    return [(*x[:d], part, *x[d + 1 :]) for part in parts]


@rule("aten.slice", "aten.narrow")
def slice_(c: Coupling, call: Call) -> Layout:
    """All of a dimension passes; one half makes both halves lose the same channels; another part keeps it whole."""
    x, before, after = c.layout(call["self"]), shape_of(call["self"]), shape_of(call.node)
    d = dim_of(call.get("dim", 0), len(x))
    ids = x[d]
    if before[d] == after[d] or ids is None:
        return x if before[d] == after[d] else x[:d] + (None,) + x[d + 1 :]
    start, half = call.get("start", 0), before[d] // 2
    halves = isinstance(start, int) and call.get("step", 1) == 1 and 2 * after[d] == before[d]
    if halves and start % before[d] in (0, half):
        part = c.equal_pattern(call, ids, 2)
        return (*x[:d], None if part is None else ids.reshape(2, -1)[int(start != 0)], *x[d + 1 :])
    c.whole(call, ids, "takes a part of the channels by number")
    return tuple(None if e == d else ids for e, ids in enumerate(x))


@rule("aten.select", "aten.unbind")
def select(c: Coupling, call: Call) -> Layout | list[Layout]:
    """One position of a dimension, which stays whole."""
    x = c.layout(call["self"])
    d = dim_of(call.get("dim", 0), len(x))
    c.whole(call, x[d], "takes a channel by number")
    rest = tuple(ids for e, ids in enumerate(x) if e != d)
    return [rest] * len(shapes_of(call.node)) if call.name == "aten.unbind" else rest


@rule("aten.flip", "aten.roll")
def flip(c: Coupling, call: Call) -> Layout:
    """Moves positions within a dimension, which stays whole."""
    x = c.layout(call["self"])
    c.whole_dims(call, x, dims_of(call["dims"], len(x)), "moves the channels")
    return x


@rule("aten.pad", "aten.constant_pad_nd")
def pad(c: Coupling, call: Call) -> Layout:
    """Padding is a constant of fixed width: it stays whole beside the channels it is put around."""
    x, amounts = list(c.layout(call["self"])), call["pad"]
    constant_ = call.get("mode", "constant") == "constant"
    for k in range(len(amounts) // 2):
        before, after = amounts[2 * k], amounts[2 * k + 1]
        d = len(x) - 1 - k
        ids = x[d]
        if ids is None or (before == 0 and after == 0):
            continue
        if before < 0 or after < 0 or not constant_:
            c.whole(call, ids, "crops or mirrors the channels")
            x[d] = None
        else:
            x[d] = np.concatenate([np.zeros(before, np.int64), ids, np.zeros(after, np.int64)])
    return tuple(x)


@rule("aten.pixel_shuffle")
def pixel_shuffle(c: Coupling, call: Call) -> Layout:
    """[.., C r^2, H, W] to [.., C, rH, rW]: the r^2 channels of one result channel go together."""
    x = list(spatial_whole(c, call, c.layout(call["self"]), len(c.layout(call["self"])) - 2))
    d, r2 = len(x) - 3, call["upscale_factor"] ** 2
    ids = x[d]
    if ids is not None:
        first = ids[::r2].copy()
        c.couple(call, ids, np.repeat(first, r2))
        x[d] = first if len(first) > 1 else None
    return tuple(x)


@rule("aten.pixel_unshuffle")
def pixel_unshuffle(c: Coupling, call: Call) -> Layout:
    """[.., C, rH, rW] to [.., C r^2, H, W]: each channel becomes r^2."""
    x = list(spatial_whole(c, call, c.layout(call["self"]), len(c.layout(call["self"])) - 2))
    d, ids = len(x) - 3, x[len(x) - 3]
    x[d] = None if ids is None else np.repeat(ids, call["downscale_factor"] ** 2)
    return tuple(x)


@rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def channel_shuffle(c: Coupling, call: Call) -> Layout:
    """Groups are interleaved and lose the same local channels."""
    x = list(c.layout(call["self"]))
    groups = call["groups"]
    pattern = c.equal_pattern(call, x[1], groups)
    x[1] = None if pattern is None else np.repeat(pattern, groups)
    return tuple(x)


@rule("aten.index")
def index(c: Coupling, call: Call) -> Layout:
    """Dimensions that are looked up by number stay whole, the others pass (a bias table keeps its heads)."""
    x, indices = c.layout(call["self"]), list(call["indices"])
    at = [d for d, i in enumerate(indices) if i is not None]
    c.whole_dims(call, x, at, "looked up by number")
    rank = len(shape_of(call.node)) - (len(x) - len(at))
    rest = [ids for d, ids in enumerate(x) if d not in at]
    first = at[0] if at and at == list(range(at[0], at[-1] + 1)) else 0
    return (*rest[:first], *[None] * rank, *rest[first:])


@rule("aten.index_select", "aten.gather", "aten.take_along_dim")
def index_select(c: Coupling, call: Call) -> Layout:
    """One dimension is looked up by number; of ``gather`` all stay whole."""
    x = c.layout(call["self"])
    d = dim_of(call.get("dim", 0), len(x))
    whole = [d] if call.name == "aten.index_select" else range(len(x))
    c.whole_dims(call, x, whole, "looked up by number")
    return tuple(None if e in whole else ids for e, ids in enumerate(x))


@rule("aten.index_add")
def index_add(c: Coupling, call: Call) -> Layout:
    """Sources that say by an index where in the result they are added may be fewer; the result stays as wide."""
    x, index, source = (c.layout(call[name]) for name in ("self", "index", "source"))
    d = dim_of(call["dim"], len(x))
    c.whole(call, x[d], "others are added to it by number")
    if index:
        c.couple(call, source[d], index[0])
    for e in range(len(x)):
        if e != d:
            c.couple(call, x[e], source[e])
    return x


@rule("aten.topk")
def topk(c: Coupling, call: Call) -> list[Layout]:
    """A channel that is zero may be among the largest, so all stay, unless what is taken goes back to its place."""
    x = c.layout(call["self"])
    d = dim_of(call.get("dim", -1), len(x))
    if _returns(call.node, d):
        c.taken.append((call["self"], d))
    else:
        c.whole(call, x[d], "selects the largest of these channels")
    kept = (*x[:d], None, *x[d + 1 :])
    return [kept, kept]


@rule("aten.scatter")
def scatter(c: Coupling, call: Call) -> Layout:
    """What a topk took goes back to where it was: those channels may be fewer. Any other numbering stays whole."""
    x, index = c.layout(call["self"]), call["index"]
    d = dim_of(call["dim"], len(x))
    taken = index.args[0] if isinstance(index, Node) and index.target is operator.getitem else None
    if isinstance(taken, Node) and operation_name(taken.target) == "aten.topk" and _returns(taken, d):
        c.couple(call, x[d], c.layout(taken.args[0])[d])
    else:
        c.whole(call, x[d], "others are put into it by number")
    for value in (index, call.get("src")):
        for e, ids in enumerate(c.layout(value)):
            if e != d:
                c.couple(call, x[e], ids)
            elif ids is not None:
                c.whole(call, ids, "put into another by number")
    return x


def _returns(node: Node, d: int) -> bool:
    """Whether the values that a topk takes are of a layer behind a ReLU, where removed channels are zero and none is
    less, and go nowhere but to their own places among zeros."""
    source = node.args[0]
    if not isinstance(source, Node) or operation_name(source.target) != "aten.relu":
        return False
    if operation_name(source.all_input_nodes[0].target) not in _LAYERS or Call(node, "").get("largest") is False:
        return False
    parts = {user.args[1]: user for user in node.users}
    puts = {user for part in parts.values() for user in part.users}
    if set(parts) != {0, 1} or any(operation_name(put.target) != "aten.scatter" for put in puts):
        return False
    for call in (Call(put, "") for put in puts):
        into = call["self"]
        zeros = operation_name(into.target) in ("aten.zeros_like", "aten.zeros", "aten.new_zeros")
        own = call["index"] is parts[1] and call.get("src") is parts[0] and into is not parts[0]
        if not (zeros and own and dim_of(call["dim"], len(shape_of(into))) == d):
            return False
    return True


_LAYERS = frozenset(
    ("aten.linear", "aten.addmm", "aten.mm", "aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution")
)
