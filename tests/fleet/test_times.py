"""Latency models and profiles as sources of time, by laws that are known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.device.profile import DeviceProfile, Fingerprint, ModelSize, Point, moments, write_profile
from edgeprune.errors import EdgePruneError
from edgeprune.fleet import Device, LatencyTable, ProfileTimes, Work, charge, latency_model, read_times


def size(share: float) -> ModelSize:
    """A network whose multiply-adds grow with the square of its width."""
    macs = round(1e6 * share * share)
    return ModelSize(macs, macs, macs, round(1e4 * share), round(1e4 * share), round(1e4 * share), 1000, (share,))


def law_ms(s: ModelSize) -> float:
    return 2.0 + 3e-5 * s.macs + 1e-3 * s.elements


WIDTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def profile(**values: object) -> DeviceProfile:
    created, expires = moments()
    points = tuple(
        Point(w, 1.0, 1.0, "layer", size(w), law_ms(size(w)), law_ms(size(w)) / 3, 0.0, round(1e8 + 50 * size(w).macs))
        for w in WIDTHS
    )
    print_ = Fingerprint("board", "aarch64", 6, None, "25W", {}, "2.5", 1)
    made = DeviceProfile("t", 32, print_, points, 4.0, created, expires, base_memory=100_000_000)
    return replace(made, **values)  # type: ignore[arg-type]


@given(st.floats(0.1, 1.0))
def test_a_law_of_its_own_kind_is_found(width):
    model = latency_model.fit([size(w) for w in WIDTHS], [law_ms(size(w)) for w in WIDTHS])
    assert model(size(width)) == pytest.approx(law_ms(size(width)), rel=2e-3)


@given(st.floats(0.5, 2.0), st.integers(0, 9))
def test_one_bad_point_does_not_bend_the_others_far(factor, where):
    times = [law_ms(size(w)) for w in WIDTHS]
    times[where] *= factor
    model = latency_model.fit([size(w) for w in WIDTHS], times)
    assert all(math.isfinite(model(size(w))) and model(size(w)) > 0 for w in (0.05, *WIDTHS, 1.5))


def test_a_vector_librarys_staircase():
    """Time goes with channels rounded up to 16: what the padded size is there for."""

    def of(channels: int) -> ModelSize:
        up8, up16 = -(-channels // 8) * 8, -(-channels // 16) * 16
        return ModelSize(channels**2, up8**2, up16**2, channels, up8, up16, channels**2, ())

    known = [of(c) for c in (8, 16, 24, 32, 40, 48, 56, 64)]
    model = latency_model.fit(known, [1e-3 * s.macs_16 for s in known])
    assert model(of(33)) == pytest.approx(1e-3 * 48**2, rel=1e-3)
    assert model(of(47)) == pytest.approx(model(of(33)), rel=1e-3)


def test_the_error_is_of_the_point_left_out():
    sizes, times = [size(w) for w in WIDTHS], [law_ms(size(w)) for w in WIDTHS]
    assert max(map(abs, latency_model.errors(sizes, times))) < 0.02
    times[4] *= 1.5
    assert abs(latency_model.errors(sizes, times)[4] - (1 / 1.5 - 1)) < 0.05
    with pytest.raises(EdgePruneError, match="three widths"):
        latency_model.fit(sizes[:2], times[:2])


def test_a_profile_answers_as_a_table_does(tmp_path: Path):
    times = ProfileTimes(profile())
    assert times.step_s(size(0.55)) == pytest.approx(law_ms(size(0.55)) * 1e-3, rel=0.01)
    assert times.forward_s(size(0.55)) == pytest.approx(law_ms(size(0.55)) / 3 * 1e-3, rel=0.01)
    assert (times.task, times.batch_size, times.source, times.rebuild_ms) == ("t", 32, "measured", 4.0)
    slow = ProfileTimes(profile(), factor=3.0)
    assert slow.step_s(size(0.5)) == pytest.approx(3 * times.step_s(size(0.5))) and slow.source == "emulated"
    cost = charge(Device("d", 2.0), Work(0, 0, 5, 1, 1, 0, size(0.5)), times, round_=1, seed=0)
    assert cost.compute_s == pytest.approx(2 * 5 * times.step_s(size(0.5))) and cost.rebuild_s == pytest.approx(0.008)
    with pytest.raises(EdgePruneError, match="size of a model"):
        charge(Device("d"), Work(0, 0, 5, 1), times, round_=1, seed=0)
    path = tmp_path / "p.json"
    write_profile(profile(), path)
    again = read_times(path)
    assert isinstance(again, ProfileTimes) and again.step_s(size(0.5)) == times.step_s(size(0.5))


def test_a_table_is_still_a_table(tmp_path: Path):
    table = LatencyTable("t", 32, (100, 300), (1.0, 2.0), (0.5, 1.0), 4.0)
    path = tmp_path / "t.json"
    path.write_text(json.dumps(table.to_json()))
    assert read_times(path) == table
    by_size = replace(size(1.0), macs=200)
    assert table.step_s(by_size) == table.step_s(200) == pytest.approx(1.5e-3)
    for text, words in (
        ("{", "not JSON"),
        ("{}", "not a latency table"),
        ('{"format": "edgeprune.profile/1"}', "not a device"),
    ):
        path.write_text(text)
        with pytest.raises(EdgePruneError, match=words):
            read_times(path)


def test_memory_is_never_promised_below_what_was_measured():
    times = ProfileTimes(profile())
    for width in WIDTHS:
        promised = times.memory(size(width))
        assert promised is not None and promised >= 1e8 + 50 * size(width).macs - 1
    assert ProfileTimes(profile(base_memory=None)).memory(size(0.5)) is None


def test_energy_only_where_it_was_measured():
    assert ProfileTimes(profile()).energy_j(size(0.5)) is None
    points = tuple(replace(p, step_j=p.step_ms * 0.01) for p in profile().points)
    energy = ProfileTimes(profile(points=points)).energy_j(size(0.5))
    assert energy == pytest.approx(law_ms(size(0.5)) * 0.01, rel=0.01)


def test_density_scales_the_whole_models_time():
    whole = profile().points[-1]
    sparse = [
        replace(whole, density=d, step_ms=whole.step_ms * f, shape="density") for d, f in ((0.5, 0.8), (0.1, 0.3))
    ]
    times = ProfileTimes(profile(points=(*profile().points, *sparse)))
    assert [times.density_factor(d) for d in (1.0, 0.5, 0.3, 0.1)] == pytest.approx([1.0, 0.8, 0.55, 0.3])
    assert times.step_s(whole.size) == pytest.approx(whole.step_ms * 1e-3, rel=0.01), "sparse points bend no dense fit"
    assert ProfileTimes(profile()).density_factor(0.1) == 1.0


def put(said: dict[str, Any], key: str, value: object) -> None:
    """``value`` in the place of a profile's figure; of a point, in the last one."""
    *outer, inner = key.split(".")
    for name in outer:
        said = said[name][-1] if name == "points" else said[name]
    said[inner] = value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("base_memory", "x"),
        ("base_memory", []),
        ("noise", float("nan")),
        ("noise", 10**400),
        ("machine", []),
        ("error", {"median": "x"}),
        ("rebuild_ms", True),
        ("expires", 3),
        ("points.peak_memory", "x"),
        ("points.step_j", []),
        ("points.width", None),
        ("points.density", float("inf")),
        ("fingerprint.cores", "x"),
        ("points.size.macs", 10**400),
        ("points.size.widths", [float("nan")]),
        ("points.size.widths", [1e200]),
    ],
    ids=str,
)
def test_a_profile_whose_fields_are_of_another_kind_is_one_sentence(tmp_path: Path, key: str, value: object):
    said = profile().to_json()
    put(said, key, value)
    path = tmp_path / "p.json"
    path.write_text(json.dumps(said))
    with pytest.raises(EdgePruneError, match="p.json: not a device profile") as caught:
        read_times(path)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("points.step_ms", 1e-320, "every time must be"),
        ("points.inference_ms", 1e300, "every time must be"),
        ("rebuild_ms", 0.0, "every time must be"),
        ("points.peak_memory", -5, "memory must be"),
        ("base_memory", 10**30, "memory must be"),
        ("batch_size", 0, "batch_size is 0"),
    ],
    ids=str,
)
def test_a_profile_with_figures_that_no_device_has_is_one_sentence(
    tmp_path: Path, key: str, value: object, words: str
) -> None:
    said = profile().to_json()
    put(said, key, value)
    path = tmp_path / "p.json"
    path.write_text(json.dumps(said))
    with pytest.raises(EdgePruneError, match=rf"p\.json: .*{words}.*; measure it again"):
        read_times(path)


def test_a_profile_of_too_few_sizes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    write_profile(profile(points=profile().points[:2]), path)
    with pytest.raises(EdgePruneError, match=r"p\.json: .* holds 2 dense sizes.*; measure it again"):
        read_times(path)
