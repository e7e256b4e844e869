"""A matplotlib figure as SVG that belongs into a page: no network names, the page's font, the page's colours."""

from __future__ import annotations

import html
import io
import re
from typing import Any

from edgeprune.report import style

_ROLE_OF = {light: role for role, (light, _) in style.ROLES.items()}


def inline(figure: Any, name: str, description: str) -> str:
    """``figure`` as one ``<svg>`` element. ``name`` makes its ids unique in the page; ``description`` is read aloud.

    Colours of :mod:`style` become ``var(--role)``; fonts are left to the page; the size is the figure's own, at one
    CSS pixel for 1/72 inch, and shrinks with the page.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    body = text[text.index("<svg") : text.rindex("</svg>")]
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)  # one beside each text, with the text again
    body = body.replace("xlink:href", "href").replace("*{stroke-linejoin: round; stroke-linecap: butt}", "")
    body = re.sub(r'<style type="text/css"></style>', "", body)
    body = re.sub(r'(?<= id=")([^"]*)', rf"{name}-\1", body)
    body = re.sub(r"(?<=url\(#)([^)]*)", rf"{name}-\1", body)
    body = re.sub(r'(?<=href="#)([^"]*)', rf"{name}-\1", body)
    # Newer releases write font-size and font-family, older ones the shorthand "font: 11px 'DejaVu Sans', ...".
    body = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", body)
    body = re.sub(r"font: ((?:\w+ )*?[\d.]+px) [^;\"]*", r"font: \1 var(--sans)", body)
    body = re.sub(r"#[0-9a-f]{6}\b", _as_variable, body)
    body = re.sub(r"\n\s*\n+", "\n", body)
    width, height = figure.get_figwidth() * 72, figure.get_figheight() * 72
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{html.escape(description, quote=True)}">{body}</svg>'
    )


def theme_css() -> str:
    """The variables of both themes: light, and dark where the reader's system asks for it."""
    light = "".join(f"--{role}:{pair[0]};" for role, pair in style.ROLES.items())
    dark = "".join(f"--{role}:{pair[1]};" for role, pair in style.ROLES.items())
    return f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def _as_variable(match: re.Match[str]) -> str:
    role = _ROLE_OF.get(match[0])
    return f"var(--{role})" if role else match[0]
