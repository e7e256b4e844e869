"""Coupling rules of attention: heads of query, key and value go together; grouped queries follow their key's head."""

from __future__ import annotations

import numpy as np

from edgeprune.pruning.atoms import Ids, Layout
from edgeprune.pruning.coupling import Call, Coupling, rule, shape_of, shapes_of


@rule("aten.scaled_dot_product_attention", "aten._scaled_dot_product_flash_attention_for_cpu",
      "aten._scaled_dot_product_flash_attention", "aten._scaled_dot_product_efficient_attention",
      "aten._scaled_dot_product_attention_math")  # fmt: skip
def attention(c: Coupling, call: Call) -> Layout | list[Layout]:
    """query [.., H, T, E], key [.., G, S, E], value [.., G, S, V] to [.., H, T, V]; H a multiple of G.

    Of the width E something can go only where the scale is given: the default one is 1 / sqrt(E).
    """
    nodes = [call[n] for n in ("query", "key", "value")]
    (q, k, v), shapes = [c.layout(n) for n in nodes], [shape_of(n) for n in nodes]
    for layout in (q, k, v):
        c.whole_dims(call, layout, [len(layout) - 2], "attends over these positions")
    c.couple(call, q[-1], k[-1])
    if call.get("scale") is None:
        c.whole(call, q[-1], "the scale of attention is that of the width of a head")
    outer: list[Ids | None] = list(q[:-2])
    for d in range(len(outer)):
        back = d - len(q)
        h, g = shapes[0][d], shapes[1][back] if len(k) >= -back else 1
        c.couple(call, k[back] if len(k) >= -back else None, v[back] if len(v) >= -back else None)
        shared = k[back] if len(k) >= -back and g > 1 else None
        if g == h:
            c.couple(call, outer[d], shared)
            outer[d] = shared if outer[d] is None else outer[d]
        elif g > 1:
            c.couple(call, outer[d], None if shared is None else np.repeat(shared, h // g))
    mask = call.get("attn_mask")
    for back in range(-len(shape_of(mask)), -2):
        if shape_of(mask)[back] > 1 and len(outer) >= -(back + 2):
            c.couple(call, outer[back + 2], c.layout(mask)[back])
    c.whole_dims(call, c.layout(mask), [d for d in range(len(c.layout(mask))) if d >= len(c.layout(mask)) - 2], "masks")
    c.count_product((*outer, None, q[-1], None), (*shapes[0], shapes[1][-2]))
    c.count_product((*outer, None, v[-1], None), (*shapes[0][:-1], shapes[2][-1], shapes[1][-2]))
    out: Layout = (*outer, None, v[-1])
    if not isinstance(call.node.meta.get("val"), (tuple, list)):
        return out
    return [out, *((None,) * len(s) for s in shapes_of(call.node)[1:])]
