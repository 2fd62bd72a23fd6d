"""The sections of a wind tunnel's page that say what was found. Each is HTML, and empty where there
is nothing to say."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llamita.planning.quantities import tokens as short
from llamita.reporting import report_html as html
from llamita.reporting.page_frame import figures_of
from llamita.reporting.plan_canvas import PlanFigure, flops_text
from llamita.reporting.plan_sections import law as law_section
from llamita.reporting.plan_sections import listed, note, three_figures
from llamita.reporting.report_html import text
from llamita.reporting.tunnel_words import (
    axis_words,
    interval_text,
    optimum_text,
    share_text,
    signed,
    value_text,
)
from llamita.windtunnel.findings import (
    BatchLaw,
    CoordinateCheck,
    DecayCell,
    Findings,
    Interval,
    Optimum,
    Transfer,
)

Figures = Sequence[PlanFigure]


def refusals(found: Findings) -> str:
    if not found.refusals:
        return ""
    items = tuple(f"{name}: {reason}" for name, reason in found.refusals.items())
    return html.section("refusals", "Not found", listed(items, "facts warnings"))


def _verdicts(items: Sequence[tuple[str, str]]) -> str:
    """What was judged, each with its name before it."""
    rows = "".join(f"<li><b>{text(name)}</b>: {text(said)}</li>" for name, said in items)
    return f'<ul class="facts">{rows}</ul>'


def _loss(value: float) -> str:
    return f"{value:.4f}"


def _between(interval: Interval | None, digits: int) -> str:
    """Of values that may be below nought."""
    if interval is None:
        return "not determined"
    return f"{signed(interval[0], digits)} to {signed(interval[1], digits)}"


# -- coordinates -----------------------------------------------------------------------------------


def coordinates(found: Findings, figures: Figures) -> str:
    if not found.coordinates:
        return ""
    tables = []
    for check in found.coordinates:
        title = f"{check.parametrization}: every step"
        tables.append(html.folded(title, _coordinate_table(check)))
    growing = tuple(
        f"{check.parametrization}: {each}" for check in found.coordinates for each in check.growing
    )
    body = (
        _verdicts([(each.parametrization, each.verdict) for each in found.coordinates])
        + figures_of(figures)
        + (html.folded(f"what grows: {len(growing)}", listed(growing, "plain")) if growing else "")
        + "".join(tables)
    )
    return html.section("coordinates", "Does an update grow with width?", body)


def _coordinate_table(check: CoordinateCheck) -> str:
    columns = ["", "Of", "Steps", "Exponent", "95% interval"]
    columns += [f"width {width:,}" for width in check.widths]
    rows = []
    for each in check.coordinates:
        cells = [each.what, each.kind, f"{each.step}", signed(each.exponent)]
        cells.append(_between(each.interval, 2))
        for width in check.widths:
            values = each.rms.get(width, ())
            cells.append(value_text(sum(values) / len(values)) if values else "–")
        rows.append([text(cell) for cell in cells])
    body = html.table(columns, rows, style="numbers")
    return body + note(
        f"Exponent: p of RMS ∝ width^p. Beyond {check.tolerance:g} it counts as growing. Below a "
        "width: the mean of the seeds."
    )


# -- optima ----------------------------------------------------------------------------------------


def transfers(found: Findings, figures: Figures) -> str:
    """A section for each axis that was searched."""
    sections = []
    for number, axis in enumerate(dict.fromkeys(each.axis for each in found.transfers)):
        of_axis = [each for each in found.transfers if each.axis == axis]
        # Their keys begin with what they show and the axis' number.
        shown = [
            each
            for each in figures
            if each.key.startswith((f"transfer-{number}-", f"optimum-{number}-"))
        ]
        body = (
            _verdicts([(each.parametrization, each.verdict) for each in of_axis])
            + figures_of(shown, aside="".join(map(_taken, of_axis)))
            + _optimum_table(of_axis)
            + _notes(of_axis)
        )
        title = f"{axis_words(axis).capitalize()} over sizes"
        sections.append(html.section(f"transfer-{number}", title, body))
    return "".join(sections)


def _optimum_table(found: Sequence[Transfer]) -> str:
    columns = ["", "Size", "Width", "Parameters", f"Best {axis_words(found[0].axis)}"]
    columns += ["95% interval", "Loss there", "Noise", "Runs", "Diverged at"]
    rows = []
    for transfer in found:
        for each in transfer.optima:
            best = each.optimum
            cells = [
                transfer.parametrization,
                each.size,
                f"{each.hidden_size:,}",
                f"{each.parameters:,}",
                optimum_text(best),
                interval_text(best.interval) if best.is_found else "–",
                _loss(best.loss),
                "–" if best.noise is None else _loss(best.noise),
                f"{len(best.trials)}",
                ", ".join(map(value_text, best.diverged)) or "–",
            ]
            rows.append([text(cell) for cell in cells])
    return html.table(columns, rows, style="numbers") + note(
        "Noise: standard deviation of a loss about the parabola, the seeds' own offsets taken out."
    )


def _taken(each: Transfer) -> str:
    """How one parametrisation's optimum goes with width, and what that means for a larger size."""
    known = [
        ("Best ∝ width^p, p", "" if each.exponent is None else signed(each.exponent)),
        ("95% interval of p", "" if each.exponent is None else _between(each.exponent_interval, 2)),
        ("Smallest's best costs", "" if each.cost is None else _cost(each.cost)),
        ("For a larger size", "–" if each.transferred is None else value_text(each.transferred)),
        (
            "95% interval",
            "" if each.transferred is None else interval_text(each.transferred_interval),
        ),
    ]
    return f"<h3>{text(each.parametrization)}</h3>{html.pairs(known)}"


def _cost(value: float) -> str:
    return f"{signed(value, 4)} at the largest size"


def _notes(found: Sequence[Transfer]) -> str:
    items = tuple(
        f"{transfer.parametrization}, {each.size}: {said}"
        for transfer in found
        for each in transfer.optima
        for said in each.optimum.notes
    )
    return listed(items, "plain") if items else ""


# -- batch size ------------------------------------------------------------------------------------


def batch(found: Findings, figures: Figures) -> str:
    law = found.batch_law
    if law is None:
        return ""
    formula = f"bs = {text(flops_text(law.a))} / L<sup>{law.b:.3g}</sup> tokens"
    known = [
        ("95% interval of a", _between_powers(law.a_interval)),
        ("95% interval of b", _between(law.b_interval, 2)),
        ("L", "bits per byte of held-out text"),
        ("Resampled", f"{len(law.samples)} fits" if law.samples else ""),
        ("MiniCPM's", "1.21·10⁹ / L^6.24, L on C4 in nats per token (arXiv 2404.06395)"),
    ]
    body = (
        f'<p class="formula">{formula}</p>{figures_of(figures, aside=html.pairs(known))}'
        + (_minima_table(law) if law.minima else "")
        + (listed((*law.skipped, *law.notes), "plain") if law.skipped or law.notes else "")
    )
    return html.section("batch", "Batch size against loss", body)


def _between_powers(interval: Interval | None) -> str:
    if interval is None:
        return "not determined"
    return f"{flops_text(interval[0])} to {flops_text(interval[1])}"


def _minima_table(law: BatchLaw) -> str:
    columns = ["Size", "Loss", "Batch of fewest tokens", "95% interval", "Tokens", "The law's"]
    rows = []
    for each in law.minima:
        best = each.best
        cells = [
            each.size,
            _loss(each.loss),
            _batch_text(best),
            "–" if best.edge else interval_text(best.interval),
            short(math.exp(best.loss)),
            short(law.batch(each.loss)),
        ]
        rows.append([text(cell) for cell in cells])
    return html.table(columns, rows, style="numbers")


def _batch_text(best: Optimum) -> str:
    return optimum_text(best) if best.edge else short(best.value)


# -- how a run is ended ----------------------------------------------------------------------------


def decays(found: Findings, figures: Figures) -> str:
    if not found.decays:
        return ""
    body = "".join(
        f"<p>{text(study.verdict)}</p>" + (listed(study.notes, "plain") if study.notes else "")
        for study in found.decays
    )
    body += figures_of(figures)
    for study in found.decays:
        rows = [[text(cell) for cell in _decay_cells(each)] for each in study.cells]
        columns = ["", "Share", "Size", "Mixture", "Loss", "Seeds", "From the first", "95%"]
        body += html.table(columns, rows, style="numbers")
        before = tuple(
            f"{size}, before its last decay: {loss:.4f}" for size, loss in study.undecayed.items()
        )
        body += listed(before, "plain") if before else ""
    body += note("From the first: the difference from the first way, seed by seed.")
    return html.section("decay", "How to end a run", body)


def _decay_cells(each: DecayCell) -> list[str]:
    gap = each.difference
    return [
        each.form,
        share_text(each.share),
        each.size,
        each.mixture,
        _loss(each.mean),
        f"{len(each.losses)}",
        "–" if gap is None else signed(gap, 4, plus=True),
        "–" if gap is None else _between(each.difference_interval, 4),
    ]


# -- the law ---------------------------------------------------------------------------------------


def law(found: Findings, figures: Figures) -> str:
    """What the law is worth, and then the law as a plan's page has it."""
    study = found.law
    if study is None:
        return ""
    fitted, held = study.fitted, study.fitted.held_out
    said = [
        f"It leaves a root mean square of {fitted.rms:.2%} of the loss in "
        f"{len(fitted.residuals)} runs, and explains {fitted.r_squared:.2%} of their variance."
    ]
    if held is not None:
        said.append(
            f"Fitted without {held.largest}, it predicts {held.predicted:.4f} where "
            f"{held.observed:.4f} was observed: {signed(100 * held.error, plus=True)}%, at "
            f"{held.reach:.3g} times the compute of what is left."
        )
    own = study.trunk_tokens + study.branch_tokens
    if study.separate_tokens > own > 0:
        said.append(
            f"Trunks took {short(study.trunk_tokens)} tokens and their branches "
            f"{short(study.branch_tokens)}; runs of their own would have taken "
            f"{short(study.separate_tokens)}, {study.separate_tokens / own:.3g} times as many."
        )
    body = listed(tuple(said), "facts")
    body += listed(fitted.warnings, "facts warnings") if fitted.warnings else ""
    body += figures_of(figures)
    if study.ratios:
        columns = ["FLOPs", "Parameters", "Tokens", "A parameter", "95% interval", ""]
        rows = [
            [
                flops_text(each.flops),
                short(each.parameters),
                short(each.tokens),
                three_figures(each.ratio),
                interval_text(each.ratio_interval),
                "extrapolated" if each.extrapolated else "",
            ]
            for each in study.ratios
        ]
        body += html.table(columns, rows, style="numbers")
        body += note("Where the loss is least for the compute. A parameter: tokens for each.")
    return html.section("scaling", "Loss against size and tokens", body) + law_section(fitted.law)


def takes(found: Transfer) -> str:
    """What a transfer says of a larger size, in HTML."""
    assert found.transferred is not None
    interval = found.transferred_interval
    between = "" if interval is None else f" ({text(interval_text(interval))})"
    power = ""
    if found.exponent is not None:
        power = f"; the best goes as width<sup>{text(signed(found.exponent))}</sup>"
    name = text(axis_words(found.axis))
    return (
        f"{name} <b>{text(value_text(found.transferred))}</b>{between} under "
        f"{text(found.parametrization)}{power}"
    )
