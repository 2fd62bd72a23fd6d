"""Questions and answers about the standard library, made from its signatures and docstrings.

A function, class or property that users can name gives a few short conversations: what it does (its
docstring's first sentence), how it is called and which parameters it takes (its signature). Modules
are parsed, never imported.

Held out are the functions of the files that the corpus holds out, by the same hash of the same
`file`, so that neither tuning nor pretraining has read their docstrings. A split by function alone
would not do: a function's docstring lies in the pretraining text if its file does. A held-out
function is left out where its sentence stands elsewhere in what is trained on, as copies do.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llamita.durable import replace_synced
from llamita.starter.corpus import PythonFile, standard_library_files
from llamita.starter.docstrings import NotPythonError, decode, parse
from llamita.starter.public_names import PublicName, is_library, public_names

Kind = Literal["purpose", "call", "parameters"]
KINDS: tuple[Kind, ...] = ("purpose", "call", "parameters")
QUESTIONS = "questions"  # the quickstart's folder of them, and their dataset
_MIN_SENTENCE, _MAX_SENTENCE = 12, 200  # characters
_MAX_CALL = 100
_MAX_PARAMETERS = 8

# How a kind is asked, and how many of the forms one function gets.
FUNCTION_FORMS = (
    "What does {} do?",
    "What is {} for?",
    "What happens when I call {}?",
    "Explain {}.",
    "Tell me what {} does.",
)
THING_FORMS = ("What is {}?", "What is {} for?", "Explain {}.", "Tell me about {}.")
CALL_FORMS = ("How do I call {}?", "How is {} called?", "Show me a call of {}.")
PARAMETER_FORMS = (
    "What are the parameters of {}?",
    "Which arguments does {} take?",
    "What can I pass to {}?",
)
_FORMS_A_FUNCTION: dict[Kind, int] = {"purpose": 2, "call": 1, "parameters": 1}

_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_NO_END = re.compile(r"(\b(e\.g|i\.e|etc|vs|cf|resp|approx|[A-Z])|\.\.)\.$")
_ROLE = re.compile(r":[a-z:]+:(?=`)")
# A first paragraph that is a signature (`getopt(args) -> list`), a field list or an example.
_NO_PROSE = re.compile(r"^[^A-Z]|^[\w.]+\(.*\)\s*([:=-]+.*)?$|->|>>>|^Internal ")


@dataclass(frozen=True)
class Question:
    """One question and its answer; `name` is what is asked about, `file` where that stands."""

    name: str
    kind: Kind
    question: str
    answer: str
    file: str

    def as_record(self) -> dict[str, Any]:
        """A conversation, and what it was made from."""
        return {
            "messages": [
                {"role": "user", "content": self.question},
                {"role": "assistant", "content": self.answer},
            ],
            "name": self.name,
            "kind": self.kind,
            "file": self.file,
        }


@dataclass
class QuestionSummary:
    """What `write_questions` wrote: pairs and names, to tune on and held out."""

    train_path: Path
    held_out_path: Path
    train_names: int = 0
    train_pairs: int = 0
    held_out_names: int = 0
    held_out_pairs: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


def write_questions(
    corpus: Path,
    out: Path,
    *,
    held_out: float,
    files: Iterable[PythonFile] | None = None,
) -> QuestionSummary:
    """Write `out`/train.jsonl and `out`/held-out.jsonl, a conversation a line.

    Args:
        corpus: the folder that `collect_python_corpus` wrote; says which sentences are trained on.
        held_out: the `validation` that the corpus's datasets are built with, split by `file`.
        files: modules to ask about; the standard library's by default. About 10 s on one core.
    """
    summary = QuestionSummary(out / "train.jsonl", out / "held-out.jsonl")
    files = standard_library_files() if files is None else files
    train: list[Question] = []
    kept_back: dict[str, tuple[str, list[Question]]] = {}
    sentences: set[str] = set()
    for named in public_names(_parsed(files, summary.skipped)):
        sentence = first_sentence(named.docstring)
        asked = questions(named, sentence)
        if not asked:
            summary.skipped["no short first sentence"] += 1
        elif is_held_out(named.file, held_out):
            kept_back[named.name] = sentence, asked
        else:
            train += asked
            sentences.add(sentence)
    known = "\n".join([*sentences, *_trained_on(corpus, held_out)])
    test: list[Question] = []
    for sentence, asked in kept_back.values():
        if sentence.rstrip(".") in known:
            summary.skipped["held-out sentence stands in the training text"] += 1
        else:
            test += asked
    out.mkdir(parents=True, exist_ok=True)
    for path, pairs in ((summary.train_path, train), (summary.held_out_path, test)):
        lines = [json.dumps(pair.as_record(), ensure_ascii=False) + "\n" for pair in pairs]
        replace_synced(path, "".join(lines))
    summary.train_pairs, summary.held_out_pairs = len(train), len(test)
    summary.train_names = len({pair.name for pair in train})
    summary.held_out_names = len({pair.name for pair in test})
    return summary


def read_questions(path: Path) -> list[Question]:
    """The questions of a file that `write_questions` wrote."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        asked, answer = (message["content"] for message in record["messages"])
        found.append(Question(record["name"], record["kind"], asked, answer, record["file"]))
    return found


def questions(named: PublicName, sentence: str) -> list[Question]:
    """The questions about one name; none without a sentence, as `first_sentence` gives it.

    The forms follow from the name's hash: neighbours are asked differently, and always alike.
    """
    if not sentence:
        return []
    quoted = f"`{named.name}`"
    call = None if named.parameters is None else call_of(named.name, named.parameters)
    answers: list[tuple[Kind, Sequence[str], str]] = []
    purpose = FUNCTION_FORMS if named.is_function else THING_FORMS
    answers.append(("purpose", purpose, f"`{call or named.name}`: {sentence}"))
    if call is not None:
        answers.append(("call", CALL_FORMS, f"Call `{call}`."))
    if named.parameters is not None:
        taken = [p.partition("=")[0] for p in named.parameters if p not in ("*", "/")]
        if len(taken) <= _MAX_PARAMETERS:
            answers.append(("parameters", PARAMETER_FORMS, f"{quoted} takes {_listing(taken)}."))
    return [
        Question(named.name, kind, form.format(quoted), answer, named.file)
        for kind, forms, answer in answers
        for form in _chosen(forms, f"{named.name} {kind}", _FORMS_A_FUNCTION[kind])
    ]


def call_of(name: str, parameters: Sequence[str]) -> str | None:
    """`name(a, b=0)`; without its optional parameters if too long; None if too long even so."""
    whole = f"{name}({', '.join(parameters)})"
    if len(whole) <= _MAX_CALL:
        return whole
    needed = [p for p in parameters if "=" not in p and not p.startswith(("*", "/"))]
    short = f"{name}({', '.join([*needed, '...'])})"
    return short if len(short) <= _MAX_CALL else None


def first_sentence(docstring: str) -> str:
    """A docstring's first sentence, with its full stop; empty if it is none, or too short or long.

    Marks of reStructuredText are taken off. A sentence begins with a capital letter.
    """
    paragraphs = [_plain(p) for p in re.split(r"\n\s*\n", docstring)]
    if len(paragraphs) > 1 and re.match(r"[\w.]+\(", paragraphs[0]):
        paragraphs = paragraphs[1:]  # a signature stands above the text
    text = paragraphs[0]
    for end in _SENTENCE_END.finditer(text):
        if not _NO_END.search(text[: end.end()]):
            text = text[: end.end()]
            break
    if text.endswith(".") or re.search(r"[\w)\]`'\"]$", text):
        text = text.rstrip(".") + "."
    usable = (
        text.endswith((".", "!", "?"))
        and _MIN_SENTENCE <= len(text) <= _MAX_SENTENCE
        and not _NO_PROSE.search(text)
    )
    return text if usable and text.count("`") % 2 == 0 and text.isascii() else ""


def is_held_out(file: str, fraction: float) -> bool:
    """Whether `build_data(…, validation=fraction, split_by="file")` holds a record's file out."""
    digest = hashlib.blake2b(json.dumps(file).encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little") < int(fraction * 2.0**64)


def _chosen(forms: Sequence[str], key: str, count: int) -> list[str]:
    start = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    return [forms[(start + number) % len(forms)] for number in range(count)]


def _listing(names: Sequence[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    if len(quoted) > 1:
        return f"{', '.join(quoted[:-1])} and {quoted[-1]}"
    return quoted[0] if quoted else "no parameters"


def _plain(text: str) -> str:
    """Text in one line, with one backtick where reStructuredText has roles or two."""
    return " ".join(_ROLE.sub("", text).replace("``", "`").split())


def _parsed(files: Iterable[PythonFile], skipped: Counter[str]) -> dict[PythonFile, ast.Module]:
    found = {}
    for file in files:
        if file.gives_code and is_library(file):
            try:
                found[file] = parse(decode(file.path.read_bytes()))
            except (NotPythonError, OSError) as error:
                skipped[type(error).__name__] += 1
    return found


def _trained_on(corpus: Path, held_out: float) -> Iterator[str]:
    """The texts of a corpus that a split by file puts into training, in one line each."""
    for name in ("prose.jsonl", "code.jsonl"):
        with (corpus / name).open(encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                if not is_held_out(record["file"], held_out):
                    yield _plain(record["text"])
