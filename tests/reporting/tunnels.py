"""Findings of studies for tests of what is drawn and written of them: a made-up world whose laws
are known."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import cache

import numpy as np

from llamita.planning.fitting import FittedLaw, HeldOut
from llamita.planning.laws import Law
from llamita.planning.observations import Observation, Observations
from llamita.windtunnel.findings import (
    BatchLaw,
    Coordinate,
    CoordinateCheck,
    DecayCell,
    DecayStudy,
    EqualLoss,
    Findings,
    LawStudy,
    OptimalRatio,
    Optimum,
    RunResult,
    SizeOptimum,
    Transfer,
    Trial,
)

RATE = "optimizer.learning_rate"
RATES = (0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08)
SIZES = {"w128": (128, 852_224), "w256": (256, 3_408_384), "w512": (512, 13_632_512)}
A, B = 36_000.0, 4.2
"""Of the batch law: bs = A / L^B."""
E, ALPHA, BETA = 0.72, 0.31, 0.24


def run(key: str, experiment: str = "sweep", **changed: object) -> RunResult:
    found = RunResult(
        key=key,
        experiment=experiment,
        status="done",
        size="w128",
        hidden_size=128,
        layers=4,
        parameters=852_224,
        total_parameters=1_376_512,
        parametrization="minicpm",
        seed=0,
        tokens=8_519_680,
        batch_tokens=16_384,
        values={RATE: 0.01},
        loss=1.8123,
        seconds=305.0,
        flops=6.9e13,
    )
    return replace(found, **changed)  # type: ignore[arg-type]


# -- transfer --------------------------------------------------------------------------------------


def lowest(trials: list[Trial], fitted_to: int = 5, noise: float = 0.003) -> Optimum:
    """By a parabola through the values around the best, or the edge."""
    kept = [each for each in trials if each.loss is not None]
    diverged = tuple(sorted({each.x for each in trials if each.loss is None}))
    xs = sorted({each.x for each in kept} - set(diverged))
    means = [float(np.mean([each.loss for each in kept if each.x == x])) for x in xs]
    best = means.index(min(means))
    if best in (0, len(xs) - 1):
        edge, window = ("high" if best else "low"), (xs[0], xs[-1])
        return Optimum(
            xs[best], means[best], None, edge, None, window, tuple(trials), diverged,  # type: ignore[arg-type]
            notes=(f"the lowest loss is at {xs[best]:g}: widen the grid",),
        )  # fmt: skip
    low, high = max(0, best - fitted_to // 2), min(len(xs) - 1, best + fitted_to // 2)
    c2, c1, c0 = np.polyfit(np.log(xs[low : high + 1]), means[low : high + 1], 2)
    vertex = -c1 / 2 / c2
    return Optimum(
        value=math.exp(vertex),
        loss=float(c0 + c1 * vertex + c2 * vertex**2),
        interval=(math.exp(vertex - 0.2), math.exp(vertex + 0.25)),
        edge=None,
        fitted=(float(c0), float(c1), float(c2)),
        window=(xs[low], xs[high]),
        trials=tuple(trials),
        diverged=diverged,
        noise=noise,
    )


def trials(width: int, best: float, most: float, seed: int) -> list[Trial]:
    dice = random.Random(seed * 1000 + width)
    found = []
    for rate in RATES:
        for number in (0, 1):
            off = math.log(rate / best)
            rise = 0.03 * off**2 + 0.012 * max(0.0, off) ** 3
            loss = 2.2 - 0.11 * math.log(width / 64) + rise + dice.gauss(0, 0.002)
            found.append(Trial(rate, None if rate > most else loss, number))
    return found


def transfer(parametrization: str, power: float, at_128: float, axis: str = RATE) -> Transfer:
    optima = []
    for size, (width, parameters) in SIZES.items():
        best = at_128 * (width / 128) ** power
        most = best * (9 if power else 6)
        optima.append(SizeOptimum(size, width, parameters, lowest(trials(width, best, most, 7))))
    inside = [each for each in optima if each.optimum.edge is None]
    moved = power != 0
    return Transfer(
        parametrization,
        axis,
        tuple(optima),
        exponent=power + 0.02,
        exponent_interval=(power - 0.11, power + 0.15),
        cost=0.0641 if moved else 0.0012,
        transferred=None if moved else inside[-1].optimum.value,
        transferred_interval=None if moved else inside[-1].optimum.interval,
        verdict="the optimum moves with width" if moved else "the optimum stays where it is",
    )


# -- coordinates -----------------------------------------------------------------------------------


def check(parametrization: str, grows: float) -> CoordinateCheck:
    dice = random.Random(5)
    widths = (128, 256, 512, 1024)
    found = []
    for what, size, power in (
        ("embedding", 0.02, 0.0),
        ("attention", 0.09, 0.4 * grows),
        ("feed-forward", 0.11, 0.7 * grows),
        ("residual", 0.3, 0.7 * grows),
        ("logits", 0.6, grows),
    ):
        for step in (1, 4, 10):
            for kind in ("activation", "update"):
                p = power if kind == "update" else 0.0
                rms = {
                    width: tuple(
                        size * math.sqrt(step) * (width / 128) ** p * math.exp(dice.gauss(0, 0.06))
                        for _ in range(2)
                    )
                    for width in widths
                }
                found.append(Coordinate(what, kind, step, rms, p + 0.01, (p - 0.07, p + 0.09)))
    growing = ("logits (update) as width^0.91 after 10 steps",) if grows else ()
    verdict = "logits grow with width" if grows else "nothing grows with width"
    return CoordinateCheck(
        parametrization, widths, tuple(found), not grows, growing, verdict, tolerance=0.2
    )


# -- batch -----------------------------------------------------------------------------------------


def batch_law() -> BatchLaw:
    """Tokens to a loss are least at A / L^B, by construction; the highest loss of w128 is met best
    by the smallest batch."""
    dice = random.Random(3)
    batches = (1024, 2048, 4096, 8192, 16384, 32768)
    minima = []
    curves: dict[str, dict[int, tuple[tuple[int, float], ...]]] = {}
    for number, size in enumerate(SIZES):
        curves[size] = {}
        for batch in batches:
            points = [(2**k * 100_000, 3.0 / (1 + 0.1 * k + 0.05 * number)) for k in range(8)]
            curves[size][batch] = tuple(points)
        for loss in (2.3, 2.05, 1.85, 1.7):
            best = A / loss**B
            least = 4e5 * (2.5 / loss) ** (7 - number)
            counts = [
                least * math.exp(0.06 * math.log(each / best) ** 2 + dice.gauss(0, 0.01))
                for each in batches
            ]
            trials = [
                Trial(float(each), math.log(count))
                for each, count in zip(batches, counts, strict=True)
            ]
            found = lowest(trials, 7)
            minima.append(EqualLoss(size, loss, batches, tuple(counts), found))
    samples = tuple((A * math.exp(dice.gauss(0, 0.1)), B + dice.gauss(0, 0.3)) for _ in range(60))
    return BatchLaw(
        A, B, (29_000.0, 44_000.0), (3.6, 4.9), samples, tuple(minima), curves,
        skipped=("w512 at 1.5: two batches reach it",),
    )  # fmt: skip


# -- decay -----------------------------------------------------------------------------------------


def decay_study() -> DecayStudy:
    dice = random.Random(11)
    cells: list[DecayCell] = []
    for mixture, gain in (("same", 0.0), ("rich", 0.05)):
        for form, better in (("1-sqrt", 0.004), ("linear", 0.002), ("exponential", 0.0)):
            for share in (0.2, 0.1, 0.05, 0.025):
                losses = {
                    seed: 1.9 - gain - better - 0.02 * math.log(share / 0.0125)
                    + 0.006 * math.log(share / 0.0125) ** 2 + dice.gauss(0, 0.002)
                    for seed in (0, 1, 2)
                }  # fmt: skip
                mean = sum(losses.values()) / 3
                first = cells[0].mean if cells else mean
                cells.append(
                    DecayCell(
                        share, form, mixture, "w256", losses, mean,
                        difference=mean - first if cells else None,
                        difference_interval=(mean - first - 0.004, mean - first + 0.004)
                        if cells else None,
                    )
                )  # fmt: skip
    return DecayStudy(
        tuple(cells), {"w256": 2.0312}, "10% suffices, 2.5% does not", ("seeds share their trunk",)
    )


# -- the law ---------------------------------------------------------------------------------------


def law_study() -> LawStudy:
    dice = random.Random(2)
    truth = Law(
        "tunnel", E, 0.52, ALPHA, 0.85, BETA, "bits per byte", "non-embedding", "fitted by llamita",
        parameters_unit=1e6, tokens_unit=1e6, fitted_parameters=(852_224, 13_632_512),
        fitted_tokens=(8_522_240, 817_950_720), fitted_ratio=(10, 60),
        intervals={"E": (0.64, 0.79), "A": (0.48, 0.57), "alpha": (0.25, 0.38),
                   "B": (0.8, 0.91), "beta": (0.18, 0.31)},
    )  # fmt: skip
    rows, residuals, runs = [], [], []
    for size, (width, parameters) in SIZES.items():
        for ratio in (10, 20, 30, 40, 50, 60):
            off = dice.gauss(0, 0.003)
            loss = truth.at(parameters, ratio * parameters) * math.exp(off)
            rows.append(Observation(parameters, ratio * parameters, loss, size, f"{size}-{ratio}"))
            residuals.append(off)
            runs.append(
                run(f"{size}-{ratio}", "law", size=size, hidden_size=width, parameters=parameters,
                    tokens=ratio * parameters, loss=loss, flops=6.2 * ratio * parameters**2,
                    seconds=6.2 * ratio * parameters**2 / 2e11, values={})
            )  # fmt: skip
    fitted = FittedLaw(
        law=truth,
        observations=Observations(tuple(rows), "bits per byte", "non-embedding"),
        residuals=tuple(residuals),
        objective=1e-4,
        delta=1e-3,
        seed=0,
        bootstrap=400,
        converged=True,
        agreeing_starts=11,
        num_starts=12,
        resampled="group",
        num_resampled=3,
        held_out=HeldOut(
            "all 6 runs of 13.6M parameters", 6, 1.009 * rows[-1].loss, rows[-1].loss, 0.011, 16.0
        ),
        undetermined=(),
        warnings=("there are 3 groups",),
    )
    ratios = []
    for flops in (1e14, 1e15, 1e16, 1e18, 1e21):
        n, d = truth.compute_optimal(flops)
        wide = 1.2 + 0.3 * abs(math.log10(flops / 1e15))
        ratios.append(OptimalRatio(flops, n, d, d / n, (d / n / wide, d / n * wide), flops > 1e17))
    return LawStudy(fitted, tuple(ratios), tuple(runs), 1_073_420_000, 107_342_000, 3_757_000_000)


# -- whole studies ---------------------------------------------------------------------------------


@cache
def whole() -> Findings:
    """Of every kind of experiment something, some runs lost, and one experiment refused."""
    transfers = (
        transfer("minicpm", 0.0, 0.0098),
        transfer("standard", -1.0, 0.0052),
    )
    runs = [
        run(
            f"{each.parametrization[:1]}{one.size}-{trial.x:g}-{trial.seed}",
            size=one.size, hidden_size=one.hidden_size, parameters=one.parameters,
            parametrization=each.parametrization, seed=trial.seed, values={RATE: trial.x},
            tokens=10 * one.parameters, loss=trial.loss,
            status="done" if trial.loss is not None else "diverged",
            reason="" if trial.loss is not None else "the loss was 9.41 at step 412",
            flops=62.0 * one.parameters**2, seconds=62.0 * one.parameters**2 / 2e11,
        )
        for each in transfers for one in each.optima for trial in one.optimum.trials
    ]  # fmt: skip
    law = law_study()
    killed = run("b-7", "batch", status="killed", loss=None, reason="its process ended by signal 9")
    return Findings(
        "lr-transfer",
        (*runs, *law.runs, killed),
        coordinates=(check("minicpm", 0.0), check("standard", 0.9)),
        transfers=transfers,
        batch_law=batch_law(),
        decays=(decay_study(),),
        law=law,
        refusals={"depths": "2 of 12 runs are done: an optimum takes 3 different values"},
        facts={
            "data": "stories (4f0c12aa), 512 MB of text",
            "devices": "2 × cpu, 1 thread(s) each",
            "this call": "3h20m",
        },
    )


def empty() -> Findings:
    return Findings("nothing-yet", ())
