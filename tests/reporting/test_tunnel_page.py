"""A wind tunnel's page: what it says, what it keeps out, and that it needs nothing else."""

from __future__ import annotations

import importlib.util
import math
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from llamita.errors import UserError
from llamita.planning.quantities import tokens as short
from llamita.reporting import tunnel_page
from llamita.reporting.plan_canvas import flops_text
from llamita.reporting.tunnel_page import render_tunnel, write_tunnel_page
from llamita.reporting.tunnel_words import (
    axis_words,
    optimum_text,
    power_text,
    signed,
    slug,
    value_text,
)
from llamita.windtunnel.findings import Findings, Optimum
from tests.reporting.test_plan_page import EVIL, Page
from tests.reporting.tunnels import RATE, batch_law, check, decay_study, empty, run, whole

FIGURES = ("coordinate_figures", "transfer_figures", "batch_figures", "decay_figures",
           "law_figures")  # fmt: skip


@cache
def page() -> str:
    return render_tunnel(whole(), command=["llamita", "tunnel", "run", "a b.yaml"])


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures, which take seconds, are left out where a test does not look at them."""
    for name in FIGURES:
        monkeypatch.setattr(tunnel_page, name, lambda findings: [])


def rows_of(found: Page, *first: str) -> list[list[str]]:
    return [row for row in found.rows if tuple(row[: len(first)]) == first]


def headings(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


# -- what it says ----------------------------------------------------------------------------------


def test_the_headline_takes_what_transfers() -> None:
    hero = re.search(r'<p class="hero">(.*?)</p>', page())
    assert hero is not None
    best = whole().transfers[0]
    assert best.transferred is not None
    assert f"take learning rate <b>{best.transferred:.3g}</b>" in hero.group(1)
    assert "under minicpm; the best goes as width<sup>0.02</sup>" in hero.group(1)
    assert "standard" not in hero.group(1), "nothing of it can be taken"
    assert "L<sup>−4.20</sup>" in hero.group(1)
    # 10²¹ FLOPs are far beyond the runs.
    assert re.search(
        r"At 1.00·10¹⁶ FLOPs <b>[\d.]+ tokens</b> a parameter are best \([\d.]+ to [\d.]+\)\.",
        hero.group(1),
    )


@pytest.mark.usefixtures("undrawn")
def test_what_holds_over_widths_comes_before_what_moves() -> None:
    holds, moves = whole().transfers
    both = (replace(moves, transferred=0.0007), holds)
    text = render_tunnel(replace(whole(), transfers=both))
    assert "take learning rate <b>0.00855</b>" in text
    text = render_tunnel(replace(whole(), transfers=both[:1]))
    assert "take learning rate <b>0.0007</b> under standard" in text
    text = render_tunnel(replace(whole(), transfers=(moves,)))
    assert "To a larger size take" not in text


def test_tiles() -> None:
    found = dict(re.findall(r"<div><dt>([^<]*)</dt><dd>([^<]*)<small>", page()))
    made = whole().runs
    assert found["Runs"] == "84"
    assert "done; 18 diverged, 1 killed" in page()
    assert found["Tokens"] == short(sum(each.tokens for each in made))
    assert found["FLOPs"] == flops_text(sum(each.flops for each in made))
    assert found["Learning rate"] == "0.00855"
    assert found["Largest, predicted"] == "+0.90%"


def test_optima_are_those_found() -> None:
    rows = {tuple(row[:2]): row for row in Page(page()).rows if len(row) == 10}
    for transfer in whole().transfers:
        for each in transfer.optima:
            best, row = each.optimum, rows[transfer.parametrization, each.size]
            assert row[2:4] == [f"{each.hidden_size}", f"{each.parameters:,}"]
            assert row[4] == optimum_text(best)
            assert row[6] == f"{best.loss:.4f}"
            assert row[8] == f"{len(best.trials)}"
            if best.interval is not None:
                assert row[5] == f"{best.interval[0]:.3g} to {best.interval[1]:.3g}"
    assert rows["standard", "w512"][4:6] == ["at the edge, 0.00125 or lower", "–"]
    assert rows["standard", "w512"][9] == "0.02, 0.04, 0.08"
    assert "standard, w512: the lowest loss is at 0.00125: widen the grid" in page()


def test_no_edge_is_called_an_optimum() -> None:
    edge = Optimum(0.03, 2.0, None, "high", None, (0.01, 0.03), ())
    low = replace(edge, edge="low")
    assert optimum_text(edge) == "at the edge, 0.03 or higher"
    assert optimum_text(low) == "at the edge, 0.03 or lower"
    # Inside the grid, and no parabola has its minimum there: only the best that was tried.
    assert optimum_text(replace(edge, edge=None)) == "not determined, 0.03 the best tried"
    assert optimum_text(replace(edge, edge=None, fitted=(1.0, 0.0, 1.0))) == "0.03"
    for kind in ("w512", "1.02k"):
        for words in re.findall(rf"[^.;<>]*{re.escape(kind)}[^.;<>]*", page()):
            assert not re.search(r"at the edge.*optimum|optimum.*at the edge", words)


def test_exponents_and_what_to_take() -> None:
    pairs = re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", page())
    assert ("Best ∝ width^p, p", "0.02") in pairs
    assert ("Best ∝ width^p, p", "−0.98") in pairs
    assert ("95% interval of p", "−1.11 to −0.85") in pairs
    assert ("Smallest&#x27;s best costs", "0.0641 at the largest size") in pairs
    assert ("For a larger size", "–") in pairs


def test_verdicts_are_there() -> None:
    for said in (
        "<b>minicpm</b>: nothing grows with width",
        "<b>standard</b>: logits grow with width",
        "standard: logits (update) as width^0.91 after 10 steps",
        "<b>standard</b>: the optimum moves with width",
        "10% suffices, 2.5% does not",
        "seeds share their trunk",
        "there are 3 groups",
        "depths: 2 of 12 runs are done",
        "w512 at 1.5: two batches reach it",
    ):
        assert said in page(), said


def test_coordinates() -> None:
    found = Page(page())
    last = check("standard", 0.9).coordinates[-1]
    assert (last.what, last.kind, last.step) == ("logits", "update", 10)
    row = rows_of(found, "logits", "update", "10")[1]
    assert row[3:5] == ["0.91", "0.83 to 0.99"]
    assert row[5:] == [value_text(sum(last.rms[w]) / 2) for w in (128, 256, 512, 1024)]


def test_batch() -> None:
    law, found = batch_law(), Page(page())
    assert "bs = 3.60·10⁴ / L<sup>4.2</sup> tokens" in page()
    assert "2.90·10⁴ to 4.40·10⁴" in page()
    for each in law.minima:
        (row,) = rows_of(found, each.size, f"{each.loss:.4f}")
        assert row[4:] == [short(math.exp(each.best.loss)), short(36_000 / each.loss**4.2)]
        edge = each.best.edge is not None
        assert row[2] == ("at the edge, 1.02k or lower" if edge else short(each.best.value))
        assert (row[3] == "–") == edge


def test_decay() -> None:
    cells, found = decay_study().cells, Page(page())
    for each in cells:
        (row,) = [
            row
            for row in rows_of(found, each.form, f"{100 * each.share:g}%")
            if row[3] == each.mixture
        ]
        assert row[4:6] == [f"{each.mean:.4f}", "3"]
        if each.difference is not None:
            assert row[6] == f"{each.difference:+.4f}".replace("-", "−")
    assert rows_of(found, "1-sqrt", "20%", "w256", "same")[0][6:] == ["–", "–"]
    assert "w256, before its last decay: 2.0312" in page()


def test_the_law() -> None:
    found = Page(page())
    assert found.row("α")[1:] == ["0.31", "0.25 to 0.38"]
    assert rows_of(found, "1.00·10²¹")[0][1:] == [
        "2.52B", "66.1B", "26.2", "8.73 to 78.6", "extrapolated",
    ]  # fmt: skip
    assert "it predicts 1.1301 where 1.1200 was observed: +0.90%, at 16 times" in page()
    assert "would have taken 3.76B, 3.18 times as many" in page()


def test_every_run_is_there_and_the_best_comes_first() -> None:
    found = Page(page())
    for each in whole().runs:
        rows = rows_of(found, each.key)
        assert len(rows) == (1 if each.status == "done" else 2)
        assert rows[-1][-3] == (each.status if each.loss is None else f"{each.loss:.4f}")
    assert rows_of(found, "b-7")[0] == [
        "b-7", "batch", "killed", "its process ended by signal 9, after 8.52M tokens",
    ]  # fmt: skip
    sweep = [row for row in found.rows if re.match("[ms]w[0-9]", row[0]) and len(row) > 4]
    losses = [float(row[-3]) for row in sweep if row[-3] != "diverged"]
    assert losses == sorted(losses)
    assert len(losses) == 66
    assert [row[-3] for row in sweep[66:]] == ["diverged"] * 18


@pytest.mark.usefixtures("undrawn")
def test_values_of_runs_under_their_axes() -> None:
    made = (
        run("a", values={"stages.0.share": 0.5, RATE: 0.00123456}),
        run("b", values={"data.share": "x"}, loss=1.5, reason="", flops=0.0),
    )
    found = Page(render_tunnel(Findings("x", made)))
    (head,) = [row for row in found.rows if "Batch" in row]
    assert head[8:11] == ["stages.0.share", "learning rate", "data.share"]
    (first,), (second,) = rows_of(found, "b"), rows_of(found, "a")
    assert first[8:11] == ["–", "–", "x"]
    assert second[8:11] == ["0.5", "0.001235", "–"]
    assert first[-1] == "–"


@pytest.mark.usefixtures("undrawn")
def test_what_it_cost() -> None:
    made = (
        run("a", "sweep", flops=1e15, seconds=60, tokens=1000),
        run("b", "sweep", flops=3e15, seconds=60, tokens=2000, status="pruned", loss=None),
        run("c", "law", flops=1e15, seconds=3600, tokens=500),
    )
    found = Page(render_tunnel(Findings("x", made)))
    assert rows_of(found, "sweep")[0] == ["sweep", "2", "1", "1", "3k", "4.00·10¹⁵", "2m00s"]
    assert rows_of(found, "all")[0] == ["all", "3", "2", "1", "3.5k", "5.00·10¹⁵", "1h02m"]


# -- as a page -------------------------------------------------------------------------------------


def test_one_file_that_fetches_and_runs_nothing() -> None:
    found = Page(page())
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(found.tags)
    assert "http" not in page().replace('http-equiv="Content-Security-Policy"', "")
    assert "@import" not in page()
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    assert not found.values("src")
    assert all(value.startswith("#") for value in found.values("href"))
    assert set(re.findall(r"url\((.)", page())) <= {"#"}
    assert "default-src 'none'" in page()
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page(), flags=re.DOTALL)


def test_figures_are_labelled_and_their_ids_their_own() -> None:
    found = Page(page())
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    labels = found.values("aria-labelledby")
    # Of panels: two of coordinates, two of the transfer, three sizes, two mixtures, two residuals.
    assert len(labels) == found.tags.count("svg") == found.tags.count("desc") == 2 + 3 + 4 + 2 + 4
    for reference in [each for label in labels for each in label.split()]:
        assert reference in ids
    for reference in re.findall(r'(?:url\(|href=")#([^)"]+)', page()):
        assert reference in ids


def test_figures_follow_the_theme() -> None:
    style = page()[page().index("<style>") : page().index("</style>")]
    drawn = page()[page().index("<body>") :]
    used = set(re.findall(r"var\(--([\w-]+)\)", drawn))
    assert {"soft", "grid", "c0", "c1", "c2", "warn"} <= used
    for theme in (":root {", ':root:not([data-theme="light"]) {', ":root, :root[data-theme] {"):
        block = style[style.index(theme) :]
        assert used <= set(re.findall(r"--([\w-]+):", block[: block.index("}")])), theme
    assert "<style" not in drawn
    assert not re.search(r'="[^"]*#[0-9a-f]{6}', drawn), "a colour that no theme changes"


def test_everything_is_escaped() -> None:
    found = whole()
    transfer = found.transfers[0]
    one = transfer.optima[0]
    law = found.law
    assert law is not None
    evil_run = run(EVIL, EVIL, size=EVIL, parametrization=EVIL, values={EVIL: EVIL}, reason=EVIL)
    evil = Findings(
        EVIL,
        (evil_run, replace(evil_run, key="k", status="failed", loss=None)),
        coordinates=(
            replace(
                found.coordinates[0],
                parametrization=EVIL,
                growing=(EVIL,),
                verdict=EVIL,
                coordinates=tuple(
                    replace(each, what=EVIL) for each in found.coordinates[0].coordinates[-2:]
                ),
            ),
        ),
        transfers=(
            replace(
                transfer,
                parametrization=EVIL,
                axis=f"a.{EVIL}",
                verdict=EVIL,
                optima=(replace(one, size=EVIL, optimum=replace(one.optimum, notes=(EVIL,))),),
            ),
        ),
        batch_law=replace(
            batch_law(),
            minima=tuple(replace(each, size=EVIL) for each in batch_law().minima[:2]),
            skipped=(EVIL,),
            notes=(EVIL,),
        ),
        decays=(
            replace(
                decay_study(),
                cells=(replace(decay_study().cells[0], form=EVIL, mixture=EVIL, size=EVIL),),
                undecayed={EVIL: 2.0},
                verdict=EVIL,
                notes=(EVIL,),
            ),
        ),
        law=replace(
            law,
            fitted=replace(
                law.fitted, warnings=(EVIL,), law=replace(law.fitted.law, name=EVIL, note=EVIL)
            ),
            runs=tuple(replace(each, size=EVIL) for each in law.runs),
        ),
        refusals={EVIL: EVIL},
        facts={EVIL: EVIL},
    )
    text = render_tunnel(evil, command=["llamita", EVIL])
    page = Page(text)
    assert not {"script", "b/"} & set(page.tags)
    assert "onload" not in [name for _, name, _ in page.attributes]
    assert text.count("<style>") == text.count("</style>") == 1
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[\w.-]+", each) for each in ids if each.startswith("figure-"))


def test_the_same_findings_give_the_same_bytes() -> None:
    found = replace(whole(), transfers=whole().transfers[1:], batch_law=None, decays=(), law=None)
    assert render_tunnel(found) == render_tunnel(found)


def test_sections_there_and_not_there() -> None:
    assert headings(page()) == [
        "Not found",
        "Does an update grow with width?",
        "Learning rate over sizes",
        "Batch size against loss",
        "How to end a run",
        "Loss against size and tokens",
        "The law tunnel",
        "What it cost",
        "Every run",
        "To know",
        "Do it again",
    ]
    bare = render_tunnel(empty())
    assert headings(bare) == []
    assert "0 runs</b> are done, and nothing follows from them yet" in bare
    assert "<figure" not in bare
    Page(bare)
    one = render_tunnel(Findings("x", (), decays=(decay_study(),)))
    assert headings(one) == ["How to end a run"]


def test_the_command_can_be_pasted() -> None:
    assert "llamita tunnel run &#x27;a b.yaml&#x27;" in page()


@pytest.mark.usefixtures("undrawn")
def test_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tunnel_page(whole(), tmp_path / "new" / "report.html")
    assert path.read_text(encoding="utf-8") == render_tunnel(whole())
    with pytest.raises(UserError, match="is a directory: name a file"):
        write_tunnel_page(whole(), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not write"):
        write_tunnel_page(whole(), tmp_path / "file" / "report.html")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'llamita\[plots\]'"):
        write_tunnel_page(whole(), tmp_path / "other.html")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "new"]


# -- words -----------------------------------------------------------------------------------------


def test_words() -> None:
    assert axis_words("optimizer.learning_rate") == "learning rate"
    assert axis_words("decay_share") == "decay share"
    assert [value_text(each) for each in (0.012345, 3.0, 999.4, 65_536)] == [
        "0.0123", "3", "999", "65.5k",
    ]  # fmt: skip
    assert [signed(each) for each in (-0.001, 0.001, -1.5, 1.5)] == [
        "0.00",
        "0.00",
        "−1.50",
        "1.50",
    ]
    assert [signed(each, 1, plus=True) for each in (-0.01, 0.0, -1.5, 1.5)] == [
        "0.0", "0.0", "−1.5", "+1.5",
    ]  # fmt: skip
    assert power_text(-1, (-1.1, -0.9)) == "^−1.00 (−1.10 to −0.90)"
    assert slug("stages.0.Learning_Rate") == "stages-0-learning-rate"
    assert slug("<>") == "x"
