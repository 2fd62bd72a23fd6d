"""The sections of a model card that tell of its run: data, training, scores."""

from __future__ import annotations

from collections.abc import Sequence

from llamita.formats.card_facts import CardFacts, Score, Source, Stage
from llamita.formats.card_text import code, plain, table


def data_section(facts: CardFacts) -> str:
    """What the model has read, source by source; empty where nothing is known."""
    if not facts.sources:
        return ""
    rows = [
        [
            plain(source.name),
            source.kind,
            f"{source.tokens:,}",
            f"{source.documents:,}",
            "not told" if source.tokens_read is None else f"{source.tokens_read:,.0f}",
            "not told" if source.epochs is None else f"{source.epochs:.4g}",
        ]
        for source in facts.sources
    ]
    head = ["data", "kind", "unique tokens", "documents", "tokens read", "epochs"]
    lines = "\n".join(_made_of(source) for source in facts.sources)
    return f"## Training data\n\n{table(head, rows)}\n\n{lines}"


def _made_of(source: Source) -> str:
    parts = []
    for origin in source.origins:
        known = [f"{origin.records:,} records"] if origin.records is not None else []
        known.append(
            f"licence {plain(origin.licence)}" if origin.licence else "no licence recorded"
        )
        parts.append(f"{plain(origin.name)} ({', '.join(known)})")
    told = f"- **{plain(source.name)}**: built from {'; '.join(parts)}. "
    if source.template is not None:
        told += f"Put by the chat template {plain(source.template)}"
        if source.learning_tokens is not None:
            told += f"; {source.learning_tokens:,} of the tokens are learnt, the rest is only read"
        told += ". "
    return f"{told}Fingerprint {code(source.fingerprint)}."


def training_section(facts: CardFacts) -> str:
    """Stages and settings of the run."""
    run = facts.run
    if run is None:
        return ""
    taken = f"{run.step:,} steps, {run.tokens:,} tokens"
    if run.tokens_before:
        taken += f", {run.tokens_before:,} of them in the run that this one went on from"
    rows = [[plain(label), plain(value)] for label, value in run.settings.items()]
    parts = [
        f"## Training\n\n{taken}. The model is {plain(run.final)}.",
        table(
            ["stage", "objective", "steps", "tokens", "batch", "sequence", "learning rate"],
            [_stage_row(stage) for stage in run.stages],
        ),
        table(
            ["stage", "data", "share asked", "share read"],
            [row for stage in run.stages for row in _mixture_rows(stage)],
        ),
        table(["setting", "value"], rows),
    ]
    return "\n\n".join(parts)


def _stage_row(stage: Stage) -> list[str]:
    rate = f"{stage.learning_rate:.4g}, {plain(stage.schedule)}"
    if stage.learning_rate_at_end != stage.learning_rate:
        rate += f", {stage.learning_rate_at_end:.4g} at the end"
    return [
        plain(stage.name),
        plain(stage.objective),
        f"{stage.steps:,}",
        f"{stage.tokens:,}",
        f"{stage.batch_tokens:,}",
        f"{stage.sequence_length:,}",
        rate,
    ]


def _mixture_rows(stage: Stage) -> list[list[str]]:
    return [
        [
            plain(stage.name),
            plain(name),
            f"{asked:.4g}",
            "not told" if stage.got is None else f"{stage.got[name]:.4f}",
        ]
        for name, asked in stage.asked.items()
    ]


def scores_section(facts: CardFacts) -> str:
    """What the run's own validation found, and its benchmarks; empty where it found nothing."""
    parts = []
    for benchmark, said, head in (
        (False, "On data that were held out of training, by the run itself:", "held out of"),
        (True, "Of benchmarks, asked by the run itself while it trained:", "benchmark"),
    ):
        scores = [score for score in facts.scores if score.benchmark == benchmark]
        if scores:
            parts.append(f"{said}\n\n{_scores_table(head, scores)}")
    return "## Scores\n\n" + "\n\n".join(parts) if parts else ""


def _scores_table(head: str, scores: Sequence[Score]) -> str:
    rows = [
        [
            "all together" if score.data is None else plain(score.data),
            plain(score.name),
            f"{score.value:.4f}",
            _interval(score),
            plain(score.of or ""),
        ]
        for score in scores
    ]
    return table([head, "measure", "value", "95% interval", "measured on"], rows)


def _interval(score: Score) -> str:
    if score.low is None or score.high is None:
        return "none computed"
    return f"{score.low:.4f} to {score.high:.4f}"
