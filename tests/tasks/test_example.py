"""examples/user_task.py works as its first lines say."""

from __future__ import annotations

from pathlib import Path

import torch

import edgeprune
from edgeprune import tasks

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_example_learns_and_can_be_pruned(monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    task = tasks.get("user_task:cell_nuclei")
    data = task.load_data()
    assert len(data.train) + len(data.test) == 569
    torch.manual_seed(0)
    model = task.make_model()
    small = edgeprune.prune(model, task.example_inputs(), keep=0.25, importance="bn").model.train()
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters()) / 5
    optimiser = torch.optim.SGD(small.parameters(), lr=task.lr, momentum=task.momentum)
    for _ in range(10):
        for batch in torch.randperm(len(data.train)).split(task.batch_size):
            optimiser.zero_grad()
            task.loss(small(data.normalise(data.train.x[batch])), data.train.y[batch]).backward()
            optimiser.step()
    accuracy, _ = tasks.evaluate(small, data, task)
    assert accuracy > 0.9
