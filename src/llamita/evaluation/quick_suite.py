"""Tasks of likelihoods, made ready once and asked again and again of a model that is learning.

Imports lm_eval: import this module where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamita.data.chat_template import chat_template
from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError
from llamita.evaluation.harness import HarnessModel
from llamita.evaluation.lm_eval_tasks import prepare_tasks, run_prepared
from llamita.evaluation.scorer import Continuation, score_continuations, tokens_to_read
from llamita.evaluation.scores import Missing, TaskScore, shown
from llamita.evaluation.suites import resolve
from llamita.evaluation.task_loading import Asking, Ready
from llamita.model.decoder import Decoder
from llamita.recipes.quick_evaluation import QuickEvaluation

_LIKELIHOODS = {"loglikelihood", "loglikelihood_rolling"}


class QuickSuite:
    """What a recipe asks of its model while it trains.

    The model stays as it is: it is put into evaluation for the time of an answer, no gradient is
    kept, and no random number is drawn.

    Args:
        model: that is trained; on its device, sharded or not, compiled or not.
        batch_tokens: tokens of a pass, at most those of a pass of training.

    Attributes:
        missing: what of the settings' tasks cannot be asked, and why.

    Raises:
        UserError: a name is unknown, or there is nothing that can be asked.
    """

    def __init__(
        self, settings: QuickEvaluation, model: Decoder, tokenizer: Tokenizer, batch_tokens: int
    ) -> None:
        self._stopping: Callable[[], bool] = lambda: False
        self._lm = HarnessModel(
            model,
            tokenizer,
            name="the model in training",
            template=chat_template(tokenizer) if settings.chat else None,
            batch_tokens=batch_tokens,
            progress=self._check,
        )
        self._batch_tokens = batch_tokens
        wanted = resolve(settings.tasks, num_fewshot=settings.num_fewshot)
        asking = Asking(
            limit=settings.limit,
            data=None if settings.data is None else Path(settings.data).expanduser(),
            hub=not settings.offline,
            chat=settings.chat,
        )
        found = prepare_tasks(self._lm, wanted, asking)
        writing = "it has the model write texts, which is for `llamita eval` of a checkpoint"
        self._prepared = replace(
            found, ready=tuple(filter(_of_likelihoods, found.ready)), missing=()
        )
        self.missing = (
            *found.missing,
            *(Missing(r.leaf.name, writing) for r in found.ready if not _of_likelihoods(r)),
            *(Missing(each.name, writing) for each in wanted if each.kind == "code"),
        )
        if not self._prepared.ready:
            why = "; ".join(f"{each.task}: {each.why}" for each in self.missing)
            raise UserError(f"evaluation.tasks: none of them can be asked while training ({why})")

    def ask(self, stopping: Callable[[], bool] = lambda: False) -> dict[str, Any] | None:
        """The fields of an `evaluation` event; None where `stopping` turned true meanwhile.

        scores: of each task, or group as a whole, task, metric, value, stderr, low and high (of the
        95% interval), items, num_fewshot, chance and not_above_chance (null where guessing means
        nothing), is_share (whether items score from 0 to 1), higher_is_better.
        missing: what could not be judged, and why. counts: truncated contexts and the like.
        """
        for instance in self._instances():
            instance.resps.clear()
            instance.filtered_resps.clear()
        self._lm.counts.clear()
        self._stopping = stopping
        try:
            scores, missing = run_prepared(self._lm, self._prepared)
        except _StoppedError:
            return None
        return {
            "scores": [_fields(each) for each in shown(scores)],
            "missing": {each.task: each.why for each in missing},
            "counts": dict(self._lm.counts),
        }

    def _check(self, done: int, total: int) -> None:
        if self._stopping():
            raise _StoppedError

    def _instances(self) -> Iterator[Any]:
        for ready in self._prepared.ready:
            yield from ready.task.instances

    # -- what it will take ----------------------------------------------------------------------

    def measure(self) -> tuple[Callable[[], object], float]:
        """Work that takes as long as a full pass, or as all if that is less, and how many times as
        long an evaluation takes."""
        asked = self._lm.continuations(list(self._instances()))
        sample = _worth(asked, self._batch_tokens)
        whole, part = (
            tokens_to_read(each, max_length=self._lm.max_length, batch_tokens=self._batch_tokens)
            for each in (asked, sample)
        )
        return lambda: self._score(sample), whole / part

    def _score(self, asked: Sequence[Continuation]) -> None:
        score_continuations(
            self._lm.model,
            asked,
            max_length=self._lm.max_length,
            batch_tokens=self._batch_tokens,
        )


class _StoppedError(Exception):
    """The run is to stop, and whoever asked does not wait for the rest."""


def _of_likelihoods(ready: Ready) -> bool:
    return {each.request_type for each in ready.task.instances} <= _LIKELIHOODS


def _worth(asked: Sequence[Continuation], tokens: int) -> Sequence[Continuation]:
    """The first of them whose texts have twice so many: to read what they share once saves up to
    half of that."""
    total = 0
    for number, each in enumerate(asked):
        total += len(each.context) + len(each.target)
        if total >= 2 * tokens:
            return asked[: number + 1]
    return asked


def _fields(score: TaskScore) -> dict[str, Any]:
    estimate = score.estimate
    return {
        "task": score.task,
        "metric": score.metric,
        "value": estimate.value,
        "stderr": estimate.stderr,
        "low": estimate.low,
        "high": estimate.high,
        "items": len(score.values),
        "num_fewshot": score.num_fewshot,
        "chance": score.chance,
        "not_above_chance": None if score.chance is None else score.not_above_chance,
        "is_share": score.is_share,
        "higher_is_better": score.higher_is_better,
    }
