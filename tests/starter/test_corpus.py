"""The starter corpus: what goes in, what stays out, and under which name."""

from __future__ import annotations

import ast
import json
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamita.errors import UserError
from llamita.starter import corpus
from llamita.starter.corpus import (
    STANDARD_LIBRARY,
    PythonFile,
    Record,
    collect_python_corpus,
    description,
    distribution_files,
    required_distributions,
    standard_library_files,
    topic_records,
    write_corpus,
)

LONG = "A sentence that is long enough to be kept, since what is shorter than a line is not. "


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def module(doc: str, value: int) -> str:
    return f'"""{doc}"""\n\n' + "".join(f"value_{i} = {value + i}  # a\n" for i in range(9))


@pytest.fixture
def library(tmp_path: Path) -> Path:
    return write(
        tmp_path / "lib",
        {
            "b.py": module(LONG + "Ünïcode.", 1),
            "a/__init__.py": module(LONG + "Package.", 20),
            "copy_of_b.py": module(LONG + "Ünïcode.", 1),
            "test/test_b.py": module(LONG + "Test.", 40),
            "encodings/cp0.py": module(LONG + "Table.", 60),
            "broken.py": "print 'two'\n",
            "badly_encoded.py": b"x = '\xff'\n",
            "boom.py": module(LONG + "Boom.", 80) + "raise SystemExit('imported')\n",
            "_sysconfigdata_x.py": module(LONG + "Build.", 90),
        },
    )


def test_prose_and_code_of_a_module_share_their_file(library: Path, tmp_path: Path) -> None:
    summary = write_corpus(standard_library_files(library), [], tmp_path / "out")
    prose, code = read(summary.prose_path), read(summary.code_path)
    assert [r["file"] for r in code] == ["stdlib/a/__init__.py", "stdlib/b.py", "stdlib/boom.py"]
    assert {r["file"] for r in code} < {r["file"] for r in prose}
    b = next(r for r in prose if r["file"] == "stdlib/b.py")
    assert b["text"] == f"# b\n\n{LONG}Ünïcode.\n"
    assert next(r["text"] for r in prose if "/a/" in r["file"]).startswith("# a\n")
    assert all("sentence" not in r["text"] and "# a" in r["text"] for r in code)
    assert all(str(library) not in json.dumps(r) for r in prose + code)


def test_tests_tables_copies_and_broken_files_stay_out(library: Path, tmp_path: Path) -> None:
    summary = write_corpus(standard_library_files(library), [], tmp_path / "out")
    files = {r["file"] for p in (summary.prose_path, summary.code_path) for r in read(p)}
    assert not any("test" in f or "copy" in f or "broken" in f or "badly" in f for f in files)
    code = {r["file"] for r in read(summary.code_path)}
    assert not any("encodings" in f or "_sysconfigdata" in f for f in code)
    assert summary.skipped["NotPythonError"] == 2
    assert summary.skipped["duplicate"] == 1


def test_the_summary_counts_what_the_files_hold(library: Path, tmp_path: Path) -> None:
    summary = write_corpus(standard_library_files(library), [], tmp_path / "out")
    for path, counts, total in (
        (summary.prose_path, summary.prose, summary.prose_bytes),
        (summary.code_path, summary.code, summary.code_bytes),
    ):
        records = read(path)
        assert counts[STANDARD_LIBRARY].documents == len(records)
        assert total == sum(len(r["text"].encode()) for r in records)


def test_the_same_library_gives_the_same_bytes(library: Path, tmp_path: Path) -> None:
    first = write_corpus(standard_library_files(library), [], tmp_path / "one")
    second = write_corpus(standard_library_files(library), [], tmp_path / "two")
    assert first.prose_path.read_bytes() == second.prose_path.read_bytes()
    assert first.code_path.read_bytes() == second.code_path.read_bytes()


def test_an_interrupted_collection_leaves_nothing_behind(library: Path, tmp_path: Path) -> None:
    def descriptions() -> Any:
        yield Record(LONG, "x", "x/METADATA")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_corpus(standard_library_files(library), descriptions(), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_packages_give_prose_and_no_code(library: Path, tmp_path: Path) -> None:
    files = [PythonFile(library / "b.py", "pkg", "pkg/b.py")]
    summary = write_corpus(files, [Record(LONG, "pkg", "pkg/METADATA")], tmp_path / "out")
    assert [(r["file"], r["source"]) for r in read(summary.prose_path)] == [
        ("pkg/b.py", "pkg"),
        ("pkg/METADATA", "pkg"),
    ]
    assert read(summary.code_path) == []
    assert files[0].module == "pkg.b"


def test_package_files_with_little_prose_are_passed_over(library: Path, tmp_path: Path) -> None:
    write(library, {"code.py": module(LONG, 1) + "x = 1\n" * 1000})
    for source, documents in (("pkg", 0), (STANDARD_LIBRARY, 1)):
        files = [PythonFile(library / "code.py", source, "pkg/code.py")]
        summary = write_corpus(files, [], tmp_path / source)
        assert len(read(summary.prose_path)) == documents
        assert summary.skipped["little prose"] == 1 - documents


def test_a_library_without_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no source files.*use a Python"):
        list(standard_library_files(tmp_path))


def test_topics_that_share_text_share_their_file() -> None:
    topics = {
        "compound": f"Compound.\n\n{LONG * 2}\n\nif",
        "if": f"{LONG.replace('. ', '.')}\n  {LONG}",  # the same words, other line breaks
        "while": f"Own.\n\n{LONG}While.",
    }
    topics["if"] = f"The if.\n\n{LONG}\n    {LONG}\n"
    records = list(topic_records(ast.parse(f"topics = {topics!r}"), "t.py"))
    files = {text: r.file for text, r in zip(sorted(topics), records, strict=True)}
    assert files["compound"] == files["if"]
    assert files["while"] != files["if"]


def test_requirements_are_followed_without_extras_or_the_package_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requires = {
        "root": ["Mid_One>=1", "absent; sys_platform == 'x'", "tool; extra == 'dev'"],
        "mid-one": ["leaf (>2)", "root"],
        "leaf": None,
        "tool": [],
    }

    class Fake:
        def __init__(self, name: str) -> None:
            self.requires = requires[name]

    def distribution(name: str) -> Fake:
        if name not in requires:
            raise metadata.PackageNotFoundError(name)
        return Fake(name)

    monkeypatch.setattr(corpus.metadata, "distribution", distribution)
    assert list(required_distributions("root")) == ["leaf", "mid-one"]
    with pytest.raises(UserError, match="pip install"):
        required_distributions("nothing")


def test_installed_packages_list_their_modules_without_tests() -> None:
    files = list(distribution_files("numpy", metadata.distribution("numpy")))
    names = [file.name for file in files]
    assert "numpy/__init__.py" in names
    assert names == sorted(names)
    assert not any("/tests/" in name for name in names)
    assert all(file.path.is_file() for file in files)


def test_descriptions_lose_their_badges_and_their_changes() -> None:
    text = "[![badge](x)](y)\n# Name\n\nWhat it is.\n\n## Changelog\n\n1.0 first\n"
    fake = SimpleNamespace(metadata=SimpleNamespace(json={"description": text}))
    assert description(fake) == "# Name\n\nWhat it is."  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_running_python_gives_enough_of_both(tmp_path: Path) -> None:
    summary = collect_python_corpus(tmp_path)
    assert summary.prose_bytes > 7e6
    assert summary.code_bytes > 3e6
    assert {STANDARD_LIBRARY, corpus.TOPICS, "numpy", "torch"} <= set(summary.prose)
    assert set(summary.code) == {STANDARD_LIBRARY}
    prose, code = read(summary.prose_path), read(summary.code_path)
    assert {r["source"] for r in prose}.isdisjoint({"llamita", "transformers", "scipy"})
    shared = {r["file"] for r in prose} & {r["file"] for r in code}
    assert len(shared) > 0.8 * len(code)
    for record in code:
        ast.parse(record["text"])
