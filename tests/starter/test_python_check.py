"""What counts as Python, and what a cut sample is forgiven."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamita.starter import python_check
from llamita.starter.python_check import parses, share_that_parses, share_that_tokenizes, tokenizes

WHOLE = "def f(x):\n    # double\n    return x * 2\n"


@pytest.mark.parametrize(
    "sample",
    [
        WHOLE,
        WHOLE.replace("\n", "\r\n"),
        WHOLE + "print('unfin",  # cut inside the last line
        "x = f(1,\n      2,\n",  # cut inside a bracket
        'def f():\n    """Begins\n    and does not en',  # cut inside a docstring
        "for x in y:\n    if x:\n        pass\n    z = 1\n",
        "a b c d\n",  # no grammar is asked for, tokens alone
    ],
)
def test_python_tokenizes_wherever_it_was_cut(sample: str) -> None:
    assert tokenizes(sample)


@pytest.mark.parametrize(
    "sample",
    [
        "",
        "x = 1",  # no full line
        "\n\n",
        "x = $1\n",
        "what is this?\n",
        "x = 'no end\ny = 1\n",  # a string that ends nowhere, in the middle
        "if x:\n        y\n    z\n",  # indentation that matches no outer level
    ],
)
def test_other_text_does_not_tokenize(sample: str) -> None:
    assert not tokenizes(sample)


@pytest.mark.parametrize(
    "sample",
    [
        WHOLE,
        WHOLE + "    y = g(\n",
        WHOLE * 3 + "try:\n    f()\n",  # two of eleven lines are unfinished
        "x = 1\n" * 3 + "def f():\n",
    ],
)
def test_python_parses_without_its_unfinished_end(sample: str) -> None:
    assert parses(sample)


@pytest.mark.parametrize(
    "sample",
    [
        "",
        "# a comment alone\n",
        "a b c d\n" * 8,
        "x = 1\na b c d\n" + "y = 2\n" * 6,  # broken too far from the end
        "x = 1\n" + "f(\n" * 3,  # three of four lines are unfinished
        "x = '\0'\n",
    ],
)
def test_other_text_does_not_parse(sample: str) -> None:
    assert not parses(sample)


def test_shares_count_samples() -> None:
    assert share_that_tokenizes([WHOLE, "x = $\n", WHOLE, WHOLE]) == 0.75
    assert share_that_parses([WHOLE, "a b c d\n"]) == 0.5
    for share in (share_that_tokenizes, share_that_parses):
        with pytest.raises(ValueError, match="at least one"):
            share([])


def test_samples_are_never_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    sample = f"open({str(mark)!r}, 'w')\n"
    assert tokenizes(sample)
    assert parses(sample)
    assert not mark.exists()


def test_real_source_cut_at_any_place_tokenizes() -> None:
    source = Path(python_check.__file__).read_text()
    start = source.index("\n") + 1
    cuts = range(start, len(source), 97)
    assert share_that_tokenizes([source[:cut] for cut in cuts]) == 1.0
