"""An evaluation's scores, and the files that hold them, in lm-eval's layout.

`results_DATE.json` has what lm-eval writes there (results, groups, group_subtasks, configs,
versions, n-shot, higher_is_better, n-samples, config, task_hashes) and, under `llamita`, what it
has no place for. `samples_TASK_DATE.jsonl` has a record for each item and filter.

Imports neither torch nor lm_eval, so that reports can be made where neither is installed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from llamita.durable import replace_synced
from llamita.errors import UserError
from llamita.evaluation.results_reading import FORMAT, evaluation_of, packed
from llamita.evaluation.scores import (
    LM_EVAL,
    PERPLEXITIES,
    WEIGHTED,
    Evaluation,
    Missing,
    TaskScore,
    group_score,
    unique_ids,
)

__all__ = [
    "LM_EVAL",
    "PERPLEXITIES",
    "WEIGHTED",
    "Evaluation",
    "Missing",
    "TaskScore",
    "group_score",
    "load_evaluation",
    "save_evaluation",
    "unique_ids",
]


# -- writing ---------------------------------------------------------------------------------------


def save_evaluation(evaluation: Evaluation, folder: Path) -> Path:
    """Write the samples of every task, then the results; returns the path of the results.

    A reader, or a crash, sees no results file whose samples are not there. The same date is the
    same evaluation, and replaces it.

    Raises:
        UserError: the folder cannot be written, or a task and metric come twice.
    """
    names = [(each.task, each.metric) for each in evaluation.scores]
    if twice := {each for each in names if names.count(each) > 1}:
        listed = ", ".join(f"{task} ({metric})" for task, metric in sorted(twice))
        raise UserError(f"{listed} was scored twice: a result holds each task and metric once")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"could not write {folder}: {error.strerror or error}") from error
    date = evaluation.date.replace(":", "-")
    hashes = {}
    for task, scores in _by_task(evaluation.scores).items():
        if not all(each.ids for each in scores):
            continue  # Read from a file without its items: there is nothing to write.
        records = list(_records(scores))
        parts = (record[key] for record in records for key in _HASHES)
        hashes[task] = _sha256("".join(parts))
        lines = "".join(_json(record) + "\n" for record in records)
        replace_synced(folder / f"samples_{_file_name(task)}_{date}.jsonl", lines)
    path = folder / f"results_{date}.json"
    replace_synced(path, _json({**_results(evaluation), "task_hashes": hashes}, indent=2) + "\n")
    return path


_HASHES = ("doc_hash", "prompt_hash", "target_hash")
_BLANK: dict[str, Any] = {
    "doc_id": 0,
    "doc": {},
    "target": "",
    "arguments": {},
    "resps": [],
    "filtered_resps": [],
    "filter": "none",
    "metrics": [],
    "doc_hash": "",
    "prompt_hash": "",
    "target_hash": "",
}
"""The fields of a record, in lm-eval's order."""


def _by_task(scores: Iterable[TaskScore]) -> dict[str, list[TaskScore]]:
    found: dict[str, list[TaskScore]] = {}
    for each in scores:
        found.setdefault(each.task, []).append(each)
    return found


def _file_name(task: str) -> str:
    return re.sub(r'[\x00-\x1f"<>:/|\\?*\[\]]+', "__", task)


def _sha256(words: str) -> str:
    return hashlib.sha256(words.encode("utf-8")).hexdigest()


def _json(value: Any, indent: int | None = None) -> str:
    """JSON that any reader takes: no NaN, which becomes null, and no half of a character."""

    def dumped(what: Any, ascii_only: bool) -> str:
        return json.dumps(
            what, indent=indent, ensure_ascii=ascii_only, allow_nan=False, default=_plain
        )

    try:
        found = dumped(value, False)
    except ValueError:
        value = _finite(value)
        found = dumped(value, False)
    return found if found.isascii() or _encodes(found) else dumped(value, True)


def _encodes(words: str) -> bool:
    try:
        words.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays as JSON's; what else it does not know as text, as lm-eval does."""
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _records(scores: Sequence[TaskScore]) -> Iterator[dict[str, Any]]:
    """A task's records: an item's fields and its values, for one filter after the other."""
    for chosen in dict.fromkeys(each.filter for each in scores):
        items: dict[str, dict[str, Any]] = {}
        for score in scores:
            if score.filter != chosen:
                continue
            name = score.metric.partition(",")[0]
            for row, one in enumerate(score.ids):
                if one not in items:
                    items[one] = {**_BLANK, "doc_id": row}
                record = items[one]
                if score.samples:
                    record |= _sanitised(score.samples[row])
                record["metrics"] = [*dict.fromkeys((*record["metrics"], name))]
                record |= {"filter": chosen, "doc_hash": one.partition("#")[0]}
                record[name] = packed(score, row)
        yield from items.values()


def _sanitised(sample: Mapping[str, Any]) -> dict[str, Any]:
    """As lm-eval's tracker writes it: what the model said as text, so that columns have one type;
    the i-th request's arguments as gen_args_i."""
    found = {**sample}
    for key in ("resps", "filtered_resps"):
        if key in found:
            found[key] = _texts(found[key])
    if isinstance(found.get("arguments"), list | tuple):
        found["arguments"] = {
            f"gen_args_{i}": {f"arg_{j}": each for j, each in enumerate(request)}
            for i, request in enumerate(found["arguments"])
        }
    if "target" in found:
        found["target"] = str(found["target"])
    return found


def _texts(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_texts(each) for each in value]
    return str(value)


def _results(evaluation: Evaluation) -> dict[str, Any]:
    """The document, but for the hashes of its samples."""
    groups = _by_task(evaluation.groups)
    tasks = _by_task(evaluation.scores)
    first = {task: scores[0] for task, scores in {**tasks, **groups}.items()}
    members: dict[str, list[str]] = {
        group: list(dict.fromkeys(each.task for each in evaluation.scores if each.group == group))
        for group in groups
    }
    settings, versions = evaluation.settings, evaluation.versions
    template = settings.get("chat_template")
    model = evaluation.model
    summaries = {task: _summary(task, scores) for task, scores in {**tasks, **groups}.items()}
    return {
        "results": summaries,
        **({"groups": {group: summaries[group] for group in groups}} if groups else {}),
        "group_subtasks": members,
        "configs": {task: {**scores[0].config} for task, scores in tasks.items()},
        "versions": {task: each.version for task, each in first.items()},
        "n-shot": {task: each.num_fewshot for task, each in first.items()},
        "higher_is_better": {
            task: {each.metric.partition(",")[0]: each.higher_is_better for each in scores}
            for task, scores in {**tasks, **groups}.items()
        },
        "n-samples": {
            task: {
                "original": scores[0].available or len(scores[0].values),
                "effective": len(scores[0].values),
            }
            for task, scores in tasks.items()
        },
        "config": {"model": "llamita", "model_args": {"pretrained": model}, **settings},
        "date": datetime.fromisoformat(evaluation.date).timestamp(),
        "lm_eval_version": versions.get("lm_eval"),
        "transformers_version": versions.get("transformers"),
        "model_source": "llamita",
        "model_name": model,
        "model_name_sanitized": _file_name(model),
        "system_instruction": settings.get("system_instruction"),
        "fewshot_as_multiturn": settings.get("fewshot_as_multiturn"),
        "chat_template": template,
        "chat_template_sha": _sha256(template) if isinstance(template, str) else None,
        "llamita": _own(evaluation),
    }


def _summary(task: str, scores: Sequence[TaskScore]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": task,
        "alias": scores[0].config.get("task_alias") or task,
        "sample_len": max(len(each.values) for each in scores),
    }
    for each in scores:
        name, estimate = each.metric.partition(",")[0], each.estimate
        found[f"{name},{each.filter}"] = estimate.value
        # lm-eval's word for what one item cannot show.
        stderr = _known(estimate.stderr)
        found[f"{name}_stderr,{each.filter}"] = "N/A" if stderr is None else stderr
    return found


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _own(evaluation: Evaluation) -> dict[str, Any]:
    """What lm-eval has no place for."""
    return {
        "format": FORMAT,
        "model": evaluation.model,
        "fingerprint": evaluation.fingerprint,
        "tokens": evaluation.tokens,
        "date": evaluation.date,
        "settings": evaluation.settings,
        "versions": evaluation.versions,
        "counts": evaluation.counts,
        "missing": [{"task": each.task, "why": each.why} for each in evaluation.missing],
        "scores": [
            {
                "task": each.task,
                "metric": each.metric,
                "low": _known(each.estimate.low),
                "high": _known(each.estimate.high),
                "chance": each.chance,
                "harness": each.harness,
                "group": each.group,
                "available": each.available,
                "contaminated": None if each.contaminated is None else sorted(each.contaminated),
            }
            for each in evaluation.scores
        ],
    }


# -- reading ---------------------------------------------------------------------------------------


def load_evaluation(path: Path) -> Evaluation:
    """Read a results file of ours or of lm-eval's; of a folder, the newest in it.

    What lm-eval wrote without --log_samples has no items. Of such a file, the metrics that say
    right or wrong are read all the same, without ids; the others are named in `missing`.

    Raises:
        UserError: there is no results file, or it is not what its name says.
    """
    file = path if path.is_file() else _newest(path)
    document = _parsed(file, file.read_bytes())
    if not isinstance(document, dict) or not isinstance(document.get("results"), dict):
        raise UserError(f"{file} holds no results: name a results_….json of llamita or lm_eval")
    date = file.stem.rpartition("_")[2]

    def samples(task: str) -> list[dict[str, Any]] | None:
        for name in (task, _file_name(task)):
            found = file.parent / f"samples_{name}_{date}.jsonl"
            if found.is_file():
                lines = found.read_bytes().splitlines()
                return [_record(found, row, line) for row, line in enumerate(lines, 1) if line]
        return None

    return evaluation_of(document, samples, source=file, date=date)


def _newest(folder: Path) -> Path:
    """The newest results in a folder, or in the folder of the one model below it."""
    if not folder.is_dir():
        raise UserError(f"there is no {folder}: name a results_….json, or a folder with one")
    found = list(folder.glob("results_*.json"))
    if not found:
        found = list(folder.glob("*/results_*.json"))
        if len(models := {each.parent.name for each in found}) > 1:
            raise UserError(
                f"{folder} holds results of {len(models)} models: name one of "
                + ", ".join(str(folder / name) for name in sorted(models))
            )
    if not found:
        raise UserError(f"{folder} holds no results_….json, and nor does a folder in it")
    return max(found, key=lambda each: each.stem.rpartition("_")[2])


def _parsed(file: Path, content: bytes, line: int | None = None) -> Any:
    where = f"{file}" if line is None else f"{file}, line {line}"
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error


def _record(file: Path, row: int, line: bytes) -> dict[str, Any]:
    found = _parsed(file, line, row)
    if not isinstance(found, dict):
        raise UserError(f"{file}, line {row} is no record of an item")
    return found
