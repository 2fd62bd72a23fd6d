"""TensorBoard, trackio and wandb as readers of a run's events.

A sink is an observer: it gets each event as it was written and shows its numbers under the names
of `scalars`. `replay` feeds one a run that was recorded before. What a resume supersedes vanishes
from TensorBoard and trackio; wandb keeps it, told apart by `attempt`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from llamita.durable import replace_synced
from llamita.errors import UserError, did_you_mean
from llamita.reporting.evaluation_events import scores_of
from llamita.reporting.events import Event, read_events
from llamita.reporting.tuning_events import is_chat

_PROJECT = "llamita"


class Sink(Protocol):
    """What `EventLog` calls an observer."""

    live: bool

    def observe(self, event: Event) -> None: ...

    def close(self) -> None: ...


def check_sinks(names: Iterable[str]) -> None:
    """Refuse, before anything is computed, what could not be shown.

    Raises:
        UserError: no such sink, its package is missing, or it would want an account or a server.
    """
    for name in names:
        if name not in SINKS:
            raise UserError(
                f"track: there is no {name!r} (there are {', '.join(SINKS)})."
                f"{did_you_mean(name, SINKS)}"
            )
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"track: {name} is not installed; pip install 'llamita[{name}]', or take {name} "
                "out of the recipe's track"
            )
        if name == "trackio":
            _check_trackio()
        if name == "wandb":
            _check_wandb()


def make_sinks(names: Iterable[str], run: Path) -> list[Sink]:
    """The sinks of a run directory. Nothing is written before the first event."""
    names = list(names)
    check_sinks(names)
    return [SINKS[name](run) for name in names]


def replay(run: str | Path, sinks: Sequence[Sink]) -> None:
    """Feed a recorded run's events to sinks, from its beginning, and close them.

    Raises:
        UserError: there are no events.
    """
    events = read_events(Path(run))
    if not any(event["event"] in ("start", "resume") for event in events):
        raise UserError(f"{run}: its events have no beginning, so there is nothing to show")
    for sink in sinks:
        for event in events:
            sink.observe(event)
        sink.close()


def scalars(event: Event) -> dict[str, float]:
    """An event's numbers under the names that every sink shows them by."""
    match event["event"]:
        case "step":
            shown = {f"train/{key}": event[key] for key in _STEP if key in event}
            shown |= {f"train/{tag}": event[key] for key, tag in _PAIRS.items() if key in event}
            shown["train/skipped"] = float("skipped" in event)
        case "progress":
            shown = {f"speed/{key}": event[key] for key in _PROGRESS if key in event}
        case "validation":
            shown = {"validation/bits_per_byte": event["bits_per_byte"]}
            for name, value in event.get("datasets", {}).items():
                shown[f"validation/bits_per_byte/{name}"] = value
        case "preference":
            shown = _of_pairs(event)
        case "evaluation":
            shown = {
                f"evaluation/{score['metric']}/{score['task']}": score["value"]
                for score in scores_of(event)
            }
        case _:
            shown = {}
    return {name: float(value) for name, value in shown.items()}  # "nan" and "inf" are strings


_STEP = ("loss", "grad_norm", "learning_rate", "tokens")
_PAIRS = {
    "rewards_chosen": "rewards/chosen",
    "rewards_rejected": "rewards/rejected",
    "margin": "rewards/margins",
    "accuracy": "rewards/accuracies",
    "logps_chosen": "logps/chosen",
    "logps_rejected": "logps/rejected",
}
"""Tags by which TRL logs the same, so that runs of both can be laid side by side."""
_PROGRESS = ("tokens_per_second", "mfu", "memory_bytes", "data_wait")


def _of_pairs(event: Event) -> dict[str, Any]:
    """Held-out pairs: together, and each dataset's with its interval."""
    shown = {"preference_loss": event["loss"], "rewards/accuracies": event["accuracy"]}
    for name, score in event["datasets"].items():
        shown[f"preference_loss/{name}"] = score["loss"]
        for key in ("accuracy", "margin"):
            tag = _PAIRS[key]
            ends = {"": "mean", "_low": "low", "_high": "high"}
            # Of a single pair there is no interval.
            shown |= {
                f"{tag}{suffix}/{name}": score[key][end]
                for suffix, end in ends.items()
                if score[key][end] is not None
            }
    return {f"validation/{tag}": value for tag, value in shown.items()}


class _Sink(ABC):
    """What the three share: beginning with history where there is none, and naming samples."""

    live = False

    def __init__(self, run: Path) -> None:
        self.run = run
        self.tokens = 0
        self._begun = False
        self._prompts: list[str] = []
        self._between = ""

    def observe(self, event: Event) -> None:
        if not self._begun:
            self._begin(event)
        if event["event"] == "step":
            self.tokens = event["tokens"]
        numbers = scalars(event)
        if numbers:
            self._numbers(event, numbers)
        if event["event"] == "sample":
            prompt = event["prompt"]
            if prompt not in self._prompts:
                self._prompts.append(prompt)
            name = f"samples/{self._prompts.index(prompt)}"
            self._text(event, name, prompt, event["text"])
        if event["event"] in ("progress", "checkpoint"):
            self._flush()

    def close(self) -> None:
        if self._begun:
            self._finish()

    def _begin(self, event: Event) -> None:
        self._begun = True
        recipe = event.get("recipe") or {}
        self._prompts = list((recipe.get("samples") or {}).get("prompts") or [])
        self._between = "\n\n" if is_chat(recipe) else ""  # a question and its answer
        resumed = event["step"] if event["event"] == "resume" else None
        if not self._open(resumed, recipe):
            return
        for earlier in self._history(event):
            self.observe(earlier)

    def _history(self, event: Event) -> list[Event]:
        """What the run had recorded up to where it goes on from."""
        if not (self.run / "events.jsonl").is_file():
            return []
        earlier = [e for e in read_events(self.run) if e["time"] < event["time"]]
        return [e for e in earlier if e.get("step", 0) <= event["step"]]

    @abstractmethod
    def _open(self, resumed: int | None, recipe: dict[str, Any]) -> bool:
        """Begin, or go on from step `resumed`. True asks for what happened before."""

    @abstractmethod
    def _numbers(self, event: Event, numbers: Mapping[str, float]) -> None:
        """Show numbers under their names."""

    @abstractmethod
    def _text(self, event: Event, name: str, prompt: str, text: str) -> None:
        """Show a sample."""

    def _flush(self) -> None:  # noqa: B027  trackio and wandb send in their own time
        """Make what was shown visible now, where that has to be asked for."""

    @abstractmethod
    def _finish(self) -> None:
        """No more will come."""


def _newest_second(folder: Path) -> int | None:
    """Of TensorBoard's files, whose names begin with the second that they were made in."""
    found = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
    return max((int(second) for second in found), default=None)


def _await_later_name(folder: Path) -> None:
    """TensorBoard reads files by name: one of the same second might come before its predecessor."""
    newest = _newest_second(folder)
    while newest is not None and newest >= int(time.time()) >= newest - 1:
        time.sleep(0.05)


class TensorBoardSink(_Sink):
    """Event files in RUN/tensorboard, and by number of tokens in RUN/tensorboard/by_tokens.

    Going on from step s tells TensorBoard to forget what came after it (`purge_step`).
    """

    def _open(self, resumed: int | None, recipe: dict[str, Any]) -> bool:
        from torch.utils.tensorboard import SummaryWriter

        folder = self.run / "tensorboard"
        known = _newest_second(folder) is not None
        step = tokens = None
        if known:
            step = tokens = 0
            _await_later_name(folder)
        if known and resumed is not None:
            step = resumed + 1
            tokens = 1 + max((e["tokens"] for e in self._steps_up_to(resumed)), default=0)
        make: Callable[..., Any] = SummaryWriter
        self._writer = make(str(folder), purge_step=step, flush_secs=10)
        self._by_tokens = make(str(folder / "by_tokens"), purge_step=tokens, flush_secs=10)
        if recipe and not (known and resumed is not None):
            self._writer.add_text("recipe", _fenced(yaml.safe_dump(recipe, sort_keys=False)), 0)
        return resumed is not None and not known

    def _steps_up_to(self, step: int) -> list[Event]:
        if not (self.run / "events.jsonl").is_file():
            return []
        events = read_events(self.run)
        return [e for e in events if e["event"] == "step" and e["step"] <= step]

    def _numbers(self, event: Event, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, event["step"], walltime=event["time"])
        for name in ("train/loss", "validation/bits_per_byte", "validation/preference_loss"):
            if name in numbers:
                place = f"by_tokens/{name.rpartition('/')[2]}"
                self._by_tokens.add_scalar(
                    place, numbers[name], self.tokens, walltime=event["time"]
                )

    def _text(self, event: Event, name: str, prompt: str, text: str) -> None:
        shown = _fenced(f"{prompt}{self._between}{text}")
        self._writer.add_text(name, shown, event["step"], walltime=event["time"])

    def _flush(self) -> None:
        self._writer.flush()
        self._by_tokens.flush()

    def _finish(self) -> None:
        self._writer.close()
        self._by_tokens.close()


class TrackioSink(_Sink):
    """A run of the project `llamita` (or TRACKIO_PROJECT) in trackio's own local database.

    That is TRACKIO_DIR, by default ~/.cache/huggingface/trackio, where `trackio show` finds all
    runs side by side. Going on deletes trackio's copy and writes it again from events.jsonl.
    """

    def _open(self, resumed: int | None, recipe: dict[str, Any]) -> bool:
        _check_trackio()
        with _silent():
            import trackio

            kept = _recorded(self.run / "trackio.json")
            if kept is None:
                project = os.environ.get("TRACKIO_PROJECT", _PROJECT)
                kept = {"project": project, "name": f"{self.run.name}-{secrets.token_hex(3)}"}
                _record(self.run / "trackio.json", kept)
            with contextlib.suppress(ValueError):  # there is no such project yet
                for earlier in trackio.Api().runs(kept["project"]):
                    if earlier.name == kept["name"]:
                        earlier.delete()
            self._trackio = trackio.init(
                kept["project"],
                name=kept["name"],
                config=_flat(recipe),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        return resumed is not None

    def _numbers(self, event: Event, numbers: Mapping[str, float]) -> None:
        shown = dict(numbers)
        shown.setdefault("train/tokens", float(self.tokens))
        self._trackio.log(shown, step=event["step"])

    def _text(self, event: Event, name: str, prompt: str, text: str) -> None:
        import trackio

        self._trackio.log(
            {name: trackio.Markdown(_fenced(f"{prompt}{self._between}{text}"))}, step=event["step"]
        )

    def _finish(self) -> None:
        with _silent():
            import trackio

            trackio.finish()


class WandbSink(_Sink):
    """A run of WANDB_PROJECT (default `llamita`), with its files in RUN/wandb.

    WANDB_MODE=offline keeps it local; `wandb sync` sends it later. A run that goes on continues
    the same wandb run. wandb's history cannot be rewritten: rows of steps that were taken again
    remain, and `attempt` (0, then 1 more each time the run went on) tells them apart: of two rows
    of a step the higher stands. What a killed process had not handed over is told once more.
    """

    def _open(self, resumed: int | None, recipe: dict[str, Any]) -> bool:
        import wandb

        place = self.run / "wandb-run.json"
        kept = _recorded(place) if resumed is not None else None
        if kept is None:
            kept = {"id": secrets.token_hex(4), "attempt": -1, "closed": False}
        # wandb writes in blocks; those of a process that was killed may never have come out.
        whole = kept["closed"]
        self._kept = {**kept, "attempt": kept["attempt"] + 1, "closed": False}
        _record(place, self._kept)
        self._attempt = self._kept["attempt"]
        self._wandb = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=os.environ.get("WANDB_NAME", self.run.name),
            id=kept["id"],
            resume="allow",
            dir=str(self.run),
            config=recipe,
            settings=wandb.Settings(silent=True, console="off"),
        )
        # Their own axis, because wandb's counter cannot go back when steps are taken again.
        self._wandb.define_metric("step")
        for group in ("train", "speed", "validation", "evaluation", "samples"):
            self._wandb.define_metric(f"{group}/*", step_metric="step")
        return resumed is not None and not whole

    def _numbers(self, event: Event, numbers: Mapping[str, float]) -> None:
        shown = {"train/tokens": float(self.tokens), **numbers}
        self._wandb.log({"step": event["step"], "attempt": self._attempt, **shown})

    def _text(self, event: Event, name: str, prompt: str, text: str) -> None:
        self._wandb.log(
            {
                "step": event["step"],
                "attempt": self._attempt,
                name: f"{prompt}{self._between}{text}",
            }
        )

    def _finish(self) -> None:
        self._wandb.finish()
        _record(self.run / "wandb-run.json", {**self._kept, "closed": True})


SINKS: Mapping[str, type[_Sink]] = {
    "tensorboard": TensorBoardSink,
    "trackio": TrackioSink,
    "wandb": WandbSink,
}


# -- small things -----------------------------------------------------------------------------


def _check_trackio() -> None:
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        if os.environ.get(name):
            raise UserError(
                f"track: trackio is used on this machine alone, but {name} is set; unset it, and "
                "send the finished run with trackio.sync if you want to"
            )


def _check_wandb() -> None:
    import wandb

    mode = os.environ.get("WANDB_MODE", "online")
    if mode in ("offline", "dryrun", "disabled"):
        return
    try:
        allowed = wandb.login()
    except Exception as error:
        raise UserError(_WANDB_ACCOUNT.format(f" ({error})")) from error
    if not allowed:
        raise UserError(_WANDB_ACCOUNT.format(""))


_WANDB_ACCOUNT = (
    "track: wandb is not logged in{}; run `wandb login`, or keep the run local with "
    "WANDB_MODE=offline and send it later with `wandb sync`"
)


def _silent() -> contextlib.AbstractContextManager[object]:
    """trackio prints to standard output, which is the panel's."""
    return contextlib.redirect_stdout(io.StringIO())


def _recorded(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _record(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_synced(path, json.dumps(values) + "\n")


def _fenced(text: str) -> str:
    """Text that Markdown leaves alone."""
    longest = max((len(run) for run in text.split("\n") if set(run) == {"`"}), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `optimizer.learning_rate`: a table of one level."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
