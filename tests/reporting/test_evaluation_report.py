"""The evaluation's page: every mark where its number is, nothing outside it, nothing left out."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamita.errors import UserError
from llamita.evaluation.published import published_table
from llamita.evaluation.results import Evaluation, Missing, TaskScore
from llamita.reporting.evaluation_report import render_evaluations, write_evaluation_page
from tests.evaluation.test_comparison import answers, suite
from tests.evaluation.test_results import evaluation, sample, score
from tests.reporting.test_plan_page import EVIL, Page

TINYLLAMA = published_table("tinyllama")


def one() -> Evaluation:
    """50 of 100 right where guessing gives 1/4, 50 of 100 where it gives 1/2, and a ratio."""
    good = answers(0.5, 100, chance=0.25)
    coin = answers(0.5, 100, task="winogrande", metric="acc", chance=0.5)
    text = score(
        "held_out",
        "bits_per_byte",
        values=(900.0, 1200.0),
        weights=(1000.0, 1000.0),
        chance=None,
        higher_is_better=False,
    )
    return evaluation(good, coin, text)


def section(page: str, key: str) -> str:
    found = re.search(rf'<section id="{key}">.*?</section>', page, flags=re.DOTALL)
    assert found is not None, f"no section {key}"
    return found[0]


def styles(piece: str, kind: str) -> list[str]:
    return re.findall(rf'<i class="{kind}[^"]*" style="([^"]*)"', piece)


# -- scores ----------------------------------------------------------------------------------------


def test_bars_end_and_intervals_lie_where_their_numbers_are() -> None:
    """Wilson's interval of 50 of 100 is 0.4038 to 0.5962."""
    piece = section(render_evaluations([one()]), "scores")
    assert styles(piece, "fill") == ["width:50.00%"] * 2
    assert styles(piece, "span") == ["left:40.38%;width:19.23%"] * 2
    assert styles(piece, "chance") == ["left:25.00%", "left:50.00%"]
    labels = Page(piece).values("aria-label")
    assert labels == [
        "runs/tiny/final, hellaswag: 50.00, 95% interval [40.4, 59.6]",
        "runs/tiny/final, winogrande: 50.00, 95% interval [40.4, 59.6], not above chance",
    ]
    assert piece.count('class="luck"') == 1
    assert "published" not in piece
    assert Page(piece).row("held_out")[1:] == ["bits_per_byte", "1.0500 [−0.8559, 2.9559]"]


def test_published_scores_are_ticks_of_the_same_scale() -> None:
    piece = section(render_evaluations([one()], published=[TINYLLAMA]), "scores")
    ticks = styles(piece, "peer")
    expected = [row.scores[column] for column in (0, 2) for row in TINYLLAMA.rows]
    assert ticks == [f"left:{100 * each:.2f}%" for each in expected]
    assert 'title="Pythia-1.4B: 52.01"' in piece


def test_what_another_harness_found_is_in_no_plot() -> None:
    """It stands in a table, which says so."""
    mmlu = evaluation(answers(0.3, task="mmlu", metric="acc", num_fewshot=5))
    page = render_evaluations([mmlu], published=[published_table("instructeval"), TINYLLAMA])
    assert styles(page, "peer") == []
    piece = section(page, "published")
    assert piece.count("<table") == 1
    assert '<span class="luck">not directly comparable</span>' in piece
    assert Page(piece).row("TinyLlama 2.5T")[1:] == ["25.92", "29.32", "9.15", "15.45"]
    other = render_evaluations(checkpoints(1, 10), published=[replace(TINYLLAMA, comparable=False)])
    assert styles(other, "peer") == []
    assert 'class="peer"' not in section(other, "training")


def test_beside_published_scores() -> None:
    page = render_evaluations([suite()], published=[TINYLLAMA])
    rows = Page(section(page, "published"))
    assert rows.row("runs/tiny/final")[1:] == ["50.00 ±9.6"] * 7 + ["50.00 ±3.7"]
    printed = "53.65 33.40 59.59 29.44 50.80 60.83 72.36 51.44"
    assert " ".join(rows.row("OPT-1.3B")[1:]) == printed
    hero = re.search(r'<p class="hero">(.*?)</p>', page)
    assert hero is not None
    told = re.sub(r"<.*?>", "", hero[1])
    assert told == (
        "A mean of 50.00 ± 3.7 over 7 tasks, between Pythia-1.0B (48.30) and TinyLlama 1T (50.22)."
    )
    few = section(render_evaluations([suite(num_fewshot=10)], published=[TINYLLAMA]), "published")
    assert few.count("<sup>a</sup>") == 7
    assert "a: 10 shots, there 0." in few


def test_every_score_is_in_the_table_and_subjects_are_folded() -> None:
    subjects = [answers(0.3, 50, task=f"mmlu_{n}", metric="acc", group="mmlu") for n in "ab"]
    page = Page(section(render_evaluations([evaluation(*subjects, answers(0.5))]), "all-scores"))
    assert [row[0] for row in page.rows] == [
        "Task",
        "mmlu",
        "hellaswag",
        "Task",
        "mmlu_a",
        "mmlu_b",
    ]
    assert page.row("mmlu")[3] == "30.00"
    assert page.row("mmlu")[7] == "100"


# -- several ---------------------------------------------------------------------------------------


def test_differences_are_drawn_and_luck_is_not_called_better() -> None:
    near, far = answers(0.5), answers(0.5, seed=2, task="piqa")
    sides = [
        evaluation(near, far, model="a"),
        evaluation(answers(0.52, seed=3), answers(0.8, seed=4, task="piqa"), model="b"),
    ]
    piece = section(render_evaluations(sides), "compared")
    labels = Page(piece).values("aria-label")
    assert labels[0].endswith("no difference shown")
    assert labels[1].endswith(": better")
    assert re.findall(r'class="lane gap( shown)?"', piece) == ["", " shown"]
    # +30 points on a scale that ends at ±50 lies at 80%.
    assert styles(piece, "point")[1] == "left:80.00%"
    assert "2 comparisons, 1 with a difference shown; chance alone would show 0.1" in piece
    assert Page(piece).row("piqa")[-2] == "better (holds)"


def test_results_with_nothing_in_common_are_no_error() -> None:
    page = render_evaluations([evaluation(), evaluation(score("piqa", "acc"), model="b")])
    assert "and no other result on any of it by the same metric" in section(page, "compared")


def checkpoints(*billions: float, **changes: Any) -> list[Evaluation]:
    return [
        evaluation(
            answers(0.3 + 0.1 * number),
            model=f"runs/x/step-{number}",
            tokens=int(each * 1e9),
            **changes,
        )
        for number, each in enumerate(billions)
    ]


def test_scores_against_tokens() -> None:
    """Ten times the tokens twice over: equal steps on the axis; +10 points: equal steps up it."""
    found = checkpoints(1, 10, 100)
    piece = section(render_evaluations(found), "training")
    path = re.search(r'<path class="line c0" d="M(.*?)"', piece)
    assert path is not None
    points = [tuple(map(float, each.split())) for each in path[1].split("L")]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert x1 > x0
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
    assert y0 > y1
    # The chance level, 0.25, lies as far below 0.3 as half of what 0.4 lies above it.
    chance = re.search(r'<path class="chance" d="M\d+ ([\d.]+)H', piece)
    assert chance is not None
    assert float(chance[1]) - y0 == pytest.approx((y0 - y1) / 2, abs=0.11)
    whiskers = re.findall(r'<path class="whisker c0" d="M([\d.]+) ([\d.]+)V([\d.]+)"', piece)
    low = found[0].scores[0].estimate.low
    assert float(whiskers[0][1]) == pytest.approx(y0 + (0.3 - low) * 10 * (y0 - y1), abs=0.2)
    for words in ("1B", "10B", "100B"):
        assert f">{words}</text>" in piece


def test_published_checkpoints_stand_beside_those_of_a_run() -> None:
    found = [replace(suite(), tokens=n, model=f"runs/x/step-{n}") for n in (10**11, 10**12)]
    piece = section(render_evaluations(found, published=[TINYLLAMA]), "training")
    assert piece.count('<path class="peer"') == 8  # Seven tasks and their mean.
    assert piece.count("<h3>Mean of 7 tasks</h3>") == 1
    assert "TinyLlama, 2.5T tokens: 58.96" in piece
    assert "TinyLlama, 3T tokens: 52.99" in piece
    assert "Pythia" not in piece


def test_one_checkpoint_of_each_run_makes_no_curve() -> None:
    found = [*checkpoints(1), replace(checkpoints(5)[0], model="runs/y/final")]
    assert 'id="training"' not in render_evaluations(found)


def test_of_many_checkpoints_the_last_is_drawn_and_all_are_listed() -> None:
    found = [
        replace(one(), model=f"runs/x/step-{n}", tokens=n * 10**9) for n in (3, 9, 1, 5, 7, 2, 4, 8)
    ]
    page = render_evaluations(found)
    assert len(styles(section(page, "scores"), "fill")) == 2
    assert "runs/x/step-9, hellaswag" in page
    assert "Of 8 results the last of each run is drawn" in page
    assert section(page, "all-scores").count("<summary>runs/x/step-") == 8


# -- honesty ---------------------------------------------------------------------------------------


def test_contamination_is_shown_with_and_without() -> None:
    """Without the 40 right answers that were found, 60 right of 160 are left."""
    whole = answers(0.5)
    right = [one for one, value in zip(whole.ids, whole.values, strict=True) if value][:40]
    found = replace(whole, contaminated=frozenset(right))
    untouched = answers(0.5, task="piqa", contaminated=frozenset())
    piece = section(render_evaluations([evaluation(found, untouched)]), "contamination")
    row = Page(piece).row("hellaswag")
    assert row[2:4] == ["200", "40"]
    assert row[4].startswith("50.00 [")
    assert row[5].startswith("37.50 [")
    assert "Of 1 of 2 tasks no item was found." in piece
    assert 'id="contamination"' not in render_evaluations([one()])


def test_how_it_was_asked_and_what_is_missing() -> None:
    asked = replace(answers(0.5, 4), samples=tuple(map(sample, range(4))))
    page = render_evaluations([evaluation(asked)])
    piece = section(page, "asked")
    assert "ctx\n→ yes\n→ no" in piece
    assert "&quot;doc_to_text&quot;: &quot;{{query}}&quot;" in piece
    assert "<dt>limit</dt><dd>4</dd>" in piece
    assert "<dt>truncated contexts</dt><dd>3</dd>" in piece
    assert "log-likelihood for each character" in piece
    assert "<b>drop</b>: no data offline" in section(page, "missing")


def test_nothing_of_a_result_gets_into_the_markup() -> None:
    """Names, notes and prompts of whoever made the tasks: text, and only text."""
    records = tuple({"arguments": {"gen_args_0": {"arg_0": EVIL, "arg_1": EVIL}}} for _ in range(4))
    bad: TaskScore = score(
        EVIL, EVIL, samples=records, config={"doc_to_text": EVIL}, version=EVIL, group=EVIL
    )
    found = evaluation(
        bad,
        model=EVIL,
        missing=(Missing(EVIL, EVIL),),
        settings={EVIL: EVIL},
        versions={EVIL: EVIL},
        counts={EVIL: 1},
        fingerprint=EVIL,
        date=EVIL,
    )
    others = [replace(found, model=f"{EVIL}/step-{n}", tokens=n + 1) for n in range(3)]
    page = render_evaluations([found, *others], command=["llamita", EVIL])
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert page.count("</style>") == 1


def test_the_page_needs_nothing_else() -> None:
    page = render_evaluations(
        [*checkpoints(1, 10), one()], published=[TINYLLAMA, published_table("minicpm")]
    )
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|//[a-z]|url\(|@import|src=|href=", page)
    assert page == render_evaluations(
        [*checkpoints(1, 10), one()], published=[TINYLLAMA, published_table("minicpm")]
    )


def test_writing_the_page(tmp_path: Path) -> None:
    path = write_evaluation_page(
        [one()], tmp_path / "new" / "eval.html", command=["llamita", "x y"]
    )
    assert "llamita &#x27;x y&#x27;" in path.read_text(encoding="utf-8")
    with pytest.raises(UserError, match="is a directory: name a file"):
        write_evaluation_page([one()], tmp_path)
    with pytest.raises(UserError, match="no task was scored"):
        write_evaluation_page([replace(one(), scores=())], tmp_path / "none.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not write"):
        write_evaluation_page([one()], tmp_path / "file" / "eval.html")


def test_neither_torch_nor_lm_eval_is_needed() -> None:
    code = (
        "import sys, llamita.reporting.evaluation_report\n"
        "print([name for name in ('torch', 'lm_eval', 'datasets', 'matplotlib') "
        "if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
