"""Model files: what comes back, without pickle; and files that nobody vouches for."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pruning_cases import CASES, random_plan, traced
from torch import nn

import edgeprune
from edgeprune import EdgePruneError
from edgeprune.pruning import SubmodelPlan, extract, files


@pytest.fixture
def small(tmp_path):
    model, x, graph = traced("resnet")
    plan = random_plan(graph, 3)
    sub = extract(model, plan)
    return files.save(sub, plan, tmp_path / "small", {"kept": plan.counts}), model, plan, sub, x


@pytest.mark.parametrize("name", CASES)
def test_the_module_comes_back_into_a_fresh_full_model(name, tmp_path, monkeypatch):
    model, x, graph = traced(name)
    plan = random_plan(graph, 1)
    sub = extract(model, plan).eval()
    folder = edgeprune.save(sub, plan, tmp_path / "small")
    assert sorted(os.listdir(tmp_path)) == ["small"] and sorted(os.listdir(folder)) == sorted(
        (files.PLAN, files.WEIGHTS)
    )

    def refuse(*args, **kwargs):
        raise AssertionError("pickle was used, or the model was pruned again")

    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(edgeprune.pruning.ChannelGraph, "trace", refuse)
    torch.manual_seed(99)  # other weights, which must not shine through
    again, same_plan = edgeprune.load(folder, CASES[name][0])
    assert same_plan == plan and not again.training
    for (n, a), (m, b) in zip(sub.state_dict().items(), again.state_dict().items(), strict=True):
        assert n == m and torch.equal(a, b)
    with torch.no_grad():
        np.testing.assert_array_equal(again(*x).numpy(), sub(*x).numpy())


def test_what_was_said_about_it_and_a_full_model_in_hand(small):
    folder, model, plan, sub, _ = small
    before = [t.clone() for t in model.state_dict().values()]
    assert files.describe(folder) == {"kept": plan.counts}
    again, _ = files.load(folder, model)
    assert again is not model and all(map(torch.equal, before, model.state_dict().values()))


def test_one_bit_of_a_weight_is_noticed(small):
    folder, model, *_ = small
    path = folder / files.WEIGHTS
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(EdgePruneError, match="its weights are not those that were written"):
        files.load(folder, model)


def test_tied_weights_stay_tied(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.a = nn.Linear(6, 6), nn.Linear(6, 8)
            self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8)
            self.c.weight = self.b.weight

        def forward(self, x):
            return self.c(torch.relu(self.b(torch.relu(self.a(torch.relu(self.first(x)))))))

    model = Tied()
    sub = edgeprune.prune(model, torch.randn(2, 6), keep=0.5)
    again, _ = edgeprune.load(edgeprune.save(sub.model, sub.plan, tmp_path / "s"), Tied)
    assert again.c.weight is again.b.weight and torch.equal(again.b.weight, sub.model.b.weight)


def test_what_is_no_model_no_plan_and_no_folder(small, tmp_path):
    folder, model, plan, sub, _ = small
    both = edgeprune.Submodel(sub, plan, None)
    for call, words in (
        (lambda: edgeprune.save(both, plan, tmp_path / "q"), "sub.model and sub.plan, not a Submodel and a"),
        (lambda: edgeprune.save(None, plan, tmp_path / "q"), "sub.model and sub.plan, not None"),
        (lambda: edgeprune.save(sub, None, tmp_path / "q"), "sub.model and sub.plan, .* and None"),
        (lambda: edgeprune.save(sub, plan, 3), "folder is 3"),
        (lambda: edgeprune.save(sub, plan, b"q"), "folder is a bytes"),
        (lambda: edgeprune.save(sub, plan, tmp_path / "q", 3), "about is 3"),
        (lambda: edgeprune.load(model, folder), "load: folder is a"),
        (lambda: edgeprune.load(None, model), "load: folder is None"),
        (lambda: edgeprune.load(3, model), "load: folder is 3"),
        (lambda: edgeprune.load(folder, "x"), "make_model is 'x'; give the full model"),
    ):
        with pytest.raises(EdgePruneError, match=words) as error:
            call()
        assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["small"]


def test_the_error_of_the_users_function_is_his_own(small):
    def make():
        return {}["weights"]

    with pytest.raises(KeyError, match="weights"):
        edgeprune.load(small[0], make)


def test_saving_refuses_before_it_writes(small, tmp_path):
    folder, model, plan, sub, _ = small
    with pytest.raises(EdgePruneError, match="is there already"):
        files.save(sub, plan, folder)
    with pytest.raises(EdgePruneError, match="does not exist"):
        files.save(sub, plan, tmp_path / "no" / "where")
    with pytest.raises(EdgePruneError, match="its plan says"):
        files.save(model, plan, tmp_path / "other")
    with pytest.raises(EdgePruneError, match="cannot be stored"):
        files.save(sub, plan, tmp_path / "other", {"x": float("nan")})
    assert os.listdir(tmp_path) == ["small"]


def rewrite(folder, change, header=None):
    """The weights file with ``change`` made to its tensors."""
    path = folder / files.WEIGHTS
    with safetensors.safe_open(path, "pt") as f:
        metadata = f.metadata()
        state = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    state = change(state) or state
    safetensors.torch.save_file(state, path, metadata if header is None else header)


FIRST = "stem.0.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {k: v for k, v in s.items() if k != FIRST}, f"lacks '{FIRST}'"),
        (lambda s: {**s, "zz": torch.ones(1)}, "holds an unknown 'zz'"),
        (lambda s: {**s, FIRST: torch.ones(3, 3)}, "has shape"),
        (lambda s: {**s, FIRST: s[FIRST].half()}, "is torch.float16"),
        (lambda s: {**s, FIRST: s[FIRST] * float("nan")}, "NaN or infinity"),
    ],
)
def test_weights_of_something_else(small, change, words):
    folder, model, *_ = small
    rewrite(folder, change)
    with pytest.raises(EdgePruneError, match=words):
        files.load(folder, model)


def test_plans_of_something_else(small):
    folder, model, plan, *_ = small
    other = SubmodelPlan.full(plan.map)
    (folder / files.PLAN).write_text(other.to_json())
    with pytest.raises(EdgePruneError, match="two different sub-models"):
        files.load(folder, model)
    (folder / files.PLAN).write_text(plan.to_json())
    with pytest.raises(EdgePruneError, match="not a torch.nn.Module"):
        files.load(folder, lambda: 3)
    with pytest.raises(EdgePruneError):  # a model of the same kind and another width
        files.load(folder, CASES["vgg"][0])


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        (files.PLAN, None, "cannot be read"),
        (files.PLAN, b"\xff\xfe", "is not text"),
        (files.PLAN, b"[" * 100_000, "not valid JSON"),
        (files.PLAN, b"{}", "is not a plan"),
        (files.WEIGHTS, None, "cannot be read"),
        (files.WEIGHTS, b"", "is not a sub-model's weights"),
        (files.WEIGHTS, (1 << 62).to_bytes(8, "little") + b"{}", "promises a header of"),
        (files.WEIGHTS, pickle.dumps({"a": 1}), "header of|is not a sub-model"),
        (files.WEIGHTS, safetensors.torch.save({"a": torch.ones(1)}), "is not a sub-model's weights"),
        (
            files.WEIGHTS,
            safetensors.torch.save(
                {"a": torch.ones(1)}, {"edgeprune": json.dumps({"format": "x", "plan": "", "about": 1})}
            ),
            "is not a sub-model's weights",
        ),
    ],
    ids=range(10),
)
def test_files_that_are_none(small, name, data, words):
    folder, model, *_ = small
    if data is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(data)
    with pytest.raises(EdgePruneError, match=words):
        files.load(folder, model)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    which=st.sampled_from([files.PLAN, files.WEIGHTS]),
    at=st.integers(0, 4000),
    value=st.integers(0, 255),
    cut=st.booleans(),
)
def test_damaged_bytes_give_the_model_or_one_sentence(small, which, at, value, cut):
    folder, model, plan, *_ = small
    path = folder / which
    whole = path.read_bytes()
    at %= len(whole)
    try:
        path.write_bytes(whole[:at] if cut else whole[:at] + bytes([value]) + whole[at + 1 :])
        try:
            again, _ = files.load(folder, model)
            assert {n: t.shape for n, t in again.state_dict().items()} == {
                n: torch.Size(plan.shape(n)) for n in again.state_dict()
            }
        except EdgePruneError as error:
            assert "\n" not in str(error)
    finally:
        path.write_bytes(whole)
