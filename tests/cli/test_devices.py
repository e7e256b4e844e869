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


def test_a_damaged_profile_is_measured_again_where_it_is_needed(here: Path) -> None:
    here.write_text(here.read_text()[:1000])
    with pytest.raises(EdgePruneError, match="here.json: not JSON"):
        CliRunner().invoke(profile.command, ["digits", "--check", str(here)], catch_exceptions=False)
    options = ["--if-needed", "--seconds", "0.1", "--passes", "1", "--power", "none", "--quiet"]
    shown = CliRunner().invoke(profile.command, ["digits", "-o", str(here), *options], catch_exceptions=False)
    assert shown.exit_code == 0 and "here.json is measured again: it holds no profile" in shown.output
    assert read_profile(here).task == "digits"


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


@pytest.mark.parametrize("columns", ["", "40", "200"])
def test_a_plan_shows_whole_figures_however_narrow_the_terminal(
    columns: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    devices = "".join(
        f'[[fleet.device]]\nname = "orin-nano-in-the-{room}"\nslowdown = {slower}\nmemory_mib = 9000\n'
        for room, slower in (("kitchen", 1.0), ("cellar", 4.0))
    )
    (tmp_path / "fleet.toml").write_text(f"[fleet]\n{devices}")
    shown = CliRunner().invoke(plan.command, [str(tmp_path / "fleet.toml")])
    assert shown.exit_code == 0, shown.output
    head, *rows = shown.output.splitlines()[:3]
    assert " ".join(head.split()) == "device keeps steps down s train s up s total s whole s MiB limit"
    found = CliRunner().invoke(plan.command, [str(tmp_path / "fleet.toml"), "--json"])
    parts = ("download_s", "compute_s", "upload_s", "update_time_s")
    for row, device in zip(rows, json.loads(found.output)["devices"], strict=True):
        assert row.split()[0] == device["client"] and row.split()[-1] == "9000"
        assert row.split()[3:7] == [f"{device[key]:.3g}" for key in parts]


@pytest.mark.parametrize("folder", ['a "folder" \U0001f600', "\x7f"])
def test_a_profile_is_found_whatever_its_folder_is_called(folder: str, tmp_path: Path, here: Path) -> None:
    (tmp_path / folder).mkdir()
    profile = here.rename(tmp_path / folder / "here.json")
    (tmp_path / "fleet.toml").write_text("[fleet]\ndevices = 2\n")
    shown = CliRunner().invoke(plan.command, [str(tmp_path / "fleet.toml"), "--profile", str(profile), "--json"])
    assert shown.exit_code == 0, shown.exception
    assert json.loads(shown.output)["participants"] == 2


def test_a_fleet_in_a_file_of_its_own_is_planned_as_one_written_out(tmp_path: Path) -> None:
    written = '[fleet]\n[[fleet.device]]\nname = "a"\n[[fleet.device]]\nname = "b"\nslowdown = 4.0\n'
    (tmp_path / "inline.toml").write_text(written)
    (tmp_path / "fleet.toml").write_text(written)
    (tmp_path / "outside.toml").write_text('[fleet]\nfile = "fleet.toml"\n')
    inline, outside = (
        CliRunner().invoke(plan.command, [str(tmp_path / name)], catch_exceptions=False)
        for name in ("inline.toml", "outside.toml")
    )
    assert "the package's own" in inline.output and outside.output == inline.output
    (tmp_path / "fleet.toml").write_text('[fleet]\nlatency = "none.json"\n')
    with pytest.raises(EdgePruneError, match="none.json: cannot be read"):
        CliRunner().invoke(plan.command, [str(tmp_path / "outside.toml")], catch_exceptions=False)


def test_a_plan_names_the_task_as_profile_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "planned_task.py").write_text(
        "from dataclasses import replace\nfrom edgeprune import tasks\n"
        "def mine():\n    return replace(tasks.get('digits'), name='own')\n"
    )
    (tmp_path / "fleet.toml").write_text('[fleet]\ndevices = 2\nlatency = "measure"\n')
    with pytest.raises(EdgePruneError, match="edgeprune profile planned_task:mine writes one"):
        CliRunner().invoke(plan.command, ["fleet.toml", "--task", "planned_task:mine"], catch_exceptions=False)


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
        assert found.error["p90"] <= 0.1
        years_on = datetime.datetime.fromisoformat(found.created) + datetime.timedelta(days=5 * 365)
        assert found.stale(None, years_on) == [], "it is for comparing, on no device that could measure it again"
