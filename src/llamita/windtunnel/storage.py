"""Optuna's storage: where searches keep their trials, and where machines share a study's runs.

Needs the extra `tunnel`. A trial belongs to the study's directory that began it, as long as that
directory's process says from time to time that it lives.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamita.errors import UserError
from llamita.windtunnel.results import Journal

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial, Trial, TrialState

_OWNER, _SEEN, _RESULT = "llamita_owner", "llamita_seen", "llamita_result"
_TRIES = 5
_BEAT_SECONDS = 60.0
GONE_SECONDS = 900.0
"""After so long without a sign of its owner a trial is given to whoever asks."""


def require_optuna(what: str) -> None:
    """
    Raises:
        UserError: optuna is not installed.
    """
    if find_spec("optuna") is None:
        raise UserError(
            f"{what} is Optuna's, and it is not installed: pip install 'llamita[tunnel]'"
        )


def default_storage(study: Path) -> str:
    return f"sqlite:///{study.resolve()}/optuna.db"


def without_password(url: str) -> str:
    return re.sub(r"(://[^:/@]+):[^@]*@", r"\1:…@", url)


@dataclass(frozen=True)
class Storage:
    """
    Args:
        url: Optuna's.
        name: the study's.
        data: what its runs read, as fingerprints: only who reads the same shares its results.
        owner: names this study's directory among all that use the storage.
    """

    url: str
    name: str
    data: Mapping[str, str]
    owner: str
    journal: Journal

    @property
    def prefix(self) -> str:
        return f"{self.name}/{digest(sorted(self.data.items()))}"

    def trials(self, title: str, pruner: BasePruner | None = None) -> Trials:
        """
        Raises:
            UserError: the storage is locked, gone, or nothing that Optuna knows.
        """
        return Trials(self, title, pruner)

    def take_results(self) -> None:
        """Into the journal, whatever other directories of this study have told.

        Raises:
            UserError: as `trials`.
        """
        require_optuna("storage")
        import optuna

        with self.explained():
            for title in optuna.get_all_study_names(self.opened):
                if not title.startswith(f"{self.prefix}/"):
                    continue
                study = optuna.load_study(study_name=title, storage=self.opened)
                for trial in study.get_trials(deepcopy=False):
                    for key, record in trial.user_attrs.items():
                        if key.startswith(f"{_RESULT}/"):
                            self.journal.take_over(record)

    @cached_property
    def opened(self) -> BaseStorage:
        """Its tables are made where there are none, which two may try at once: one of them then
        hears that they, or their version, are there already."""
        from optuna.storages import RDBStorage
        from sqlalchemy.exc import IntegrityError, SQLAlchemyError

        for _ in range(_TRIES):
            try:
                return RDBStorage(self.url)
            except SQLAlchemyError as error:
                if not isinstance(error, IntegrityError) and "exists" not in str(error):
                    raise
                time.sleep(1.0)
        return RDBStorage(self.url)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """What a storage raises, as an error that says what to do."""
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except ImportError as error:
            raise UserError(
                f"storage {without_password(self.url)}: the driver of its database is not "
                f"installed ({error.__cause__ or error}); install it with pip"
            ) from error
        except (StorageInternalError, SQLAlchemyError) as error:
            cause = str(error.__cause__ or error).partition("\n")[0]
            raise UserError(
                f"storage {without_password(self.url)} is locked, gone or not to be reached: "
                f"{cause}. Finished runs are in {self.journal.path}; bring it back and run the "
                "same command again"
            ) from error


class Trials:
    """One of Optuna's studies, and the trials of it that this process has."""

    def __init__(self, storage: Storage, title: str, pruner: BasePruner | None) -> None:
        require_optuna("storage")
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = storage
        self._held: dict[int, Trial] = {}
        self._beaten = time.monotonic()
        with storage.explained():
            self.study = optuna.create_study(
                study_name=f"{storage.prefix}/{title}",
                storage=storage.opened,
                direction="minimize",
                load_if_exists=True,
                pruner=pruner,
            )

    def explained(self) -> AbstractContextManager[None]:
        return self._storage.explained()

    def all(self) -> Sequence[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def hold(self, trial: Trial) -> Trial:
        """As this process's own."""
        trial.set_user_attr(_OWNER, self._storage.owner)
        trial.set_user_attr(_SEEN, time.time())
        self._held[trial.number] = trial
        return trial

    def left_behind(self) -> Trial | None:
        """A trial that an earlier process of this study's directory began."""
        from optuna.trial import Trial, TrialState

        for frozen in self.all():
            mine = frozen.user_attrs.get(_OWNER) == self._storage.owner
            if mine and frozen.state == TrialState.RUNNING and frozen.number not in self._held:
                return self.hold(Trial(self.study, frozen._trial_id))
        return None

    def give_up_gone(self) -> None:
        """Fail trials of owners that have not been heard of for long."""
        from optuna.trial import TrialState

        for frozen in self.all():
            if frozen.state != TrialState.RUNNING or frozen.number in self._held:
                continue
            begun = frozen.datetime_start  # which is there before the first sign is
            seen = frozen.user_attrs.get(_SEEN, begun.timestamp() if begun else 0.0)
            if time.time() - seen > GONE_SECONDS:
                self.study.tell(frozen.number, state=TrialState.FAIL, skip_if_finished=True)

    def beat(self) -> None:
        """Say that the owner of what is held lives; call it often."""
        if time.monotonic() - self._beaten < _BEAT_SECONDS:
            return
        self._beaten = time.monotonic()
        with self.explained():
            for trial in list(self._held.values()):
                self._note(trial, _SEEN, time.time())

    def should_stop(self, trial: Trial, step: int, loss: float) -> bool:
        """What the pruner says of a run that has come so far; no of one that another took."""
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            trial.report(loss, step)
        except UpdateFinishedTrialError:
            return False
        return trial.should_prune()

    def keep_result(self, trial: Trial, key: str) -> None:
        """What the journal says of a run, for others to read."""
        self._note(trial, f"{_RESULT}/{key}", self._storage.journal.records[key])

    def tell(self, trial: Trial, state: TrialState, loss: float | None = None) -> None:
        self._held.pop(trial.number, None)
        self.study.tell(trial, loss, state=state, skip_if_finished=True)

    def _note(self, trial: Trial, key: str, value: Any) -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            trial.set_user_attr(key, value)
        except UpdateFinishedTrialError:  # another took it, for want of a sign from here
            self._held.pop(trial.number, None)


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]
