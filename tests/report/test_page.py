"""The page: self-contained, escaped, complete, and absent when something is wrong."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeprune.cli import report as cli
from edgeprune.errors import EdgePruneError
from edgeprune.report import style, svg, write_report
from edgeprune.report.figures import overview

MakeRun = Callable[..., Path]  # the fixture of conftest.py

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "$\\frac{1}{",  # mathematics that does not parse
    "&amp;</svg></figure>",
    "日本の装置 🙂",
    "\x07bell\x00\x1b[31m",
    "http://example.invalid/x",
]


class Page(HTMLParser):
    """Tags, their attributes, and the text between them; fails on tags that do not close as they opened."""

    VOID = {"meta", "img", "br", "link"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def written(path: Path, *run_dirs: Path) -> tuple[str, Page]:
    write_report(run_dirs, path)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_two_runs(make_run: MakeRun, tmp_path: Path) -> None:
    fedavg = make_run("f", rounds=20)
    adaptcl = make_run("a", rounds=20, algorithm="adaptcl", pruning=0.8, rejected={7: {"device-3": "weights are NaN"}})
    text, page = written(tmp_path / "r.html", fedavg, adaptcl)
    words = " ".join(page.text)
    # Accuracy twice, update times of both, retention of the one that prunes.
    assert page.count("svg") == 5
    assert "weights are NaN" in words and "baseline" in words and "97.0" in words
    for part in ("Summary", "Accuracy", "Devices", "Rejected updates", "Settings", "Virtual time is computed"):
        assert part in words
    # 20 x 5 s against 5 x 5 s + 15 rounds of the slowest, which is device-5: (1 + 4 * 5/9) * (1 - 0.8 * 5/9).
    slowest = max((1 + 4 * i / 9) * (1 - 0.8 * i / 9) for i in range(10))
    assert f"{100 / (25 + 15 * slowest):.2f}×" in words
    assert f"{20 * 1.0:.1f}" in words  # MB up of FedAvg


def test_it_needs_nothing_else(make_run: MakeRun, tmp_path: Path) -> None:
    text, page = written(tmp_path / "r.html", make_run("a", algorithm="adaptcl", pruning=0.5))
    assert page.count("script") == page.count("link") == page.count("iframe") == page.count("img") == 0
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src"):
                assert value is not None and value.startswith("#")
    assert not re.search(r"https?:|//|@import|url\((?!#)", re.sub(r"/\*.*?\*/", "", text))
    assert any(attributes.get("http-equiv") == "Content-Security-Policy" for _, attributes in page.tags)
    assert str(tmp_path) not in text


def test_hostile_names_are_only_text(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(
        "evil",
        rounds=8,
        task=HOSTILE[0],
        devices=HOSTILE,
        pruning=0.5,
        rejected={3: {HOSTILE[1]: "<b>bold</b> reason </td>"}},
    )
    text, page = written(tmp_path / "r.html", run, make_run("plain", rounds=8))
    assert page.count("script") == page.count("img") == page.count("b") == 0
    words = "".join(page.text)
    assert "<script>alert(1)</script> and digits" in words  # in the headline, as text
    assert "<b>bold</b> reason </td>" in words
    assert "日本の装置 🙂" in words
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", text)


def test_ids_are_unique_and_found(make_run: MakeRun, tmp_path: Path) -> None:
    text, page = written(tmp_path / "r.html", make_run("f"), make_run("a", algorithm="adaptcl", pruning=0.5))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
    assert used and set(used) <= set(ids)


def test_figures_are_described_and_follow_the_theme(make_run: MakeRun, tmp_path: Path) -> None:
    text, page = written(tmp_path / "r.html", make_run("a", rounds=6, algorithm="adaptcl", pruning=0.5))
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 40 for a in drawings)
    assert any("median" in (a["aria-label"] or "") for a in drawings)
    for drawing in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        assert set(re.findall(r"#[0-9a-f]{6}\b", drawing)) == set()  # every colour is a variable of the theme
        assert "DejaVu" not in drawing
    names = set(re.findall(r"var\((--[a-z]+(?:-\d+)?)\)", text))
    assert all(f"{name}:" in text for name in names)


def test_same_runs_same_page(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", algorithm="adaptcl", pruning=0.5)
    assert written(tmp_path / "1.html", run)[0] == written(tmp_path / "2.html", run)[0]


@pytest.mark.parametrize(
    "options",
    [
        {"rounds": 1},
        {"rounds": 1, "devices": ["only"]},
        {"rounds": 3, "evaluate_every": 9},
        {"rounds": 4, "devices": []},
        {"rounds": 7, "devices": [f"d{i}" for i in range(300)], "pruning": 0.9},
    ],
)
def test_small_large_and_unevaluated_runs(options: dict[str, object], make_run: MakeRun, tmp_path: Path) -> None:
    if options.get("devices") == []:
        run = make_run("a", **{**options, "devices": ["x"]})
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        text = "".join(json.dumps({**line, "update_time_s": {}, "retention": {}}) + "\n" for line in lines)
        (run / "metrics.jsonl").write_text(text)
    else:
        run = make_run("a", **options)
    _, page = written(tmp_path / "r.html", run)
    assert page.count("h1") == 1
    if options.get("evaluate_every"):
        assert "No round of these runs was evaluated." in " ".join(page.text)
    overview([run], tmp_path / "o.png")


def test_a_device_that_took_no_time(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", rounds=2)
    text = (run / "metrics.jsonl").read_text().replace('"device-0": 1.0}', '"device-0": 0.0}')
    (run / "metrics.jsonl").write_text(re.sub(r'("update_time_s": \{"device-0": )1\.0', r"\g<1>0.0", text))
    written(tmp_path / "r.html", run)


def test_overview_is_a_picture(make_run: MakeRun, tmp_path: Path) -> None:
    overview([make_run("f"), make_run("a", algorithm="adaptcl", pruning=0.8)], tmp_path / "o.png")
    assert (tmp_path / "o.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(EdgePruneError, match="cannot write"):
        overview([make_run("g")], tmp_path / "no" / "o.png")


def test_command(make_run: MakeRun, tmp_path: Path) -> None:
    shown = CliRunner().invoke(cli.command, [str(make_run("a")), "-o", str(tmp_path / "r.html")])
    assert shown.exit_code == 0, shown.output
    assert shown.output.startswith("wrote ") and (tmp_path / "r.html").is_file()


def test_mistakes_write_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    good, empty = make_run("good"), make_run("empty")
    (empty / "metrics.jsonl").write_text("")
    (tmp_path / "nothing").mkdir()
    out = tmp_path / "out"
    out.mkdir()
    cases = [
        ([tmp_path / "absent"], out / "r.html", "not a run directory"),
        ([tmp_path / "nothing"], out / "r.html", "not a run directory"),
        ([good, empty], out / "r.html", "no round has finished yet"),
        ([good], out, "is a folder"),
        ([good], out / "deep" / "r.html", "does not exist"),
        ([], out / "r.html", "name at least one"),
    ]
    for runs, path, words in cases:
        with pytest.raises(EdgePruneError, match=words) as caught:
            write_report(runs, path)
        assert "\n" not in str(caught.value)
        assert os.listdir(out) == []


def test_an_older_page_survives(make_run: MakeRun, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    page.write_text("older")
    with pytest.raises(EdgePruneError):
        write_report([tmp_path / "absent"], page)
    assert page.read_text() == "older"


def luminance(colour: str) -> float:
    """Relative luminance of sRGB, as the WCAG defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_contrast(theme: int) -> None:
    """Text and the lines of runs 4.5 : 1, the ramp of devices (whose names stand beside their lines) 3 : 1."""
    surface = style.ROLES["surface"][theme]
    for role, colours in style.ROLES.items():
        if role in ("ink", "muted") or role.startswith("run-"):
            assert contrast(colours[theme], surface) >= 4.5, role
        elif role.startswith("device-"):
            assert contrast(colours[theme], surface) >= 3.0, role


def test_colours_tell_roles_apart() -> None:
    light = [pair[0] for pair in style.ROLES.values()]
    assert len(set(light)) == len(light)
    ramp = [luminance(style.ROLES[f"device-{i}"][0]) for i in range(style.DEVICE_STEPS)]
    assert ramp == sorted(ramp, reverse=True)
    assert "prefers-color-scheme:dark" in svg.theme_css()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.0123, "0.0123"),
        (4.561, "4.56"),
        (78.91, "78.9"),
        (1234.4, "1,234"),
        (100.0, "100"),
        (9.999, "10.0"),
    ],
)
def test_three_significant_digits(value: float, shown: str) -> None:
    assert style.significant(value) == shown


def test_units() -> None:
    assert style.shown_time(0.02) == "20.0 ms" and style.shown_time(59.0) == "59.0 s"
    assert style.shown_time(600.0) == "10.0 min" and style.shown_time(86400.0) == "24.0 h"
    assert style.shown_bytes(999) == "0.999 kB" and style.shown_bytes(2.5e9) == "2.50 GB"


def test_a_real_clock_is_not_called_virtual(make_run: MakeRun, tmp_path: Path) -> None:
    flare, local = make_run("f", engine="flare"), make_run("l", algorithm="adaptcl")
    words = " ".join(written(tmp_path / "1.html", flare)[1].text)
    assert "irtual" not in words
    assert "Real time" in words and "was clocked by the server" in words
    mixed = " ".join(written(tmp_path / "2.html", flare, local)[1].text)
    assert "Virtual time is computed" in mixed and "Time of fedavg was clocked by the server" in mixed
    assert "×" not in mixed.split("Accuracy Of")[0].split("Summary")[1]  # no speed-up of one clock against the other


def test_a_run_that_goes_on_says_so(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("f", rounds=7)
    assert "fedavg trained digits to" in " ".join(written(tmp_path / "1.html", run)[1].text)
    (run / "summary.json").unlink()
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"round": 8, "time')  # the server is at this very moment writing
    words = " ".join(written(tmp_path / "2.html", run)[1].text)
    assert "fedavg is training digits to" in words and "so far 7 rounds" in words


def test_energy_that_devices_measured_is_added_up(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("f", rounds=4, engine="flare", joules={"device-0": 2.5, "device-7": 10.0})
    assert "Energy of local training 50 J on 2 of 10" in " ".join(written(tmp_path / "r.html", run)[1].text)
