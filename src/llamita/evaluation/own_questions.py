"""A user's own questions: a file of JSON, JSON lines or CSV, judged with no task file at all.

Three kinds, told by their fields, one kind a file:

- choices: `question`, `choices`, `answer` (a choice's text, its letter, or its index from 0)
- exact: `question`, `answer` (a text, or a list of texts that all count)
- code: `prompt`, `test`, `entry_point` (HumanEval's: `test` defines `check(candidate)`)

Other fields are left alone. In a CSV file `choices` is a JSON list, or choices with `|` between.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import string
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llamita.errors import UserError, did_you_mean

Kind = Literal["choices", "exact", "code"]

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv")
"""Of files of questions; each may also end in `.gz`."""

_FIELDS: dict[Kind, tuple[str, ...]] = {
    "choices": ("question", "choices", "answer"),
    "code": ("prompt", "test", "entry_point"),
    "exact": ("question", "answer"),
}
_FORMS = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in _FIELDS.items())
_MISSPELT = {"choice", "Choices", "option", "options", "Options"}
_MAX_SHOWN = 5
_MAX_CHOICES = len(string.ascii_uppercase)


class _Wrong(ValueError):
    """What is wrong with one question."""


@dataclass(frozen=True)
class Questions:
    """A file of questions of one kind.

    name: the file's with its suffix, which no task of lm-eval has.
    items: in the file's order. choices: {question, choices, answer (index from 0)}. exact:
        {question, answer (list of texts)}. code: the file's own fields, with a `task_id`.
    """

    name: str
    kind: Kind
    items: tuple[Mapping[str, Any], ...]


def is_question_file(path: Path) -> bool:
    """Whether a file's name is one of a file of questions."""
    return path.name.lower().removesuffix(".gz").endswith(SUFFIXES)


def read_questions(path: Path) -> Questions:
    """Read a file of questions; all of them must be right, so that no score is of a part.

    Raises:
        UserError: the file cannot be read, is empty, holds two kinds, or some question is wrong;
            the message names the first of them by line, or by place in a JSON list.
    """
    kind: Kind | None = None
    items: list[Mapping[str, Any]] = []
    wrong: list[str] = []
    for where, row in _rows(path):
        try:
            found = _kind_of(row)
            if kind is not None and found != kind:
                raise _Wrong(f"is of kind {found!r}, those before it of kind {kind!r}")
            kind = found
            items.append(_READERS[found](row, len(items)))
        except _Wrong as error:
            wrong.append(f"{where}: {error}")
    if wrong:
        more = f"\n... and {len(wrong) - _MAX_SHOWN:,} more" if len(wrong) > _MAX_SHOWN else ""
        raise UserError(
            f"{path}: wrong questions: {len(wrong):,}; a question is one of {_FORMS}.\n"
            + "\n".join(wrong[:_MAX_SHOWN])
            + more
        )
    if kind is None:
        raise UserError(f"{path} has no questions in it; a question is one of {_FORMS}")
    return Questions(path.name.removesuffix(".gz"), kind, tuple(items))


# -- from a file to rows ---------------------------------------------------------------------------


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each question stands and what is there; a _Wrong where that cannot be read."""
    text = _text(path)
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".csv"):
        yield from _csv_rows(path, text)
    elif name.endswith(".json") and text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is no JSON list: {error}") from None
        for number, row in enumerate(rows, 1):
            yield f"{path.name}, item {number}", row
    else:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"{path.name}:{number}", _parsed(line)


def _text(path: Path) -> str:
    if not is_question_file(path):
        raise UserError(f"{path} is no file of questions: its name ends in none of {SUFFIXES}")
    try:
        data = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 (byte {error.start:,}): save it as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return _Wrong(f"is no JSON ({error.msg}, column {error.colno})")
    except (ValueError, RecursionError) as error:  # a number too long, or nested too deeply
        return _Wrong(f"is no JSON ({error})")


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            where = f"{path.name}:{reader.line_num}"
            if None in row:
                yield where, _Wrong("has more cells than the first line has names")
                continue
            # Cells that a short line leaves out are None, empty ones "": neither is an answer.
            cells = {name.strip(): cell for name, cell in row.items() if cell}
            if "choices" in cells:
                cells["choices"] = _csv_choices(cells["choices"])
                # A number in a cell may be an index as well as a choice's text.
                if cells.get("answer", "").isdecimal():
                    cells["answer"] = int(cells["answer"])
            yield where, cells
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num} is no CSV: {error}") from None


def _csv_choices(cell: str) -> Any:
    if cell.lstrip().startswith("["):
        return _parsed(cell)
    return [choice.strip() for choice in cell.split("|")]


# -- from a row to a question ----------------------------------------------------------------------


def _kind_of(row: Any) -> Kind:
    """The first kind whose fields are there, or, in the error, the one that is nearest."""
    if isinstance(row, _Wrong):
        raise row
    if not isinstance(row, Mapping):
        raise _Wrong(f"is no object with fields but {type(row).__name__}")
    for kind, fields in _FIELDS.items():
        if all(field in row for field in fields):
            if kind == "exact" and (near := sorted(_MISSPELT & set(row))):
                raise _Wrong(f"has a field {near[0]!r}; the field of choices is named 'choices'")
            return kind
    there = {kind: sum(field in row for field in names) for kind, names in _FIELDS.items()}
    kind = max(_FIELDS, key=lambda each: (there[each], -len(_FIELDS[each])))
    lacking = [field for field in _FIELDS[kind] if field not in row]
    others = [name for name in row if name not in _FIELDS[kind]]
    raise _Wrong(f"has no field {lacking[0]!r}.{did_you_mean(lacking[0], others)}")


def _said(row: Mapping[str, Any], field: str) -> str:
    value = row[field]
    if not isinstance(value, str) or not value.strip():
        raise _Wrong(f"{field!r} is {value!r}, and not text")
    return value


def _choices(row: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    given = row["choices"]
    if isinstance(given, _Wrong):
        raise _Wrong(f"'choices' {given}")
    if not isinstance(given, list) or not 2 <= len(given) <= _MAX_CHOICES:
        raise _Wrong(f"'choices' is {given!r}, and not a list of 2 to {_MAX_CHOICES} choices")
    choices = [_as_text(each, "a choice") for each in given]
    if len(set(choices)) != len(choices):
        raise _Wrong(f"'choices' has one choice twice: {choices!r}")
    answer = _which(row["answer"], choices)
    return {"question": _said(row, "question"), "choices": choices, "answer": answer}


def _as_text(value: Any, what: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise _Wrong(f"{what} is {value!r}, and not text")
    return value.strip()


def _which(answer: Any, choices: list[str]) -> int:
    """The index of the right choice. What could be read in two ways that differ is refused."""
    text = _as_text(answer, "'answer'")
    letters = string.ascii_uppercase[: len(choices)]
    readings = [choices.index(text)] if text in choices else []
    if isinstance(answer, int) and 0 <= answer < len(choices):
        readings.append(answer)
    if not readings and len(text) == 1 and text in letters:
        readings.append(letters.index(text))
    if not readings:
        raise _Wrong(
            f"'answer' {answer!r} is none of the {len(choices)} choices, nor the letter "
            f"(A to {letters[-1]}) or index (0 to {len(choices) - 1}) of one"
        )
    if len(set(readings)) > 1:
        ways = " or ".join(repr(choices[each]) for each in readings)
        raise _Wrong(f"'answer' {answer!r} could mean {ways}: write the letter of the choice")
    return readings[0]


def _exact(row: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    given = row["answer"]
    answers = given if isinstance(given, list) else [given]
    if not answers:
        raise _Wrong("'answer' is an empty list")
    texts = [_as_text(each, "'answer'") for each in answers]
    if multiline := [each for each in texts if "\n" in each]:
        raise _Wrong(f"'answer' {multiline[0]!r} has more than one line; only the first is judged")
    return {"question": _said(row, "question"), "answer": texts}


def _code(row: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    for field in _FIELDS["code"]:
        _said(row, field)
    if not row["entry_point"].isidentifier():
        raise _Wrong(f"'entry_point' {row['entry_point']!r} is no name of a function")
    return {"task_id": str(number), **row}


_READERS = {"choices": _choices, "exact": _exact, "code": _code}


# -- as a task of lm-eval --------------------------------------------------------------------------


def task_config(questions: Questions) -> dict[str, Any]:
    """The questions as the config of an lm-eval task, all but the data themselves.

    Few-shot examples, if any, are drawn from the same file, never the question itself.

    choices: acc and acc_norm over `Question: ...\\nAnswer: choice`. exact: the first line that the
    model writes, without blanks at its ends, is compared with each answer, capitals and a full
    stop at the end aside.
    """
    assert questions.kind != "code", "code is judged by code_tasks"
    means = {"aggregation": "mean", "higher_is_better": True}
    config: dict[str, Any] = {
        "task": questions.name,
        "test_split": "test",
        "fewshot_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "answer",
        "metadata": {"version": 1.0},
    }
    if questions.kind == "choices":
        return config | {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "metric_list": [{"metric": "acc", **means}, {"metric": "acc_norm", **means}],
        }
    # Not lm-eval's ignore_punctuation, to which 3.5 is 35 and -5 is 5.
    aside = {"ignore_case": True, "regexes_to_ignore": [r"\.$"]}
    return config | {
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "temperature": 0.0},
        "filter_list": [
            {
                "name": "none",
                "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}],
            }
        ],
        "metric_list": [{"metric": "exact_match", **means, **aside}],
    }
