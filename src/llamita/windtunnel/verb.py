"""`tunnel run` and `tunnel show`: a study from its spec to its findings."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from llamita.planning.fitting import require_scipy
from llamita.planning.law_files import write_law
from llamita.planning.quantities import duration
from llamita.planning.quantities import tokens as short
from llamita.reporting.plan_canvas import flops_text
from llamita.reporting.plot_style import require_matplotlib
from llamita.reporting.tunnel_board import Board as TunnelBoard
from llamita.training.process import command_line, locked, stop_signals
from llamita.windtunnel.analysis import find
from llamita.windtunnel.costs import Costs, Rate, make_slots, rate_of
from llamita.windtunnel.dry_run import describe_study
from llamita.windtunnel.findings import Findings
from llamita.windtunnel.points import load_base, make_points
from llamita.windtunnel.results import Journal
from llamita.windtunnel.runner import Runner, SlotPlan, Source, Watcher
from llamita.windtunnel.settling import Settler
from llamita.windtunnel.sharing import SharedRuns, pieces
from llamita.windtunnel.spec import SHIPPED, load_spec, spec_file
from llamita.windtunnel.study import STUDY, Study, begin_study, open_study, remember, storage_of
from llamita.windtunnel.summary import summarize

LAW, PAGE, FIGURES = "law.yaml", "report.html", "figures"


class StudyInterrupted(Exception):
    """Stopped by a signal, with every run saved; the message says how to go on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class Board(Watcher, Protocol):
    """`reporting.tunnel_board.Board`."""

    def planned(
        self, total_runs: int, total_flops: float, seconds_expected: float | None
    ) -> None: ...


def tunnel_run(
    spec: str | Path,
    *,
    out: str | Path | None = None,
    dry_run: bool = False,
    device: str = "auto",
    runs_at_once: int | None = None,
    keep_models: bool = False,
    board: Board | None = None,
    say: Callable[[str], None] = print,
) -> Findings | None:
    """Make a study's runs, as many at once as there is room for, and say what they show. The same
    call goes on with a study that was interrupted.

    Args:
        spec: a spec's file, or a shipped one's name.
        out: the study's directory; default runs/NAME.
        dry_run: only say every run with what it will take.
        device: where runs are made that name no device themselves.
        runs_at_once: in place of the spec's.
        keep_models: keep the weights of ended runs; else only of those that others branch from.
        board: shows how it goes; default: a line for each run that ends.
        say: receives lines meant for people.

    Raises:
        UserError: anything the user can put right.
        StudyInterrupted: SIGINT or SIGTERM arrived; every run saved itself.
    """
    file = spec_file(spec)
    loaded = load_spec(file)
    folder = Path() if file.parent == SHIPPED else file.parent
    base = load_base(loaded, folder)
    points = make_points(loaded, base)
    directory = Path(out) if out is not None else Path("runs") / loaded.name
    costs, journal = Costs(points), Journal(directory)
    memory = max((costs.of(point).memory for point in points.kinds), default=0)
    slots = make_slots(memory, runs_at_once or loaded.runs_at_once, device)
    rate = rate_of(journal, slots)
    if dry_run:
        for line in describe_study(points, journal, costs, slots, rate):
            say(line)
        return None
    _require_what_concluding_needs()
    study = Study(directory, points, journal)
    began = time.time()
    with locked(directory):
        begin_study(study, file, base)
        board = board or TunnelBoard(loaded.name, plain=True)
        shared = _shared(study, costs)
        _make(study, costs, slots, rate, keep_models, board, shared)
        if shared is not None:
            storage_of(study).take_results()
            if shared.elsewhere:
                say(
                    f"{shared.elsewhere} runs are with other machines still; take in what they "
                    f"find with: llamita tunnel show {directory}"
                )
    return conclude(study, _facts(study, slots, time.time() - began), say=say)


def tunnel_show(study: str | Path, *, say: Callable[[str], None] = print) -> Findings:
    """What a study's runs show so far; its page, figures and law are written anew.

    Raises:
        UserError: there is no study.
    """
    _require_what_concluding_needs()
    opened = open_study(Path(study))
    recorded = json.loads((opened.directory / STUDY).read_text("utf-8"))
    if opened.spec.storage is not None:
        storage_of(opened).take_results()
    return conclude(opened, recorded.get("facts", {}), say=say)


def conclude(study: Study, facts: Mapping[str, str], *, say: Callable[[str], None]) -> Findings:
    """Findings, said and written: report.html, figures/, law.yaml."""
    from llamita.reporting.tunnel_page import write_tunnel_figures, write_tunnel_page

    remember(study, facts)
    found = find(study.points, study.journal, facts)
    for line in summarize(found):
        say(line)
    recorded = json.loads((study.directory / STUDY).read_text("utf-8"))
    command = ["llamita", "tunnel", "run", recorded["spec"], "--out", str(study.directory)]
    page = write_tunnel_page(found, study.directory / PAGE, command=command)
    write_tunnel_figures(found, study.directory / FIGURES)
    if found.law is not None:
        write_law(found.law.fitted.law, study.directory / LAW)
        say(f"law: {study.directory / LAW} (llamita plan --law {study.directory / LAW} …)")
    say(f"report: {page}")
    return found


def _require_what_concluding_needs() -> None:
    """Before hours of training, and not after them."""
    require_scipy()
    require_matplotlib("a study's figures are")


def _make(
    study: Study,
    costs: Costs,
    slots: Sequence[SlotPlan],
    rate: Rate,
    keep_models: bool,
    board: Board,
    shared: SharedRuns | None,
) -> None:
    missing = [each for each in study.points.points if not study.journal.is_final(each.key)]
    seconds = [rate.seconds(each, costs.of(each)) for each in missing]
    known = [each for each in seconds if each is not None]
    expected = sum(known) / len(slots) if len(known) == len(seconds) else None
    with stop_signals([_unsaid]) as stop:
        sources = _sources(study)
        searched = sum(cell.trials for cell in study.points.searched)
        board.planned(
            len(missing) + searched, sum(costs.of(each).flops for each in missing), expected
        )
        runner = Runner(
            study.directory,
            study.points.points,
            study.journal,
            slots,
            board,
            costs.of,
            Settler(study.directory / STUDY, slots, costs).overrides,
            sources,
            shared,
            keep_models,
        )
        runner.run(stop)
        if stop:
            finished = sum(map(study.journal.is_final, study.journal.records))
            raise StudyInterrupted(
                f"stopped; {finished} runs are finished and those that were going "
                f"on are saved. Go on with: {command_line()}",
                stop[0],
            )


def _unsaid() -> None:
    """The runner says that it stops: a board cannot be written on inside a signal's handler."""


def _sources(study: Study) -> list[Source]:
    if not study.points.searched:
        return []
    from llamita.windtunnel.search import Search

    storage = storage_of(study)
    return [Search(cell, study.points.base, storage) for cell in study.points.searched]


def _shared(study: Study, costs: Costs) -> SharedRuns | None:
    """Where a spec names a storage, with what others have found already taken in."""
    if study.spec.storage is None:
        return None
    storage = storage_of(study)
    storage.take_results()
    work = pieces(study.points.points, lambda point: costs.of(point).flops)
    return SharedRuns(storage, work, study.journal)


def _facts(study: Study, slots: Sequence[SlotPlan], seconds: float) -> dict[str, str]:
    """What to know of the study besides its findings."""
    import torch

    from llamita.data.shards import open_dataset

    runs = list(study.journal.runs.values())
    spent, flops = sum(run.seconds for run in runs), sum(run.flops for run in runs)
    data = []
    for name, source in study.points.kinds[0].recipe.datasets.items():
        counted = open_dataset(Path(source.path)).manifest.splits["train"].tokens
        data.append(f"{name}, {short(counted)} tokens")
    return {
        "data": ", ".join(data),
        "devices": f"{len(slots)} × {slots[0].device}, {slots[0].threads} thread(s) each",
        "torch": torch.__version__,
        "this call": duration(seconds),
        "spent in runs": f"{duration(spent)} of one device, {flops_text(flops)} FLOPs",
    }
