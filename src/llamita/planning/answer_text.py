"""An answer as lines of plain text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap

from llamita.planning.answer import Answer, Option
from llamita.planning.laws import Law
from llamita.planning.quantities import duration
from llamita.planning.quantities import tokens as short

_COLUMNS = 110
"""Of sentences; tables take what they need."""


def describe_answer(answer: Answer) -> list[str]:
    """The question, the table with the recommendation first, and everything that it rests on."""
    lines = [answer.words, "", *_options(answer)]
    if answer.facts:
        lines += ["", *_wrapped(answer.facts)]
    for title, rows in (
        ("shapes that can be built", _candidates(answer)),
        ("reading the same text again", _repeats(answer)),
        ("what changes if", _changes(answer)),
    ):
        if rows:
            lines += ["", f"{title}:", *rows]
    if answer.assumptions:
        lines += ["", "assumed:", *_wrapped(answer.assumptions)]
    return [*lines, *_wrapped([f"warning: {each}" for each in answer.warnings], "")]


def _wrapped(sentences: Sequence[str], indent: str = "  ") -> list[str]:
    """Each from a line of its own, what goes on is set in."""
    return [
        line
        for sentence in sentences
        for line in wrap(
            sentence,
            _COLUMNS,
            initial_indent=indent,
            subsequent_indent=f"{indent}  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]


def money(usd: float) -> str:
    """`$4.20`, `$1,425,060`."""
    return f"${usd:,.2f}" if usd < 99.995 else f"${usd:,.0f}"


def _ratio(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def loss_text(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.4f}"


def share_text(share: float | None) -> str:
    """A share beyond another: `+12.3%`."""
    return "–" if share is None else f"{share:+.1%}"


def _options(answer: Answer) -> list[str]:
    best = answer.recommended
    serving = any(option.serving_flops for option in answer.options)
    columns = ["", "parameters", "tokens", "a parameter", "loss", "train FLOPs"]
    columns += ["serve FLOPs"] if serving else []
    columns += ["train", "serve"] if answer.in_money and serving else []
    columns += ["cost"] if answer.in_money else []
    columns += ["total FLOPs"] if serving and not answer.in_money else []
    columns += ["time"] if best.training_seconds is not None else []
    columns += ["epochs"] if best.epochs is not None else []
    columns += ["beyond"] if answer.question is not None and answer.question.loss else []
    columns += ["too much"] if any(option.beyond_limits for option in answer.options) else []
    rows = [columns]
    for option in answer.options:
        cells = _cells(option)
        rows.append([cells[name] for name in columns])
    found = table(rows)
    return [found[0], f"→ {found[1][2:]}", *found[2:]]


def _cells(option: Option) -> dict[str, str]:
    return {
        "": option.label,
        "parameters": short(option.parameters),
        "tokens": short(option.tokens),
        "a parameter": _ratio(option.tokens_per_parameter),
        "loss": loss_text(option.loss),
        "train FLOPs": f"{option.training_flops:.2e}",
        "serve FLOPs": f"{option.serving_flops:.2e}",
        "total FLOPs": f"{option.total_flops:.2e}",
        "train": money(option.training_usd or 0.0),
        "serve": money(option.serving_usd or 0.0),
        "cost": money(option.total_usd or 0.0),
        "time": duration(option.training_seconds or 0.0),
        "epochs": f"{option.epochs or 0.0:.2f}",
        "beyond": share_text(option.extra),
        "too much": option.beyond_limits,
    }


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns aligned: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _candidates(answer: Answer) -> list[str]:
    if not answer.candidates:
        return []
    mixture = any(each.total_parameters != each.parameters for each in answer.candidates)
    timed = answer.candidates[0].training_seconds is not None
    priced = answer.candidates[0].training_usd is not None
    heads = ["", "parameters", *(["in all"] if mixture else []), "off by", "tokens", "loss"]
    heads += ["train FLOPs", "over 6·N·D"]
    rows = [[*heads, *(["train"] if priced else []), *(["time"] if timed else [])]]
    for each in answer.candidates:
        config = each.config
        rows.append(
            [
                (
                    f"{config.num_hidden_layers} layers, hidden {config.hidden_size}, ffn "
                    f"{config.intermediate_size}, {config.num_attention_heads} heads / "
                    f"{config.num_key_value_heads} KV"
                ),
                short(each.parameters),
                *([short(each.total_parameters)] if mixture else []),
                share_text(each.error),
                short(each.tokens),
                loss_text(each.loss),
                f"{each.training_flops:.2e}",
                f"×{each.beyond_the_law:.2f}",
                *([money(each.training_usd or 0.0)] if priced else []),
                *([duration(each.training_seconds or 0.0)] if timed else []),
            ]
        )
    return table(rows)


def _changes(answer: Answer) -> list[str]:
    if not answer.changes:
        return []
    money_or_flops = money if answer.in_money else (lambda value: f"{value:.2e}")
    total = "cost" if answer.in_money else "FLOPs"
    rows = [["", "parameters", "tokens", "loss", total, "keeping the size"]]
    obstacles = []
    for change in answer.changes:
        if change.obstacle:
            obstacles.append(f"  {change.what}: {change.obstacle}")
            continue
        rows.append(
            [
                change.what,
                short(change.parameters),
                short(change.tokens),
                loss_text(change.loss),
                money_or_flops(change.total),
                share_text(change.regret),
            ]
        )
    return [*(table(rows) if len(rows) > 1 else []), *obstacles]


def _repeats(answer: Answer) -> list[str]:
    if not answer.repeats:
        return []
    law = answer.law
    assert isinstance(law, Law)
    unique = answer.repeats[0].tokens
    rows = [["epochs", "tokens", "worth", "loss", "were it fresh", "the last token is worth"]]
    rows += [
        [
            f"{each.epochs:.3g}",
            short(each.tokens),
            short(each.effective_tokens),
            loss_text(each.loss),
            loss_text(each.fresh_loss),
            f"{each.worth:.0%} of a fresh one",
        ]
        for each in answer.repeats
    ]
    return [*table(rows), *_when_to_stop(law, unique)]


def _when_to_stop(law: Law, unique: float) -> Iterator[str]:
    half, most = law.epochs_at_worth(0.5), law.most_effective_tokens(unique)
    yield (
        f"  a repeated token is worth half a fresh one after {half:.1f} epochs, and no amount of "
        f"repeating makes {short(unique)} worth more than {short(most)}"
    )
