"""`evaluate`: what a MODEL scores, with intervals."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llamita
from llamita.errors import UserError
from llamita.evaluation.results import save_evaluation
from llamita.evaluation.scores import Evaluation, Missing, TaskScore
from llamita.reporting.progress import ProgressLine

if TYPE_CHECKING:
    from llamita.evaluation.code_tasks import Judging
    from llamita.evaluation.opening import Opened
    from llamita.evaluation.suites import TaskWanted
    from llamita.evaluation.task_loading import Asking
    from llamita.evaluation.text import TextScore
    from llamita.evaluation.text_files import TextSource
    from llamita.evaluation.training_text import TrainingText

_PACKAGES = ("lm_eval", "torch", "datasets", "numpy", "tokenizers", "xllamacpp")
_ENGINES = ("torch", "llama.cpp")
_DTYPES = ("auto", "float32", "bfloat16")


def evaluate(
    model: str | Path,
    tasks: Sequence[str] = (),
    *,
    text: Sequence[str | Path] = (),
    out: str | Path | None = None,
    data: str | Path | None = None,
    limit: float | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    system: str | None = None,
    template: str | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    samples: int = 1,
    pass_at: Sequence[int] = (1,),
    temperature: float | None = None,
    unsafe_code: bool = False,
    trained_on: Sequence[str | Path] = (),
    overlap: float = 0.5,
    engine: str = "torch",
    device: str = "auto",
    dtype: str = "auto",
    context: int | None = None,
    stride: int | None = None,
    batch_tokens: int | None = None,
    cache: bool = True,
    offline: bool = False,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """What a MODEL scores; the scores, item by item, are saved in `out`.

    Args:
        model: a Hugging Face directory, a run, a checkpoint, an adapter, a .gguf file, or a hub id.
        tasks: suites, lm-eval's tasks and groups, paths of task YAMLs or of own questions.
        text: files, folders or datasets whose bits per byte and perplexity are measured.
        out: folder of results, in which each model has its own; none is written by default.
        data: folder of datasets in their upstream schema, looked into before the hub.
        limit: items of each task, or below 1 a share of them.
        num_fewshot: examples in each prompt, in place of the tasks' own numbers.
        chat: put questions through the chat template; system: what such a conversation begins with.
        gen_kwargs: change how tasks that generate do so.
        samples: programs written for each coding problem, at `temperature`; pass_at: the ks of
            pass@k.
        unsafe_code: run them where the sandbox cannot be shut.
        trained_on: runs or datasets; items that overlap with their training text are marked, where
            at least the share `overlap` of an item's words is found there.
        engine: what writes texts: torch or llama.cpp. Likelihoods are torch's.
        dtype: float32 or bfloat16; auto is bfloat16 on a GPU that has it.
        context: tokens that the model reads at most; by default what it was made for, and 2,048 at
            most for bits per byte, whose `stride` is half of it by default.
        batch_tokens: tokens of a pass.
        cache: keep answers by the model's weights, and take those that are there.
        offline: leave the hub alone.
        say: told what happens.

    Raises:
        UserError: no such model, task or file; a setting out of range; an extra that is missing.
    """
    for name, value, known in (("engine", engine, _ENGINES), ("dtype", dtype, _DTYPES)):
        if value not in known:
            raise UserError(f"{name} {value!r}: there is {', '.join(known)}")
    if not tasks and not text:
        raise UserError("nothing to measure: name suites or tasks, or text for bits per byte")
    if tasks and find_spec("lm_eval") is None:
        raise UserError("tasks need lm-eval: pip install 'llamita[eval]'")
    if stride is not None and not text:
        raise UserError(f"stride {stride}: it is of text, and none is named")
    from llamita.evaluation.contamination import check_threshold
    from llamita.evaluation.opening import open_model
    from llamita.evaluation.text_files import find_texts
    from llamita.evaluation.training_text import training_text

    # What is wrong is said before a model is loaded, let alone asked for an hour.
    texts = {str(each): find_texts(each) for each in text}
    seen = training_text(trained_on) if trained_on else None
    check_threshold(overlap)
    plan = None
    if tasks:
        from llamita.evaluation.code_tasks import Judging
        from llamita.evaluation.suites import resolve
        from llamita.evaluation.task_loading import Asking

        plan = _Plan(
            resolve(tasks, num_fewshot=num_fewshot),
            Asking(
                limit=limit,
                data=None if data is None else Path(data).expanduser(),
                hub=not offline,
                chat=chat,
                system=system,
                gen_kwargs=gen_kwargs or None,
            ),
            Judging(samples, tuple(pass_at), temperature, unsafe=unsafe_code),
        )
    opened = open_model(model, device=device, dtype=dtype, template=template)
    say(f"{opened.name}: {opened.about}")
    run = _Run(opened, say)
    begun = datetime.now(UTC)
    for name, sources in texts.items():
        run.score_text(name, sources, context, stride, batch_tokens)
    if plan is not None:
        run.ask(plan, engine, context, batch_tokens, cache)
    if seen is not None:
        run.mark(seen, overlap)
    found = Evaluation(
        model=opened.name,
        fingerprint=opened.fingerprint,
        tokens=opened.tokens,
        scores=tuple(run.scores),
        missing=tuple(run.missing),
        settings={
            "tasks": list(map(str, tasks)),
            "text": [Path(each).name for each in text],
            "limit": limit,
            "num_fewshot": num_fewshot,
            "chat_template": opened.template.source if chat else None,
            "fewshot_as_multiturn": chat,
            "system_instruction": system,
            "gen_kwargs": dict(gen_kwargs or {}),
            "samples": samples,
            "temperature": temperature,
            "engine": opened.writer(engine),
            "device": opened.device.type,
            "dtype": opened.dtype,
            "context": context,
            "stride": stride,
            "batch_tokens": batch_tokens,
            "trained_on": [Path(each).name for each in trained_on],
            "overlap": overlap if trained_on else None,
        },
        versions=_versions(),
        date=begun.isoformat(timespec="seconds"),
        counts=dict(run.counts),
    )
    if out is not None:
        folder = Path(out).expanduser() / opened.name.replace("/", "__")
        say(f"saved: {save_evaluation(found, folder)}")
    return found


@dataclass(frozen=True)
class _Plan:
    wanted: Sequence[TaskWanted]
    asking: Asking
    judging: Judging


class _Run:
    """What has been found so far."""

    def __init__(self, opened: Opened, say: Callable[[str], None]) -> None:
        self.scores: list[TaskScore] = []
        self.missing: list[Missing] = []
        self.counts: Counter[str] = Counter()
        self._opened, self._say = opened, say

    def score_text(
        self,
        name: str,
        sources: Sequence[TextSource],
        context: int | None,
        stride: int | None,
        batch_tokens: int | None,
    ) -> None:
        """Bits per byte and perplexity of a file, folder or dataset; of a folder as a whole, and of
        what in it holds several documents."""
        from llamita.evaluation.text import score_documents

        whole: TextScore | None = None
        for each in sources:
            done = 0

            def progress(more: int, size: int = each.num_bytes, shown: str = each.name) -> None:
                nonlocal done
                done += more
                line.update(min(done, size), size, shown)

            with ProgressLine("scoring text") as line:
                found = score_documents(
                    self._opened.decoder,
                    self._opened.tokenizer,
                    each.documents(),
                    context=context,
                    stride=stride,
                    progress=progress,
                    **({} if batch_tokens is None else {"batch_tokens": batch_tokens}),
                )
            whole = found if whole is None else whole + found
            # A file that is one document has no interval; a folder of such files has.
            if len(sources) == 1 or len(found.ids) > 1:
                self.scores += found.task_scores(each.name)
            if found.unknown:
                self.counts[f"tokens for what the vocabulary lacks, {each.name}"] += found.unknown
        if whole is not None and len(sources) > 1:
            self.scores += whole.task_scores(f"{Path(name).resolve().name}/")

    def ask(
        self,
        plan: _Plan,
        engine: str,
        context: int | None,
        batch_tokens: int | None,
        cache: bool,
    ) -> None:
        """lm-eval's tasks and a user's questions, then what is judged by running it."""
        from llamita.evaluation.code_tasks import run_code_tasks
        from llamita.evaluation.lm_eval_tasks import prepare_tasks, run_prepared

        progress = _Progress()
        with self._harness(engine, context, batch_tokens, cache, progress) as lm:
            prepared = prepare_tasks(lm, plan.wanted, plan.asking)
            if prepared.ready:
                self._say(
                    f"to be asked: {len(prepared.ready):,} of lm-eval's tasks or your own, "
                    f"{prepared.num_items:,} items, {prepared.num_requests:,} requests"
                )
            scores, missing = run_prepared(lm, prepared, progress=progress.begins)
            code = run_code_tasks(
                lm, plan.wanted, plan.asking, plan.judging, progress=progress.judged
            )
        self.scores += [*scores, *code.scores]
        self.missing += [*missing, *code.missing]
        self.counts += code.counts

    @contextmanager
    def _harness(
        self,
        engine: str,
        context: int | None,
        batch_tokens: int | None,
        cache: bool,
        progress: _Progress,
    ) -> Iterator[Any]:
        """The model as lm-eval asks it, with the answers that are kept of it."""
        from llamita.evaluation.harness import HarnessModel
        from llamita.evaluation.item_cache import ItemCache, Remembering

        opened = self._opened
        writer = None if engine == "torch" else opened.llama_cpp(context, self._say)
        lm = HarnessModel(
            opened.decoder,
            opened.tokenizer,
            name=opened.name,
            template=opened.template,
            engine=writer,
            max_length=context,
            batch_tokens=batch_tokens,
            generation=opened.generation,
            progress=progress.update,
        )
        try:
            if not cache:
                yield lm
                return
            kept = ItemCache(opened.cache_file(engine, lm.max_length))
            try:
                yield Remembering(lm, kept, self._found)
            finally:
                kept.close()
        finally:
            self.counts += lm.counts
            if writer is not None:
                writer.close()

    def _found(self, number: int, of: int) -> None:
        if number:
            self._say(f"{number:,} of {of:,} answers are kept from before")

    def mark(self, source: TrainingText, overlap: float) -> None:
        """Mark the items that stand in training text."""
        from llamita.evaluation.contamination import contaminated, find_overlaps
        from llamita.evaluation.training_text import shard_texts

        for each in source.unknown:
            self._say(f"not looked into: what {each} was trained on is not here")
        texts = {
            f"{score.task}/{name}": sample["item"]
            for score in self.scores
            for name, sample in zip(score.ids, score.samples, strict=False)
            if sample.get("item")
        }
        done = 0

        def progress(more: int) -> None:
            nonlocal done
            done += more
            line.update(min(done, source.text_bytes), source.text_bytes)

        with ProgressLine("looking for items in the training text") as line:
            overlaps = find_overlaps(texts, shard_texts(source), progress=progress)
        dirty = contaminated(overlaps, overlap)
        self.scores = [
            replace(
                score,
                contaminated=frozenset(
                    name for name in score.ids if f"{score.task}/{name}" in dirty
                ),
            )
            if score.samples and score.samples[0].get("item")
            else score
            for score in self.scores
        ]


class _Progress:
    """One line at a time, for the task that is being asked or judged."""

    def __init__(self) -> None:
        self._name = ""
        self._line: ProgressLine | None = None

    def begins(self, name: str, done: int, total: int) -> None:
        self._name, self._line = name, ProgressLine(name)

    def update(self, done: int, total: int) -> None:
        if self._line is None:  # code tasks begin without a word
            self._line = ProgressLine("writing programs")
        self._line.update(done, total)
        if done == total:
            self._line = None

    def judged(self, name: str, done: int, total: int) -> None:
        if name != self._name or self._line is None:
            self._name, self._line = name, ProgressLine(f"{name}, running programs")
        self._line.update(done, total)


def _versions() -> dict[str, str]:
    found = {"llamita": llamita.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
