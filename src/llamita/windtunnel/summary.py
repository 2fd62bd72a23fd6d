"""A study's findings in lines, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from llamita.planning.quantities import tokens as short
from llamita.reporting.plan_canvas import flops_text
from llamita.windtunnel.findings import BatchLaw, Findings, LawStudy


def summarize(found: Findings) -> Iterator[str]:
    """A line or two a finding; the page has the rest."""
    counts: dict[str, int] = {}
    for run in found.runs:
        counts[run.status] = counts.get(run.status, 0) + 1
    yield f"{found.name}: " + (", ".join(f"{n} {what}" for what, n in counts.items()) or "no runs")
    for run in found.runs:
        if run.status in ("failed", "killed"):
            yield f"  {run.status} {run.key}: {run.reason}"
    for check in found.coordinates:
        yield f"coordinates, {check.parametrization}: {check.verdict}"
    for transfer in found.transfers:
        yield f"{transfer.axis}, {transfer.parametrization}: {transfer.verdict}"
    if found.batch_law is not None:
        yield f"batch: {_batch(found.batch_law)}"
    for study in found.decays:
        yield f"decay: {study.verdict}"
    if found.law is not None:
        yield from _law(found.law)
    for name, reason in found.refusals.items():
        yield f"{name}: {reason}"


def _batch(law: BatchLaw) -> str:
    interval = law.b_interval
    between = f" ({interval[0]:.3g} to {interval[1]:.3g})" if interval is not None else ""
    return f"{law.a:.3g} / L^{law.b:.3g}{between} tokens; MiniCPM's is 1.21e9 / L^6.24, L on C4"


def _law(study: LawStudy) -> Iterator[str]:
    law, held_out = study.fitted.law, study.fitted.held_out
    yield (
        f"law: {law.E:.4g} + {law.A:.4g}/(N/{law.parameters_unit:g})^{law.alpha:.3g} + "
        f"{law.B:.4g}/(D/{law.tokens_unit:g})^{law.beta:.3g} {law.loss}, rms {study.fitted.rms:.2%}"
    )
    if held_out is not None:
        yield (
            f"  {held_out.largest} left out: predicted {held_out.predicted:.4f}, observed "
            f"{held_out.observed:.4f} ({held_out.error:+.2%}), rms {held_out.rms:.2%}"
        )
    inside = [each for each in study.ratios if not each.extrapolated]
    beyond = [each for each in study.ratios if each.extrapolated]
    # Of what is extrapolated the nearest and the furthest: the page has them all.
    shown = [*inside, *beyond[:1], *beyond[1:][-1:]]
    for each in sorted(shown, key=lambda ratio: ratio.flops):
        between = ""
        if each.ratio_interval is not None:
            between = f" ({each.ratio_interval[0]:.3g} to {each.ratio_interval[1]:.3g})"
        outside = ", extrapolated" if each.extrapolated else ""
        yield (
            f"  at {flops_text(each.flops)} FLOPs {each.ratio:.3g} tokens a parameter{between}: "
            f"N {short(each.parameters)}, D {short(each.tokens)}{outside}"
        )
    for warning in study.fitted.warnings:
        yield f"  {warning}"
