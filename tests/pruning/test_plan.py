"""Plans: what they accept, the choice of channels, and their way through text and bytes, hostile ones included."""

from __future__ import annotations

import base64
import json
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning_cases import CASES, random_plan, traced
from torch import nn

from edgeprune import EdgePruneError
from edgeprune.pruning import Ranking, SubmodelPlan, choose, expand_state, extract, extract_state, ranking, scores
from edgeprune.pruning.axes import AxisMap, Segment
from edgeprune.pruning.importance import relative

KEEPS = (0.01, 0.1, 0.25, 0.3, 0.5, 0.5001, 0.75, 0.9, 1.0)


def tiny(kept, size=4):
    group = Segment("g", size)
    return SubmodelPlan(AxisMap({"g": size}, {"w": ((group,), (Segment(None, 3),))}), kept)


# --- what a plan says -------------------------------------------------------------------------------------------------


def test_indices_and_shape_by_hand():
    axes = AxisMap(
        {"a": 3, "b": 2},
        {"w": ((Segment("a", 3, 2), Segment(None, 2), Segment("b", 2, 1, 2)), (Segment(None, 5),)), "n": ()},
    )
    plan = SubmodelPlan(axes, {"a": (0, 2), "b": (1,)})
    rows, columns = plan.indices("w")
    assert rows is not None and rows.tolist() == [0, 1, 4, 5, 6, 7, 9, 11] and columns is None
    assert plan.shape("w") == (8, 5) and axes.shape("w") == (12, 5) and plan.indices("n") == ()
    assert plan.retention == 3 / 5 and plan.parameters == 40 + 1
    assert SubmodelPlan(axes, {"a": (0, 2)}).kept["b"] == (0, 1)


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        ({"g": ()}, "no channel"),
        ({"g": (0, 4)}, "outside 0..3"),
        ({"g": (-1, 2)}, "outside 0..3"),
        ({"g": (1, 1)}, "strictly increasing"),
        ({"g": (2, 1)}, "strictly increasing"),
        ({"g": (0, 1, 2, 3, 3)}, "which has 4"),
        ({"g": (0, 1.0)}, "whole numbers"),
        ({"g": (True,)}, "whole numbers"),
        ({"h": (0,)}, "unknown group 'h'"),
    ],
)
def test_impossible_plans_are_refused(kept, says):
    with pytest.raises(EdgePruneError, match=says):
        tiny(kept)


def test_a_plan_of_a_graph_is_that_of_its_map():
    graph = traced("lenet")[2]
    assert SubmodelPlan(graph, {"c1": (0, 2)}) == SubmodelPlan(graph.map, {"c1": (0, 2)})


MODEL, PLAN = nn.Linear(2, 2), SubmodelPlan(AxisMap({}, {}), {})


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: SubmodelPlan(MODEL, {}), "of a graph or its map, not of a Linear"),
        (lambda: SubmodelPlan(AxisMap({"g": 4}, {}), {"g": 3}), "channels of 'g' are 3"),
        (lambda: SubmodelPlan.from_json(None), "a plan is text, not None"),
        (lambda: extract(MODEL, None), "extract: the plan is None"),
        (lambda: extract(MODEL.state_dict(), PLAN), "extract: the model is a OrderedDict"),
        (lambda: extract_state(MODEL, PLAN), "extract_state: the state is a Linear"),
        (lambda: expand_state(MODEL, PLAN), "expand_state: the state is a Linear"),
    ],
    ids=range(7),
)
def test_what_is_no_plan_no_model_and_no_state_is_said_in_a_sentence(call, says):
    with pytest.raises(EdgePruneError, match=says):
        call()


def test_ids_tell_plans_apart():
    _, _, graph = traced("resnet")
    full = SubmodelPlan.full(graph)
    plans = [full, *(random_plan(graph, seed) for seed in range(6))]
    assert len({p.id for p in plans}) == len(plans) and all(len(p.id) == 16 for p in plans)
    assert full == SubmodelPlan(graph.map, {}) and full.id == SubmodelPlan(graph.map, dict(full.kept)).id
    assert tiny({"g": (0,)}).id != tiny({"g": (0,)}, size=5).id
    with pytest.raises(EdgePruneError, match="another model"):
        full.indices("nothing.weight")


# --- text and bytes ---------------------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(CASES)), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_text_and_bytes_there_and_back(name, seed):
    graph = traced(name)[2]
    plan = random_plan(graph, seed)
    again = SubmodelPlan.from_json(plan.to_json())
    assert again == plan and again.kept == plan.kept and dict(again.axes) == dict(plan.axes)
    assert again.to_json() == plan.to_json()
    assert SubmodelPlan.from_kept_bytes(graph, plan.kept_bytes()) == plan
    assert len(plan.kept_bytes()) == sum((size + 7) // 8 for size in graph.map.groups.values())


def test_names_with_odd_characters_survive():
    axes = AxisMap({"a;b=c $0": 3}, {"m.x=1;y z": ((Segment("a;b=c $0", 3),),), "$": ((Segment(None, 2),),)})
    plan = SubmodelPlan(axes, {"a;b=c $0": (0, 2)})
    assert SubmodelPlan.from_json(plan.to_json()) == plan


def text(**changes):
    """A good plan's text with some keys replaced (None: left out)."""
    data = {
        "format": "edgeprune.plan/1",
        "groups": {"g": [4, "r0-1,3"]},
        "kinds": ["weight=$0 3;bias=$0"],
        "axes": {"m": "0 #0"},
    }
    data.update(changes)
    return json.dumps({k: v for k, v in data.items() if v is not None})


def test_the_text_that_hostile_ones_are_made_from_is_good():
    plan = SubmodelPlan.from_json(text())
    assert plan.kept == {"g": (0, 1, 3)} and plan.shape("m.weight") == (3, 3) and plan.shape("m.bias") == (3,)


HOSTILE = {
    "empty": "",
    "not json": "{",
    "deep": "[" * 100_000,
    "a number": "3",
    "huge digits": '{"format": ' + "9" * 10_000 + "}",
    "no format": text(format=None),
    "other format": text(format="edgeprune.plan/2"),
    "no groups": text(groups=None),
    "no kinds": text(kinds=None),
    "no axes": text(axes=None),
    "groups a list": text(groups=[]),
    "kinds an object": text(kinds={}),
    "axes of numbers": text(axes={"m": 3}),
    "group without kept": text(groups={"g": [4]}),
    "size a text": text(groups={"g": ["4", ""]}),
    "size true": text(groups={"g": [True, ""]}),
    "size a fraction": text(groups={"g": [4.0, ""]}),
    "size zero": text(groups={"g": [0, ""]}),
    "size negative": text(groups={"g": [-4, ""]}),
    "size huge": text(groups={"g": [1 << 60, ""]}),
    "sizes huge together": text(groups={f"g{i}": [1 << 19, ""] for i in range(9)}),
    "kept a list": text(groups={"g": [4, [0, 1]]}),
    "kept of no kind": text(groups={"g": [4, "x"]}),
    "run out of range": text(groups={"g": [4, "r0-4"]}),
    "run backwards": text(groups={"g": [4, "r3-1"]}),
    "run twice": text(groups={"g": [4, "r0,0"]}),
    "run unordered": text(groups={"g": [4, "r2,1"]}),
    "run a fraction": text(groups={"g": [4, "r0.5"]}),
    "run negative": text(groups={"g": [4, "r-1"]}),
    "run empty": text(groups={"g": [4, "r"]}),
    "run huge": text(groups={"g": [4, "r0-99999999999999999999"]}),
    "foreign digits": text(groups={"g": [4, "r\u0663"]}),
    "bitmap not base64": text(groups={"g": [4, "b***"]}),
    "bitmap long": text(groups={"g": [4, "b" + base64.b64encode(bytes(1000)).decode()]}),
    "bitmap beyond": text(groups={"g": [4, "b" + base64.b64encode(b"\xff").decode()]}),
    "bitmap of nothing": text(groups={"g": [4, "b" + base64.b64encode(b"\x00").decode()]}),
    "unknown kind": text(axes={"m": "1 #0"}),
    "kind negative": text(axes={"m": "-1 #0"}),
    "slot missing": text(axes={"m": "0"}),
    "slot of no number": text(kinds=["weight=$x"]),
    "unknown group": text(axes={"m": "0 #1"}),
    "axis of nothing": text(axes={"m": "0 "}),
    "axis of text": text(axes={"m": "0 hello"}),
    "axis negative": text(axes={"m": "0 #0*-1"}),
    "block zero": text(axes={"m": "0 #0*0"}),
    "block huge": text(axes={"m": "0 #0*99999999x99999999"}),
    "segments huge": text(axes={"m": "0 " + "+".join(["#0"] * 100_000)}),
    "rank huge": text(kinds=["weight=" + " ".join(["$0"] * 50)]),
    "kind without name": text(kinds=["=$0"]),
    "tensors huge": text(kinds=[";".join(f"t{i}=" for i in range(10_000))], axes={f"m{i}": "0" for i in range(20)}),
    "key twice": text()[:-1] + ', "axes": {}}',
    "group twice": text().replace('"g": [4, "r0-1,3"]', '"g": [4, ""], "g": [4, ""]'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_one_sentence_and_little_memory(name):
    tracemalloc.start()
    try:
        with pytest.raises(EdgePruneError) as caught:
            SubmodelPlan.from_json(HOSTILE[name])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert peak < 64 << 20


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_noise_is_refused(noise):
    with pytest.raises(EdgePruneError):
        SubmodelPlan.from_json(noise)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_plan_is_a_plan_or_an_error(data):
    good = random_plan(traced("densenet")[2], 1).to_json()
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + data.draw(st.text(max_size=3)) + good[at + data.draw(st.integers(0, 3)) :]
    try:
        plan = SubmodelPlan.from_json(bad)
    except EdgePruneError:
        return
    assert SubmodelPlan.from_json(plan.to_json()) == plan


def test_bytes_of_the_wrong_length_or_with_foreign_bits_are_refused():
    _, _, graph = traced("resnet")
    good = random_plan(graph, 1).kept_bytes()
    for bad in (b"", good[:-1], good + b"\x07", good + b"\x01\x00", good[:-1] + b"\xff", bytes(len(good))):
        with pytest.raises(EdgePruneError):
            SubmodelPlan.from_kept_bytes(graph, bad)


# --- importance -------------------------------------------------------------------------------------------------------


def test_scores_by_hand():
    model, _, graph = traced("resnet")
    state = {n: t.double() for n, t in model.state_dict().items()}
    outs = (state["stem.0.weight"], state["blocks.0.c2.weight"])
    l1 = sum(w.abs().sum((1, 2, 3)) for w in outs)
    torch.testing.assert_close(scores(model, graph, "l1")["stem.0"], l1.float())
    l2 = sum(w.square().sum((1, 2, 3)) for w in outs).sqrt()
    torch.testing.assert_close(scores(model.state_dict(), graph, "l2")["stem.0"], l2.float())
    bn = (state["stem.1.weight"].abs() + state["blocks.0.b2.weight"].abs()) / 2
    torch.testing.assert_close(scores(model, graph, "bn")["stem.0"], bn.float())


def test_scores_of_blocks_and_repeats_are_added_to_their_channel():
    model, _, graph = traced("multiplier")
    a, b = (model.state_dict()[f"{n}.weight"].double() for n in "ab")
    expected = a.abs().sum((1, 2, 3)) + b.abs().sum((1, 2, 3)).reshape(6, 3).sum(1)
    torch.testing.assert_close(scores(model, graph, "l1")["a"], expected.float())
    model, _, graph = traced("resnext")
    first, grouped = (model.state_dict()[f"layer1.0.body.{i}.0.weight"].double() for i in (0, 1))
    norms = scores(model, graph, "l1")
    torch.testing.assert_close(norms["layer1.0.body.0.0"], first.abs().sum((1, 2, 3)).reshape(2, 4).sum(0).float())
    torch.testing.assert_close(norms["layer1.0.body.1.0"], grouped.abs().sum((1, 2, 3)).reshape(2, 4).sum(0).float())


def test_a_group_without_batch_norm_is_put_on_the_scale_of_the_others():
    model, _, graph = traced("mobilenet")
    found = scores(model, graph, "bn")
    without = [n for n in found if n.endswith("squeeze")]
    level = torch.cat([v for n, v in found.items() if n not in without]).mean()
    assert without
    for name in without:
        torch.testing.assert_close(found[name].mean(), level)


def test_the_users_own_measure():
    model, _, graph = traced("lenet")
    found = scores(model, graph, lambda state, group: torch.arange(group.size))
    assert choose(graph, found, 0.5).kept["c2"] == (5, 6, 7, 8, 9)
    for bad in (lambda s, g: torch.zeros(2), lambda s, g: torch.full((g.size,), float("nan"))):
        with pytest.raises(EdgePruneError, match="finite numbers"):
            scores(model, graph, bad)
    with pytest.raises(EdgePruneError, match="l2"):
        scores(model, graph, "l3")
    with pytest.raises(EdgePruneError, match="lacks"):
        scores({}, graph)


# --- choice -----------------------------------------------------------------------------------------------------------


def some_scores(graph, seed=0):
    rng = np.random.default_rng(seed)
    return {n: torch.from_numpy(rng.uniform(0.1, 1, size)).float() for n, size in graph.map.groups.items()}


def test_layer_choice_keeps_the_best_of_each():
    _, _, graph = traced("lenet")  # groups of 6, 10, 20
    found = some_scores(graph)
    plan = choose(graph, found, 0.5)
    assert {n: len(k) for n, k in plan.kept.items()} == {"c1": 3, "c2": 5, "f1": 10} and plan.retention == 0.5
    for name, kept in plan.kept.items():
        gone = [c for c in range(graph.map.groups[name]) if c not in kept]
        assert found[name][list(kept)].min() >= found[name][gone].max()


def test_ties_go_to_the_first_channels():
    _, _, graph = traced("lenet")
    same = {n: torch.ones(size) for n, size in graph.map.groups.items()}
    assert choose(graph, same, 0.5).kept == {"c1": (0, 1, 2), "c2": tuple(range(5)), "f1": tuple(range(10))}


@pytest.mark.parametrize(
    ("keep", "round_to", "least", "counts"),
    [
        (0.5, 4, 1, [4, 4, 12]),  # 3, 5 and 10 (halves go up)
        (0.01, 1, 1, [1, 1, 1]),
        (0.01, 1, 3, [3, 3, 3]),
        (0.01, 8, 1, [6, 8, 8]),
        (0.01, 1, 15, [6, 10, 15]),
        (0.01, 4, 5, [6, 8, 8]),
        (1.0, 16, 1, [6, 10, 20]),
        (0.8, 16, 1, [6, 10, 16]),
    ],
)
def test_floors_and_rounding(keep, round_to, least, counts):
    _, _, graph = traced("lenet")
    plan = choose(graph, some_scores(graph), keep, min_channels=least, round_to=round_to)
    assert [len(k) for k in plan.kept.values()] == counts


def test_global_choice_weighs_groups_by_their_own_mean():
    _, _, graph = traced("lenet")
    found = some_scores(graph)
    plan = choose(graph, found, 0.5, scope="global")
    assert sum(len(k) for k in plan.kept.values()) == 18
    louder = {n: v * (1000 if n == "c1" else 1) for n, v in found.items()}
    assert choose(graph, louder, 0.5, scope="global") == plan
    means = relative(found)
    kept = torch.cat([means[n][list(k)] for n, k in plan.kept.items()])
    gone = torch.cat([means[n][[c for c in range(len(means[n])) if c not in k]] for n, k in plan.kept.items()])
    assert kept.min() >= gone.max()
    assert len(ranking(graph, louder, 1, normalise=False).plan(0.25).kept["c1"]) == 6


@given(st.sampled_from(sorted(CASES)), st.integers(0, 1000), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_plans_of_one_ranking_are_nested_and_keep_the_floor(name, seed, least):
    graph = traced(name)[2]
    order = ranking(graph, some_scores(graph, seed), least)
    plans = [order.plan(keep) for keep in KEEPS]
    for small, large in zip(plans, plans[1:], strict=False):
        for group in graph.map.groups:
            assert set(small.kept[group]) <= set(large.kept[group])
    assert plans[-1] == SubmodelPlan.full(graph)
    for group, size in graph.map.groups.items():
        assert len(plans[0].kept[group]) >= min(least, size)
    floor = sum(min(least, size) for size in graph.map.groups.values())
    for keep, plan in zip(KEEPS, plans, strict=True):
        assert sum(plan.counts.values()) == max(floor, int(keep * graph.map.total + 0.5))


def test_a_ranking_there_and_back_and_refused_for_others():
    _, _, graph = traced("resnet")
    order = ranking(graph, some_scores(graph), 2)
    again = Ranking.from_json(order.to_json(), graph)
    assert [again.plan(k) for k in KEEPS] == [order.plan(k) for k in KEEPS]
    with pytest.raises(EdgePruneError, match="another model"):
        Ranking.from_json(order.to_json(), traced("vgg")[2])
    data = json.loads(order.to_json())
    for change in (
        {"order": ""},
        {"order": "AAAA"},
        {"order": data["order"][:-8]},
        {"floor": -1},
        {"floor": 3},
        {"floor": "2"},
    ):
        with pytest.raises(EdgePruneError):
            Ranking.from_json(json.dumps({**data, **change}), graph)
    for noise in ("", "[]", "{}", "null"):
        with pytest.raises(EdgePruneError, match="not a ranking"):
            Ranking.from_json(noise, graph)


def test_impossible_choices_are_refused():
    _, _, graph = traced("lenet")
    found = some_scores(graph)
    for keep in (0.0, -1.0, 1.01, float("nan")):
        with pytest.raises(EdgePruneError, match="keep"):
            choose(graph, found, keep)
        with pytest.raises(EdgePruneError, match="keep"):
            ranking(graph, found).plan(keep)
    with pytest.raises(EdgePruneError, match="min_channels"):
        choose(graph, found, min_channels=0)
    with pytest.raises(EdgePruneError, match="round_to"):
        choose(graph, found, round_to=0)
    with pytest.raises(EdgePruneError, match="scope"):
        choose(graph, found, scope="everywhere")  # type: ignore[arg-type]
    with pytest.raises(EdgePruneError, match="no scores"):
        choose(graph, {})
    with pytest.raises(EdgePruneError, match="finite"):
        choose(graph, {**found, "c1": torch.full((6,), float("inf"))})
