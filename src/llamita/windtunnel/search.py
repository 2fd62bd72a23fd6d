"""A sweep that Optuna steers: which values to try next, and which runs to stop early.

Needs the extra `tunnel`. Trials lie in Optuna's storage, which several machines may share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llamita.errors import UserError
from llamita.windtunnel.findings import RunResult
from llamita.windtunnel.points import Cell, Point, searched_point
from llamita.windtunnel.spec import Axis, Bayesian, Spread
from llamita.windtunnel.storage import Storage, require_optuna

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

_KEY = "llamita_key"
_STARTUP = 8
"""Trials drawn at random before the estimator has something to estimate from."""
_WARMUP_VALIDATIONS = 2
"""Of ten, before which no run is stopped."""


class Search:
    """Trials of one cell.

    Raises:
        UserError: optuna is not installed; its storage is locked, or gone.
    """

    def __init__(self, cell: Cell, base: Mapping[str, Any], storage: Storage) -> None:
        require_optuna("search: tpe")
        import optuna

        assert isinstance(cell.sweep.search, Bayesian)
        self._settings = cell.sweep.search
        self._cell, self._base, self._journal = cell, base, storage.journal
        self._distributions = {k: _distribution(k, v) for k, v in cell.sweep.axes.items()}
        self._live: dict[str, list[Trial]] = {}
        """Key of a run that goes on → its trials, several where values were drawn again."""
        self._judged: dict[str, int] = {}
        self._lost = 0
        """Runs that failed in this process: the next call tries as many again, and not this one."""
        title = f"{cell.experiment}/{cell.size.name}/{cell.parametrization}/{cell.seed}"
        pruner = optuna.pruners.MedianPruner(n_startup_trials=_STARTUP // 2, n_warmup_steps=0)
        self._trials = storage.trials(title, pruner)

    def next(self) -> Point | None:
        while True:
            with self._trials.explained():
                trial = self._trials.left_behind() or self._fresh()
                if trial is None:
                    return None
                point = searched_point(self._base, self._cell, trial.params)
                trial.set_user_attr(_KEY, point.key)
            if point.key in self._live:
                self._live[point.key].append(trial)
                continue
            self._live[point.key] = [trial]
            self._judged[point.key] = 0
            known = self._journal.runs.get(point.key)
            if known is None or not self._journal.is_final(point.key):
                return point
            self.ended(point, known)

    def judged(self, point: Point, step: int, loss: float) -> bool:
        trial = self._live[point.key][0]
        self._judged[point.key] += 1
        enough = self._judged[point.key] > _WARMUP_VALIDATIONS
        with self._trials.explained():
            worse = self._trials.should_stop(trial, step, loss)
        return self._settings.prune and enough and worse

    def ended(self, point: Point, result: RunResult) -> None:
        """A diverged run counts as no better than what it began with: its values are to be known
        as bad ones."""
        loss = result.loss
        if result.status == "diverged" and result.curve:
            loss = result.curve[0][1]
        self._lost += result.status in ("failed", "killed")
        with self._trials.explained():
            for trial in self._live.pop(point.key):
                self._trials.keep_result(trial, point.key)
                self._tell(trial, loss, pruned=result.status == "pruned")

    def beat(self) -> None:
        self._trials.beat()

    def _tell(self, trial: Trial, loss: float | None, *, pruned: bool) -> None:
        from optuna.trial import TrialState

        if pruned:
            self._trials.tell(trial, TrialState.PRUNED)
        elif loss is None:
            self._trials.tell(trial, TrialState.FAIL)
        else:
            self._trials.tell(trial, TrialState.COMPLETE, loss)

    def _fresh(self) -> Trial | None:
        import optuna
        from optuna.trial import TrialState

        self._trials.give_up_gone()
        trials = self._trials.all()
        made = sum(trial.state != TrialState.FAIL for trial in trials)
        if made + self._lost >= self._settings.trials:
            return None
        # Anew for each trial: what is drawn follows from the seed and the trials before it, and not
        # from how often the command was called.
        study = self._trials.study
        study.sampler = optuna.samplers.TPESampler(
            seed=(self._settings.seed * 1_000_003 + len(trials)) % 2**32,
            n_startup_trials=_STARTUP,
            constant_liar=True,
        )
        return self._trials.hold(study.ask(self._distributions))


def _distribution(key: str, axis: Axis) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(axis, Spread):
        return FloatDistribution(axis.low, axis.high, log=axis.scale == "log")
    for value in axis:
        if not isinstance(value, str | int | float | bool | None):
            raise UserError(
                f"axes.{key}: a search chooses among plain values, and {value!r} is none; write "
                "search: {kind: grid}"
            )
    return CategoricalDistribution(axis)
