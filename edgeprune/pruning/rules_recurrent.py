"""Coupling rules of recurrent layers and cells: what they read can be cut, their states stay whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from edgeprune.pruning.coupling import Call, Coupling, rule, shape_of

_STATE = "the state of a recurrent layer"


@rule("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu")
def layers(c: Coupling, call: Call) -> None:
    """Weights of one direction of a layer after the other's: from the input, from the state, of the projection."""
    weights = [w for w in call["params"] if len(shape_of(w)) == 2]
    directions = 2 if call["bidirectional"] else 1
    each = len(weights) // (directions * call["num_layers"])
    _read(c, call, weights, {i * each for i in range(directions)})


@rule("aten.lstm_cell", "aten.gru_cell", "aten.rnn_tanh_cell", "aten.rnn_relu_cell")
def cell(c: Coupling, call: Call) -> None:
    """One step: weights from the input and from the state."""
    _read(c, call, [call["w_ih"], call["w_hh"]], {0})


def _read(c: Coupling, call: Call, weights: Sequence[Node], first: set[int]) -> None:
    """The input's channels meet the columns of the ``first`` weights; every weight works at every position."""
    c.note(call, "the states of recurrent layers go round and stay whole")
    x: Any = call.get("input", call.get("data"))
    for i, weight in enumerate(weights):
        if i in first:
            c.couple(call, c.layout(x)[-1], c.layout(weight)[1])
            c.role(c.layout(weight)[1], "in")
        c.count(c.layout(weight), shape_of(weight), math.prod(shape_of(x)[:-1]))
    read = {x, *(weights[i] for i in first)}
    for operand in call.tensors():
        layout = c.layout(operand)
        for d, ids in enumerate(layout):
            if not (operand in read and d == len(layout) - 1):
                c.whole(call, ids, _STATE)
