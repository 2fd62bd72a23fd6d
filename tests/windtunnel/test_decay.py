"""Ways to decay, with planted costs and noise that a trunk's branches share."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_rel

from llamita.errors import UserError
from llamita.windtunnel.decay import study_decays
from llamita.windtunnel.findings import DecayStudy, RunResult
from tests.windtunnel.planted import at_least, at_most, run

TOKENS = 180_000_000
SHARES = (0.2, 0.1, 0.05, 0.025)
COSTS = {0.2: 0.0, 0.1: 0.0, 0.05: 0.004, 0.025: 0.02}
"""As MiniCPM found: 10% suffices, 2.5% does not."""


def branch(share: float, loss: float, seed: int = 0, **changed: object) -> RunResult:
    values = {"decay.share": share, "decay.form": "1-sqrt", "decay.mixture": "same"}
    values |= changed.pop("values", {})  # type: ignore[arg-type]
    settings = {"tokens": TOKENS, "seed": seed, "values": values, "loss": loss, **changed}
    return run(f"{values}-{seed}-{settings.get('size')}", **settings)


def trunk(loss: float, seed: int = 0, **changed: object) -> RunResult:
    """It ends where the shortest decay begins."""
    end = round(0.975 * TOKENS)
    settings = {"tokens": end, "seed": seed, "loss": loss, "curve": ((end, loss),), **changed}
    return run(f"trunk-{seed}-{settings.get('size')}", **settings)


def planted(
    generator: np.random.Generator,
    *,
    seeds: int = 3,
    noise: float = 0.001,
    costs: Mapping[float, float] = COSTS,
    uneven: float = 1.0,
) -> list[RunResult]:
    """Trunks differ by 20 times what their branches differ by. uneven: the shortest decay's noise,
    over the others'."""
    runs = []
    for seed in range(seeds):
        start = 1.3 + 0.02 * float(generator.standard_normal())
        runs.append(trunk(start, seed))
        for share, cost in costs.items():
            spread = noise * (uneven if share == min(costs) else 1)
            loss = start - 0.1 + cost + spread * float(generator.standard_normal())
            runs.append(branch(share, loss, seed))
    return runs


def by_share(study: DecayStudy) -> dict[float, tuple[float, tuple[float, float]]]:
    found = {}
    for cell in study.cells[1:]:
        assert cell.difference is not None
        assert cell.difference_interval is not None
        found[cell.share] = (cell.difference, cell.difference_interval)
    return found


# -- what is computed -----------------------------------------------------------------------------


def test_differences_are_paired_by_seed() -> None:
    study = study_decays(planted(np.random.default_rng(0), noise=0.0))
    assert [cell.share for cell in study.cells] == list(SHARES)
    first = study.cells[0]
    assert (first.difference, first.difference_interval) == (None, None)
    for share, (difference, interval) in by_share(study).items():
        assert difference == pytest.approx(COSTS[share])
        assert interval == pytest.approx((COSTS[share], COSTS[share]), abs=1e-9)
    assert first.mean == pytest.approx(sum(first.losses.values()) / 3)
    assert set(first.losses) == {0, 1, 2}


def test_of_two_ways_the_interval_is_that_of_a_paired_t_test() -> None:
    runs = planted(np.random.default_rng(1), seeds=5, costs={0.2: 0.0, 0.1: 0.003})
    (_, interval) = by_share(study_decays(runs))[0.1]
    losses = {
        share: [each.loss for each in runs if each.values.get("decay.share") == share]
        for share in (0.1, 0.2)
    }
    wanted = ttest_rel(losses[0.1], losses[0.2]).confidence_interval(0.95)
    assert interval == pytest.approx((wanted.low, wanted.high))


def test_of_more_ways_the_noise_is_pooled() -> None:
    """The residual variance of a two-way layout, (4 − 1)(3 − 1) degrees of freedom."""
    runs = planted(np.random.default_rng(2))
    table = np.array(
        [[r.loss for r in runs if r.values.get("decay.share") == share] for share in SHARES]
    )
    residuals = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    half = student.ppf(0.975, 6) * math.sqrt((residuals**2).sum() / 6 * 2 / 3)
    for difference, (low, high) in by_share(study_decays(runs)).values():
        assert high - difference == pytest.approx(half)
        assert difference - low == pytest.approx(half)


def test_seeds_that_one_way_lacks_do_not_count_for_it() -> None:
    runs = planted(np.random.default_rng(3))
    kept = [r for r in runs if r.values.get("decay.share") != 0.1 or r.seed != 1]
    both = [r.loss for r in kept if r.values.get("decay.share") in (0.2, 0.1) and r.seed != 1]
    (difference, _) = by_share(study_decays(kept))[0.1]
    assert difference == pytest.approx((both[1] - both[0] + both[3] - both[2]) / 2)


@pytest.mark.parametrize(
    ("curve", "wanted"),
    [
        (((1000, 3.0), (round(0.975 * TOKENS), 1.31)), 1.31),  # it ends there
        (((round(0.95 * TOKENS), 1.4), (TOKENS, 1.2)), None),  # it goes on
        ((), 1.3),  # its last validation is all there is
    ],
)
def test_the_undecayed_loss_is_where_the_last_decay_begins(
    curve: tuple[tuple[int, float], ...], wanted: float | None
) -> None:
    runs = [trunk(1.3, curve=curve), branch(0.1, 1.2), branch(0.025, 1.25)]
    if wanted is None:
        wanted = 1.4 - 0.2 * math.log(0.975 / 0.95) / math.log(1 / 0.95)
    assert study_decays(runs).undecayed == {"9m": pytest.approx(wanted, abs=1e-6)}


def test_sizes_forms_and_mixtures_are_cells_of_their_own() -> None:
    runs = [
        branch(
            0.1, 1.2 + 0.01 * index, size=size, values={"decay.form": form, "decay.mixture": mix}
        )
        for size in ("9m", "30m")
        for index, (form, mix) in enumerate(
            [("1-sqrt", "same"), ("linear", "same"), ("linear", "clean")]
        )
    ]
    study = study_decays(runs)
    assert [(c.size, c.form, c.mixture) for c in study.cells[:3]] == [
        ("9m", "1-sqrt", "same"), ("9m", "linear", "same"), ("9m", "linear", "clean"),
    ]  # fmt: skip
    assert [c.difference for c in study.cells] == [
        None, pytest.approx(0.01), pytest.approx(0.02),
    ] * 2  # fmt: skip
    assert "9m: lowest is 10% 1-sqrt on same" in study.verdict
    assert ". 30m: lowest is 10% 1-sqrt on same" in study.verdict


# -- coverage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_hold_the_planted_differences(seeds: int) -> None:
    generator = np.random.default_rng(seeds)
    held = dict.fromkeys(SHARES[1:], 0)
    for _ in range(400):
        found = by_share(study_decays(planted(generator, seeds=seeds)))
        for share, (_, (low, high)) in found.items():
            held[share] += low <= COSTS[share] <= high
    for count in held.values():
        assert at_least(0.95, 400) <= count / 400 <= at_most(0.95, 400)


def test_where_one_way_is_twice_as_noisy_its_intervals_hold_less_often() -> None:
    """One noise is assumed for all: the noisier way's intervals come out too narrow."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        found = by_share(study_decays(planted(generator, uneven=2.0)))
        low, high = found[0.025][1]
        held += low <= COSTS[0.025] <= high
    assert held / 400 >= at_least(0.88, 400)


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("ways", [2, 6])
def test_where_all_ways_are_equal_a_difference_is_seldom_claimed(seeds: int, ways: int) -> None:
    generator = np.random.default_rng(10 * seeds + ways)
    costs = {0.3 - 0.04 * index: 0.0 for index in range(ways)}
    verdicts = [
        study_decays(planted(generator, seeds=seeds, costs=costs)).verdict for _ in range(400)
    ]
    assert sum("higher" in each for each in verdicts) / 400 <= at_most(0.05, 400)
    assert sum("best is" in each for each in verdicts) / 400 <= at_most(0.05, 400)


# -- what is said ---------------------------------------------------------------------------------


def test_a_clear_loser_is_said_and_no_winner_among_equals() -> None:
    study = study_decays(planted(np.random.default_rng(5), noise=0.0005))
    assert "not shown to be better than" in study.verdict
    assert "best is" not in study.verdict
    assert "2.5%" in study.verdict.split("not shown to be better than")[1].split(";", 1)[1]
    assert "; the shortest decay, 2.5%, ends +0.0" in study.verdict
    assert "below the trunk" in study.verdict


def test_a_winner_is_said_where_all_others_are_worse() -> None:
    costs = {0.2: 0.03, 0.1: 0.0, 0.05: 0.02}
    study = study_decays(planted(np.random.default_rng(5), noise=0.0005, costs=costs))
    assert study.verdict.startswith("9m: best is 10%, ")
    assert "20%, 5% end 0.0" in study.verdict


def test_one_seed_shows_nothing() -> None:
    study = study_decays(planted(np.random.default_rng(0), seeds=1))
    assert all(cell.difference_interval is None for cell in study.cells)
    assert all(cell.difference is not None for cell in study.cells[1:])
    assert "of one seed: whether it is better than others cannot be said" in study.verdict
    assert "at least 1 more seed is missing" in study.notes[0]
    assert "best is" not in study.verdict


def test_one_way_alone_is_compared_with_nothing() -> None:
    study = study_decays([branch(0.1, 1.2)])
    assert "no other way to decay has ended" in study.verdict
    assert study.undecayed == {}


def test_runs_that_did_not_end_are_named() -> None:
    lost = branch(0.05, 1.0, status="failed")
    study = study_decays([*planted(np.random.default_rng(0), costs={0.2: 0, 0.1: 0}), lost])
    assert [cell.share for cell in study.cells] == [0.2, 0.1]
    assert study.notes == (f"1 run has no loss and cannot be compared: {lost.key} (failed)",)


def test_without_a_decay_there_is_no_study() -> None:
    with pytest.raises(UserError, match="of 1 runs that decay none has ended; at least 2 ways"):
        study_decays([trunk(1.3), branch(0.1, 1.2, status="killed")])
