"""Coupling rules of recurrent layers and cells: what they read, and the units of their states.

A unit whose weights and biases are all zero stays at zero when it begins there, so what is kept computes what it did.
All layers and directions of one module have as many units, and lose the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.fx import Node

from edgeprune.pruning.atoms import Ids, Layout
from edgeprune.pruning.coupling import Call, Coupling, rule, shape_of, shapes_of


@rule("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu")
def layers(c: Coupling, call: Call) -> list[Layout] | None:
    """Weights of one direction of a layer after the other's: from the input, from the state, biases, projection."""
    directions = 2 if call["bidirectional"] else 1
    each = len(call["params"]) // (directions * call["num_layers"])
    steps = [call["params"][i : i + each] for i in range(0, len(call["params"]), each)]
    matrices = [w for step in steps for w in step if len(shape_of(w)) == 2]
    x: Any = call.get("input", call.get("data"))
    if len(matrices) > 2 * len(steps):
        _projected(c, call, x, matrices, {3 * i for i in range(directions)})
        return None
    _count(c, x, matrices)
    units = c.layout(steps[0][1])[1]
    for i, (reading, keeping, *biases) in enumerate(steps):
        below = c.layout(x)[-1] if i < directions else _both(units, directions)
        _step(c, call, below, units, (reading, keeping, *biases))
    c.whole_dims(call, c.layout(x), range(len(c.layout(x)) - 1), "a recurrent layer goes along these positions")
    _begins(c, call, units)
    given, *states = shapes_of(call.node)
    return [(*[None] * (len(given) - 1), _both(units, directions)), *((*[None] * (len(s) - 1), units) for s in states)]


@rule("aten.lstm_cell", "aten.gru_cell", "aten.rnn_tanh_cell", "aten.rnn_relu_cell")
def cell(c: Coupling, call: Call) -> Layout | list[Layout]:
    """One step."""
    weights = [call[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh") if call.get(name) is not None]
    _count(c, call["input"], weights[:2])
    units = c.layout(weights[1])[1]
    _step(c, call, c.layout(call["input"])[-1], units, weights)
    c.whole_dims(call, c.layout(call["input"]), range(len(c.layout(call["input"])) - 1), "samples")
    _begins(c, call, units)
    if isinstance(call.node.meta.get("val"), (tuple, list)):
        return [(*[None] * (len(s) - 1), units) for s in shapes_of(call.node)]
    return (*[None] * (len(shape_of(call.node)) - 1), units)


def _step(c: Coupling, call: Call, below: Ids | None, units: Ids | None, weights: Sequence[Node]) -> None:
    """Columns meet what is read and the state; rows and biases, gate after gate, the units that they make."""
    reading, keeping, *biases = weights
    c.couple(call, below, c.layout(reading)[1])
    c.role(c.layout(reading)[1], "in")
    c.couple(call, units, c.layout(keeping)[1])
    for tensor in (reading, keeping, *biases):
        rows = c.layout(tensor)[0]
        c.role(rows, "out")
        gates = shape_of(tensor)[0] // shape_of(keeping)[1]
        for row in [None] * gates if rows is None else rows.reshape(gates, -1):
            c.couple(call, units, row)


def _begins(c: Coupling, call: Call, units: Ids | None) -> None:
    """The states at the beginning have the same units."""
    given = call["hx"]
    for state in given if isinstance(given, (tuple, list)) else [given]:
        layout = c.layout(state)
        c.couple(call, layout[-1], units)
        c.whole_dims(call, layout, range(len(layout) - 1), "layers and samples")


def _both(units: Ids | None, directions: int) -> Ids | None:
    return None if units is None else np.tile(units, directions)


def _count(c: Coupling, x: Node, weights: Sequence[Node]) -> None:
    """Every weight works at every position."""
    for weight in weights:
        c.count(c.layout(weight), shape_of(weight), math.prod(shape_of(x)[:-1]))


def _projected(c: Coupling, call: Call, x: Node, weights: Sequence[Node], first: set[int]) -> None:
    """States that are projected stay whole: the input's channels meet the columns of the ``first`` weights."""
    c.note(call, "states of recurrent layers that are projected stay whole")
    for i in first:
        c.couple(call, c.layout(x)[-1], c.layout(weights[i])[1])
        c.role(c.layout(weights[i])[1], "in")
    _count(c, x, weights)
    read = {x, *(weights[i] for i in first)}
    for operand in call.tensors():
        layout = c.layout(operand)
        for d, ids in enumerate(layout):
            if not (operand in read and d == len(layout) - 1):
                c.whole(call, ids, "the projected state of a recurrent layer")
