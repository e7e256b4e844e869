"""The page: one HTML file that needs nothing else, no network and no script."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib import resources
from typing import Any

from edgeprune._version import __version__
from edgeprune.report import compare, figures, style, svg, words
from edgeprune.report.labels import headroom
from edgeprune.report.series import Run, printable

MOST_REJECTED = 100


def render(runs: Sequence[Run]) -> str:
    """The whole page about ``runs``. Everything that came from a user is escaped."""
    css = resources.files("edgeprune.report").joinpath("page.css").read_text(encoding="utf-8")
    title = words.title(runs)
    sections = [_summary(runs), _accuracy(runs), _devices(runs), _rejected(runs), _settings(runs)]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            # The browser itself then refuses to load anything, whatever a name in the page may look like.
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">",
            f"<title>{_e(title)}</title>",
            f"<style>{svg.theme_css()}\n{css}</style>",
            "</head>",
            "<body>",
            _header(runs, title),
            "<main>",
            *(section for section in sections if section),
            "</main>",
            f"<footer><p>{_e(words.provenance(runs))}</p></footer>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _header(runs: Sequence[Run], title: str) -> str:
    facts = "".join(f"<div><dt>{_e(name)}</dt><dd>{_e(value)}</dd></div>" for name, value in words.facts(runs))
    return (
        f'<header><p class="brand">edgeprune {_e(__version__)}</p><h1>{_e(title)}</h1>'
        f'<p class="lead">{_e(words.lead(runs))}</p><dl class="facts">{facts}</dl></header>'
    )


def _summary(runs: Sequence[Run]) -> str:
    several = len(runs) > 1
    base = compare.baseline(runs)
    goal = compare.common_accuracy(runs) if several else None
    clock = style.time_unit(max(run.time_s for run in runs))
    size = style.byte_unit(max(max(run.upload_bytes, run.download_bytes) for run in runs))
    heads = ["Run", "Rounds", "Final accuracy", "Best accuracy", f"{words.clock(runs).capitalize()} ({clock.name})"]
    heads += [f"Speed-up against {base.label}"] if several else []
    heads += [f"Time to {words.percent(goal)} ({clock.name})"] if goal else []
    heads += [f"Upload ({size.name})", f"Download ({size.name})", "Rejected updates"]
    rows = []
    for index, run in enumerate(runs):
        algorithm = "" if run.label == run.algorithm else f" <small>{_e(run.algorithm)}</small>"
        cells = [str(run.rounds), words.accuracy(run.final), _best(run), style.significant(run.time_s / clock.per)]
        if several:
            gain = compare.speed_up(run, base)
            cells.append("baseline" if run is base else "–" if gain is None else f"{gain[0]:.2f}×")
        if goal:
            reached = run.first_at(goal)
            cells.append("–" if reached is None else style.significant(reached.time_s / clock.per))
        cells += [style.significant(count / size.per) for count in (run.upload_bytes, run.download_bytes)]
        cells.append(f"{len(run.rejected):,}")
        rows.append(
            f'<tr><th scope="row">{_swatch(index)}{_e(run.label)}{algorithm}</th>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    head = "".join(f'<th scope="col">{_e(name)}</th>' for name in heads)
    note = f'<p class="note">{_e(words.table_note(runs, base))}</p>' if several else ""
    return (
        f'<section><h2>Summary</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}</section>"
    )


def _accuracy(runs: Sequence[Run]) -> str:
    if not any(run.evaluations for run in runs):
        return '<section><h2>Accuracy</h2><p class="note">No round of these runs was evaluated.</p></section>'
    right = headroom([run.label for run in runs])
    drawings = []
    for name, caption, draw in (
        ("time", f"Accuracy against {words.clock(runs)}", figures.accuracy_against_time),
        ("bytes", "Accuracy against bytes sent", figures.accuracy_against_bytes),
    ):
        with figures.look():
            made, axes = figures.figure(right)
            draw(axes, runs)
            drawing = svg.inline(made, f"accuracy-{name}", words.describe_accuracy(runs, name))
        drawings.append(_figure(caption, "", drawing))
    names = "".join(f"<li>{_swatch(index)}{_e(run.label)}</li>" for index, run in enumerate(runs))
    legend = f'<ul class="legend">{names}</ul>' if len(runs) > 1 else ""
    return _section("Accuracy", "Of the global model on the test set.", drawings, legend)


def _devices(runs: Sequence[Run]) -> str:
    """Update times of every run, then retention of those that prune."""
    order = figures.device_order(runs)
    right = headroom(figures.labelled(order))
    drawings = []
    unit = figures.update_unit(runs).name
    for kind, caption, wanted, draw, describe in (
        ("times", f"Update time ({unit})", lambda run: run.times, figures.update_times, words.describe_times),
        ("retention", "Channels kept", lambda run: run.prunes, figures.retention, words.describe_retention),
    ):
        for index, run in enumerate(runs):
            if not wanted(run):
                continue
            with figures.look():
                made, axes = figures.figure(right)
                draw(axes, run, runs, order)
                drawing = svg.inline(made, f"{kind}-{index}", describe(run))
            drawings.append(_figure(caption, run.label if len(runs) > 1 else "", drawing))
    return _section("Devices", words.devices_note(runs), drawings) if drawings else ""


def _rejected(runs: Sequence[Run]) -> str:
    entries = [(run.label, *entry) for run in runs for entry in run.rejected]
    if not entries:
        return ""
    rows = "".join(
        f'<tr><td>{_e(label)}</td><td class="narrow">{round_}</td><td>{_e(device)}</td><td>{_e(reason)}</td></tr>'
        for label, round_, device, reason in entries[:MOST_REJECTED]
    )
    more = f'<p class="note">and {len(entries) - MOST_REJECTED:,} more</p>' if len(entries) > MOST_REJECTED else ""
    return (
        "<section><h2>Rejected updates</h2>"
        '<p class="note">Left out of the merge; the run went on without them.</p>'
        '<div class="scroll"><table class="text"><thead><tr><th scope="col">Run</th><th scope="col">Round</th>'
        f'<th scope="col">Device</th><th scope="col">Reason</th></tr></thead><tbody>{rows}</tbody></table></div>{more}'
        "</section>"
    )


def _settings(runs: Sequence[Run]) -> str:
    parts = ["<section><h2>Settings</h2>"]
    rows = compare.differences(runs) if len(runs) > 1 else []
    if rows:
        head = "".join(f'<th scope="col">{_e(run.label)}</th>' for run in runs)
        body = "".join(
            f'<tr><th scope="row">{_e(key)}</th>'
            + "".join(f"<td>{_e(printable(value))}</td>" for value in values)
            + "</tr>"
            for key, values in rows
        )
        parts.append(
            '<p class="note">Where the runs differ.</p><div class="scroll"><table class="text">'
            f'<thead><tr><th scope="col">Key</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )
    for run in runs:
        parts.append(
            f"<details><summary>Complete configuration of {_e(run.label)}</summary>"
            f"<pre>{_e(_toml(run.config))}</pre></details>"
        )
    return "".join(parts) + "</section>"


def _section(title: str, note: str, drawings: Sequence[str], legend: str = "") -> str:
    return (
        f'<section><h2>{_e(title)}</h2><p class="note">{_e(note)}</p>{legend}'
        f'<div class="figures">{"".join(drawings)}</div></section>'
    )


def _figure(caption: str, of: str, drawing: str) -> str:
    extra = f" <span>{_e(of)}</span>" if of else ""
    return f"<figure><figcaption>{_e(caption)}{extra}</figcaption>{drawing}</figure>"


def _swatch(index: int) -> str:
    return f'<span class="swatch" style="background:var(--run-{index % style.RUN_COLOURS})"></span>'


def _best(run: Run) -> str:
    best = run.best
    return "–" if best is None else f"{best.accuracy:.2%} <small>round {best.round}</small>"


def _toml(config: dict[str, Any]) -> str:
    import tomli_w

    return tomli_w.dumps(config)


def _e(text: object) -> str:
    return html.escape(str(text), quote=True)
