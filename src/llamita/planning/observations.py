"""What a scaling law is fitted to: N, D and loss of runs, from tables and from runs' events.

A run's events are read by `llamita.reporting.events`, imported in the function that needs it: it is
the one place that reads them, and nothing of reporting imports this module.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from llamita.architecture.counts import Counts
from llamita.errors import UserError, did_you_mean
from llamita.planning.laws import LossUnit

ALIASES = {
    "parameters": ("parameters", "params", "num_parameters", "model_size", "n"),
    "tokens": ("tokens", "training_tokens", "num_tokens", "d"),
    "loss": ("loss", "validation_loss", "val_loss", "l", "bits_per_byte", "bpb"),
    "group": ("group",),
}
"""Names under which a column is found, whatever their case, with spaces and hyphens for _ too."""
_BITS = ("bits_per_byte", "bpb")
_DECAYED = 0.5
"""A run has decayed if its last step's learning rate is at most this share of its highest."""


@dataclass(frozen=True)
class Observation:
    """The loss that `parameters` reached after `tokens`.

    group: observations of one group share noise, as branches share their trunk's; each is its own
    group where it is empty. where: file and line, or the run's directory.
    """

    parameters: float
    tokens: float
    loss: float
    group: str = ""
    where: str = ""


@dataclass(frozen=True)
class Observations:
    """All that a law is fitted to, and what the loss is measured in."""

    rows: tuple[Observation, ...]
    loss: LossUnit
    counts: Counts
    data: str | None = None
    """Whose text the loss is of, where the sources say."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Columns:
    """A table's columns by name; None: found by `ALIASES`."""

    parameters: str | None = None
    tokens: str | None = None
    loss: str | None = None
    group: str | None = None

    def named(self) -> list[str]:
        """The options that were given."""
        return [f"--{role}" for role in ALIASES if getattr(self, role) is not None]


def read_observations(
    sources: Sequence[str | Path],
    *,
    columns: Columns | None = None,
    loss: str | None = None,
    counts: str | None = None,
) -> Observations:
    """Read tables (.csv, .tsv, .jsonl) and runs' directories.

    A run counts as one observation: D are all tokens that its weights saw, a branch's trunk
    included, and the loss is the bits per byte that its end records. Runs that have not ended, or
    whose learning rate has not decayed, are left out, and a warning says so.

    Args:
        columns: of tables, where they bear other names than `ALIASES`.
        loss: what a table's loss is measured in; default bits per byte where the column says so,
            else nats per token. Runs are in bits per byte always.
        counts: which parameters N counts; of a table it says what is there, of a run what to count.
            Default total.

    Raises:
        UserError: a source that is neither; a row that is wrong, by its line; options without
            effect; losses in different units.
    """
    chosen = columns or Columns()
    unit_said: LossUnit | None = _one_of("loss-unit", loss, get_args(LossUnit))
    counted: Counts = _one_of("counts", counts, get_args(Counts)) or "total"
    if not sources:
        raise UserError("name a table (.csv, .tsv, .jsonl) or the directories of runs")
    _refuse_twice([Path(source) for source in sources])
    runs = [run for source in sources if (run := _run_directory(Path(source))) is not None]
    tables = [Path(source) for source in sources if _run_directory(Path(source)) is None]
    if not tables and chosen.named():
        raise UserError(f"{', '.join(chosen.named())}: only tables have columns; leave it out")
    if runs and unit_said not in (None, "bits per byte"):
        raise UserError(f"--loss-unit {loss}: runs are in bits per byte; leave it out")
    rows: list[Observation] = []
    units: dict[LossUnit, str] = {}
    for table in tables:
        found, unit = _read_table(table, chosen)
        rows += found
        units[unit_said or unit] = str(table)
    ended = _read_runs(runs, counted) if runs else _Runs()
    if runs:
        units["bits per byte"] = str(runs[0])
    if len(units) > 1:
        shown = " and ".join(f"{where} ({unit})" for unit, where in units.items())
        raise UserError(
            f"one law has one unit of loss: {shown}; fit them apart, or say what the table holds "
            "with --loss-unit"
        )
    rows += ended.rows
    return Observations(tuple(rows), next(iter(units)), counted, ended.data, tuple(ended.warnings))


def _one_of(option: str, value: str | None, allowed: Sequence[Any]) -> Any:
    if value is not None and value not in allowed:
        raise UserError(
            f"--{option} {value!r}: write {' or '.join(allowed)}.{did_you_mean(value, allowed)}"
        )
    return value


def _refuse_twice(sources: Sequence[Path]) -> None:
    """What is named twice would count twice, and make intervals narrower than they are."""
    places = [(_run_directory(source) or source).resolve() for source in sources]
    for source, place in zip(sources, places, strict=True):
        if places.count(place) > 1:
            raise UserError(f"{source} is given twice; leave one out")


# -- tables ---------------------------------------------------------------------------------------


def _read_table(path: Path, columns: Columns) -> tuple[list[Observation], LossUnit]:
    rows: list[Observation] = []
    names: dict[str, str] = {}
    for line, row in _records(path):
        where = f"{path}:{line}"
        if not names or any(name not in row for name in names.values()):
            names = _find_columns(row, columns, where)
        values = {
            role: _positive(row[name], f"{where}: {name}")
            for role, name in names.items()
            if role != "group"
        }
        group = str(row[names["group"]]).strip() if "group" in names else ""
        rows.append(Observation(**values, group=group, where=where))
    if not rows:
        raise UserError(f"{path} holds no rows; write one a run, with N, D and loss")
    bits = _plain(names["loss"]) in _BITS
    return rows, "bits per byte" if bits else "nats per token"


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, column → value) of a table's rows."""
    if not path.is_file():
        what = "is a directory without events.jsonl" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}: name a table (.csv, .tsv, .jsonl) or a run's directory")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    lines = text.splitlines()
    if path.suffix == ".jsonl":
        yield from _json_records(path, lines)
    elif path.suffix in (".csv", ".tsv"):
        yield from _separated_records(path, lines, "\t" if path.suffix == ".tsv" else ",")
    else:
        raise UserError(f"{path}: a table is a .csv, .tsv or .jsonl file; rename or convert it")


def _json_records(path: Path, lines: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f'{path}:{number}: not an object, such as {{"N": 7e7, "D": 1.4e9}}')
        yield number, row


def _separated_records(
    path: Path, lines: Sequence[str], delimiter: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(lines, delimiter=delimiter)
    header: list[str] | None = None
    for fields in reader:
        if not any(field.strip() for field in fields):
            continue
        if header is None:
            header = [field.strip() for field in fields]
            twice = {name for name in header if header.count(name) > 1}
            if twice:
                raise UserError(f"{path}:{reader.line_num}: two columns are named {twice.pop()!r}")
        elif len(fields) != len(header):
            raise UserError(
                f"{path}:{reader.line_num}: {len(fields)} fields under {len(header)} columns"
            )
        else:
            yield reader.line_num, dict(zip(header, fields, strict=True))


def _find_columns(row: Mapping[str, Any], columns: Columns, where: str) -> dict[str, str]:
    """Role → name of its column."""
    found: dict[str, str] = {}
    for role, aliases in ALIASES.items():
        asked = getattr(columns, role)
        if asked is not None:
            if asked not in row:
                raise UserError(
                    f"{where}: there is no column {asked!r} (--{role}); there are "
                    f"{', '.join(row)}.{did_you_mean(asked, list(row))}"
                )
            found[role] = asked
            continue
        names = [name for name in row if _plain(name) in aliases]
        if len(names) > 1:
            raise UserError(
                f"{where}: {' and '.join(names)} may all be the {role}; choose with --{role} COLUMN"
            )
        if names:
            found[role] = names[0]
        elif role != "group":
            raise UserError(
                f"{where}: no column for the {role} (one of {', '.join(aliases)}); there are "
                f"{', '.join(row)}; name it with --{role} COLUMN"
            )
    return found


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _positive(value: Any, where: str) -> float:
    """A number above 0 as a table writes it: 7e7, 70_000_000, 70000000."""
    try:
        read = math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError):
        read = math.nan
    if not math.isfinite(read):
        raise UserError(f"{where} is {value!r}, not a finite number; write it as in 7e7")
    if read <= 0:
        raise UserError(f"{where} is {value!r}; parameters, tokens and losses lie above 0")
    return read


# -- runs -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Runs:
    rows: tuple[Observation, ...] = ()
    data: str | None = None
    warnings: tuple[str, ...] = ()


def _run_directory(source: Path) -> Path | None:
    """The run that a source names, by its directory or by its events; None for a table."""
    if source.name == "events.jsonl":
        return source.parent
    return source if (source / "events.jsonl").is_file() else None


def _read_runs(runs: Sequence[Path], counts: Counts) -> _Runs:
    from llamita.reporting.events import read_events

    rows: list[Observation] = []
    left_out: dict[str, list[str]] = {}
    texts: dict[str, Path] = {}
    for run in runs:
        events = read_events(run)
        reason = _unfit(events)
        if reason:
            left_out.setdefault(reason, []).append(str(run))
            continue
        rows.append(_of_run(run, events, counts))
        texts.setdefault(_held_out(events), run)
    warnings = [
        f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} left out: {reason}"
        for reason, names in left_out.items()
    ]
    if not rows:
        raise UserError("; ".join(warnings) + "; no run is left to fit")
    if len(texts) > 1:
        shown = ", ".join(f"{text} in {run}" for text, run in texts.items())
        warnings.append(f"the runs were validated on different text: {shown}")
    return _Runs(tuple(rows), " or ".join(texts), tuple(warnings))


def _unfit(events: Sequence[Mapping[str, Any]]) -> str | None:
    """Why a run is no observation of a law, if it is none."""
    announced = [event for event in events if event["event"] in ("start", "resume")]
    telling = [event for event in events if event["event"] in ("start", "resume", "step", "end")]
    if not telling or telling[-1]["event"] != "end":
        return "no end is recorded"
    if not announced or not announced[-1].get("stages"):
        return "the events do not tell of stages: an older version wrote them"
    stages = announced[-1]["stages"]
    if any("margin" in event for event in events if event["event"] == "step"):
        return "it learned preferences, whose loss is of pairs and not of text"
    kinds = announced[-1].get("data_kinds") or {}
    if any(kinds.get(name) == "chats" for stage in stages for name in stage.get("mixture", ())):
        return "it learned from conversations, whose loss is of answers and not of text"
    if any(event["event"] == "early_stop" for event in events):
        return "validation.patience ended it before its schedule did"
    highest = max(stage["learning_rate"] for stage in stages)
    end = stages[-1]["learning_rate_at_end"]
    if end > _DECAYED * highest:
        return (
            f"the learning rate has not decayed (it ends at {end:.3g} of at most {highest:.3g}), "
            "and with it the loss would still fall; branch a decay"
        )
    return None


def _of_run(run: Path, events: Sequence[Mapping[str, Any]], counts: Counts) -> Observation:
    announced = [event for event in events if event["event"] in ("start", "resume")]
    start = announced[0]
    if start.get("start_from") and not start["step"]:
        raise UserError(
            f"{run} began with the weights of {start['start_from']}, and its events do not say how "
            "many tokens those had seen; leave it out"
        )
    step, end = (
        [event for event in events if event["event"] == kind][-1] for kind in ("step", "end")
    )
    loss = end.get("bits_per_byte")
    if not isinstance(loss, float) or not loss > 0:
        raise UserError(
            f"{run} ended without a validation of its model: the loss is measured on held-out "
            "text, and not on a mean of checkpoints (data build --validation 0.01; not "
            "averaging.kind: last); leave it out, or train it so"
        )
    parameters = announced[-1].get("parameters")
    if counts == "non-embedding":
        parameters = _without_embeddings(run)
    where = f"{run}: parameters"
    return Observation(
        _positive(parameters, where), float(step["tokens"]), loss, _root(run, start), str(run)
    )


def _held_out(events: Sequence[Mapping[str, Any]]) -> str:
    """The text that a run's last validation was on."""
    last = [event for event in events if event["event"] == "validation"][-1]
    names = ", ".join(last.get("datasets", {}))
    size = last.get("bytes")
    return f"held-out text of {names}" + (f" ({size:,} bytes)" if isinstance(size, int) else "")


def _without_embeddings(run: Path) -> int:
    from llamita.architecture.config import ModelConfig
    from llamita.architecture.counts import num_parameters

    path = run / "final" / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}), and it tells the parameters without embeddings; put "
            "it back, or write --counts total"
        ) from error
    return num_parameters(ModelConfig.from_huggingface(values), embedding=False)


def _root(run: Path, start: Mapping[str, Any]) -> str:
    """The run whose weights a branch goes on from, followed to the first one that is there."""
    from llamita.reporting.events import read_events

    seen = {run.resolve()}
    while start.get("start_from"):
        origin = Path(start["start_from"])
        trunk = origin.parent if re.fullmatch(r"step-\d+|final", origin.name) else origin
        if trunk.resolve() in seen or not (trunk / "events.jsonl").is_file():
            return str(trunk.resolve())
        run = trunk
        seen.add(run.resolve())
        start = read_events(run)[0]
    return str(run.resolve())
