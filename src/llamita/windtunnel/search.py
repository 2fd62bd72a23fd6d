"""A sweep that Optuna steers: which values to try next, and which runs to stop early.

Needs the extra `tunnel`. Trials lie in Optuna's storage, which several machines may share.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamita.errors import UserError
from llamita.windtunnel.findings import RunResult
from llamita.windtunnel.points import Cell, Point, searched_point
from llamita.windtunnel.results import Journal
from llamita.windtunnel.spec import Axis, Bayesian, Spread

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

_OWNER, _KEY = "llamita_study", "llamita_key"
_STARTUP = 8
"""Trials drawn at random before the estimator has something to estimate from."""
_WARMUP_VALIDATIONS = 2
"""Of ten, before which no run is stopped."""


def require_optuna() -> None:
    """
    Raises:
        UserError: optuna is not installed.
    """
    if find_spec("optuna") is None:
        raise UserError(
            "search: tpe is Optuna's, and it is not installed: pip install 'llamita[tunnel]'; or "
            "write search: {kind: grid}"
        )


def default_storage(study: Path) -> str:
    return f"sqlite:///{study.resolve()}/optuna.db"


class Search:
    """Trials of one cell.

    Args:
        owner: names this study's directory among all that share the storage: a trial that it began
            and did not end is gone on with.

    Raises:
        UserError: optuna is not installed; its storage is locked, or gone.
    """

    def __init__(
        self,
        name: str,
        cell: Cell,
        base: Mapping[str, Any],
        storage: str,
        journal: Journal,
        owner: str,
    ) -> None:
        require_optuna()
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        assert isinstance(cell.sweep.search, Bayesian)
        self._settings = cell.sweep.search
        self._cell, self._base, self._journal, self._owner = cell, base, journal, owner
        self._storage = storage
        self._distributions = {k: _distribution(k, v) for k, v in cell.sweep.axes.items()}
        self._live: dict[str, list[Trial]] = {}
        """Key of a run that goes on → its trials, several where values were drawn again."""
        self._judged: dict[str, int] = {}
        self._lost = 0
        """Runs that failed in this process: the next call tries as many again, and not this one."""
        title = f"{name}/{cell.experiment}/{cell.size.name}/{cell.parametrization}/{cell.seed}"
        with self._explained():
            self._study = optuna.create_study(
                study_name=title,
                storage=storage,
                direction="minimize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(
                    n_startup_trials=_STARTUP // 2,
                    n_warmup_steps=0,
                ),
            )

    def next(self) -> Point | None:
        while True:
            with self._explained():
                trial = self._left_behind() or self._fresh()
                if trial is None:
                    return None
                point = searched_point(self._base, self._cell, trial.params)
                trial.set_user_attr(_OWNER, self._owner)
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
        with self._explained():
            trial.report(loss, step)
            return self._settings.prune and enough and bool(trial.should_prune())

    def ended(self, point: Point, result: RunResult) -> None:
        """A diverged run counts as no better than what it began with: its values are to be known
        as bad ones."""
        loss = result.loss
        if result.status == "diverged" and result.curve:
            loss = result.curve[0][1]
        self._lost += result.status in ("failed", "killed")
        for trial in self._live.pop(point.key):
            self._tell(trial, loss, pruned=result.status == "pruned")

    def _tell(self, trial: Trial, loss: float | None, *, pruned: bool = False) -> None:
        from optuna.trial import TrialState

        with self._explained():
            if pruned:
                self._study.tell(trial, state=TrialState.PRUNED)
            elif loss is None:
                self._study.tell(trial, state=TrialState.FAIL)
            else:
                self._study.tell(trial, loss)

    def _left_behind(self) -> Trial | None:
        """A trial that an earlier process of this study began."""
        from optuna.trial import Trial, TrialState

        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            mine = frozen.user_attrs.get(_OWNER) == self._owner
            if mine and frozen.user_attrs.get(_KEY) not in self._live:
                return Trial(self._study, frozen._trial_id)
        return None

    def _fresh(self) -> Trial | None:
        import optuna
        from optuna.trial import TrialState

        trials = self._study.get_trials(deepcopy=False)
        made = sum(trial.state != TrialState.FAIL for trial in trials)
        if made + self._lost >= self._settings.trials:
            return None
        # Anew for each trial: what is drawn follows from the seed and the trials before it, and not
        # from how often the command was called.
        self._study.sampler = optuna.samplers.TPESampler(
            seed=(self._settings.seed * 1_000_003 + len(trials)) % 2**32,
            n_startup_trials=_STARTUP,
            constant_liar=True,
        )
        return self._study.ask(self._distributions)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (StorageInternalError, SQLAlchemyError, ModuleNotFoundError) as error:
            cause = str(error.__cause__ or error).partition("\n")[0]
            raise UserError(
                f"storage {without_password(self._storage)} is locked, gone or not to be reached: "
                f"{cause}. Finished runs are in {self._journal.path}; bring it back and run the "
                "same command again"
            ) from error


def without_password(url: str) -> str:
    return re.sub(r"(://[^:/@]+):[^@]*@", r"\1:…@", url)


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
