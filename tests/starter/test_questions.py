"""Questions against `inspect` on imported modules, and their split against `build_data`'s."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from tests.data.corpus import small_tokenizer

from llamita.data.build import build_data
from llamita.data.shards import open_dataset
from llamita.starter.corpus import (
    STANDARD_LIBRARY,
    PythonFile,
    collect_python_corpus,
    standard_library_files,
    write_corpus,
)
from llamita.starter.docstrings import decode, parse
from llamita.starter.public_names import PublicName, parameters, public_names
from llamita.starter.questions import (
    Question,
    call_of,
    first_sentence,
    is_held_out,
    questions,
    read_questions,
    write_questions,
)

PACKAGE = '''
from ._inner import shown, _hidden
from .deep import *
from .deep import Unlisted
__all__ = ["shown", "Listed"]
def not_listed():
    """Not in the list of all."""
'''
INNER = '''
def shown(a, b=1):
    """Show it to everyone."""
def _hidden():
    """Hide it from everyone."""
def nobody():
    """Nobody imports this."""
'''
DEEP = '''
__all__ = ["Listed"]
class Listed:
    """Be in the list.

    With more to say.
    """
    def __init__(self, size, *rest, key=None): ...
    def use(self, what):
        """Use it once."""
        def inside():
            """Not to be named."""
    @property
    def length(self):
        """Length of it."""
    @length.setter
    def length(self, value):
        """Set the length of it."""
    @property
    def width(self): ...
    @width.setter
    def width(self, value):
        """Set the width of it."""
    @staticmethod
    def make(size):
        """Make one of a size."""
    def _private(self):
        """Not for users."""
class Unlisted:
    """Not in the list."""
if True:
    class Bare(Listed):
        """Have no constructor."""
'''


def library(folder: Path, files: dict[str, str]) -> list[PythonFile]:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return list(standard_library_files(folder))


def names_of(files: list[PythonFile]) -> dict[str, PublicName]:
    modules = {file: parse(decode(file.path.read_bytes())) for file in files}
    return {found.name: found for found in public_names(modules)}


@pytest.fixture(scope="module")
def known() -> dict[str, PublicName]:
    """The names of some modules of the running Python."""
    root = Path(sysconfig.get_path("stdlib"))
    found = [*root.glob("json/*.py"), *root.glob("concurrent/**/*.py")]
    modules = ("textwrap", "posixpath", "genericpath", "shutil", "statistics")
    found += [root / f"{module}.py" for module in modules]
    files = [
        PythonFile(path, STANDARD_LIBRARY, path.relative_to(root).as_posix()) for path in found
    ]
    return names_of(files)


def test_names_are_those_that_users_write(tmp_path: Path) -> None:
    files = library(
        tmp_path, {"pkg/__init__.py": PACKAGE, "pkg/_inner.py": INNER, "pkg/deep.py": DEEP}
    )
    found = names_of(files)
    assert {name: named.parameters for name, named in found.items()} == {
        "pkg.shown": ("a", "b=1"),
        "pkg.Listed": ("size", "*rest", "key=None"),
        "pkg.Listed.use": ("what",),
        "pkg.Listed.length": None,
        "pkg.Listed.make": ("size",),
    }
    assert found["pkg.Listed.length"].docstring == "Length of it."
    assert found["pkg.Listed.use"].file == "stdlib/pkg/deep.py"


def test_private_names_of_other_packages_are_not_shown_as_the_importers_own(tmp_path: Path) -> None:
    user = 'from _abc import Mapping\nfrom plain import tool\ndef f():\n    """Do it."""\n'
    whole = "from _abc import *\n"
    abc = 'class Mapping:\n    """Map it."""\n'
    tool = 'def tool():\n    """Be a tool."""\n'
    files = library(tmp_path, {"os.py": user, "c/abc.py": whole, "_abc.py": abc, "plain.py": tool})
    assert set(names_of(files)) == {"os.f", "c.abc.Mapping", "plain.tool"}


def test_names_and_docstrings_are_those_of_the_imported_objects(
    known: dict[str, PublicName],
) -> None:
    assert {
        "os.path.join",
        "os.path.exists",
        "json.dumps",
        "json.JSONDecoder.decode",
        "concurrent.futures.Future.result",
        "concurrent.futures.as_completed",
        "statistics.mean",
    } <= set(known)
    for name, named in known.items():
        module, *parts = name.split(".")
        value: Any = importlib.import_module(module)
        for number, part in enumerate(parts):
            if not hasattr(value, part):
                importlib.import_module(".".join([module, *parts[: number + 1]]))
            value = getattr(value, part)
        assert (inspect.getdoc(value) or "").split() == named.docstring.split(), name
    assert len(known) > 100


def test_parameters_are_those_of_inspect(known: dict[str, PublicName]) -> None:
    for name in (
        "json.dumps",
        "os.path.join",
        "shutil.copytree",
        "textwrap.wrap",
        "statistics.pstdev",
    ):
        module, _, function = name.rpartition(".")
        signature = inspect.signature(getattr(importlib.import_module(module), function))
        taken = known[name].parameters
        assert taken is not None
        shown = [p.partition("=")[0].lstrip("*") for p in taken if p not in ("*", "/")]
        assert shown == list(signature.parameters), name


@pytest.mark.parametrize(
    "signature",
    [
        "a, b=1, /, c=None, *args, d, e=(1, 2), **kw",
        "a, *, b",
        "a, /",
        "",
        "*args",
    ],
)
def test_parameters_are_written_as_python_writes_them(signature: str) -> None:
    function = ast.parse(f"def f({signature}): ...").body[0]
    assert isinstance(function, ast.FunctionDef)
    written = ", ".join(parameters(function.args, bound=False))
    assert written == signature
    method = ast.parse(f"def f(self, {signature}): ...").body[0]
    assert isinstance(method, ast.FunctionDef)
    assert ", ".join(parameters(method.args, bound=True)) == signature


def test_long_and_private_defaults_are_left_out() -> None:
    function = ast.parse("def f(self, /, a=_UNSET, b=tuple(range(1000, 2000))): ...").body[0]
    assert isinstance(function, ast.FunctionDef)
    assert parameters(function.args, bound=True) == ("a=...", "b=...")


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Join two paths.  More follows.", "Join two paths."),
        ("Join two\n   paths\n\nMore.", "Join two paths."),
        ("Use it, e.g. Here. It ends.", "Use it, e.g. Here."),
        ("Return ``x`` of :class:`Thing`.", "Return `x` of `Thing`."),
        ("Return the value of x.y now", "Return the value of x.y now."),
        ("f(a, b) -> list\n\nReturn a list of both.", "Return a list of both."),
        ("Wait for it to come..", "Wait for it to come."),
        ("Is this the one? Who knows.", "Is this the one?"),
        ("f(a, b) -> list", ""),
        ("Do one of these:", ""),
        ("too low a letter.", ""),
        ("Short.", ""),
        ("Long " * 50 + "text.", ""),
        ("Quote it `half.", ""),
        ("Internal function.", ""),
        (">>> f(1)", ""),
    ],
)
def test_the_first_sentence_of_a_docstring(docstring: str, sentence: str) -> None:
    assert first_sentence(docstring) == sentence


def named(name: str, parameters: tuple[str, ...] | None, *, function: bool = True) -> PublicName:
    return PublicName(name, function, parameters, "Do it well.", "stdlib/m.py")


def test_answers_hold_signature_and_sentence() -> None:
    asked = questions(named("m.f", ("a", "*", "b=0", "**kw")), "Do it well.")
    answers: dict[str, set[str]] = {}
    for question in asked:
        assert "`m.f`" in question.question
        answers.setdefault(question.kind, set()).add(question.answer)
    assert answers == {
        "purpose": {"`m.f(a, *, b=0, **kw)`: Do it well."},
        "call": {"Call `m.f(a, *, b=0, **kw)`."},
        "parameters": {"`m.f` takes `a`, `b` and `**kw`."},
    }
    assert len({question.question for question in asked}) == 4
    assert questions(named("m.f", ("a",)), "") == []
    (nothing,) = (q for q in questions(named("m.g", ()), "Do it.") if q.kind == "parameters")
    assert nothing.answer == "`m.g` takes no parameters."


def test_what_is_not_called_is_asked_for_its_purpose_alone() -> None:
    asked = questions(named("m.C.size", None, function=False), "Size of it all.")
    assert {question.kind for question in asked} == {"purpose"}
    assert {question.answer for question in asked} == {"`m.C.size`: Size of it all."}
    assert not any("do?" in question.question for question in asked)


def test_forms_vary_between_names_and_never_for_one() -> None:
    every = [questions(named(f"m.f{n}", ("a",)), "Do it well.") for n in range(60)]
    assert every == [questions(named(f"m.f{n}", ("a",)), "Do it well.") for n in range(60)]
    forms = {q.question.replace(q.name, "") for asked in every for q in asked}
    assert len(forms) == 5 + 3 + 3


def test_long_calls_lose_what_is_optional() -> None:
    many = tuple(f"option_{n}=None" for n in range(20))
    assert call_of("m.f", ("a", *many)) == "m.f(a, ...)"
    assert call_of("m.f", tuple(f"needed_{n}" for n in range(20))) is None
    kinds = {q.kind for q in questions(named("m.f", ("a", *many)), "Do it well.")}
    assert kinds == {"purpose", "call"}


def test_held_out_files_are_those_that_build_data_holds_out(tmp_path: Path) -> None:
    files = [f"stdlib/module_{n}.py" for n in range(200)]
    source = tmp_path / "prose.jsonl"
    source.write_text("".join(json.dumps({"text": f, "file": f}) + "\n" for f in files))
    tokenizer = small_tokenizer()
    build_data(source, tmp_path / "data", tokenizer, validation=0.1, split_by="file")
    stream = open_dataset(tmp_path / "data").validation
    held = {
        tokenizer.decode(stream.document(n).tolist(), skip_special_tokens=True)
        for n in range(stream.num_documents)
    }
    assert held == {file for file in files if is_held_out(file, 0.1)}
    assert 5 < len(held) < 40


@pytest.fixture
def written(tmp_path: Path) -> tuple[list[Question], list[Question], Any]:
    """Questions about 40 modules of one function each; two held-out ones share their sentence."""
    texts = {
        f"m{n}.py": f'def f{n}(a):\n    """Do the thing numbered {n} with all of its care and then '
        f'rest a little while."""\nraise SystemExit("imported")\n'
        for n in range(40)
    }
    held = sorted(name for name in texts if is_held_out(f"stdlib/{name}", 0.25))
    kept = sorted(name for name in texts if name not in held)
    # The corpus drops a docstring that it has met before: this one is tuned on all the same.
    number, copied = held[0][1:-3], kept[-1][1:-3]
    assert held[0] < kept[-1]
    texts[held[0]] = texts[held[0]].replace(f"numbered {number} ", f"numbered {copied} ")
    texts[kept[0]] += f"x = 'Do the thing numbered {held[1][1:-3]} with all of its care and then "
    texts[kept[0]] += "rest a little while'\n"
    files = library(tmp_path / "lib", texts)
    write_corpus(files, [], tmp_path / "corpus")
    summary = write_questions(tmp_path / "corpus", tmp_path / "out", held_out=0.25, files=files)
    return (
        read_questions(summary.train_path),
        read_questions(summary.held_out_path),
        (
            summary,
            held,
        ),
    )


def test_nothing_that_is_asked_of_a_held_out_function_was_trained_on(written: Any) -> None:
    train, held_out, (summary, held) = written
    assert len(held) > 3
    assert {q.file for q in held_out} == {f"stdlib/{name}" for name in held[2:]}
    assert {q.file for q in train} == {
        f"stdlib/m{n}.py" for n in range(40) if f"m{n}.py" not in held
    }
    assert summary.skipped["held-out sentence stands in the training text"] == 2
    sentences = {q.answer.partition(": ")[2] for q in train if q.kind == "purpose"}
    assert sentences.isdisjoint(q.answer.partition(": ")[2] for q in held_out)


def test_the_summary_counts_what_the_files_hold(written: Any) -> None:
    train, held_out, (summary, _) = written
    assert (summary.train_pairs, summary.held_out_pairs) == (len(train), len(held_out))
    assert summary.train_names == len({q.name for q in train}) == len(train) / 4
    assert summary.held_out_names == len({q.name for q in held_out})
    record = json.loads(summary.train_path.read_text().splitlines()[0])
    assert [message["role"] for message in record["messages"]] == ["user", "assistant"]
    assert train[0].as_record() == record


@pytest.mark.slow
def test_the_running_python_gives_thousands_of_questions(tmp_path: Path) -> None:
    collect_python_corpus(tmp_path / "corpus")
    summary = write_questions(tmp_path / "corpus", tmp_path / "one", held_out=0.04)
    assert summary.train_names > 3000
    assert summary.train_pairs > 12_000
    assert summary.held_out_names > 60
    train = read_questions(summary.train_path)
    asked = {(q.kind, q.answer) for q in train if q.name == "os.path.join"}
    assert ("call", "Call `os.path.join(a, *p)`.") in asked
    again = write_questions(tmp_path / "corpus", tmp_path / "two", held_out=0.04)
    assert again.train_path.read_bytes() == summary.train_path.read_bytes()
