"""What the pages without script share: the document around them, their tiles and their figures."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

import llamita
from llamita.durable import replace_synced
from llamita.errors import UserError
from llamita.reporting import report_html as html
from llamita.reporting.plan_canvas import PlanFigure, inline_svg, single_panels
from llamita.reporting.report_html import text

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""The browser runs no script and fetches nothing, should a text ever get past escaping."""


def whole_page(
    title: str, verb: str, header: str, sections: Iterable[str], style: str, made: str
) -> str:
    """
    Args:
        verb: of llamita, which the page is the page of.
        sections: HTML; empty ones are left out.
        style: the stylesheet over report.css, as `plan.css`.
        made: what llamita did, as `Drawn`.
    """
    sheets = "".join(
        (files("llamita.reporting") / name).read_text(encoding="utf-8")
        for name in ("report.css", style)
    )
    body = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)} · llamita {text(verb)}</title>\n<style>\n{sheets}</style>\n</head>\n"
        f"<body>\n{header}\n<main>\n{body}\n</main>\n"
        f"<footer><p>{text(made)} by llamita {text(llamita.__version__)}. This file needs nothing "
        "else.</p></footer>\n</body>\n</html>\n"
    )


def write_page(page: str, path: Path, name: str) -> Path:
    """Write a page, and the folders that lead to it; returns where it lies.

    Args:
        name: what such a page may be called, for the error.

    Raises:
        UserError: the file cannot be written.
    """
    if path.is_dir():
        raise UserError(f"--html {path} is a directory: name a file, such as {path / name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"could not write {path}: {error.strerror or error}") from error
    replace_synced(path, page)
    return path


def tiles(items: Iterable[tuple[str, str, str]], style: str) -> str:
    """Name, value and a note below it, of each."""
    found = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}<small>{text(note)}</small></dd></div>"
        for name, value, note in items
    )
    return f'<dl class="tiles {style}">{found}</dl>'


def figures_of(shown: Sequence[PlanFigure], aside: str = "") -> str:
    """Figures two abreast; one of several panels takes the whole width, and its panels stand one
    below the other where that is narrow.

    Args:
        aside: HTML beside or below the last figure.
    """
    if not shown and not aside:
        return ""
    drawn = "".join(_figure(each) for each in shown)
    if aside:
        drawn += f'<div class="reading">{aside}</div>'
    return f'<div class="figures">{drawn}</div>'


def _figure(each: PlanFigure) -> str:
    parts = single_panels(each)
    if len(parts) == 1:
        style, drawn = "plot", inline_svg(each)
    else:
        style = "plot wide"
        drawn = "".join(
            f"<div><p>{text(name)}</p>{inline_svg(part)}</div>"
            for name, part in zip(each.panel_titles, parts, strict=True)
        )
        drawn = f'<div class="panels">{drawn}</div>'
    return (
        f'<figure class="{style}" id="figure-{text(each.key)}"><figcaption><h3>{text(each.title)}'
        f'</h3><p class="note">{text(each.caption)}</p></figcaption>{drawn}</figure>'
    )


def again(command: Sequence[str]) -> str:
    """The command that gives the page again; nothing where there is none."""
    if not command:
        return ""
    return html.section("again", "Do it again", html.code(shlex.join(command)))
