"""Does a tuned model answer in form? Judged on questions about functions it was never tuned on.

A model of a few million parameters knows nothing about a function that it has not read of. What it
can learn is how an answer goes: it ends by itself, names what was asked about, has the shape that
its kind of question calls for, and is a sentence. `exact` says how often it is also the true one.
"""

from __future__ import annotations

import ast
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamita.starter.docstrings import NotPythonError, parse
from llamita.starter.questions import KINDS, Question

if TYPE_CHECKING:
    from llamita.data.chat_template import ChatTemplate
    from llamita.data.tokenizer import Tokenizer
    from llamita.model.decoder import Decoder

_Z_95 = 1.959963984540054  # the normal distribution's 97.5% point
# The longest of 16,136 true answers takes 91 tokens of the quickstart's 4096, its end included.
MAX_ANSWER_TOKENS = 96
_MIN_WORDS = 3
_QUOTED = re.compile(r"`([^`\n]+)`")
_LISTED = re.compile(r"no parameters|`\*{0,2}\w+`(?:(?:, `\*{0,2}\w+`)* and `\*{0,2}\w+`)?")


@dataclass(frozen=True)
class Reply:
    """What a model wrote to a question; `ended` if it stopped by itself."""

    question: Question
    text: str
    ended: bool


@dataclass(frozen=True)
class Share:
    """`count` of `total`."""

    count: int
    total: int

    @property
    def share(self) -> float:
        return self.count / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval of 95% (Wilson, 1927), for independent replies."""
        return wilson_interval(self.count, self.total)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.0%} ({low:.0%} to {high:.0%})"


@dataclass(frozen=True)
class AnswerScores:
    """Shares of the replies that pass each check; `in_form` asks for the first four together."""

    ended: Share
    named: Share
    shaped: Share
    sentence: Share
    in_form: Share
    exact: Share

    def as_json(self) -> dict[str, dict[str, float | int]]:
        """Each check's count, total, share and interval."""
        return {
            name: {
                "count": share.count,
                "total": share.total,
                "share": share.share,
                "low": share.interval[0],
                "high": share.interval[1],
            }
            for name, share in vars(self).items()
        }


def wilson_interval(count: int, total: int, z: float = _Z_95) -> tuple[float, float]:
    """The score interval of a binomial proportion: Wilson (1927), equation for p given p̂.

    Raises ValueError unless 0 ≤ count ≤ total and total ≥ 1.
    """
    if not 0 <= count <= total or total < 1:
        raise ValueError(f"{count} of {total} is no share: give a count from 0 to a total above 0.")
    share = count / total
    centre = share + z * z / (2 * total)
    width = z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    scale = 1 + z * z / total
    return max(0.0, (centre - width) / scale), min(1.0, (centre + width) / scale)


def score_replies(replies: Sequence[Reply]) -> AnswerScores:
    """The shares of all replies. ValueError if there are none."""
    if not replies:
        raise ValueError("There are no replies to score: give at least one.")
    checks = {
        "ended": [reply.ended for reply in replies],
        "named": [names_it(reply) for reply in replies],
        "shaped": [has_shape(reply) for reply in replies],
        "sentence": [is_sentence(reply.text) for reply in replies],
    }
    together = [all(passed) for passed in zip(*checks.values(), strict=True)]
    checks["in_form"] = together
    checks["exact"] = [reply.ended and reply.text == reply.question.answer for reply in replies]
    return AnswerScores(**{n: Share(sum(passed), len(replies)) for n, passed in checks.items()})


def names_it(reply: Reply) -> bool:
    """Whether the first thing in backticks is what was asked about, letter for letter."""
    found = _QUOTED.search(reply.text)
    return found is not None and found[1].partition("(")[0] == reply.question.name


def has_shape(reply: Reply) -> bool:
    """Whether the answer is built as those to its kind of question are, whatever it names.

    - purpose: `` `name(parameters)`: Sentence. ``, or the name alone
    - call: `` Call `name(parameters)`. ``
    - parameters: `` `name` takes `a`, `b` and `c`. ``, or no parameters

    Parameters in parentheses must be such as Python accepts.
    """
    quoted = _QUOTED.search(reply.text)
    if quoted is None:
        return False
    name, parenthesis, parameters = quoted[1].partition("(")
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    before, after = reply.text[: quoted.start()], reply.text[quoted.end() :]
    called = parenthesis == "(" and parameters.endswith(")") and _is_signature(parameters[:-1])
    match reply.question.kind:
        case "purpose":
            said = after.removeprefix(": ")
            return before == "" and (called or not parenthesis) and said != after and bool(said)
        case "call":
            return before == "Call " and called and after == "."
        case "parameters":
            listed = after.removeprefix(" takes ").removesuffix(".")
            whole = after == f" takes {listed}." and _LISTED.fullmatch(listed) is not None
            return before == "" and not parenthesis and whole


def is_sentence(text: str) -> bool:
    """One line from a capital or a backtick to its only closing mark, that does not go in circles.

    It goes in circles if it says three words twice in a row.
    """
    words = text.split(" ")
    ends = text.endswith((".", "!", "?")) and not text.endswith((" .", ".."))
    circles = any(words[i : i + 3] == words[i + 3 : i + 6] for i in range(len(words) - 5))
    enough = len(words) >= _MIN_WORDS or text.startswith("Call `")
    return (
        "\n" not in text
        and (text[:1].isupper() or text[:1] == "`")
        and ends
        and enough
        and text.count("`") % 2 == 0
        and not circles
    )


def spread(questions: Iterable[Question], count: int) -> list[Question]:
    """Up to `count` questions, one a name, taken in turn from each file, and all kinds in turn.

    Which ones is decided by hash, so that a file of many functions does not speak for all.
    """
    by_file: dict[str, dict[str, list[Question]]] = {}
    for question in sorted(questions, key=lambda q: _hash(q.name + q.question)):
        by_file.setdefault(question.file, {}).setdefault(question.name, []).append(question)
    waiting = [list(names.values()) for _, names in sorted(by_file.items())]
    found: list[Question] = []
    while waiting and len(found) < count:
        for names in waiting[: count - len(found)]:
            asked = names.pop()
            wanted = KINDS[len(found) % len(KINDS)]
            found.append(next((q for q in asked if q.kind == wanted), asked[0]))
        waiting = [names for names in waiting if names]
    return found


def ask(
    model: Decoder,
    tokenizer: Tokenizer,
    questions: Iterable[Question],
    *,
    template: ChatTemplate | None = None,
    max_tokens: int = MAX_ANSWER_TOKENS,
) -> list[Reply]:
    """The model's likeliest answers, token by token; those cut at `max_tokens` have not ended."""
    from llamita.inference.answering import answer_tokens
    from llamita.inference.generation import stream_text
    from llamita.inference.sampling import Sampling

    replies = []
    for question in questions:
        ids = list(
            answer_tokens(
                model,
                tokenizer,
                question.question,
                template=template,
                max_tokens=max_tokens,
                sampling=Sampling(temperature=0),
            )
        )
        text = "".join(stream_text(tokenizer, iter(ids)))
        replies.append(Reply(question, text, ended=len(ids) < max_tokens))
    return replies


def table(scores: Mapping[str, AnswerScores]) -> list[str]:
    """Lines of a table: a check a row, a model a column."""
    labels = {
        "ended": "ends by itself",
        "named": "names what was asked about",
        "shaped": "has its kind's shape",
        "sentence": "is a sentence",
        "in_form": "in form: all four",
        "exact": "is the true answer",
    }
    lines = [table_row("of the answers", {name: name for name in scores})]
    for check, label in labels.items():
        shares = {name: str(getattr(score, check)) for name, score in scores.items()}
        lines.append(table_row(label, shares))
    return lines


def table_row(label: str, values: Mapping[str, str]) -> str:
    """A row as `table` writes it: "100% (100% to 100%)" leaves two characters between columns."""
    return f"{label:<30}" + "".join(f"{value:>21}" for value in values.values())


def _is_signature(parameters: str) -> bool:
    """Whether Python takes this between a function's parentheses; `...` may stand for the rest."""
    if parameters in ("...", ""):
        return True
    try:
        (made,) = parse(f"def f({parameters.removesuffix(', ...')}): 0\n").body
    except (NotPythonError, ValueError):
        return False
    if not isinstance(made, ast.FunctionDef) or not isinstance(made.body[0], ast.Expr):
        return False  # the parentheses were closed too early
    names = [node.arg for node in ast.walk(made.args) if isinstance(node, ast.arg)]
    return len(names) == len(set(names))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
