"""Who holds which samples: every index once, nobody empty, and what each kind promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from edgeprune.data import partition
from edgeprune.data.partitions import KINDS
from edgeprune.errors import EdgePruneError

TEN = torch.arange(10).repeat_interleave(20)  # 200 samples, 20 of each label


def histogram(part, y=TEN):
    return y[part].bincount(minlength=10).tolist()


@given(
    kind=st.sampled_from([kind for kind in KINDS if kind != "classes"]),
    labels=st.lists(st.integers(0, 5), min_size=8, max_size=80),
    clients=st.integers(1, 8),
    seed=st.integers(0, 2**32),
    share=st.floats(0, 1),
    weights=st.none() | st.lists(st.floats(1e-3, 1e3), min_size=8, max_size=8),
)
def test_every_index_once_and_nobody_empty(kind, labels, clients, seed, share, weights):
    y = torch.tensor(labels)
    parameters = {"sorted": {"share": share}, "shards": {"per_client": 1}, "dirichlet": {"alpha": 5.0}}.get(kind, {})
    if weights and kind not in ("shards", "subject"):
        parameters["sizes"] = weights[:clients]
    subjects = torch.arange(len(labels)) % 8
    try:
        parts = partition(kind, y, subjects, clients, seed, **parameters)
    except EdgePruneError:
        assert kind == "dirichlet"  # the only draw that may leave somebody without samples
        assume(False)
    assert len(parts) == clients and all(len(part) for part in parts)
    assert torch.cat(parts).sort().values.tolist() == list(range(len(labels)))
    assert all(part.dtype == torch.int64 and (part.diff() > 0).all() for part in parts)
    again = partition(kind, y, subjects, clients, seed, **parameters)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_is_another_split(kind):
    subjects = torch.arange(200) // 5
    first, second = (partition(kind, TEN, subjects, 4, seed) for seed in (0, 1))
    assert not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_iid_deals_the_same_number_to_everybody():
    assert [len(part) for part in partition("iid", TEN, None, 4, 0)] == [50] * 4
    assert sorted(len(part) for part in partition("iid", TEN[:10], None, 3, 0)) == [3, 3, 4]


def test_sizes_are_one_sample_each_and_the_rest_by_weight():
    """3 clients of weights 1, 1, 2 and 11 samples: one each, then 8 split 2, 2, 4."""
    assert [len(part) for part in partition("iid", TEN[:11], None, 3, 0, sizes=[1, 1, 2])] == [3, 3, 5]
    assert [len(part) for part in partition("sorted", TEN[:11], None, 3, 0, sizes=[1, 1, 2])] == [3, 3, 5]


def test_sorted_wholly_gives_contiguous_blocks_of_labels():
    parts = partition("sorted", TEN, None, 5, 3, share=1.0)
    held = sorted(tuple(np.flatnonzero(histogram(part))) for part in parts)
    assert held == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    assert all(max(histogram(part)) == 20 for part in parts)


def test_sorted_by_80_percent_leaves_each_client_a_fifth_of_anything():
    """Each of 5 clients holds 40 samples, 32 of them a block of the sorted ones: two or three neighbouring labels."""
    y = torch.arange(10).repeat_interleave(200)
    for part in partition("sorted", y, None, 5, 0, share=0.8):
        counts = torch.tensor(histogram(part, y))
        assert len(part) == 400
        top = counts.topk(3).values.sum()
        assert 320 <= top <= 400 and int((counts > 0).sum()) == 10


def test_sorted_by_nothing_is_iid():
    counts = [histogram(part) for part in partition("sorted", TEN, None, 2, 0, share=0.0)]
    assert all(4 <= count <= 16 for part in counts for count in part)


def test_sorted_blocks_go_to_clients_in_random_order():
    first = {int(TEN[partition("sorted", TEN, None, 10, seed, share=1.0)[0]][0]) for seed in range(40)}
    assert len(first) >= 8


def test_two_shards_hold_two_labels():
    parts = partition("shards", TEN, None, 10, 0, per_client=2)
    assert all(len(part) == 20 for part in parts)
    assert all(sorted(c for c in histogram(part) if c) in ([10, 10], [20]) for part in parts)


def test_a_shard_is_dealt_once():
    parts = partition("shards", torch.arange(12), None, 3, 0, per_client=2)
    pairs = sorted(pair for part in parts for pair in part.reshape(2, 2).tolist())
    assert pairs == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]


def test_dirichlet_goes_from_one_label_to_all_of_them():
    """A small alpha gives a client few labels, a large one the shares of the whole."""
    y = torch.arange(10).repeat_interleave(1000)
    spread = {}
    for alpha in (0.1, 1e6):
        counts = torch.tensor([histogram(part, y) for part in partition("dirichlet", y, None, 5, 0, alpha=alpha)])
        spread[alpha] = float((counts / 1000).std())
    assert spread[0.1] > 0.25  # of Dirichlet(0.1) over 5: sqrt(.2 * .8 / 1.5) = 0.33
    assert spread[1e6] < 0.01


def test_dirichlet_moments():
    """Each share has mean 1/4 and variance (1/4)(3/4)/(4 alpha + 1); 400 classes of 1,000 give it within 4 errors."""
    y = torch.arange(400).repeat_interleave(1000)
    parts = partition("dirichlet", y, None, 4, 0, alpha=2.0)
    shares = torch.stack([y[part].bincount(minlength=400).double() / 1000 for part in parts])
    torch.testing.assert_close(shares.mean(dim=1), torch.full((4,), 0.25).double(), rtol=0, atol=4 * 0.1443 / 20)
    assert float(shares.var()) == pytest.approx(0.25 * 0.75 / 9, rel=0.2)


def test_dirichlet_sizes_follow_the_weights():
    y = torch.arange(100).repeat_interleave(100)
    parts = partition("dirichlet", y, None, 2, 0, alpha=10.0, sizes=[1, 3])
    assert len(parts[0]) / len(y) == pytest.approx(0.25, abs=0.04)


def test_subjects_stay_whole():
    subjects = torch.tensor([7, 3, 7, 9, 3, 5, 9, 7])
    parts = partition("subject", torch.zeros(8, dtype=torch.int64), subjects, 2, 0)
    people = [set(subjects[part].tolist()) for part in parts]
    assert people[0] | people[1] == {3, 5, 7, 9} and not people[0] & people[1]
    assert [len(p) for p in people] == [2, 2]


@pytest.mark.parametrize(
    ("kind", "clients", "parameters", "sentence"),
    [
        ("dirichle", 2, {}, "did you mean 'dirichlet'"),
        ("iid", 0, {}, "200 samples cannot be split over 0 clients"),
        ("iid", 201, {}, "200 samples cannot be split over 201 clients"),
        ("sorted", 2, {"share": 1.1}, "share is 1.1"),
        ("sorted", 2, {"share": float("nan")}, "share is nan"),
        ("shards", 2, {"per_client": 0}, "per_client is 0"),
        ("shards", 2, {"per_client": 101}, "no 202 shards"),
        ("dirichlet", 2, {"alpha": 0.0}, "alpha is 0.0"),
        ("dirichlet", 2, {"alpha": float("inf")}, "alpha is inf"),
        ("dirichlet", 200, {"alpha": 1e-3}, "some of 200 clients stay without samples"),
        ("subject", 2, {}, "does not say which person"),
        ("iid", 2, {"sizes": [1.0]}, "give 2 positive shares"),
        ("iid", 2, {"sizes": [1.0, 0.0]}, "give 2 positive shares"),
        ("shards", 2, {"sizes": [1.0, 2.0]}, "cannot deal unequal shares"),
        ("iid", 2.5, {}, "clients is 2.5; give a whole number"),
        ("iid", 2, {"sizes": 3}, "give 2 positive shares"),
        ("iid", 2, {"sizes": ["a", "b"]}, "give 2 positive shares"),
        ("sorted", 2, {"share": "most"}, "share is 'most'"),
        ("shards", 2, {"per_client": 1.5}, "per_client is 1.5"),
        ("classes", 2, {"per_class": 1.5}, "per_class 1.5"),
        ("dirichlet", 2, {"alpha": None}, "alpha is None"),
    ],
)
def test_what_cannot_be_is_one_sentence(kind, clients, parameters, sentence):
    with pytest.raises(EdgePruneError, match=sentence) as caught:
        partition(kind, TEN, None, clients, 0, **parameters)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "y", "subjects", "seed", "sentence"),
    [
        ("iid", TEN, None, -1, "seed is -1; give a whole number, 0 or more"),
        ("iid", TEN, None, 1.5, "seed is 1.5"),
        ("iid", TEN, None, None, "seed is None"),
        ("iid", TEN.tolist(), None, 0, "y is a list; give a tensor"),
        ("iid", torch.tensor(3), None, 0, "y is a Tensor; give a tensor with one label a sample"),
        ("dirichlet", TEN.float(), None, 0, "needs class labels, and y is torch.float32"),
        ("sorted", TEN.bfloat16(), None, 0, "needs class labels, and y is torch.bfloat16"),
        ("subject", TEN, [0, 1] * 100, 0, "subjects is a list"),
    ],
)
def test_labels_subjects_and_seeds_that_are_none(kind, y, subjects, seed, sentence):
    with pytest.raises(EdgePruneError, match=sentence) as caught:
        partition(kind, y, subjects, 2, seed)
    assert "\n" not in str(caught.value)


def test_iid_takes_targets_of_any_type():
    assert [len(part) for part in partition("iid", TEN.bfloat16(), None, 4, 0)] == [50] * 4


def test_too_few_people():
    with pytest.raises(EdgePruneError, match="2 people cannot be split over 3"):
        partition("subject", TEN, torch.arange(200) % 2, 3, 0)


def test_text_has_no_labels_to_sort_by():
    y = torch.zeros(6, 4, dtype=torch.int64)
    assert [len(part) for part in partition("iid", y, None, 2, 0)] == [3, 3]
    with pytest.raises(EdgePruneError, match="one label a sample"):
        partition("sorted", y, None, 2, 0)


def test_classes_are_few_exact_and_disjoint():
    y = torch.arange(10).repeat_interleave(100)
    parts = partition("classes", y, None, 20, 0, per_client=2, per_class=15)
    assert all(torch.bincount(y[part], minlength=10).sort().values.tolist() == [0] * 8 + [15, 15] for part in parts)
    every = torch.cat(parts)
    assert len(every) == len(every.unique()) == 20 * 30
    with pytest.raises(EdgePruneError, match="too few samples"):
        partition("classes", y, None, 200, 0, per_client=2, per_class=15)
    with pytest.raises(EdgePruneError, match="per_client"):
        partition("classes", y, None, 2, 0, per_client=11)
