"""The contenders of time_to_quality.py: each trains in a process of its own, when its turn comes.

What is alike for all: weights are untouched until the clock runs (three forward and backward
passes compile everything, and their gradients are thrown away); the clock runs only in a
contender's own turns; its learning rate is its own schedule function, asked with milliseconds of
its own active time in place of steps; it stops at the last step that fits into its time.
Starting, compiling, validating and saving are not counted.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from time_to_quality_peers import PEERS, run_litgpt, run_transformers
from time_to_quality_turns import LAST_LOSSES, MIXTURE, SHAPE, WARMUP, Job, Outcome, Turn

LLAMITA: dict[str, dict[str, Any]] = {
    "llamita": {
        # The quickstart's choices: MiniCPM's multipliers, constant then a linear decay over 40%.
        "recipe": {
            "model": {
                "preset": "minicpm-9m",
                "hidden_size": 256,
                "intermediate_size": 704,
                "num_hidden_layers": 6,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 2048,
            },
            "optimizer": {},
        },
        "schedule": {"kind": "wsd", "decay": 0.4, "form": "linear"},
    },
    "llamita as llama": {  # without the multipliers: the peers' model
        "recipe": {"model": SHAPE, "optimizer": {}},
        "schedule": {"kind": "wsd", "decay": 0.4, "form": "linear"},
    },
}
"""Recipe keys and schedule of each llamita contender; the learning rate is the grid's. `decay` is a
share of the time, for kind wsd alone; other keys of the schedule are the recipe's."""

SETTINGS = {**LLAMITA, **PEERS}


def contend(job: Job, pipe: Connection) -> None:
    """A process's whole life: train when it is its turn, then send ("done", report)."""
    job.directory.mkdir(parents=True, exist_ok=True)
    turn = Turn(pipe, job.seconds, job.slice_seconds)
    turn.await_go()
    torch.set_num_threads(job.threads)
    log = job.directory / "log.txt"
    with log.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        model, losses, rate = CONTENDERS[job.contender](job, turn)
    except Exception as error:
        traceback.print_exc()
        pipe.send(("failed", f"{type(error).__name__}: {error} ({log})"))
        return
    turn.report |= {
        "model": str(model),
        "steps": turn.steps,
        "tokens": turn.steps * job.batch_tokens,
        "train_loss": float(np.mean(losses)),
        "last_learning_rate": rate,
    }
    pipe.send(("done", turn.report))


def run_llamita(job: Job, turn: Turn) -> Outcome:
    """`llamita.train`, unchanged but for the one function that gives the learning rate.

    That function is asked once at the start of every step, so turns are taken there too. At the
    end the run is stopped by SIGTERM, as a user would stop it, which saves it; the same recipe
    with as many tokens as were trained then writes `final/`.
    """
    from llamita.reporting.events import read_events
    from llamita.training import loop
    from llamita.training.run import RunInterrupted, train

    run = job.directory / "run"
    factor = _llamita_factor(job, turn, loop.learning_rate_factor)
    loop.learning_rate_factor = factor

    def say(line: str) -> None:
        if turn.stopping:  # the first line after the last step
            turn.finish(last_step=True)
        print(line)

    endless = 1_000_000 * job.batch_tokens
    try:
        train(_recipe(job, endless), out=run, say=say)
    except RunInterrupted:
        pass
    else:
        raise RuntimeError("llamita finished a million steps in its time")
    turn.finish(last_step=True)
    train(_recipe(job, turn.steps * job.batch_tokens), out=run, say=say)
    steps = [event for event in read_events(run / "events.jsonl") if event["event"] == "step"]
    if len(steps) != turn.steps:
        raise RuntimeError(f"llamita took {len(steps)} steps, {turn.steps} were counted")
    return run / "final", [s["loss"] for s in steps[-LAST_LOSSES:]], steps[-1]["learning_rate"]


def _llamita_factor(
    job: Job, turn: Turn, original: Callable[[Any, int, int], float]
) -> Callable[[Any, int, int], float]:
    from llamita.recipes.schema import Stage

    schedule = dict(SETTINGS[job.contender]["schedule"])
    if schedule["kind"] == "wsd":
        schedule["decay_tokens"] = round(schedule.pop("decay") * job.milliseconds)
    schedule["warmup_tokens"] = round(WARMUP * job.milliseconds)
    # A stage whose tokens are milliseconds.
    timed = Stage(name="time", tokens=job.milliseconds, mixture=MIXTURE, schedule=schedule)

    def factor(stage: Any, step: int, batch_tokens: int) -> float:
        if step == 0:
            turn.begin()
        elif turn.step(ahead=2):
            os.kill(os.getpid(), signal.SIGTERM)  # heeded after the step that now begins
        return original(timed, turn.milliseconds, 1)

    return factor


def _recipe(job: Job, tokens: int) -> Any:
    from llamita.recipes.loading import check_recipe

    settings = SETTINGS[job.contender]["recipe"]
    return check_recipe(
        {
            "name": "time-to-quality",
            "seed": job.seed,
            "sequence_length": job.sequence_length,
            "batch_tokens": job.batch_tokens,
            "datasets": {n: {"path": str(job.data / n), "max_epochs": 1e9} for n in MIXTURE},
            "stages": [{"name": "all", "tokens": tokens, "mixture": MIXTURE}],
            "validation": {"tokens": 4096},
            **settings,
            "optimizer": {**settings["optimizer"], "learning_rate": job.learning_rate},
            "runtime": {
                "dtype": "bfloat16",
                "compile": "always",
                "threads": job.threads,
                **settings.get("runtime", {}),
            },
        },
        job.contender,
    )


CONTENDERS: dict[str, Callable[[Job, Turn], Outcome]] = {
    **dict.fromkeys(LLAMITA, run_llamita),
    "transformers": run_transformers,
    "litgpt": run_litgpt,
}
