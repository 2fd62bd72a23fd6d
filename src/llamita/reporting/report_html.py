"""Small pieces of HTML. Whatever comes from a run passes through `text` on its way to the page."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from llamita.planning.quantities import duration, gigabytes
from llamita.planning.quantities import tokens as short


def text(value: Any) -> str:
    """Anything as the text of an element or of an attribute."""
    return escape(str(value), quote=True)


def script_json(value: Any) -> str:
    """JSON that may stand inside <script>: no `<`, `>` or `&`, so that nothing can end it."""
    found = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        found = found.replace(sign, f"\\u{ord(sign):04x}")
    return found


def section(key: str, title: str, body: str) -> str:
    return f'<section id="{key}"><h2>{text(title)}</h2>{body}</section>'


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    style: str = "",
    caption: str = "",
) -> str:
    """A table of cells that are HTML already. The first cell of a row is its heading."""
    head = "".join(f'<th scope="col">{text(heading)}</th>' for heading in headings)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td>{cell}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    titled = f"<caption>{text(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table class="{style}">{titled}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def pairs(items: Iterable[tuple[str, Any]]) -> str:
    """Names and values, those without a value left out."""
    found = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>"
        for name, value in items
        if value not in (None, "")
    )
    return f'<dl class="pairs">{found}</dl>' if found else ""


def folded(title: str, body: str, *, opened: bool = False) -> str:
    """Closed on a screen, open on paper."""
    return f"<details{' open' if opened else ''}><summary>{text(title)}</summary>{body}</details>"


def code(value: str) -> str:
    return f'<div class="code"><pre><code>{text(value)}</code></pre></div>'


# -- values, which are text and not HTML -------------------------------------------------------


def whole(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:,.0f}"


def decimal(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def per_cent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}%" if math.isfinite(value) else "–"


def seconds(value: float) -> str:
    """`0.052s`, `42s`, `4m05s`."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.3g}s" if value < 10 else duration(value)


def amount(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else short(value)


def size(value: float) -> str:
    return gigabytes(value) if math.isfinite(value) else "–"


def moment(unix: float) -> str:
    """`2026-03-01 14:05:09 UTC`."""
    try:
        return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "–"
