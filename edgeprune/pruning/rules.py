"""The coupling rules, one per ATen operation; enter your own with ``edgeprune.pruning.coupling.rule``.

Names in ``call[...]`` are the operator schema's. Two spellings of one operation occur because torch.export decomposes
differently over the versions of torch (convolution and conv2d, addmm and linear, ...).
"""

from __future__ import annotations

import math
import string

import numpy as np
from torch.fx import Node

from edgeprune.pruning.atoms import Ids, Layout
from edgeprune.pruning.coupling import Call, Coupling, rule, shape_of, shapes_of


def dim_of(value: int, rank: int) -> int:
    return value % rank if rank else 0


def dims_of(value: int | list[int] | None, rank: int) -> list[int]:
    if value is None or value == []:
        return list(range(rank))
    return sorted({dim_of(v, rank) for v in ([value] if isinstance(value, int) else value)})


# --- contractions: a removed input channel is a removed column --------------------------------------------------------


@rule("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution", "aten.conv_transpose1d", "aten.conv_transpose2d",
      "aten.conv_transpose3d")  # fmt: skip
def convolution(c: Coupling, call: Call) -> Layout:
    """weight [O, I/g, k...] or, transposed, [I, O/g, k...].

    Depthwise: output channel i follows input channel i // multiplier. Grouped: all groups lose the same local pattern.
    """
    x, weight = call["input"], call["weight"]
    groups = call.get("groups", 1)
    transposed = "transpose" in call.name or bool(call.get("transposed", False))
    w, w_shape, x_shape, out = c.layout(weight), shape_of(weight), shape_of(x), shape_of(call.node)
    at = len(x_shape) - len(w_shape) + 1
    c.whole_dims(call, w, range(2, len(w)), "kernel taps stay")
    ids = c.layout(x)[at]
    into, outof = (w[0], w[1]) if transposed else (w[1], w[0])
    per_input = w_shape[0 if transposed else 1]
    made = w_shape[1] * groups if transposed else w_shape[0]
    c.role(outof, "out")
    if groups == 1:
        c.role(into, "in")
        c.couple(call, ids, into)
    elif per_input == (groups if transposed else 1):  # depthwise
        multiplier = made // groups
        c.couple(call, ids, into if transposed else None if outof is None else outof[::multiplier])
        if transposed:
            c.whole(call, outof, "the multiplier of a depthwise convolution stays")
            c.role(into, "out")
            outof = None if into is None else np.repeat(into, multiplier)
        elif outof is not None:
            c.couple(call, outof, np.repeat(outof[::multiplier], multiplier))
    else:
        c.role(into, "in")
        pattern = c.equal_pattern(call, ids, groups)
        if transposed:
            c.couple(call, pattern, c.equal_pattern(call, into, groups))
            outof = None if outof is None else np.tile(outof, groups)
        else:
            c.couple(call, pattern, into)
            c.equal_pattern(call, outof, groups)
    if call.get("bias") is not None:
        c.couple(call, outof, c.layout(call["bias"])[0])
    positions = math.prod(x_shape) // x_shape[at] if transposed else math.prod(out) // out[at]
    c.count(w, w_shape, positions)
    return tuple(outof if d == at else ids_ for d, ids_ in enumerate(spatial_whole(c, call, c.layout(x), at + 1)))


@rule("aten.linear")
def linear(c: Coupling, call: Call) -> Layout:
    """weight [O, I]: the last dimension of the input meets I, the result has O."""
    x, weight = call["input"], call["weight"]
    w = c.layout(weight)
    c.couple(call, c.layout(x)[-1], w[1])
    c.role(w[0], "out")
    c.role(w[1], "in")
    if call.get("bias") is not None:
        c.couple(call, w[0], c.layout(call["bias"])[0])
    rows = [d for d in range(len(shape_of(x)) - 1) if c.atoms.prunable(c.layout(x)[d])]
    positions = math.prod(s for d, s in enumerate(shape_of(x)[:-1]) if d not in rows)
    c.count((*w, *(c.layout(x)[d] for d in rows)), (*shape_of(weight), *(shape_of(x)[d] for d in rows)), positions)
    return (*c.layout(x)[:-1], w[0])


@rule("aten.mm", "aten.bmm", "aten.matmul")
def matmul(c: Coupling, call: Call) -> Layout | None:
    """[..., n, k] @ [..., k, m]: k meets k."""
    return _product(c, call, call["self"], call.get("mat2", call.get("other")))


def _product(c: Coupling, call: Call, a: Node, b: Node) -> Layout | None:
    la, lb, sa, sb = c.layout(a), c.layout(b), shape_of(a), shape_of(b)
    if len(sa) < 2 or len(sb) < 2:
        for layout in (la, lb):
            c.whole_dims(call, layout, range(len(layout)), "a product with a vector")
        return None
    c.couple(call, la[-1], lb[-2])
    c.role(lb[-2], "in")
    c.role(lb[-1], "out")
    out = shape_of(call.node)
    batch = _batch(c, call, a, b, out)
    c.count_product((*batch, la[-2], *lb[-2:]), (*out[:-1], *sb[-2:]))
    return (*batch, la[-2], lb[-1])


def _batch(c: Coupling, call: Call, a: object, b: object, out: tuple[int, ...]) -> Layout:
    sides = [(c.layout(n)[:-2], shape_of(n)[:-2]) for n in (a, b)]
    result: list[object] = [None] * (len(out) - 2)
    for d, size in enumerate(out[:-2]):
        at = d - (len(out) - 2)
        full = [lay[at] for lay, shape in sides if len(shape) >= -at and shape[at] == size and size > 1]
        if len(full) == 2:
            c.couple(call, full[0], full[1])
        result[d] = full[0] if full else None
    return tuple(result)  # type: ignore[arg-type]


@rule("aten.baddbmm")
def baddbmm(c: Coupling, call: Call) -> Layout | None:
    """added + a @ b, for every matrix of a batch."""
    added, product = call["self"], _product(c, call, call["batch1"], call["batch2"])
    assert product is not None  # its operands are batches of matrices
    result = list(product)
    for back in range(-len(shape_of(added)), 0):
        if shape_of(added)[back] > 1:
            c.couple(call, result[back], c.layout(added)[back])
            result[back] = c.layout(added)[back] if result[back] is None else result[back]
    return tuple(result)


@rule("aten.addmm")
def addmm(c: Coupling, call: Call) -> Layout:
    """bias + a @ b; the decomposed form of linear (b is the transposed weight)."""
    a, b = call["mat1"], call["mat2"]
    la, lb = c.layout(a), c.layout(b)
    c.couple(call, la[1], lb[0])
    c.role(lb[0], "in")
    c.role(lb[1], "out")
    bias = c.layout(call["self"])
    if bias and shape_of(call["self"])[-1] > 1:
        c.couple(call, lb[1], bias[-1])
        c.whole_dims(call, bias, range(len(bias) - 1), "a bias of several rows")
    c.count((la[0], *lb), (shape_of(a)[0], *shape_of(b)), 1)
    return (la[0], lb[1])


@rule("aten.embedding")
def embedding(c: Coupling, call: Call) -> Layout:
    """weight [rows, width]: rows are words and stay."""
    w = c.layout(call["weight"])
    c.whole(call, w[0], "rows of an embedding are words")
    c.role(w[1], "out")
    return (*c.layout(call["indices"]), w[1])


@rule("aten.embedding_bag", "aten._embedding_bag")
def embedding_bag(c: Coupling, call: Call) -> list[Layout]:
    """One row a bag, the sum or mean of rows of the weight; then three tensors of counts."""
    w = c.layout(call["weight"])
    c.whole(call, w[0], "rows of an embedding are words")
    c.role(w[1], "out")
    return [(None, w[1]), *((None,) * len(s) for s in shapes_of(call.node)[1:])]


@rule("aten.einsum")
def einsum(c: Coupling, call: Call) -> Layout | None:
    """Dimensions of one letter go together, summed or not."""
    nodes = list(call["tensors"])
    terms, output = _spelled(call["equation"], [len(shape_of(n)) for n in nodes])
    if any(len(set(t)) < len(t) for t in terms):
        for node in nodes:
            c.whole_dims(call, c.layout(node), range(len(shape_of(node))), "an einsum that takes a diagonal")
        return None
    met: dict[str, Ids | None] = {}
    sizes: dict[str, int] = {}
    for term, node in zip(terms, nodes, strict=True):
        for letter, ids, size in zip(term, c.layout(node), shape_of(node), strict=True):
            c.role(ids, "in" if letter not in output else "out")
            if letter in met and 1 not in (size, sizes[letter]):
                c.couple(call, met[letter], ids)
            if met.get(letter) is None or sizes[letter] == 1:
                met[letter] = ids
            sizes[letter] = max(size, sizes.get(letter, 1))
    for letter in met:
        if sum(letter in t for t in terms) == 1 and letter not in output:
            c.whole(call, met[letter], "sums over these channels")
    _count_einsum(c, terms, output, met, sizes)
    return tuple(met[letter] for letter in output)


def _spelled(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """The terms and the result of an equation, '...' as letters of its own and a result left out written down."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow:
        output = "..." * ("..." in inputs) + "".join(sorted(x for x in set(inputs) - set(".,") if inputs.count(x) == 1))
    hidden = [rank - len(t) + 3 if "..." in t else 0 for t, rank in zip(terms, ranks, strict=True)]
    unused = "".join(x for x in string.ascii_letters if x not in equation)[: max(hidden)]
    terms = [t.replace("...", unused[len(unused) - n :]) for t, n in zip(terms, hidden, strict=True)]
    return terms, output.replace("...", unused)


def _count_einsum(
    c: Coupling, terms: list[str], output: str, met: dict[str, Ids | None], sizes: dict[str, int]
) -> None:
    """Products of two operands after the other, as torch makes them; without a sum they are no products of matrices."""
    first = terms[0]
    for k, term in enumerate(terms[1:], 2):
        later = "".join(terms[k:]) + output
        letters = [x for x in dict.fromkeys(first + term) if x in later or (x in first and x in term)]
        first = "".join(x for x in letters if x in later)
        if len(first) < len(letters):
            c.count_product(tuple(met[x] for x in letters), tuple(sizes[x] for x in letters))


# --- elementwise ------------------------------------------------------------------------------------------------------


@rule("pointwise", "aten.copy", "aten.where", "aten.masked_fill", "aten.expand_as", "aten.hardswish",
      "aten.hardsigmoid", "aten.hardtanh", "aten.relu6", "aten.silu", "aten.mish", "aten.gelu", "aten.elu", "aten.selu",
      "aten.celu", "aten.leaky_relu", "aten.log_sigmoid", "aten.softplus", "aten.softshrink", "aten.hardshrink",
      "aten.threshold", "aten.complex", "aten.polar")  # fmt: skip
def pointwise(c: Coupling, call: Call) -> Layout:
    """Any elementwise operation with broadcasting (every operation that torch tags as pointwise comes here)."""
    return c.broadcast(call, list(call.tensors()), shape_of(call.node))


@rule("aten.clone", "aten.contiguous", "aten.detach", "aten.alias", "aten.lift_fresh_copy", "aten.to", "aten._to_copy",
      "aten.dropout", "aten.feature_dropout", "aten.alpha_dropout", "aten.zeros_like", "aten.ones_like",
      "aten.full_like", "aten.empty_like", "aten.rand_like", "aten.randn_like", "aten.bernoulli", "aten.fill",
      "aten.zero", "aten.type_as")  # fmt: skip
def unchanged(c: Coupling, call: Call) -> Layout:
    """The result lies as the (first) operand does."""
    return c.layout(next(call.tensors()))


@rule("aten._assert_tensor_metadata", "aten.sym_size", "aten._assert_scalar")
def no_result(c: Coupling, call: Call) -> None:
    """Looks at a shape or a type only."""


@rule("aten.native_dropout")
def native_dropout(c: Coupling, call: Call) -> list[Layout]:
    """(result, mask)"""
    return [c.layout(call["input"])] * 2


@rule("aten.prelu", "aten._prelu_kernel")
def prelu(c: Coupling, call: Call) -> Layout:
    """One slope, or one per channel (dimension 1)."""
    x, w = c.layout(call["self"]), c.layout(call["weight"])
    if math.prod(shape_of(call["weight"])) > 1:
        for ids in w:
            if ids is not None:
                c.couple(call, x[1] if len(x) > 1 else None, ids)
    return x


@rule("aten.softmax", "aten._softmax", "aten.log_softmax", "aten._log_softmax", "aten.cumsum", "aten.cumprod",
      "aten.logcumsumexp", "aten.sort", "aten.argsort")  # fmt: skip
def along_one_dim(c: Coupling, call: Call) -> Layout | list[Layout]:
    """The values along the dimension depend on one another: it stays whole."""
    x = c.layout(call["self"])
    c.whole_dims(call, x, dims_of(call["dim"], len(x)), "mixes these channels")
    return [x, x] if isinstance(call.node.meta.get("val"), (tuple, list)) else x


@rule("aten.glu")
def glu(c: Coupling, call: Call) -> Layout:
    """The second half gates the first: both lose the same channels."""
    x = list(c.layout(call["self"]))
    d = dim_of(call.get("dim", -1), len(x))
    x[d] = c.equal_pattern(call, x[d], 2)
    return tuple(x)


# --- pooling, resizing, reductions ------------------------------------------------------------------------------------


def spatial_whole(c: Coupling, call: Call, layout: Layout, start: int) -> Layout:
    c.whole_dims(call, layout, range(start, len(layout)), "works over these positions")
    return (*layout[:start], *[None] * (len(layout) - start))


def _pool(spatial: int) -> None:
    names = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "_adaptive_avg_pool", "lp_pool")
    others = ("upsample_nearest", "_upsample_nearest_exact", "reflection_pad", "replication_pad")
    both = [f"aten.{n}{spatial}d" for n in (*names, *others)] + [f"aten.max_pool{spatial}d_with_indices"]
    both += {1: ["aten.upsample_linear1d"], 3: ["aten.upsample_trilinear3d"]}.get(
        spatial, ["aten.upsample_bilinear2d", "aten.upsample_bicubic2d", "aten._upsample_bilinear2d_aa"]
    )

    @rule(*both)
    def pool(c: Coupling, call: Call) -> Layout | list[Layout]:
        x = c.layout(next(call.tensors()))
        out = spatial_whole(c, call, x, len(x) - spatial)
        several = isinstance(call.node.meta.get("val"), (tuple, list))
        return [out, out] if several else out


for _n in (1, 2, 3):
    _pool(_n)


@rule("aten.mean", "aten.sum", "aten.nanmean", "aten.nansum", "aten.amax", "aten.amin", "aten.var", "aten.std",
      "aten.var_mean", "aten.std_mean", "aten.norm", "aten.linalg_vector_norm", "aten.logsumexp", "aten.argmax",
      "aten.argmin", "aten.prod", "aten.any", "aten.all", "aten.max", "aten.min", "aten.median", "aten.mode",
      "aten.count_nonzero")  # fmt: skip
def reduction(c: Coupling, call: Call) -> Layout | list[Layout] | None:
    """Reduced dimensions stay whole (a mean over fewer channels is another mean), the others pass."""
    if call.get("other") is not None:  # the larger of two tensors
        return pointwise(c, call)
    x = c.layout(call["self"])
    dims = dims_of(call.get("dim"), len(x))
    c.whole_dims(call, x, dims, "reduces over these channels")
    kept = tuple(None if d in dims else ids for d, ids in enumerate(x))
    out = kept if call.get("keepdim", False) else tuple(ids for d, ids in enumerate(kept) if d not in dims)
    return [out] * len(shapes_of(call.node)) if isinstance(call.node.meta.get("val"), (tuple, list)) else out
