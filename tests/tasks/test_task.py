"""Tasks by name, a user's own among them, and their evaluation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from edgeprune import tasks
from edgeprune.data import DataSet, Split
from edgeprune.errors import EdgePruneError


def refused(name):
    """The sentence about a task that cannot be had."""
    with pytest.raises(EdgePruneError) as caught:
        tasks.get(name)
    return str(caught.value)


def test_an_unknown_task_is_one_sentence():
    assert "unknown task 'digts'; did you mean 'digits'" in refused("digts")
    assert "'package.module:function'" in refused("digts")


@pytest.fixture
def user(tmp_path, monkeypatch):
    """``user(text)`` writes a module of a fresh name into the working directory and returns that name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text):
        name = f"own_{abs(hash((text, str(tmp_path))))}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_a_users_own_task(user):
    name = user("from edgeprune import tasks\ndef mine():\n    return tasks.get('digits')\n")
    assert tasks.get(f"{name}:mine").name == "digits"


def test_it_is_found_in_the_working_directory(tmp_path, monkeypatch):
    import sys

    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside_me.py").write_text("from edgeprune import tasks\nmine = lambda: tasks.get('digits')\n")
    assert tasks.get("beside_me:mine").name == "digits"


@pytest.mark.parametrize(
    ("text", "function", "sentence"),
    [
        ("def mine(): pass", "mine", "returned NoneType, not an edgeprune.tasks.Task"),
        ("def make_task(): pass", "mak_task", "has no function 'mak_task'; did you mean 'make_task'"),
        ("mine = 3", "mine", "has no function 'mine'"),
        ("def mine(): return 1 / 0", "mine", "it raised ZeroDivisionError: division by zero"),
        ("import nowhere_at_all", "mine", "No module named 'nowhere_at_all'"),
        ("def broken(:", "mine", "importing it failed (SyntaxError"),
        ("raise ValueError('no luck')", "mine", "importing it failed (ValueError: no luck)"),
    ],
)
def test_what_goes_wrong_in_it_is_one_sentence(user, text, function, sentence):
    assert sentence in refused(f"{user(text)}:{function}")


@pytest.mark.parametrize("name", ["nowhere_at_all:mine", "nowhere.at.all:mine"])
def test_a_module_that_is_not_there(name):
    assert "cannot import" in refused(name) and "install it" in refused(name)


@pytest.mark.parametrize("name", ["a:", ":a", "a/b.py:mine", ".a:mine", "a:b:c", "a:b c"])
def test_a_name_that_is_none(name):
    assert "write it as 'package.module:function'" in refused(name)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 16.0}, "batch_size is 16.0"),
        ({"lr": "0.1"}, "lr is '0.1'; give more than 0"),
        ({"lr": 0.0}, "lr is 0.0; give more than 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"momentum": -0.1}, "momentum is -0.1"),
        ({"weight_decay": float("inf")}, "weight_decay is inf"),
    ],
)
def test_numbers_that_cannot_train(change, sentence):
    with pytest.raises(EdgePruneError, match=sentence):
        replace(tasks.get("digits"), **change)


def test_a_dataset_function_must_return_a_dataset():
    with pytest.raises(EdgePruneError, match="dataset returned int, not a DataSet"):
        replace(tasks.get("digits"), dataset=lambda: 3).load_data()


def test_a_dataset_function_is_given_the_folder_it_asks_for(tmp_path):
    found = splits(*(torch.zeros(2), torch.zeros(2, dtype=torch.int64)) * 2)
    asked = []

    def of(folder):
        asked.append(folder)
        return found

    assert task_for(found).load_data(tmp_path) is found  # a function that needs nothing
    assert replace(task_for(found), dataset=lambda kept=found: kept).load_data(tmp_path) is found
    task = replace(task_for(found), dataset=of)
    assert task.load_data(tmp_path) is task.load_data() is found and asked == [tmp_path, None]
    with pytest.raises(EdgePruneError, match=r"its data cannot be loaded \(TypeError: .* 'more'"):
        replace(task, dataset=lambda folder, more: found).load_data(tmp_path)


def splits(x, y, test_x, test_y):
    return DataSet("mine", Split(x, y), Split(test_x, test_y), ("a", "b"), lambda v: v.float())


def task_for(dataset):
    return tasks.Task("mine", lambda: dataset, nn.Identity, lambda: (torch.zeros(2, 2),), batch_size=2, lr=0.1)


@pytest.mark.parametrize("batch", [1, 2, 3, 500])
def test_evaluation_by_hand(batch):
    """Scores (2, 0) and (0, 2): the right class costs log(1 + e^-2), the wrong one 2 more. Three of four are right."""
    scores = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]])
    dataset = splits(scores, torch.zeros(4, dtype=torch.int64), scores, torch.tensor([0, 1, 0, 0]))
    model = nn.Identity().train()
    accuracy, loss = tasks.evaluate(model, dataset, task_for(dataset), batch)
    assert accuracy == 0.75
    assert loss == pytest.approx(0.1269280110 + 2 / 4, abs=1e-6)
    assert not model.training


def test_of_text_every_character_counts():
    """Two windows of three characters, scores [N, classes, L]; five of six are right."""
    y = torch.tensor([[0, 1, 1], [0, 0, 1]])
    scores = functional.one_hot(y, 2).float().transpose(1, 2).contiguous() * 4
    wrong = y.clone()
    wrong[1, 2] = 0
    dataset = splits(scores, y, scores, wrong)
    assert tasks.evaluate(nn.Identity(), dataset, task_for(dataset))[0] == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    ("normalise", "model"),
    [(lambda v: v.sub_(1).div_(2), nn.Identity()), (lambda v: v, nn.Threshold(1.0, -3.0, inplace=True))],
    ids=["normalise", "model"],
)
def test_what_computes_in_place_leaves_the_test_data(normalise, model):
    scores = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.5]])
    dataset = replace(splits(scores, torch.zeros(3, dtype=torch.int64), scores, torch.tensor([0, 1, 1])))
    dataset, before = replace(dataset, normalise=normalise), scores.clone()
    first = tasks.evaluate(model, dataset, task_for(dataset))
    assert torch.equal(scores, before) and tasks.evaluate(model, dataset, task_for(dataset)) == first


def test_outputs_in_a_structure_are_judged_class_by_class():
    """A dict of two outputs, one of them without a row for each sample. Of class 0 half are right, of class 1 all."""

    class Net(nn.Module):
        def forward(self, x):
            return {"scores": (x, x), "norm": x.sum()}

    scores = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    dataset = splits(scores, torch.zeros(3, dtype=torch.int64), scores, torch.tensor([0, 0, 1]))
    task = replace(
        task_for(dataset),
        loss=lambda output, y: functional.cross_entropy(output["scores"][0], y),
        correct=lambda output, y: (output["scores"][1].argmax(1) == y).sum(),
    )
    accuracy, _, by_class = tasks.evaluate_by_class(Net(), dataset, task)
    assert accuracy == pytest.approx(2 / 3) and by_class == [0.5, 1.0]


@pytest.mark.parametrize("classes", [None, 2, "ab"])
def test_classes_that_are_no_names(classes):
    with pytest.raises(EdgePruneError, match="DataSet 'mine': classes is .*; give the name of each class"):
        replace(splits(*(torch.zeros(2), torch.zeros(2, dtype=torch.int64)) * 2), classes=classes)


@pytest.mark.parametrize(
    ("x", "y", "subject", "sentence"),
    [
        (torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), None, "x is torch.float64"),
        (torch.zeros(2), torch.zeros(2), None, "y torch.float32"),
        ([0.0, 1.0], torch.zeros(2, dtype=torch.int64), None, "x is list; give a torch.Tensor"),
        (torch.zeros(2), torch.zeros(2).numpy(), None, "y is ndarray; give a torch.Tensor"),
        (torch.zeros(2), torch.zeros(3, dtype=torch.int64), None, "2 samples but 3 labels"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int64), torch.zeros(3), "2 samples but 3 subjects"),
    ],
)
def test_a_split_that_does_not_fit_together(x, y, subject, sentence):
    with pytest.raises(EdgePruneError, match=sentence):
        Split(x, y, subject)
