"""benchmarks/tuning_scores.py: its intervals against SciPy's, and what it holds out."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import tuning_scores

    module: ModuleType = tuning_scores
    return module


def test_intervals_are_those_of_the_t_tests(scores: ModuleType) -> None:
    first, second = np.array([1.0, 1.1, 1.3]), np.array([2.0, 2.05, 2.2, 1.4])
    found, wanted = scores.t_interval(first), stats.ttest_1samp(first, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    found = scores.welch_interval(first, second)
    wanted = stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_the_same_rows_are_held_out_of_any_order_and_any_part(
    scores: ModuleType, tmp_path: Path
) -> None:
    rows = [{"instruction": f"question {n}", "input": "", "output": f"{n}"} for n in range(40)]
    held_out = []
    for number, most in enumerate((40, 5)):
        source, folder = tmp_path / f"{number}.json", tmp_path / str(number)
        folder.mkdir()
        source.write_text(json.dumps(random.Random(number).sample(rows, len(rows))))
        train, kept = scores.split(source, folder, 10, most)
        learnt, scored = json.loads(train.read_text()), json.loads(kept.read_text())
        assert len(learnt) == min(30, most)
        assert not [row for row in scored if row in learnt]
        held_out.append(scored)
    assert held_out[0] == held_out[1]
    assert len(held_out[0]) == 10
