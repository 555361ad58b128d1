"""The HTML page: plain data in, one self-contained text out.

The template is `cathpc/assets/report.html.j2`. It is filled with autoescaping on, so that whatever a record, a card or
an answer holds is shown as text. Figures are set in as data URIs, BokehJS and the page's own script (`report.js`) as
text; the page loads nothing from anywhere, and its policy lets no other script run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cathpc.progress import duration

ASSETS = Path(__file__).parents[1] / "assets"
_KINDS = {".svg": "image/svg+xml", ".png": "image/png"}


_FIRST = 'document.documentElement.classList.add("js");'
"""Runs before anything is shown: still pictures make room for charts."""


def render(page: Mapping[str, Any]) -> str:
    """The page for what `cathpc.report.stage` gathered; a name that the template misses raises `UndefinedError`.

    `page["charts"]` holds the `Chart`s by the key of their figure.
    """
    from cathpc.report import charts

    scripts = {
        "first": _FIRST,
        "bokeh": charts.script(),
        "page": (ASSETS / "report.js").read_text(encoding="utf-8"),
    }
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts.values()]
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, percent=percent, duration=duration, shorten=shorten, words=words)
    return environment.get_template("report.html.j2").render(
        page,
        scripts={name: Markup(text) for name, text in scripts.items()},
        hashes=[Markup(text) for text in hashes],
        charts_data=Markup(charts.embed(page["charts"])),
        element=charts.element,
    )


def data_uri(path: Path) -> str:
    """A figure's file as a data URI."""
    return f"data:{_KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def number(value: Any) -> str:
    """'12,345', '0.0123' (three significant digits), 'yes', '–' for None; other values as they are."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if value != value:
            return "–"
        if value and not 1e-3 <= abs(value) < 1e6:
            return f"{value:.2e}"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(number(v) for v in value) or "–"
    return str(value)


def percent(share: float | None, digits: int = 0) -> str:
    """A share in 0..1 as '42%'; '–' for None."""
    return "–" if share is None else f"{100 * share:.{digits}f}%"


def shorten(text: str, limit: int = 700) -> str:
    """`text`, cut after `limit` characters with a note of how many were left out."""
    text = text.strip()
    return text if len(text) <= limit else f"{text[:limit].rstrip()} … [{len(text) - limit:,} more characters]"


def words(key: str) -> str:
    """A key as words: 'near_duplicate' -> 'near duplicate'."""
    return key.replace("_", " ")
