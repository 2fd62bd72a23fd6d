"""Several machines make one study: each takes runs from a list in Optuna's storage, and tells there
what they came to.

What is taken is a piece of work: a run with all that branch off it, for branches need their
trunk's checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from llamita.windtunnel.points import Point
from llamita.windtunnel.results import Journal
from llamita.windtunnel.storage import Storage, digest

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

_PIECE = "llamita_piece"
_SECONDS_BETWEEN_ASKING = 30.0
"""Where nothing was left: a piece may come back whose machine is gone."""


def pieces(points: Sequence[Point], flops: Callable[[Point], float]) -> dict[str, list[Point]]:
    """Runs by the trunk that they hang on, in the order in which they are to be made: those that
    only look first, as they are short, then the longest. Named by what is in them."""
    trunk = {point.key: point.trunk for point in points}
    grouped: dict[str, list[Point]] = {}
    for point in points:
        root = point.key
        while (above := trunk.get(root)) is not None:
            root = above
        grouped.setdefault(root, []).append(point)

    def order(piece: list[Point]) -> tuple[bool, float]:
        return not piece[0].coordinates, -sum(flops(point) for point in piece)

    ordered = sorted(grouped.values(), key=order)
    return {digest([point.key for point in piece]): piece for piece in ordered}


class SharedRuns:
    """
    Args:
        work: name → the piece's runs; see `pieces`.

    Raises:
        UserError: as `Storage.trials`.
    """

    def __init__(
        self, storage: Storage, work: Mapping[str, Sequence[Point]], journal: Journal
    ) -> None:
        self._work, self._journal = work, journal
        # Whoever has another spec, or its data elsewhere, has other runs, and shares none.
        self._trials = storage.trials(f"runs/{digest(list(work))}")
        self._held: dict[str, Trial] = {}
        self._left: dict[str, set[str]] = {}
        """Of a piece that is held, the runs that have not ended."""
        self._lost: set[str] = set()
        """With runs that failed here: the next call tries them again, and not this one."""
        self._asked = -_SECONDS_BETWEEN_ASKING

    def claim(self) -> Sequence[Point]:
        """The runs of one more piece; none where none is to be had now."""
        if time.monotonic() - self._asked < _SECONDS_BETWEEN_ASKING:
            return ()
        with self._trials.explained():
            while (trial := self._trials.left_behind() or self._waiting()) is not None:
                name = trial.user_attrs[_PIECE]
                self._held[name] = trial
                piece = self._work[name]
                self._left[name] = {p.key for p in piece if not self._journal.is_final(p.key)}
                if self._left[name]:
                    return piece
                self._close(name)  # it was made here before it was shared
        self._asked = time.monotonic()
        return ()

    def ended(self, point: Point) -> None:
        """The journal has a result of it."""
        for name, left in list(self._left.items()):
            if point.key not in left:
                continue
            left.remove(point.key)
            with self._trials.explained():
                self._trials.keep_result(self._held[name], point.key)
                if not left:
                    self._close(name)

    def beat(self) -> None:
        self._trials.beat()

    @property
    def elsewhere(self) -> int:
        """Runs that are others' to make, or nobody's yet."""
        from optuna.trial import TrialState

        with self._trials.explained():
            unended = {
                _piece(trial)
                for trial in self._trials.all()
                if trial.state in (TrialState.WAITING, TrialState.RUNNING)
            }
        return sum(len(piece) for name, piece in self._work.items() if name in unended)

    def _close(self, name: str) -> None:
        from optuna.trial import TrialState

        trial, piece = self._held.pop(name), self._work[name]
        del self._left[name]
        for point in piece:
            self._trials.keep_result(trial, point.key)
        if all(self._journal.is_final(point.key) for point in piece):
            losses = [self._journal.records[point.key].get("loss") for point in piece]
            known = [loss for loss in losses if loss is not None]
            self._trials.tell(trial, TrialState.COMPLETE, min(known, default=0.0))
        else:
            self._lost.add(name)
            self._trials.tell(trial, TrialState.FAIL)

    def _waiting(self) -> Trial | None:
        """One that nobody has begun."""
        from optuna.trial import TrialState

        self._trials.give_up_gone()
        self._enqueue_missing()
        study = self._trials.study
        while any(trial.state == TrialState.WAITING for trial in self._trials.all()):
            trial = study.ask()
            if self._is_first(trial):
                return self._trials.hold(trial)
            # Two that began at once had both put it on the list; or the list had just become
            # empty, and Optuna made up a trial.
            self._trials.tell(trial, TrialState.FAIL)
        return None

    def _enqueue_missing(self) -> None:
        listed = {_piece(trial) for trial in self._trials.all() if _counts(trial)}
        for name in self._work:
            if name not in listed and name not in self._lost:
                self._trials.study.enqueue_trial({}, user_attrs={_PIECE: name})

    def _is_first(self, trial: Trial) -> bool:
        name = trial.user_attrs.get(_PIECE)
        if name is None:
            return False
        earlier = (each for each in self._trials.all() if each.number < trial.number)
        return not any(_counts(each) and _piece(each) == name for each in earlier)


def _piece(trial: FrozenTrial) -> str | None:
    """None of a trial that Optuna made up."""
    return trial.user_attrs.get(_PIECE)


def _counts(trial: FrozenTrial) -> bool:
    from optuna.trial import TrialState

    return trial.state != TrialState.FAIL
