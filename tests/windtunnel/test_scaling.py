"""L(N, D) from trunks and branches drawn from MiniCPM's own constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from llamita.errors import UserError
from llamita.planning.laws import Law, find_law
from llamita.windtunnel.findings import LawStudy, RunResult
from llamita.windtunnel.scaling import study_law
from tests.windtunnel.planted import at_least, run

C_N, ALPHA, C_D, BETA, L_0 = 0.0715, 0.29, 0.300, 0.23, 0.31
"""The average fit (arXiv 2404.06395, section 4.5), N and D in billions."""
SIZES = tuple(int(n) for n in np.geomspace(9e6, 5e8, 6))
RATIOS = (10, 20, 30, 40, 50, 60)
Study = tuple[list[RunResult], dict[str, str]]


def loss(parameters: float, tokens: float) -> float:
    return C_N * (parameters / 1e9) ** -ALPHA + C_D * (tokens / 1e9) ** -BETA + L_0


def planted(
    generator: np.random.Generator,
    sizes: Sequence[int] = SIZES,
    ratios: Sequence[int] = RATIOS,
    *,
    seeds: int = 1,
    shared: float = 0.0,
    own: float = 0.0,
) -> Study:
    """Trunks of 54 N tokens, and branches of 10 to 60 N that decay over a tenth. Losses times e^ a
    trunk's noise and a branch's."""
    runs: list[RunResult] = []
    trunks: dict[str, str] = {}
    for parameters in sizes:
        for seed in range(seeds):
            of_trunk = shared * generator.standard_normal()
            made = {"size": f"{parameters}", "parameters": parameters, "seed": seed}
            trunk = f"{parameters}-{seed}"
            end = max(ratios) * parameters * 9 // 10
            runs.append(run(trunk, tokens=end, loss=2 * loss(parameters, end), **made))
            for ratio in ratios:
                tokens = ratio * parameters
                noise = of_trunk + own * generator.standard_normal()
                key = f"{trunk}-{ratio}"
                trunks[key] = trunk
                value = loss(parameters, tokens) * math.exp(noise)
                start = tokens * 9 // 10
                curve = ((start, 2 * loss(parameters, start)), (tokens, value))
                runs.append(run(key, tokens=tokens, loss=value, curve=curve, **made))
    return runs, trunks


def ratio_by_hand(flops: float) -> float:
    """D/N = (C/6)^-η / K², K = (αC_N/(βC_D))^(1/(α+β)), η = (β − α)/(α + β), C in billions²."""
    both = ALPHA + BETA
    k = (ALPHA * C_N / (BETA * C_D)) ** (1 / both)
    return float((flops / 6 / 1e18) ** ((ALPHA - BETA) / both) / k**2)


# -- recovery -------------------------------------------------------------------------------------


@cache
def exact() -> LawStudy:
    """Without noise."""
    runs, trunks = planted(np.random.default_rng(0))
    return study_law(runs, trunks, name="tunnel", bootstrap=0)


def test_minicpms_law_is_recovered() -> None:
    study = exact()
    law = study.fitted.law
    assert (law.name, law.loss, law.counts) == ("tunnel", "bits per byte", "non-embedding")
    assert (law.alpha, law.beta) == (pytest.approx(ALPHA, rel=1e-3), pytest.approx(BETA, rel=1e-3))
    assert pytest.approx(L_0, rel=1e-3) == law.E
    assert law.at(2e9, 1e11) == pytest.approx(loss(2e9, 1e11), rel=1e-6)
    assert study.fitted.observations.rows[0].group == f"{SIZES[0]}-0"


def test_trunks_are_no_points() -> None:
    """Their losses, twice as high, would bend the law."""
    _, trunks = planted(np.random.default_rng(0))
    assert [each.key for each in exact().runs] == list(trunks)


def test_ratios_are_the_papers() -> None:
    """The paper prints 192 at 1e21; its constants give 183.9."""
    study = exact()
    by_flops = {each.flops: each for each in study.ratios}
    assert by_flops[1e21].ratio == pytest.approx(183.9, rel=1e-3)
    shipped = find_law("minicpm-average")
    assert isinstance(shipped, Law)
    for flops, each in by_flops.items():
        assert each.ratio == pytest.approx(ratio_by_hand(flops), rel=2e-3)
        parameters, tokens = shipped.compute_optimal(flops)
        assert each.ratio == pytest.approx(tokens / parameters, rel=2e-3)
        assert 6 * each.parameters * each.tokens == pytest.approx(flops)
        assert each.ratio_interval is None


def test_budgets_go_by_decades_from_the_runs_to_1e21() -> None:
    """9M parameters on 10 N tokens are 6·10·(9e6)² = 4.9e15, 500M on 60 N are 9e19."""
    study = exact()
    assert [each.flops for each in study.ratios] == [10.0**power for power in range(15, 22)]
    assert [each.extrapolated for each in study.ratios] == [True] + [False] * 4 + [True] * 2


# -- bookkeeping ----------------------------------------------------------------------------------


def test_tokens_of_trunks_and_branches() -> None:
    """Σ ratios = 210: branches add a tenth of that, 21 N; trunks are 54 N; apart it is 210 N."""
    runs, trunks = planted(np.random.default_rng(0), seeds=2, own=0.002)
    study = study_law(runs, trunks, bootstrap=0)
    total = 2 * sum(SIZES)
    assert study.trunk_tokens == pytest.approx(54 * total, rel=1e-6)
    assert study.branch_tokens == pytest.approx(21 * total, rel=1e-6)
    assert study.separate_tokens == 210 * total


def test_runs_of_their_own_are_points_and_count_once() -> None:
    runs, trunks = planted(np.random.default_rng(0), own=0.002)
    alone = run("alone", parameters=10**8, tokens=10**10, loss=loss(1e8, 1e10))
    study = study_law([*runs, alone], trunks, bootstrap=0)
    assert study.runs[-1] == alone
    assert study.fitted.observations.rows[-1].group == ""
    assert study.branch_tokens == pytest.approx(21 * sum(SIZES) + 10**10, rel=1e-6)
    assert study.separate_tokens == 210 * sum(SIZES) + 10**10


def test_a_longest_branch_that_failed_does_not_change_the_share() -> None:
    runs, trunks = planted(np.random.default_rng(0), own=0.002)
    runs = [
        replace(each, status="failed", loss=None) if each.key.endswith("-60") else each
        for each in runs
    ]
    study = study_law(runs, trunks, bootstrap=0)
    assert len(study.runs) == 30
    assert study.trunk_tokens == pytest.approx(54 * sum(SIZES), rel=1e-6)
    assert study.branch_tokens == pytest.approx(15 * sum(SIZES), rel=1e-6)


def test_a_trunk_that_is_not_there_is_taken_to_end_at_nine_tenths() -> None:
    runs, trunks = planted(np.random.default_rng(0), own=0.002)
    study = study_law([each for each in runs if each.key in trunks], trunks, bootstrap=0)
    assert study.trunk_tokens == pytest.approx(54 * sum(SIZES), rel=1e-6)


# -- coverage -------------------------------------------------------------------------------------


def held(study: LawStudy) -> dict[str, bool]:
    law = study.fitted.law
    truths = {"alpha": ALPHA, "beta": BETA, "E": L_0}
    found = {
        key: law.intervals[key][0] <= truth <= law.intervals[key][1]
        for key, truth in truths.items()
    }
    interval = law.interval(2.4e9, 1.1e12)
    assert interval is not None
    found["loss of the 2.4B"] = interval[0] <= loss(2.4e9, 1.1e12) <= interval[1]
    last = study.ratios[-1]
    assert last.flops == 1e21
    assert last.ratio_interval is not None
    low, high = last.ratio_interval
    found["ratio at 1e21"] = low <= ratio_by_hand(1e21) <= high
    return found


def rates(count: int, sizes: Sequence[int], seeds: int = 1) -> dict[str, float]:
    told = []
    for index in range(count):
        generator = np.random.default_rng(index)
        runs, trunks = planted(generator, sizes, seeds=seeds, shared=0.003, own=0.0015)
        told.append(held(study_law(runs, trunks, bootstrap=60, seed=index)))
    return {key: sum(each[key] for each in told) / count for key in told[0]}


def test_branches_of_a_trunk_are_drawn_together() -> None:
    runs, trunks = planted(np.random.default_rng(0), shared=0.003, own=0.0015)
    study = study_law(runs, trunks, bootstrap=40)
    assert (study.fitted.resampled, study.fitted.num_resampled) == ("group", 6)
    assert any("there are 6 groups" in each for each in study.fitted.warnings)
    assert sum(held(study).values()) >= 4


@pytest.mark.slow
@pytest.mark.parametrize(("count", "seeds", "studies"), [(12, 1, 200), (6, 2, 100)])
def test_intervals_hold_the_law_where_branches_share_their_trunks_noise(
    count: int, seeds: int, studies: int
) -> None:
    """Measured, of 200: 94 to 97% with 12 sizes, 92.5 to 96% with 6 of two seeds."""
    sizes = [int(n) for n in np.geomspace(9e6, 5e8, count)]
    found = rates(studies, sizes, seeds)
    assert min(found.values()) >= at_least(0.95 if count == 12 else 0.93, studies), found


@pytest.mark.slow
def test_of_six_trunks_intervals_hold_it_less_often() -> None:
    """FEW_GROUPS says so of every fit of fewer than ten. Measured: beta 90%, the others 96%."""
    found = rates(100, SIZES)
    assert min(found.values()) >= at_least(0.88, 100), found


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "ratios", "message"),
    [
        (SIZES[:1], RATIOS[:2], r"4 more different points \(N, D\) \(there are 2 of at least 6\)"),
        (SIZES[:2], RATIOS, r"needs 1 more model sizes \(there are 2 of at least 3\)"),
        (SIZES[:1], RATIOS[:1], r"5 more .*, and 2 more model sizes \(there is 1 of at least 3\)"),
    ],
)
def test_too_few_points(sizes: Sequence[int], ratios: Sequence[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        study_law(*planted(np.random.default_rng(0), sizes, ratios))


def test_runs_that_did_not_end_are_counted_in_the_refusal() -> None:
    runs, trunks = planted(np.random.default_rng(0), own=0.002)
    failed = [replace(each, status="failed", loss=None) for each in runs]
    with pytest.raises(UserError, match="of 42 runs 0 decayed and came to an end"):
        study_law(failed, trunks)
