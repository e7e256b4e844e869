"""Which views cut channels into the heads of attention: those whose result is multiplied and put through a softmax."""

from __future__ import annotations

from torch.fx import Node

from edgeprune.pruning.coupling import operation_name, shape_of

_PRODUCT = ("aten.matmul", "aten.bmm", "aten.baddbmm", "aten.einsum")
_STOP = ("aten.linear", "aten.addmm", "aten.mm", "aten.conv", "aten._native_batch_norm", "aten.batch_norm")
_VIEW = ("aten.view", "aten.reshape", "aten._unsafe_view", "aten.unflatten", "aten.flatten")
_FAR = 200  # nodes looked at before giving up; the way from a view to its product has five to sixty


def makes_heads(view: Node) -> bool:
    """Whether the result of this view (query, key or value, alone or fused) goes into attention before any layer.

    A view that a later one cuts further (query, key and value told apart, then the heads) makes heads only if its last
    dimension is already the width of a head.
    """
    last = shape_of(view)[-1]
    queue, seen = [(view, False, False)], {view}
    while queue and len(seen) < _FAR:
        node, multiplied, split = queue.pop(0)
        for user in node.users:
            if user in seen or user.op != "call_function":
                continue
            name = operation_name(user.target)
            found = "scaled_dot_product" in name or (multiplied and "softmax" in name)
            product = name in _PRODUCT
            if product and any(_from_softmax(other) for other in user.all_input_nodes if other is not node):
                found = True
            if found:
                if not split or last in {shape_of(n)[-1] for n in user.all_input_nodes if shape_of(n)}:
                    return True
                continue
            if any(name.startswith(s) for s in _STOP):
                continue
            width = shape_of(user)[-1:]
            cuts = name in _VIEW and width < shape_of(node)[-1:]
            joins = name in _VIEW and width == (last,)  # pairs of numbers, turned by their position, in a row again
            seen.add(user)
            queue.append((user, multiplied or product, (split or cuts) and not joins))
    return False


def _from_softmax(node: Node, steps: int = 8) -> bool:
    """Whether a value is attention weights: a softmax, then nothing but dropout, casts and views."""
    for _ in range(steps):
        if node.op != "call_function":
            return False
        if "softmax" in operation_name(node.target):
            return True
        if not node.all_input_nodes:
            return False
        node = node.all_input_nodes[0]
    return False
