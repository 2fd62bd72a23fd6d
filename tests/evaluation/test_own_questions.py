"""A user's questions: every form, and every mistake by its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from llamita.errors import UserError
from llamita.evaluation.own_questions import Questions, read_questions


def written(tmp_path: Path, *rows: Any, name: str = "quiz.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def choices(answer: Any, *texts: Any) -> dict[str, Any]:
    return {
        "question": "Which?",
        "choices": list(texts or ("red", "blue", "green")),
        "answer": answer,
    }


@pytest.mark.parametrize(
    ("answer", "texts", "index"),
    [
        ("blue", (), 1),
        ("C", (), 2),
        (0, (), 0),
        (" red ", (), 0),
        ("A", ("B", "A"), 1),  # a text is the choice's own before it is a letter
        ("2", ("1", "2", "3"), 1),
        (2, ("a", "b", "2"), 2),  # index and text agree
        (7, (5, 6, 7), 2),  # no index, so the choice
    ],
)
def test_answers_of_choices(
    tmp_path: Path, answer: Any, texts: tuple[Any, ...], index: int
) -> None:
    found = read_questions(written(tmp_path, choices(answer, *texts)))
    assert (found.kind, found.items[0]["answer"]) == ("choices", index)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (choices("pink"), "none of the 3 choices"),
        (choices("D"), "none of the 3 choices"),
        (choices(3), "none of the 3 choices"),
        (choices(-1), "none of the 3 choices"),
        (choices(True), "'answer' is True"),
        (choices(1, 1, 3, 2), "could mean '1' or '3'"),
        (choices(2, "1", "2", "3"), "could mean '2' or '3'"),
        (choices("a", "a"), "list of 2 to 26"),
        (choices("a", "a", "a"), "one choice twice"),
        (choices("a", "a", ""), "a choice is ''"),
        ({"question": "x", "choices": "a|b", "answer": "a"}, "list of 2 to 26"),
        ({"question": "", "choices": ["a", "b"], "answer": "a"}, "'question' is ''"),
        ({"question": "x", "options": ["a", "b"], "answer": "a"}, "named 'choices'"),
        ({"question": "x"}, "has no field 'answer'"),
        ({"qestion": "x", "answer": "y"}, "Did you mean 'qestion'"),
        ({"question": "x", "answer": []}, "empty list"),
        ({"question": "x", "answer": None}, "'answer' is None"),
        ({"question": "x", "answer": "a\nb"}, "more than one line"),
        ({"prompt": "p", "test": "t"}, "has no field 'entry_point'"),
        ({"prompt": "p", "test": "t", "entry_point": "f(x)"}, "no name of a function"),
        (["x", "y"], "is no object"),
    ],
)
def test_mistakes_are_said_by_line(tmp_path: Path, row: Any, said: str) -> None:
    before: Any = {"question": "x", "answer": "y"}
    if "choices" in row:
        before = choices("red")
    elif "prompt" in row:
        before = {"prompt": "p", "test": "t", "entry_point": "f"}
    path = written(tmp_path, before, row)
    with pytest.raises(UserError, match=said) as caught:
        read_questions(path)
    assert "quiz.jsonl:2: " in str(caught.value)


def test_one_kind_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"quiz\.jsonl:2: is of kind 'choices'"):
        read_questions(written(tmp_path, {"question": "x", "answer": "y"}, choices("red")))


def test_many_mistakes_are_counted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"wrong questions: 8[\s\S]*:5: [\s\S]*and 3 more"):
        read_questions(written(tmp_path, *[{"question": "x"}] * 8))


@pytest.mark.parametrize("text", ["", "\n\n", "[]"])
def test_an_empty_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "quiz.json"
    path.write_text(text)
    with pytest.raises(UserError, match="no questions in it"):
        read_questions(path)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl", b'{"question": "x", "answer": "y"}\n{"question"\n', r"a\.jsonl:2: is no JSON"),
        ("a.json", b'[{"question": "x"', "is no JSON list"),
        ("a.jsonl", b"\xff\xfe", "no UTF-8"),
        ("a.jsonl.gz", b"plain", "cannot be read"),
        ("a.csv", b"question,answer\nx,y,z\n", r"a\.csv:2: has more cells"),
        ("a.csv", b"question,answer\nx,\n", r"a\.csv:2: has no field 'answer'"),
        ("a.csv", b"question,choices,answer\nx,1|2|3,2\n", "could mean '2' or '3'"),
        ("a.csv", b'question,choices,answer\nx,"[1, 2",2\n', "'choices' is no JSON"),
        ("a.csv", b'question,answer\nx,"y\n', "is no CSV"),
        ("a.txt", b"", "is no file of questions"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError, match=said):
        read_questions(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_questions(tmp_path / "none.jsonl")


def test_all_files_hold_the_same(tmp_path: Path) -> None:
    """One question as JSON lines, a JSON list, gzipped, and CSV in both ways."""
    row = {"question": "Welche Farbe, „rot“?", "choices": ["rot", "blau"], "answer": "blau"}
    lines = written(tmp_path, row)
    (tmp_path / "list.json").write_text(json.dumps([row]), "utf-8")
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(lines.read_bytes()))
    (tmp_path / "bar.csv").write_text(
        '\ufeffquestion,choices,answer\n"Welche Farbe, „rot“?",rot | blau,B\n', "utf-8"
    )
    (tmp_path / "json.csv").write_text(
        'question,choices,answer\n"Welche Farbe, „rot“?","[""rot"", ""blau""]",1\n', "utf-8"
    )
    found = [read_questions(each) for each in sorted(tmp_path.iterdir())]
    assert len(found) == 5
    expected = ({"question": row["question"], "choices": ["rot", "blau"], "answer": 1},)
    assert all(each.items == expected for each in found)
    assert {each.name for each in found} == {
        "quiz.jsonl",
        "list.json",
        "packed.jsonl",
        "bar.csv",
        "json.csv",
    }


def test_exact_and_code(tmp_path: Path) -> None:
    exact = read_questions(
        written(
            tmp_path, {"question": "2+2?", "answer": 4}, {"question": "x", "answer": ["a", "b"]}
        )
    )
    assert [each["answer"] for each in exact.items] == [["4"], ["a", "b"]]
    code = {"prompt": "def f():\n", "test": "def check(f): pass", "entry_point": "f", "more": 1}
    found = read_questions(written(tmp_path, code, {**code, "task_id": "mine/1"}))
    assert found == Questions(
        "quiz.jsonl", "code", ({"task_id": "0", **code}, {**code, "task_id": "mine/1"})
    )
