"""What each stage taught the quickstart's model about answering: asked about held-out functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llamita.data.chat_template import chat_template
from llamita.data.packed_stream import PackedStream
from llamita.data.shards import open_dataset
from llamita.data.tokenizer import load_tokenizer
from llamita.inference.scoring import held_out_rows, score_rows
from llamita.model.huggingface import load_model
from llamita.recipes.schema import Recipe
from llamita.starter.answers import Reply, ask, score_replies, spread, table, table_row
from llamita.starter.judgement import stage_ends
from llamita.starter.questions import KINDS, QUESTIONS, read_questions

# A slow core takes 0.4 to 0.7 s to put one to three models; the first hardly ever ends by itself.
NUM_ASKED = 60
# Of all, 41 thousand, so many tokens are scored: four passes of a few seconds in all.
_SCORED_TOKENS = 16_384
_SCORED_ROWS = 16


def judge_answers(
    folder: Path, recipe: Recipe, *, num_asked: int = NUM_ASKED, say: Callable[[str], None]
) -> dict[str, Any]:
    """Let the model answer as it was at the end of each stage; prints a table and some answers.

    Args:
        folder: of the quickstart; `folder/questions/held-out.jsonl` is what is asked.
        num_asked: of the questions, at most so many, spread over files and kinds.

    Returns:
        By stage the shares that are in form and bits per byte of held-out answers, and every
        question with its true answer and the replies.
    """
    questions = spread(read_questions(folder / QUESTIONS / "held-out.jsonl"), num_asked)
    tokenizer = load_tokenizer(folder / "run" / "final")
    template = chat_template(tokenizer)
    held_out = open_dataset(recipe.datasets[QUESTIONS].path).validation
    assert isinstance(held_out, PackedStream)
    length = recipe.sequence_length
    rows = held_out_rows(held_out, length, _SCORED_ROWS, _SCORED_TOKENS)
    say(
        f"\n      {len(questions)} questions about as many functions of files that it never read, "
        "asked after each stage"
    )
    replies, bits = {}, {}
    for stage, directory in stage_ends(folder / "run", recipe).items():
        model = load_model(directory)
        replies[stage] = ask(model, tokenizer, questions, template=template)
        bits[stage] = score_rows(model, rows).bits_per_byte
    scores = {stage: score_replies(given) for stage, given in replies.items()}
    for line in table(scores):
        say(f"      {line}")
    shown = {stage: f"{value:.3f}" for stage, value in bits.items()}
    say(f"      {table_row('bits per byte of true answers', shown)}")
    for line in _examples(replies):
        say(line)
    return {
        "stages": {
            stage: {"bits_per_byte": bits[stage], **score.as_json()}
            for stage, score in scores.items()
        },
        "questions": [
            {
                **question.as_record(),
                "replies": {
                    stage: {"text": given[number].text, "ended": given[number].ended}
                    for stage, given in replies.items()
                },
            }
            for number, question in enumerate(questions)
        ],
    }


def _examples(replies: Mapping[str, list[Reply]]) -> list[str]:
    """A question of each kind, with the last stage's answer and the true one."""
    (*_, last) = replies.values()
    lines = []
    for kind in KINDS:
        reply = next((reply for reply in last if reply.question.kind == kind), None)
        if reply is not None:
            lines += [
                f"\n--- {reply.question.question} ---",
                reply.text if reply.ended else f"{reply.text}…",
                f"(true: {reply.question.answer})",
            ]
    return lines
