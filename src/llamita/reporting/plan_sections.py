"""The sections of a plan's page. Each is HTML, and empty where there is nothing to say."""

from __future__ import annotations

import json
from collections.abc import Iterator

from llamita.planning.answer import Answer, Candidate, Option
from llamita.planning.answer_text import loss_text, money, share_text
from llamita.planning.laws import Law, Rule
from llamita.planning.quantities import duration
from llamita.planning.quantities import tokens as short
from llamita.reporting import report_html as html
from llamita.reporting.plan_canvas import flops_text
from llamita.reporting.report_html import text

_CONSTANTS = {"E": "E", "A": "A", "alpha": "α", "B": "B", "beta": "β"}


def warnings(answer: Answer) -> str:
    if not answer.warnings:
        return ""
    return html.section("warnings", "Beware", listed(answer.warnings, "facts warnings"))


def facts(answer: Answer) -> str:
    if not answer.facts:
        return ""
    return html.section("facts", "What follows", listed(answer.facts, "facts"))


def assumptions(answer: Answer) -> str:
    if not answer.assumptions:
        return ""
    return html.section("assumptions", "Assumed", listed(answer.assumptions, "plain"))


def listed(items: tuple[str, ...], style: str) -> str:
    return f'<ul class="{style}">' + "".join(f"<li>{text(each)}</li>" for each in items) + "</ul>"


# -- tables ----------------------------------------------------------------------------------------


def options(answer: Answer) -> str:
    best = answer.recommended
    serving = any(each.serving_flops for each in answer.options)
    held = answer.question is not None and answer.question.loss is not None
    columns = ["Parameters", "Tokens", "A parameter"]
    columns += ["Loss"] if best.loss is not None else []
    kinds = ["Training", "Serving"] if serving else []
    if answer.in_money:
        columns += ["FLOPs", *kinds, "Cost"]
    else:
        columns += [*(f"{kind} FLOPs" for kind in kinds), "FLOPs"]
    columns += ["Time"] if best.training_seconds is not None else []
    columns += ["Epochs"] if best.epochs is not None else []
    columns += ["Beyond"] if held else []
    columns += ["Too much"] if any(each.beyond_limits for each in answer.options) else []
    rows = []
    for each in answer.options:
        cells = _cells(each)
        rows.append([text(each.label), *(text(cells[name]) for name in columns)])
    words = "The recommended one first. A parameter: tokens for each parameter."
    words += " FLOPs: training and serving." if serving else ""
    if held:
        words += " Beyond: more than the recommended one costs in all."
    body = html.table(["", *columns], rows, style="numbers options")
    return html.section("options", "Options", f"{body}{note(words)}")


def _cells(each: Option) -> dict[str, str]:
    return {
        "Parameters": short(each.parameters),
        "Tokens": short(each.tokens),
        "A parameter": three_figures(each.tokens_per_parameter),
        "Loss": loss_text(each.loss),
        "Training FLOPs": flops_text(each.training_flops),
        "Serving FLOPs": flops_text(each.serving_flops) if each.serving_flops else "–",
        "FLOPs": flops_text(each.total_flops),
        "Training": money(each.training_usd or 0.0),
        "Serving": money(each.serving_usd or 0.0),
        "Cost": money(each.total_usd or 0.0),
        "Time": duration(each.training_seconds or 0.0),
        "Epochs": f"{each.epochs or 0.0:.2f}",
        "Beyond": share_text(each.extra),
        "Too much": each.beyond_limits,
    }


def three_figures(value: float) -> str:
    """`1,550`, `44.3`."""
    return f"{float(f'{value:.3g}'):,.10g}"


def changes(answer: Answer) -> str:
    """What the recommendation becomes if something is otherwise; obstacles below the table."""
    if not answer.changes:
        return ""
    regrets = any(each.regret is not None for each in answer.changes)
    columns = ["Parameters", "Tokens", "Loss", "Cost" if answer.in_money else "FLOPs"]
    columns += ["Keeping the size"] if regrets else []
    write = money if answer.in_money else flops_text
    rows = []
    for each in answer.changes:
        if each.obstacle:
            continue
        cells = [each.what, short(each.parameters), short(each.tokens), loss_text(each.loss)]
        cells += [write(each.total)] + ([share_text(each.regret)] if regrets else [])
        rows.append([text(cell) for cell in cells])
    body = html.table(["", *columns], rows, style="numbers") if rows else ""
    if regrets:
        body += note(
            "Keeping the size: what the recommended size would then cost beyond the best, trained "
            "to the same loss."
        )
    obstacles = tuple(f"{each.what}: {each.obstacle}" for each in answer.changes if each.obstacle)
    body += listed(obstacles, "plain") if obstacles else ""
    return html.section("changes", "What changes if", body)


def candidates(answer: Answer) -> str:
    if not answer.candidates:
        return ""
    mixture = any(each.total_parameters != each.parameters for each in answer.candidates)
    timed = answer.candidates[0].training_seconds is not None
    priced = answer.candidates[0].training_usd is not None
    columns = ["FFN", "Heads / KV", "Parameters", *(["In all"] if mixture else [])]
    columns += ["Off by", "Tokens", "Loss", "Training FLOPs", "Over 6·N·D"]
    columns += [*(["Training"] if priced else []), *(["Time"] if timed else [])]
    rows = [[text(cell) for cell in _candidate(each, mixture)] for each in answer.candidates]
    first = json.dumps(answer.candidates[0].config.to_huggingface(), indent=1)
    body = html.table(["", *columns], rows, style="numbers")
    body += note("Over 6·N·D: with the head and attention counted, which 6·N·D leaves out.")
    body += html.folded("config.json of the first", html.code(first))
    return html.section("shapes", "Shapes that can be built", body)


def _candidate(each: Candidate, mixture: bool) -> list[str]:
    config = each.config
    return [
        f"{config.num_hidden_layers} layers of {config.hidden_size:,}",
        f"{config.intermediate_size:,}",
        f"{config.num_attention_heads} / {config.num_key_value_heads}",
        f"{each.parameters:,}",
        *([f"{each.total_parameters:,}"] if mixture else []),
        share_text(each.error),
        short(each.tokens),
        loss_text(each.loss),
        flops_text(each.training_flops),
        f"×{each.beyond_the_law:.2f}",
        *([] if each.training_usd is None else [money(each.training_usd)]),
        *([] if each.training_seconds is None else [duration(each.training_seconds)]),
    ]


def repeats(answer: Answer) -> str:
    if not answer.repeats:
        return ""
    assert isinstance(answer.law, Law)
    columns = ["Epochs", "Tokens", "Worth", "Loss", "Were it fresh", "Last token worth"]
    rows = [
        [
            f"{each.epochs:.3g}",
            short(each.tokens),
            short(each.effective_tokens),
            loss_text(each.loss),
            loss_text(each.fresh_loss),
            f"{each.worth:.0%}",
        ]
        for each in answer.repeats
    ]
    unique = answer.repeats[0].tokens / answer.repeats[0].epochs
    body = html.table(columns, rows, style="numbers") + note(
        f"A repeated token is worth half a fresh one after {answer.law.epochs_at_worth(0.5):.1f} "
        f"epochs; no amount of repeating makes {short(unique)} tokens worth more than "
        f"{short(answer.law.most_effective_tokens(unique))}."
    )
    return html.section("repeats", "Reading the same text again", body)


# -- the law ---------------------------------------------------------------------------------------


def law(found: Law | Rule) -> str:
    """Its formula and constants, what it was fitted on, and where it is from."""
    if isinstance(found, Rule):
        formula = f"D = {found.tokens_per_parameter:g} N"
        known = [("Counts", f"{found.counts} parameters"), ("Source", found.source)]
        body = f'<p class="formula">{text(formula)}</p>{html.pairs([*known, ("Note", found.note)])}'
        return html.section("law", f"The rule {found.name}", body)
    formula = "L(N, D) = E + A / N<sup>α</sup> + B / D<sup>β</sup>"
    columns = ["Constant", "Value"]
    columns += ["Standard error"] if found.errors else []
    columns += ["95% interval"] if found.intervals else []
    rows = [
        [text(name), text(f"{getattr(found, key):.8g}"), *_uncertainty(found, key)]
        for key, name in _CONSTANTS.items()
    ]
    body = (
        f'<p class="formula">{formula}</p><div class="columns"><div>'
        f"{html.table(columns, rows, style='numbers')}</div><div>{html.pairs(_about(found))}</div>"
        "</div>"
    )
    return html.section("law", f"The law {found.name}", body)


def _uncertainty(found: Law, key: str) -> Iterator[str]:
    if found.errors:
        yield f"±{found.errors[key]:g}" if key in found.errors else "–"
    if found.intervals:
        low, high = found.intervals.get(key, (None, None))
        yield "–" if low is None else f"{low:.4g} to {high:.4g}"


def _about(found: Law) -> list[tuple[str, str]]:
    ranges = (
        ("Fitted parameters", found.fitted_parameters),
        ("Fitted tokens", found.fitted_tokens),
        ("Fitted tokens a parameter", found.fitted_ratio),
    )
    units = ""
    if found.parameters_unit != 1 or found.tokens_unit != 1:
        units = f"N in {short(found.parameters_unit)}, D in {short(found.tokens_unit)}"
    repetition = ""
    if found.repetition is not None:
        repetition = f"R* of data {found.repetition.data:.8g}"
        if found.repetition.parameters is not None:
            repetition += f", of parameters {found.repetition.parameters:.8g}"
    return [
        ("L", found.loss),
        ("N", f"{found.counts} parameters"),
        ("Units", units),
        *(
            (name, f"{short(limits[0])} to {short(limits[1])}")
            for name, limits in ranges
            if limits is not None
        ),
        ("Repeated data", repetition),
        ("Data", found.data or ""),
        ("Source", found.source),
        ("Note", found.note),
    ]


def note(words: str) -> str:
    return f'<p class="note">{text(words)}</p>'
