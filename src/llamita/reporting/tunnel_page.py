"""The page and the figures of `llamita tunnel`: one HTML file with everything in it and no script,
and PNG and SVG files. Needs matplotlib (extra `plots`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from llamita.planning.quantities import duration
from llamita.planning.quantities import tokens as short
from llamita.reporting import tunnel_sections as sections
from llamita.reporting.page_frame import again, tiles, whole_page, write_page
from llamita.reporting.plan_canvas import PlanFigure, save_figures
from llamita.reporting.plot_style import require_matplotlib
from llamita.reporting.report_html import text
from llamita.reporting.tunnel_batch_drawings import batch_figures
from llamita.reporting.tunnel_drawings import transfer_figures
from llamita.reporting.tunnel_law_drawings import law_figures
from llamita.reporting.tunnel_runs_section import cost, facts, flops, runs
from llamita.reporting.tunnel_study_drawings import coordinate_figures, decay_figures
from llamita.reporting.tunnel_words import (
    axis_words,
    interval_text,
    signed,
    value_text,
)
from llamita.windtunnel.findings import Findings, OptimalRatio, Transfer


def write_tunnel_page(findings: Findings, path: Path, *, command: Sequence[str] = ()) -> Path:
    """What a study found as one page; returns where it lies.

    Args:
        command: what gives the same again, word for word; none: the page does not say.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    require_matplotlib("the figures of a study are")
    return write_page(render_tunnel(findings, command=command), path, "tunnel.html")


def write_tunnel_figures(findings: Findings, folder: Path) -> list[Path]:
    """Each figure as `KEY.png` and `KEY.svg`; returns their paths.

    Raises:
        UserError: matplotlib is not installed, or the folder cannot be written.
    """
    require_matplotlib("the figures of a study are")
    return save_figures(tunnel_figures(findings), folder)


def tunnel_figures(findings: Findings) -> list[PlanFigure]:
    """All that there is to draw, in the page's order."""
    return [
        *coordinate_figures(findings),
        *transfer_figures(findings),
        *batch_figures(findings),
        *decay_figures(findings),
        *law_figures(findings),
    ]


def render_tunnel(findings: Findings, *, command: Sequence[str] = ()) -> str:
    """The page as text. The same findings give the same bytes."""
    parts = [
        sections.refusals(findings),
        sections.coordinates(findings, coordinate_figures(findings)),
        sections.transfers(findings, transfer_figures(findings)),
        sections.batch(findings, batch_figures(findings)),
        sections.decays(findings, decay_figures(findings)),
        sections.law(findings, law_figures(findings)),
        cost(findings),
        runs(findings),
        facts(findings),
        again(command),
    ]
    return whole_page(findings.name, "tunnel", _header(findings), parts, "plan.css", "Drawn")


# -- head ------------------------------------------------------------------------------------------


def _header(findings: Findings) -> str:
    return (
        f'<header><p class="kicker"><b>llamita</b> tunnel</p><h1>{text(findings.name)}</h1>'
        f'<p class="hero">{_hero(findings)}</p>{tiles(_tiles(findings), "plan-tiles")}</header>'
    )


def _hero(findings: Findings) -> str:
    """What to take to a larger model, and what the law says; HTML."""
    found = []
    chosen = _best_transfers(findings)
    if chosen:
        each = "; ".join(sections.takes(transfer) for transfer in chosen)
        found.append(f"To a larger size take {each}.")
    law = findings.batch_law
    if law is not None:
        found.append(f"The best batch goes as <b>L<sup>{text(signed(-law.b))}</sup></b>.")
    if findings.law is not None and findings.law.ratios:
        found.append(_best_ratio(findings.law.ratios))
    if not found:
        ended = sum(run.status == "done" for run in findings.runs)
        return f"<b>{ended:,} runs</b> are done, and nothing follows from them yet."
    return " ".join(found)


def _best_ratio(ratios: Sequence[OptimalRatio]) -> str:
    """At the largest budget that the runs reach, as far as any is reached."""
    inside = [each for each in ratios if not each.extrapolated]
    last = max(inside or ratios, key=lambda each: each.flops)
    known = "" if last.ratio_interval is None else f" ({interval_text(last.ratio_interval)})"
    beyond = ", extrapolated" if last.extrapolated else ""
    return (
        f"At {text(flops(last.flops))} FLOPs <b>{text(value_text(last.ratio))} tokens</b> a "
        f"parameter are best{text(known)}{beyond}."
    )


def _best_transfers(findings: Findings) -> list[Transfer]:
    """One of each axis: a value that holds over widths, as far as is known, before one that
    moves."""
    found = []
    for axis in dict.fromkeys(each.axis for each in findings.transfers):
        known = [
            each
            for each in findings.transfers
            if each.axis == axis and each.transferred is not None
        ]
        found += sorted(known, key=_moves)[:1]
    return found


def _moves(transfer: Transfer) -> bool:
    interval = transfer.exponent_interval
    return interval is None or not interval[0] <= 0 <= interval[1]


def _tiles(findings: Findings) -> list[tuple[str, str, str]]:
    made = findings.runs
    counts: Counter[str] = Counter(run.status for run in made)
    others = ", ".join(
        f"{counts[each]:,} {each}"
        for each in ("diverged", "pruned", "failed", "killed")
        if counts[each]
    )
    found = [
        ("Runs", f"{counts['done']:,}", f"done; {others}" if others else "done"),
        (
            "Tokens",
            short(sum(run.tokens for run in made)),
            f"in {len({run.size for run in made}):,} sizes",
        ),
        ("FLOPs", flops(sum(run.flops for run in made)), "training"),
        ("Time", duration(sum(run.seconds for run in made)), "in runs"),
    ]
    for each in _best_transfers(findings):
        assert each.transferred is not None
        note = each.parametrization
        if each.transferred_interval is not None:
            note = f"{interval_text(each.transferred_interval)}, {note}"
        name = axis_words(each.axis).capitalize()
        found.append((name, value_text(each.transferred), note))
    for each in findings.transfers:
        if each.exponent is not None:
            note = f"best {axis_words(each.axis)}, {each.parametrization}"
            found.append(("Power of width", signed(each.exponent), note))
    fitted = None if findings.law is None else findings.law.fitted
    if fitted is not None and fitted.held_out is not None:
        found.append(
            (
                "Largest, predicted",
                f"{signed(100 * fitted.held_out.error, plus=True)}%",
                "off, by a law without it",
            )
        )
    return found
