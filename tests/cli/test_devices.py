"""``edgeprune profile`` and ``plan`` as a user types them; what is measured and decided is tested beside it."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeprune.cli import plan, profile
from edgeprune.device.profile import fingerprint, read_profile, write_profile
from edgeprune.engine.emulation import PROFILES
from edgeprune.errors import EdgePruneError


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The shipped profile of digits, as if this machine had made it."""
    path = tmp_path / "here.json"
    write_profile(replace(read_profile(PROFILES / "digits.json"), fingerprint=fingerprint(1)), path)
    return path


def renewed(path: Path, **changes: object) -> None:
    write_profile(replace(read_profile(path), **changes), path)  # type: ignore[arg-type]


def test_a_valid_profile_is_not_measured_again(here: Path) -> None:
    before = here.read_bytes()
    shown = CliRunner().invoke(profile.command, ["digits", "--check", str(here)])
    assert shown.exit_code == 0 and "is valid here" in shown.output
    shown = CliRunner().invoke(profile.command, ["digits", "-o", str(here), "--if-needed"])
    assert shown.exit_code == 0 and "nothing to measure" in shown.output
    assert here.read_bytes() == before


@pytest.mark.parametrize("why", ["expired", "changed (mode", "measured for 'fashion-cnn'"])
def test_what_no_longer_holds_is_said(here: Path, why: str) -> None:
    past = (datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)).isoformat()
    found = read_profile(here)
    renewed(
        here,
        **{
            "expired": {"expires": past},
            "changed (mode": {"fingerprint": replace(found.fingerprint, mode="an old one")},
            "measured for 'fashion-cnn'": {"task": "fashion-cnn"},
        }[why],
    )
    with pytest.raises(EdgePruneError, match="measure it again") as error:
        CliRunner().invoke(profile.command, ["digits", "--check", str(here)], catch_exceptions=False)
    assert why in str(error.value)


def test_a_plan_without_a_profile_borrows_one_and_says_so(tmp_path: Path, here: Path) -> None:
    fleet = tmp_path / "fleet.toml"
    fleet.write_text("[fleet]\ndevices = 3\n")
    shown = CliRunner().invoke(plan.command, [str(fleet)])
    assert shown.exit_code == 0, shown.output
    assert "the package's own, measured on" in shown.output and "3 emulated" in shown.output
    shown = CliRunner().invoke(plan.command, [str(fleet), "--profile", str(here), "--json"])
    found = json.loads(shown.output)
    assert found["warnings"] == [] and found["participants"] == 3


def test_a_profile_of_each_device_borrows_none(tmp_path: Path, here: Path) -> None:
    fleet = tmp_path / "fleet.toml"
    fleet.write_text('[fleet]\n[[fleet.device]]\nname = "a"\nprofile = "here.json"\n')
    shown = CliRunner().invoke(plan.command, [str(fleet)])
    assert shown.exit_code == 0 and "package's own" not in shown.output and "1 measured" in shown.output


def test_what_ships_are_profiles_of_built_in_tasks() -> None:
    from edgeprune import tasks

    names = sorted(path.stem for path in PROFILES.glob("*.json"))
    assert {"digits", "fashion-cnn", "cifar10-resnet", "cifar10-vgg"} <= set(names)
    for name in names:
        found = read_profile(PROFILES / f"{name}.json")
        assert (found.task, found.batch_size) == (name, tasks.get(name).batch_size)
        assert found.error["p90"] <= 0.1 and found.stale(None) == []
