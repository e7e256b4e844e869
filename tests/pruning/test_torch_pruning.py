"""Torch-Pruning as a peer: cutting one group of ours at a time, both must leave the same elements in every tensor."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from pruning_cases import traced

from edgeprune.pruning import SubmodelPlan, extract_state

tp = pytest.importorskip("torch_pruning")


@pytest.mark.parametrize("name", ["vgg", "resnet", "bottleneck", "mobilenet", "densenet"])
def test_same_coupled_layers_and_the_same_elements_left(name):
    model, (x,), graph = traced(name)
    rng = np.random.default_rng(0)
    for group, size in graph.map.groups.items():
        kept = tuple(sorted(rng.choice(size, int(rng.integers(1, size)), replace=False).tolist()))
        mine = extract_state(model.state_dict(), SubmodelPlan(graph.map, {group: kept}))
        theirs = copy.deepcopy(model).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer = tp.DependencyGraph().build_dependency(theirs, example_inputs=x)
        layer = theirs.get_submodule(group)
        cut = tp.prune_linear_out_channels if isinstance(layer, torch.nn.Linear) else tp.prune_conv_out_channels
        gone = [c for c in range(size) if c not in kept]
        peer.get_pruning_group(layer, cut, idxs=gone).prune()
        for tensor, values in theirs.state_dict().items():
            assert torch.equal(values, mine[tensor]), (group, tensor)
