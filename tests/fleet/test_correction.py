"""Beliefs about a device's speed: luck, change, and when a profile has to be measured again."""

from __future__ import annotations

import datetime
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.device.profile import DeviceProfile, Fingerprint, ModelSize, Point
from edgeprune.fleet.correction import Belief, reasons_to_profile, updated


def after(*ratios: float) -> tuple[Belief, list[bool]]:
    belief, changes = Belief(), []
    for ratio in ratios:
        belief, changed = updated(belief, ratio)
        changes.append(changed)
    return belief, changes


def test_steady_ratios_are_averaged():
    belief, changes = after(1.1, 1.1, 1.1)
    # The profile's word counts as one round: (1 * 1.1 * 1.1 * 1.1)^(1/4).
    assert belief.scale == pytest.approx(1.1**0.75) and changes == [False] * 3


def test_one_slow_round_is_luck():
    belief, changes = after(1.0, 1.0, 3.0, 1.0, 1.0)
    assert belief.scale == pytest.approx(1.0) and belief.doubt is None and not any(changes)


def test_two_slow_rounds_are_a_change():
    belief, changes = after(1.0, 1.0, 2.0, 2.1)
    assert changes == [False, False, False, True]
    assert belief.scale == pytest.approx(math.sqrt(2.0 * 2.1)) and belief.rounds == 2


def test_two_odd_rounds_that_disagree_are_luck_twice():
    belief, changes = after(1.0, 3.0, 0.3, 1.0)
    assert not any(changes) and belief.scale == pytest.approx(1.0)


def test_what_is_no_time_teaches_nothing():
    for bad in (0.0, -1.0, math.nan, math.inf):
        assert updated(Belief(1.2, 3), bad) == (Belief(1.2, 3), False)


@given(st.floats(0.2, 5), st.lists(st.floats(-0.1, 0.1), min_size=30, max_size=60))
def test_any_steady_speed_is_found(speed, noise):
    belief = Belief()
    for off in noise:
        belief, _ = updated(belief, speed * math.exp(off))
    assert abs(math.log(belief.scale / speed)) < 0.15


def test_reasons_to_profile_again():
    size = ModelSize(1, 1, 1, 1, 1, 1, 1)
    print_ = Fingerprint("Orin", "aarch64", 6, "36.4", "25W", {}, "2.5", 1)
    created = datetime.datetime.now(datetime.timezone.utc)
    profile = DeviceProfile(
        "t", 1, print_, (Point(1, 1, 1, "layer", size, 1.0, 1.0),), 1.0, created.isoformat(),
        (created + datetime.timedelta(days=1)).isoformat(),
    )  # fmt: skip
    assert reasons_to_profile(profile, print_, Belief(1.2, 5)) == []
    assert "1.80 times" in reasons_to_profile(profile, None, Belief(1.8, 5))[0]
    assert "0.50 times" in reasons_to_profile(profile, None, Belief(0.5, 5))[0]
    other = Fingerprint("Orin", "aarch64", 6, "36.4", "15W", {}, "2.5", 1)
    assert reasons_to_profile(profile, other, Belief()) == ["the device changed (mode: 25W -> 15W)"]


def test_a_profile_whose_shape_is_wrong_is_told_from_noise():
    """Ratios of 0.8 and 1.25 in turn: right in the mean, off by 22 % every time. 5 % noise explains 4 % of that."""
    belief = Belief()
    for number in range(12):
        belief, _ = updated(belief, 1.25 if number % 2 else 0.8, change=2.0)
    assert abs(math.log(belief.scale)) < 0.1 and belief.error == pytest.approx(math.log(1.25), rel=0.15)
    size = ModelSize(1, 1, 1, 1, 1, 1, 1)
    print_ = Fingerprint("Orin", "aarch64", 6, "36.4", "25W", {}, "2.5", 1)
    created = datetime.datetime.now(datetime.timezone.utc)
    profile = DeviceProfile(
        "t", 1, print_, (Point(1, 1, 1, "layer", size, 1.0, 1.0),), 1.0, created.isoformat(),
        (created + datetime.timedelta(days=1)).isoformat(), error={"median": 0.02},
    )  # fmt: skip
    (reason,) = reasons_to_profile(profile, None, belief, noise=0.05)
    assert reason.startswith("its update times are off by 2") and "explain 5%" in reason
    assert reasons_to_profile(profile, None, belief, noise=0.25) == [], "such a device is that noisy"
    assert reasons_to_profile(profile, None, Belief(1.0, 7, None, 0.3), noise=0.05) == [], "too early to say"


def test_times_that_swing_too_far_to_agree_are_errors_too():
    """Half and twice the promised time in turn: no round agrees with the one before, so the scale never follows."""
    belief, changes = after(*[2.0, 0.5] * 4)
    assert not any(changes) and belief.scale == 1.0
    assert belief.rounds == 9 and belief.error > 0.5, "the profile's word and eight rounds"
