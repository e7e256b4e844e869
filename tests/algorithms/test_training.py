"""Local training: as many steps as are planned for."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeprune.algorithms.protocol import Recipe
from edgeprune.algorithms.training import LocalData, planned_steps, train_local


@settings(deadline=None)
@given(samples=st.integers(1, 20), batch=st.integers(2, 8), epochs=st.integers(1, 3), most=st.integers(0, 9))
def test_planned_steps_are_those_that_are_done(samples, batch, epochs, most):
    data = LocalData(torch.randn(samples, 3), torch.zeros(samples, dtype=torch.int64), lambda x: x)
    recipe = Recipe(epochs, batch, 0.1, 0.0, 0.0, steps=most)
    done = train_local(nn.Linear(3, 2), data, nn.functional.cross_entropy, recipe, seed=0)
    assert planned_steps(samples, recipe) == done.steps
