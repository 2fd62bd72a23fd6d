"""The scorer against scipy, against true answers, and against answers that fail one check each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from scipy.stats import binomtest
from tests.data.corpus import small_tokenizer

from llamita.data.tokenizer import Tokenizer
from llamita.inference import answering
from llamita.starter.answers import (
    AnswerScores,
    Reply,
    Share,
    ask,
    has_shape,
    is_sentence,
    names_it,
    score_replies,
    spread,
    table,
    wilson_interval,
)
from llamita.starter.public_names import PublicName
from llamita.starter.questions import Kind, Question, questions

TRUE: dict[Kind, str] = {
    "purpose": "`m.f(a, *, b=0, **kw)`: Do it well.",
    "call": "Call `m.f(a, *, b=0, **kw)`.",
    "parameters": "`m.f` takes `a`, `b` and `**kw`.",
}


def reply(text: str, kind: Kind = "purpose", *, ended: bool = True) -> Reply:
    return Reply(
        Question("m.f", kind, "What does `m.f` do?", TRUE[kind], "stdlib/m.py"), text, ended
    )


@pytest.mark.parametrize(
    ("count", "total"), [(0, 1), (1, 1), (0, 64), (64, 64), (37, 64), (3, 500)]
)
def test_intervals_are_scipys(count: int, total: int) -> None:
    expected = binomtest(count, total).proportion_ci(0.95, method="wilson")
    assert wilson_interval(count, total) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert Share(count, total).interval == wilson_interval(count, total)


@pytest.mark.parametrize(("count", "total"), [(0, 0), (-1, 5), (6, 5)])
def test_shares_of_nothing_are_refused(count: int, total: int) -> None:
    with pytest.raises(ValueError, match="no share"):
        wilson_interval(count, total)


def test_true_answers_pass_every_check() -> None:
    many = tuple(f"option_{n}=None" for n in range(20))
    given: list[tuple[str, ...] | None] = [("a", "/", "*p"), (), None, ("a", *many), ("*", "a='x'")]
    asked = [
        question
        for taken in given
        for question in questions(
            PublicName("a.B.c", True, taken, "", "f"), "Return `x` (or 2.5) of it."
        )
    ]
    replies = [Reply(question, question.answer, True) for question in asked]
    scores = score_replies(replies)
    assert all(share == Share(len(replies), len(replies)) for share in vars(scores).values())


@pytest.mark.parametrize("kind", list(TRUE))
def test_an_answer_to_another_kind_of_question_has_the_wrong_shape(kind: Kind) -> None:
    for other, answer in TRUE.items():
        assert has_shape(reply(answer, kind)) == (other == kind)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("purpose", "`m.f`: Do it."),
        ("purpose", "`other.name(x)`: Do it."),
        ("call", "Call `m.f()`."),
        ("call", "Call `m.f(...)`."),
        ("call", "Call `m.f(a, ...)`."),
        ("parameters", "`m.f` takes no parameters."),
        ("parameters", "`m.f` takes `a`."),
        ("parameters", "`m.f` takes `a` and `*b`."),
    ],
)
def test_shapes_that_are_right_whatever_they_say(kind: Kind, text: str) -> None:
    assert has_shape(reply(text, kind))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("purpose", ""),
        ("purpose", "Do it well."),
        ("purpose", "`m.f(a)`"),
        ("purpose", "`m.f(a)`: "),
        ("purpose", "`m.f(a)` Do it."),
        ("purpose", "So `m.f(a)`: Do it."),
        ("purpose", "`m.f(a`: Do it."),
        ("purpose", "`m.f(a, a)`: Do it twice."),
        ("purpose", "`m.f(a=1, b)`: Do it."),
        ("purpose", "`m.f(a): pass #)`: Do it."),
        ("purpose", "`m f`: Do it."),
        ("call", "Call `m.f`."),
        ("call", "Call `m.f(a)`"),
        ("call", "Call `m.f(a)`. Call `m.f(a)`."),
        ("call", "`m.f(a)`."),
        ("parameters", "`m.f` takes `a`, `b`."),
        ("parameters", "`m.f` takes `a` and `b` and `c`."),
        ("parameters", "`m.f` takes a."),
        ("parameters", "`m.f` takes ."),
        ("parameters", "`m.f(a)` takes `a`."),
    ],
)
def test_shapes_that_are_wrong(kind: Kind, text: str) -> None:
    assert not has_shape(reply(text, kind))


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("Call `m.f(a)`.", True),
        ("`m.f(a)`: Do it, e.g. so.", True),
        ("", False),
        ("One.", False),
        ("it begins low.", False),
        ("It does not end", False),
        ("It ends twice..", False),
        ("It stands off .", False),
        ("It has two\nlines.", False),
        ("It leaves `one open.", False),
        ("Return the name of the name of the name of it.", False),
        ("Return the name of the file and the size of the file.", True),
    ],
)
def test_what_is_a_sentence(text: str, passes: bool) -> None:
    assert is_sentence(text) == passes


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("`m.f`: Do it.", True),
        ("Call `m.f(a)`.", True),
        ("`m.g(a)`: Like `m.f`.", False),
        ("`m.f.g`: Do it.", False),
        ("m.f does it.", False),
    ],
)
def test_the_first_quotation_must_be_the_name(text: str, passes: bool) -> None:
    assert names_it(reply(text)) == passes


def test_in_form_asks_for_all_and_exact_for_the_truth() -> None:
    replies = [
        reply(TRUE["purpose"]),
        reply("`m.f(a)`: Do it otherwise."),
        reply("`m.g(a)`: Do it otherwise."),
        reply("`m.f(a)`: Do it", ended=False),
        reply(TRUE["purpose"], ended=False),
    ]
    scores = score_replies(replies)
    assert scores == AnswerScores(
        ended=Share(3, 5),
        named=Share(4, 5),
        shaped=Share(5, 5),
        sentence=Share(4, 5),
        in_form=Share(2, 5),
        exact=Share(1, 5),
    )
    low, high = wilson_interval(2, 5)
    assert scores.as_json()["in_form"] == {
        "count": 2,
        "total": 5,
        "share": 0.4,
        "low": low,
        "high": high,
    }
    before = score_replies([reply("Do", ended=False)])
    lines = table({"before": before, "after": scores})
    assert len({len(line) for line in lines}) == 1
    assert lines[5].startswith("in form: all four")
    assert "40% (12% to 77%)" in lines[5]
    with pytest.raises(ValueError, match="no replies"):
        score_replies([])


def test_questions_are_spread_over_files_names_and_kinds() -> None:
    every = [
        question
        for file, functions in (("big", 50), ("small", 3), ("tiny", 1))
        for n in range(functions)
        for question in questions(
            PublicName(f"{file}.f{n}", True, ("a",), "", file), "Do it well now."
        )
    ]
    chosen = spread(every, 12)
    assert chosen == spread(reversed(every), 12)
    files = [question.file for question in chosen]
    assert (files.count("big"), files.count("small"), files.count("tiny")) == (8, 3, 1)
    assert len({question.name for question in chosen}) == 12
    kinds = [question.kind for question in chosen]
    assert {kind: kinds.count(kind) for kind in TRUE} == dict.fromkeys(TRUE, 4)
    assert len(spread(every, 1000)) == 54
    assert spread([], 5) == []


def test_an_answer_that_reaches_the_limit_has_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = small_tokenizer()
    asked: list[dict[str, Any]] = []

    def fake(model: Any, given: Tokenizer, question: str, **settings: Any) -> Iterator[int]:
        asked.append({"question": question, **settings})
        return iter(tokenizer.encode("`m.f`: é.")[: settings["max_tokens"]])

    monkeypatch.setattr(answering, "answer_tokens", fake)
    question = reply("").question
    whole = len(tokenizer.encode("`m.f`: é."))
    (free,) = ask(None, tokenizer, [question], max_tokens=whole + 1)  # type: ignore[arg-type]
    (cut,) = ask(None, tokenizer, [question], max_tokens=whole)  # type: ignore[arg-type]
    assert (free.text, free.ended) == ("`m.f`: é.", True)
    assert (cut.text, cut.ended) == ("`m.f`: é.", False)
    assert asked[0]["question"] == "What does `m.f` do?"
    assert asked[0]["sampling"].temperature == 0
