"""The plan's page: what it says, what it keeps out, and that it needs nothing else."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest

import llamita
from llamita.architecture.presets import PRESETS
from llamita.errors import UserError
from llamita.planning.answer import Candidate, Change
from llamita.planning.laws import find_law
from llamita.reporting import plan_page
from llamita.reporting.plan_page import render_plan, write_plan_page
from llamita.reporting.plan_plots import memory_bars
from tests.reporting.plans import limited, priced, repeated, rule_of_thumb, served

VOID = {"meta", "br", "hr", "img", "input", "link"}
EVIL = '</style><script>alert(1)</script><b onload="x">&\'"'


class Page(HTMLParser):
    """Balanced elements, their ids, what labels them, and their tables' cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.rows: list[list[str]] = []
        self.cell: list[str] | None = None
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.cell = []

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_data(self, data: str) -> None:
        if self.cell is not None:
            self.cell.append(data)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            assert self.cell is not None
            self.rows[-1].append("".join(self.cell))
            self.cell = None

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]

    def row(self, first: str) -> list[str]:
        (found,) = [row for row in self.rows if row[0] == first]
        return found


@cache
def page_of_served() -> str:
    return render_plan(served(), command=["llamita", "plan", "--price", "a b=1usd/h"])


@cache
def page_of_priced() -> str:
    return render_plan(priced())


@cache
def page_of_repeated() -> str:
    return render_plan(repeated())


@cache
def page_of_limited() -> str:
    return render_plan(limited())


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures, which take a second, are left out where a test does not look at them."""
    monkeypatch.setattr(plan_page, "page_figures", lambda answer: [])


def test_the_published_answer_is_the_headline() -> None:
    """30B at 10T tokens: 13.6B on 2.845 times the data, 28% saved (arXiv 2401.00448, section 3)."""
    page = page_of_served()
    heading = re.search(r"<h1>(.*?)</h1>", page)
    assert heading is not None
    assert heading.group(1) == served().words
    hero = re.search(r'<p class="hero">(.*?)</p>', page)
    assert hero is not None
    assert "<b>13.6B parameters</b> trained on <b>4.43T tokens</b>" in hero.group(1)
    assert "saves <b>28.0%</b>" in hero.group(1)
    data = 4.43 / 1.556
    assert data == pytest.approx(2.845, rel=2e-3)


def test_options_in_flops_and_in_dollars() -> None:
    flops, dollars = Page(page_of_served()), Page(page_of_priced())
    row = flops.row("compute-optimal")
    assert row[1:5] == ["30B", "1.56T", "51.9", "1.9583"]
    assert row[5:8] == ["2.80·10²³", "6.00·10²³", "8.80·10²³"]  # 6ND; 2·30e9·10e12; both
    assert row[8] == "+38.9%"  # 1/(1 - 0.2798) - 1
    assert "$" not in re.sub(r"<style>.*?</style>", "", page_of_served(), flags=re.DOTALL)
    row = dollars.row("compute-optimal")
    assert row[6:9] == ["$748,029", "$953,686", "$1,701,715"]
    dollars_a_flop = 1.5 / 3600 / 312e12 / 0.5
    assert 6 * 30e9 * 1.5564e12 * dollars_a_flop == pytest.approx(748_029, rel=1e-3)


def test_one_file_that_fetches_and_runs_nothing() -> None:
    for page in (page_of_served(), page_of_priced()):
        found = Page(page)
        assert not {"script", "link", "img", "iframe", "object", "base"} & set(found.tags)
        assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
        assert "@import" not in page
        assert not [name for _, name, _ in found.attributes if name.startswith("on")]
        assert not found.values("src")
        assert all(value.startswith("#") for value in found.values("href"))
        assert set(re.findall(r"url\((.)", page)) <= {"#"}
        assert "default-src 'none'" in page


def test_figures_are_labelled_and_their_ids_their_own() -> None:
    found = Page(page_of_priced())
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    labels = found.values("aria-labelledby")
    assert len(labels) == found.tags.count("svg") == 7
    for reference in [each for label in labels for each in label.split()]:
        assert reference in ids
    assert found.tags.count("desc") == 7
    for reference in re.findall(r'(?:url\(|href=")#([^)"]+)', page_of_priced()):
        assert reference in ids


def test_figures_follow_the_theme() -> None:
    """No colour of the page's palette is left as it is, and every variable has a value in both
    themes and on paper."""
    page = page_of_served()
    style = page[page.index("<style>") : page.index("</style>")]
    drawn = page[page.index("<body>") :]
    used = set(re.findall(r"var\(--([\w-]+)\)", drawn))
    assert {"ink", "soft", "grid", "c0", "c1", "c2", "warn"} <= used
    for theme in (":root {", ':root:not([data-theme="light"]) {', ":root, :root[data-theme] {"):
        block = style[style.index(theme) :]
        block = block[: block.index("}")]
        assert used <= set(re.findall(r"--([\w-]+):", block)), theme
    # A stylesheet of matplotlib's own would reach the whole page.
    assert "<style" not in drawn


def test_everything_is_escaped() -> None:
    config = PRESETS["llamita-5m"].config
    evil = replace(
        served(),
        words=EVIL,
        law=replace(served().law, name=EVIL, source=EVIL, note=EVIL, data=EVIL),
        facts=(EVIL,),
        warnings=(EVIL,),
        assumptions=(EVIL,),
        options=(replace(served().options[0], label="<b>&"), *served().options[1:]),
        changes=(Change(EVIL, obstacle=EVIL), Change(EVIL, 1e9, 2e9, 2.0, 1e20, 0.1)),
        candidates=(Candidate(config, EVIL, 5, 5, 0.01, 1e9, 3.0, 4e7, None, None),),
    )
    memory = memory_bars([("<b>&", {'<i a="b">': 1e9})], 2e9)
    page = render_plan(evil, command=["llamita", EVIL], figures=[memory])
    found = Page(page)
    assert not {"script", "i"} & set(found.tags)
    assert "onload" not in [name for _, name, _ in found.attributes]
    assert page.count("<style>") == page.count("</style>") == 1


def test_sections_there_and_not_there() -> None:
    repeats, limits, rule = (
        re.findall(r"<h2>(.*?)</h2>", page)
        for page in (page_of_repeated(), page_of_limited(), render_plan(rule_of_thumb()))
    )
    assert "Reading the same text again" in repeats
    assert "Reading the same text again" not in limits
    assert rule == ["Options", "The rule 20-tokens-per-parameter"]
    assert "Do it again" not in limits


def test_the_command_can_be_pasted() -> None:
    assert "llamita plan --price &#x27;a b=1usd/h&#x27;" in page_of_served()


def test_repeats() -> None:
    """At 4 epochs 3.7257 U are worth as much as fresh ones (arXiv 2305.16264, equation 5)."""
    page = page_of_repeated()
    row = Page(page).row("4")
    assert row[1:3] == ["80B", "74.5B"]  # 20B · 3.7257
    assert "after 11.7 epochs" in page  # 1 + R* ln 2
    assert "worth more than 328B" in page  # 16.3878 U


@pytest.mark.usefixtures("undrawn")
def test_law_with_its_errors() -> None:
    law = find_law("epoch")
    found = Page(render_plan(replace(served(), law=law)))
    assert found.row("B") == ["B", "2085.43", "±1293"]
    assert found.row("α") == ["α", "0.3478", "±0.02"]


@pytest.mark.usefixtures("undrawn")
def test_obstacles_and_regret() -> None:
    changes = (
        Change("half the text", obstacle="no model reaches it"),
        Change("demand 10 times higher", 8e9, 2e12, 2.0, 3e23, 0.335),
    )
    page = render_plan(replace(served(), changes=changes))
    row = Page(page).row("demand 10 times higher")
    assert row == ["demand 10 times higher", "8B", "2T", "2.0000", "3.00·10²³", "+33.5%"]
    assert "<li>half the text: no model reaches it</li>" in page


@pytest.mark.usefixtures("undrawn")
def test_shapes() -> None:
    """TinyLlama's own shape, and its config.json."""
    preset = PRESETS["tinyllama-1.1b"]
    count = 1_100_048_384
    kind = preset.parametrization
    shape = Candidate(preset.config, kind, count, count, 0.0, 3e12, 2.2, 6.6e9, 86400.0, 1200.0)
    page = render_plan(replace(served(), candidates=(shape,)))
    row = Page(page).row("22 layers of 2,048")
    assert row[1:4] == ["5,632", "32 / 4", "1,100,048,384"]
    assert row[-4:] == ["1.98·10²²", "×1.00", "$1,200", "24h00m"]
    assert "&quot;num_hidden_layers&quot;: 22" in page


@pytest.mark.usefixtures("undrawn")
def test_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_plan_page(served(), tmp_path / "plan.html")
    assert path.read_text(encoding="utf-8") == render_plan(served())
    with pytest.raises(UserError, match="is a directory"):
        write_plan_page(served(), tmp_path)
    with pytest.raises(UserError, match="could not write"):
        write_plan_page(served(), tmp_path / "absent" / "plan.html")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'llamita\[plots\]', or leave --html out"):
        write_plan_page(served(), tmp_path / "other.html")
    assert [each.name for each in tmp_path.iterdir()] == ["plan.html"]


def test_style_is_packaged() -> None:
    folder = Path(llamita.__file__).parent / "reporting"
    assert (folder / "plan.css").read_text() in page_of_served()
    assert (folder / "report.css").read_text() in page_of_served()


def test_answers_of_all_kinds_are_whole_pages() -> None:
    for page in (page_of_limited(), page_of_repeated(), render_plan(rule_of_thumb())):
        Page(page)
        assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
