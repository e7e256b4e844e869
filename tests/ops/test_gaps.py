"""Gap codes: against the reference, within 3 % of the entropy, and against data that lie."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from packing_cases import SIZES, clustered_mask, mask_of, random_mask, raw
from torch import Tensor

from edgeprune import EdgePruneError, _core, ops
from edgeprune.ops import packing_reference as reference


def as_bytes(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.uint8)


def encode(mask: Tensor, n: int, variant: str) -> tuple[Tensor, int]:
    plan = _core.plan_gaps(mask, n, variant)
    room = torch.full((plan[2] + 40,), 0xA5, dtype=torch.uint8)
    _core.encode_gaps(mask, n, plan, room[20 : 20 + plan[2]], variant)
    assert (room[:20] == 0xA5).all() and (room[20 + plan[2] :] == 0xA5).all()
    return room[20 : 20 + plan[2]], plan[1]


def test_by_hand() -> None:
    # kept are 1, 2 and 7 of 9: gaps 1, 0, 4. With parameter 0: 01 1 00001
    mask = as_bytes(0b10000110, 0)
    assert ops.encode_gaps(mask, 9)[0].tolist() == [0b10000110]
    # with parameter 1: 1+1, 1+0, 001+0
    assert torch.equal(ops.decode_gaps(as_bytes(0b01000111), 3, 9, 1), mask)


@pytest.mark.parametrize("n", SIZES)
def test_there_and_back(n: int, variant: str) -> None:
    for mask in (clustered_mask(n, 0.1, n), *(random_mask(n, p, n) for p in (0.0, 0.001, 0.05, 0.38, 0.7, 1.0))):
        data, parameter = encode(mask, n, variant)
        expected, expected_parameter = reference.encode_gaps(mask, n)
        assert (raw(data), parameter) == (raw(expected), expected_parameter)
        back = torch.zeros_like(mask)
        _core.decode_gaps(data.clone(), ops.mask_count(mask), n, parameter, back, variant)
        assert torch.equal(back, mask)


def test_long_gaps(variant: str) -> None:
    n = 3_000_000
    for where in ([0, n - 1], [n - 1], [0, *range(n - 40, n)], [*range(50), n // 2, n - 1]):
        mask = ops.mask_from_indices(torch.tensor(where), n)
        data, parameter = encode(mask, n, variant)
        back = torch.zeros_like(mask)
        _core.decode_gaps(data.clone(), len(where), n, parameter, back, variant)
        assert torch.equal(back, mask)


@pytest.mark.parametrize("density", [0.001, 0.003, 0.01, 0.03, 0.1, 0.18, 0.22, 0.3, 0.34, 0.38, 0.42, 0.46, 0.5])
def test_near_the_entropy(density: float) -> None:
    n = 400_000
    mask = random_mask(n, density, 7)
    share = ops.mask_count(mask) / n
    entropy = -(share * math.log2(share) + (1 - share) * math.log2(1 - share)) * n
    assert entropy * 0.99 < 8 * ops.encode_gaps(mask, n)[0].numel() <= 1.03 * entropy + 8


@settings(max_examples=100, deadline=None)
@given(kept=hnp.arrays(np.bool_, st.integers(0, 400)))
def test_any_mask(kept: np.ndarray) -> None:
    mask, n = mask_of(kept), kept.size
    data, parameter = ops.encode_gaps(mask, n)
    assert (raw(data), parameter) == (raw(reference.encode_gaps(mask, n)[0]), reference.encode_gaps(mask, n)[1])
    assert torch.equal(ops.decode_gaps(data, int(kept.sum()), n, parameter), mask)


# ---- data that lie --------------------------------------------------------------------------------------------------


@settings(max_examples=400, deadline=None)
@given(
    data=st.binary(max_size=40),
    n=st.integers(-2, 300) | st.integers(0, 20_000),
    count=st.integers(-2, 300) | st.integers(-(2**63), 2**63 - 1),
    parameter=st.integers(-1, 33) | st.sampled_from([0, 1, 2, 30, 32]),
)
def test_any_bytes_give_a_mask_or_one_sentence(data: bytes, n: int, count: int, parameter: int) -> None:
    given_data = torch.tensor(list(data), dtype=torch.uint8)

    def run(decode) -> bytes | None:
        try:
            return raw(decode(given_data, count, n, parameter))
        except EdgePruneError:
            return None

    got = run(ops.decode_gaps)
    assert got == run(reference.decode_gaps)
    if got is not None:
        assert int(np.unpackbits(np.frombuffer(got, np.uint8)).sum()) == count


@pytest.mark.parametrize(
    ("data", "count", "n", "parameter", "said"),
    [
        (as_bytes(), 1, 9, 0, "end before 1 kept"),
        (as_bytes(0, 0, 0), 1, 9, 0, "end before 1 kept"),
        (as_bytes(0x80), 1, 9, 3, "end before 1 kept"),  # the remainder is missing
        (as_bytes(0xFF), 9, 9, 0, "end before 9 kept"),
        (as_bytes(0, 0, 0, 0, 0, 0, 0, 0, 0, 1), 1, 9, 0, "beyond the 9"),
        (as_bytes(0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0), 1, 9, 30, "beyond the 9"),
        (as_bytes(0xFF, 0x01), 9, 8, 0, "9 kept elements among 8"),
        (as_bytes(0b11), 1, 9, 0, "left over"),
        (as_bytes(0b1, 0), 1, 9, 0, "left over"),
        (as_bytes(1), 0, 9, 0, "left over"),
        (as_bytes(1), 0, 0, 0, "left over"),
        (as_bytes(1), -1, 9, 0, "-1 kept"),
        (as_bytes(1), 1, 9, 31, "parameter 31 is unknown"),
        (as_bytes(1), 1, 9, -1, "parameter -1 is unknown"),
        (as_bytes(1), 1, 2, 2**40, "parameter 1099511627776 is unknown"),
        (as_bytes(0, 0), 1, 16, 32, "do not keep 1 of 16"),
        (as_bytes(0xFF, 0xFF), 1, 8, 32, "end before 1 kept"),  # no code begins so
    ],
    ids=range(17),
)
def test_lies(data: Tensor, count: int, n: int, parameter: int, said: str, variant: str) -> None:
    with pytest.raises(EdgePruneError, match=said):
        ops.decode_gaps(data, count, n, parameter)
    if 0 <= count <= n:
        with pytest.raises(EdgePruneError, match=said):
            _core.decode_gaps(data, count, n, parameter, torch.zeros((n + 7) // 8, dtype=torch.uint8), variant)


def test_the_byte_code_keeps_to_n() -> None:
    mask = random_mask(4000, 0.38, 1)
    mask[-1] = 255
    data, parameter = ops.encode_gaps(mask, 4000)
    assert parameter == 32
    count = ops.mask_count(mask)
    for n in (3993, 3997, 3999):
        with pytest.raises(EdgePruneError):
            ops.decode_gaps(data, count, n, parameter)
