"""edgeprune.pack and edgeprune.unpack: what goes in comes out, what was not sent waits, bad input is one sentence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_cases import DTYPES, random_mask, random_tensor, same

import edgeprune
from edgeprune import wire
from edgeprune.errors import EdgePruneError


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(8, 3, 5, 5, generator=random),
        "conv.bias": torch.randn(8, generator=random),
        "half": torch.randn(40, generator=random).half(),
        "double": torch.randn(7, generator=random, dtype=torch.float64),
        "steps": torch.tensor(12),
        "empty": torch.empty(0, 4),
    }


def test_everything_comes_back_as_it_was():
    sent = state()
    got = edgeprune.unpack(edgeprune.pack(sent))
    assert got.keys() == sent.keys() and all(same(got[name], sent[name]) for name in sent)
    assert edgeprune.unpack(edgeprune.pack({})) == {}


def test_whatever_torch_makes_tensors_of_by_default():
    sent, left, expected = state(), {}, {}
    edgeprune.pack(sent, density=0.1, residual=expected)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            got = edgeprune.unpack(edgeprune.pack(sent))
            edgeprune.pack(sent, density=0.1, residual=left)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(same(got[name], sent[name]) for name in sent)
    assert left.keys() == expected.keys() and all(same(left[name], expected[name]) for name in left)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_views_that_torch_negates_lazily_are_sent_as_their_values(dtype):
    x = torch._neg_view(torch.linspace(-3, 1, 40, dtype=dtype))
    half = (x.abs() > 1.5).clone()
    for options in ({}, {"density": 1.0}, {"density": 1.0, "residual": {}}, {"dtype": "bf16"}, {"mask": {"x": half}}):
        got, plain = (edgeprune.unpack(edgeprune.pack({"x": each}, **options))["x"] for each in (x, x.resolve_neg()))
        assert same(got, plain) and got.abs().max() == 3


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(DTYPES), st.integers(0, 300), st.floats(0, 1), st.integers(0, 99))
def test_masks_of_every_type_exactly(dtype, n, density, seed):
    x, kept = random_tensor(dtype, (n,), seed), random_mask(n, density, 1, seed)
    expected = torch.where(kept, x, torch.zeros((), dtype=dtype))
    masks = {"x": kept}
    assert same(edgeprune.unpack(edgeprune.pack({"x": x}, masks))["x"], expected)
    known = edgeprune.pack({"x": x}, masks, send_mask=False)
    assert same(edgeprune.unpack(known, masks)["x"], expected)


@pytest.mark.parametrize(
    ("dtype", "relative"), [("fp32", 2.0**-24), ("bf16", 2.0**-8), ("fp16", 2.0**-11), ("int8", 1 / 253)]
)
def test_narrow_codings_round_to_nearest(dtype, relative):
    sent = state()
    got = edgeprune.unpack(edgeprune.pack(sent, dtype=dtype))
    for name, x in sent.items():
        assert got[name].dtype == x.dtype and got[name].shape == x.shape
        if x.is_floating_point() and x.numel():
            # int8: half a step of the largest value's 127th; fp16: and half of its smallest number.
            scale = x.abs().max().double() if dtype == "int8" else x.abs().double()
            assert bool(((got[name].double() - x.double()).abs() <= relative * scale + 2.0**-25).all())
        else:
            assert same(got[name], x)
    assert same(got["half"], sent["half"]) or dtype == "int8"


def test_density_keeps_the_largest_of_all_tensors():
    sent = {"a": torch.tensor([0.1, -5.0, 0.2]), "b": torch.tensor([[4.0], [-0.3]]), "n": torch.tensor(3)}
    got = edgeprune.unpack(edgeprune.pack(sent, density=0.4))
    assert got["a"].tolist() == [0, -5, 0] and got["b"].tolist() == [[4], [0]] and int(got["n"]) == 3
    assert sum(int((x != 0).sum()) for x in edgeprune.unpack(edgeprune.pack(sent, density=1e-9)).values()) == 2


@pytest.mark.parametrize("dtype", [None, "bf16", "int8"], ids=str)
@pytest.mark.parametrize("mixed", [False, True])
def test_feedback_loses_nothing(dtype, mixed):
    """What was received so far and what is still owed add up to what was given."""
    names = ["conv.weight", "conv.bias", *(["half", "double"] if mixed else [])]
    residual: dict[str, torch.Tensor] = {}
    given = {name: torch.zeros(state()[name].shape, dtype=torch.float64) for name in names}
    received = {name: x.clone() for name, x in given.items()}
    for seed in range(6):
        gradient = {name: state(seed)[name] for name in names}
        got = edgeprune.unpack(edgeprune.pack(gradient, density=0.05, dtype=dtype, residual=residual))
        for name in names:
            given[name] += gradient[name].float().double()
            received[name] += got[name].double()
    assert sum(int((x != 0).sum()) for x in received.values()) > 30
    for name in names:
        torch.testing.assert_close(received[name] + residual[name].double(), given[name], rtol=0, atol=2e-5)


def test_a_value_too_small_to_be_sent_is_sent_in_the_end():
    residual: dict[str, torch.Tensor] = {}
    rounds = [
        edgeprune.unpack(edgeprune.pack({"g": torch.tensor([1.0, 0.3])}, density=0.5, residual=residual))["g"].tolist()
        for _ in range(5)
    ]
    assert [r[1] == 0 for r in rounds] == [True, True, True, False, True]
    assert rounds[3][1] == pytest.approx(1.2)


def test_stochastic_int8_is_right_on_average_and_by_seed():
    x = {"x": torch.full((4096,), 0.3)}
    x["x"][0] = 127.0
    got = [edgeprune.unpack(edgeprune.pack(x, dtype="int8", seed=seed))["x"] for seed in (1, 1, 2)]
    assert same(got[0], got[1]) and not same(got[0], got[2])
    assert edgeprune.pack(x, dtype="int8", seed=np.int64(2)) == edgeprune.pack(x, dtype="int8", seed=2)
    # 255 draws of 0 or 1 with mean .3: five standard deviations are .143.
    assert abs(float(got[0][1:256].mean()) - 0.3) < 5 * math.sqrt(0.21 / 255)


ONE = {"w": torch.ones(3)}
TRUE = torch.ones(3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"state": {"w": [1, 2]}}, "is a list, not a tensor"),
        ({"state": {"w": torch.ones(2, dtype=torch.complex64)}}, "cannot travel"),
        ({"dtype": "fp61"}, "did you mean 'fp16'"),
        ({"mask": {"v": TRUE}}, "which is not in the state; did you mean 'w'|which is not in the state; known are w"),
        ({"mask": {"w": TRUE[:2]}}, "has shape \\(2,\\), the tensor \\(3,\\)"),
        ({"mask": {"w": torch.ones(3)}}, "must be a bool tensor"),
        ({"mask": {"w": TRUE}, "density": 0.5}, "not both"),
        ({"residual": {}}, "needs a density"),
        ({"density": 0.0}, "in \\(0, 1\\]"),
        ({"density": 1.5}, "in \\(0, 1\\]"),
        ({"density": math.nan}, "in \\(0, 1\\]"),
        ({"density": 0.5, "state": {"w": torch.tensor([1.0, math.nan])}}, "holds NaN or infinity"),
        ({"density": 0.5, "residual": {"w": torch.zeros(2)}}, "is not that tensor's"),
        ({"density": 0.5, "residual": {"w": torch.zeros(3).double()}}, "is not that tensor's"),
        ({"dtype": "int8", "state": {"w": torch.tensor([1.0, math.inf])}}, "not finite; int8"),
        ({"dtype": "fp16", "state": {"w": torch.tensor([1.0, 1e5])}}, "beyond float16"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_bad_input_is_one_sentence(arguments, sentence):
    with pytest.raises(EdgePruneError, match=sentence):
        edgeprune.pack(**{"state": ONE, **arguments})


INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("values", "dtype", "narrow", "sentence"),
    [
        ([1.0, 1e30], torch.float32, "fp16", "holds 1e[+]30, beyond float16"),
        ([1e30, INF], torch.float32, "fp16", "holds 1e[+]30, beyond float16"),
        ([1.0, -3.4028e38], torch.float32, "bf16", "beyond bfloat16"),
        ([1.0, 1e300], torch.float64, "fp32", "holds 1e[+]300, beyond float32"),
        ([1.0, 1e300], torch.float64, "bf16", "beyond bfloat16"),
        ([1.0, 1e300], torch.float64, "int8", "beyond float32; int8"),
    ],
    ids=["sum", "beside-infinity", "bf16", "double", "double-bf16", "double-int8"],
)
def test_a_finite_value_never_turns_into_infinity(values, dtype, narrow, sentence):
    x = {"a": torch.tensor(values, dtype=dtype)}
    with pytest.raises(EdgePruneError, match=sentence):
        edgeprune.pack(x, dtype=narrow)
    if INF not in values:
        with pytest.raises(EdgePruneError, match=sentence):
            edgeprune.pack(x, density=0.5, dtype=narrow)


@pytest.mark.parametrize("narrow", ["fp16", "bf16"])
def test_infinity_itself_travels(narrow):
    got = edgeprune.unpack(edgeprune.pack({"a": torch.tensor([1.0, INF, -INF, NAN])}, dtype=narrow))["a"]
    assert got[:3].tolist() == [1.0, INF, -INF] and math.isnan(got[3])


@pytest.mark.parametrize(("dropped", "dtype"), [(1e30, "fp16"), (NAN, "int8"), (1e300, "fp32"), (INF, "bf16")])
def test_what_is_not_sent_need_not_fit(dropped, dtype):
    x = torch.tensor([dropped, 1.0], dtype=torch.float64)
    assert edgeprune.unpack(edgeprune.pack({"a": x}, {"a": x == 1}, dtype))["a"].tolist() == [0, 1]


def test_density_keeps_doubles_bit_for_bit():
    x = torch.tensor([1e300, 1 / 3, 0.1], dtype=torch.float64)
    assert edgeprune.unpack(edgeprune.pack({"x": x}, density=0.6))["x"].tolist() == [1e300, 1 / 3, 0]
    with pytest.raises(EdgePruneError, match="beyond float32"):
        edgeprune.pack({"x": x}, density=0.6, residual={})


def test_error_feedback_names_the_tensor():
    large = {"a": torch.ones(3), "b": torch.tensor([1e30])}
    for sent in (large, {**large, "c": torch.ones(2).bfloat16()}):
        with pytest.raises(EdgePruneError, match="kept value of 'b'"):
            edgeprune.pack(sent, density=0.5, dtype="fp16", residual={})


@pytest.mark.parametrize("other", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("call", [edgeprune.pack, wire.pack_largest])
def test_an_error_leaves_the_residual_as_it_was(call, other):
    sent = {"a": torch.ones(3), "b": torch.tensor([1e30, 1, 2]), "c": torch.ones(4, dtype=other)}
    residual = {"a": torch.tensor([0.1, 0.2, 0.3]), "b": torch.tensor([0.4, 0.5, 0.6])}
    tensors, before = dict(residual), {name: x.clone() for name, x in residual.items()}
    with pytest.raises(EdgePruneError, match="not finite in f16"):
        call(sent, density=0.4, dtype="fp16", residual=residual)
    assert list(residual) == ["a", "b"]
    for name, x in before.items():
        assert residual[name] is tensors[name] and torch.equal(residual[name], x)
    empty = {}
    with pytest.raises(EdgePruneError, match="not finite in f16"):
        call(sent, density=0.4, dtype="fp16", residual=empty)
    assert not empty
    with pytest.raises(EdgePruneError, match="start with an empty dict"):
        call(sent, density=0.4, residual={"c": torch.zeros(1).expand(4)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_residual_begun_in_inference_mode_goes_on_elsewhere(dtype):
    state = {"x": torch.linspace(-1, 1, 100).to(dtype)}
    expected: dict[str, torch.Tensor] = {}
    messages = [edgeprune.pack(state, density=0.1, dtype="int8", residual=expected) for _ in range(2)]
    residual: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        first = edgeprune.pack(state, density=0.1, dtype="int8", residual=residual)
    assert [first, edgeprune.pack(state, density=0.1, dtype="int8", residual=residual)] == messages
    assert same(residual["x"], expected["x"])


def test_what_a_residual_makes_too_large_for_the_tensors_own_type_is_refused():
    sent, residual = {"w": torch.tensor([65500.0, 1]).half()}, {"w": torch.tensor([60.0, 0.25])}
    with pytest.raises(EdgePruneError, match="'w' with its residual holds a value beyond its own type"):
        edgeprune.pack(sent, density=0.5, dtype="int8", residual=residual)
    assert residual["w"].tolist() == [60, 0.25]


@pytest.mark.parametrize("other", [{"\ud800": torch.ones(2)}, {"q": torch.ones(2, dtype=torch.cfloat)}], ids=["a", "b"])
def test_what_cannot_travel_is_refused_before_the_residual_is_changed(other):
    residual = {"w": torch.tensor([0.1, 0.2])}
    for held in (residual, {}):
        with pytest.raises(EdgePruneError, match="UTF-8|cannot travel"):
            edgeprune.pack({"w": torch.ones(2), **other}, density=0.5, residual=held)
    assert torch.equal(residual["w"], torch.tensor([0.1, 0.2])) and not held


@pytest.mark.parametrize(
    "bad",
    [
        {"state": None},
        {"state": [1]},
        {"state": {3: torch.ones(1)}},
        {"state": {"w": torch.eye(3).to_sparse()}},
        {"state": {"w": torch.empty(3, device="meta")}},
        {"dtype": torch.float16},
        {"dtype": []},
        {"density": "x"},
        {"mask": TRUE},
        {"mask": {"w": TRUE.to("meta")}},
        {"density": 0.5, "residual": []},
        {"density": 0.5, "residual": {"w": 3}},
        {"density": 0.5, "residual": {"w": torch.zeros(3, device="meta")}},
        {"seed": 1.5},
    ],
    ids=lambda bad: "-".join(bad),
)
def test_wrong_types_are_one_sentence(bad):
    with pytest.raises(EdgePruneError, match="^pack: "):
        edgeprune.pack(**{"state": ONE, **bad})


@pytest.mark.parametrize("blob", [None, 5, "text" * 50, [1] * 200])
def test_what_is_not_bytes_is_no_blob(blob):
    with pytest.raises(EdgePruneError, match="a message is bytes"):
        edgeprune.unpack(blob)


def test_the_limit_and_the_masks_of_unpack_are_looked_at():
    blob = edgeprune.pack(ONE)
    for arguments in ({"dense_limit": "1"}, {"mask": 3}, {"mask": {"w": torch.ones(3)}}):
        with pytest.raises(EdgePruneError, match="^unpack: "):
            edgeprune.unpack(blob, **arguments)


def test_what_is_no_blob_is_one_sentence():
    blob = edgeprune.pack(ONE, {"w": TRUE & torch.tensor([1, 0, 1]).bool()}, send_mask=False)
    with pytest.raises(EdgePruneError, match="not held here"):
        edgeprune.unpack(blob)
    with pytest.raises(EdgePruneError, match="must be a bool tensor"):
        edgeprune.unpack(blob, {"w": torch.ones(3)})
    with pytest.raises(EdgePruneError, match="over the limit of 11"):
        edgeprune.unpack(blob, dense_limit=11)
    with pytest.raises(EdgePruneError, match="too few"):
        edgeprune.unpack(b"no blob")


@pytest.mark.parametrize("half", [False, True])
def test_a_residual_in_memory_of_another_is_refused_and_left_alone(half):
    sent = {"a": torch.arange(6.0), "b": torch.arange(6.0) * 10, "c": torch.ones(3)}
    sent["c"] = sent["c"].half() if half else sent["c"]
    memory = torch.zeros(12)
    for left, sentence in (
        (dict.fromkeys("ab", memory[:6]), "the residual of 'a' and the residual of 'b' share memory"),
        ({"a": memory[4:10], "b": memory[:6]}, "the residual of 'b' and the residual of 'a' share memory"),
        ({"b": sent["b"]}, "'b' and the residual of 'b' share memory|the residual of 'b' and 'b' share memory"),
    ):
        before = {name: x.clone() for name, x in left.items()}
        with pytest.raises(EdgePruneError, match=sentence):
            edgeprune.pack(sent, density=0.3, residual=left)
        assert left.keys() == before.keys() and all(torch.equal(left[name], before[name]) for name in left)
    left = {"a": memory[:6], "b": memory[6:]}  # side by side is well
    edgeprune.pack(sent | {"a": sent["b"]}, density=0.3, residual=left)
    assert left["a"].data_ptr() == memory.data_ptr()
