"""Events of runs that tune and that nobody trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tests.reporting.runs import BATCH, Run

TUNING = (
    "LoRA r=16 on all linear layers: 4,884,480 of 134,515,008 parameters learn (3.63%), scale 2"
)
PLAN = ["tuned: 134,515,008 parameters (106,203,456 without embeddings)", f"  tuning      {TUNING}"]
QUESTION = "What is 3?"


def interval(mean: float, reach: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


def score(step: int, *, reach: float = 0.1, loss: float | None = None) -> dict[str, Any]:
    """A dataset's part of a `preference` event, margins growing by a hundredth a step."""
    margin = interval(step / 100, reach)
    return {
        "pairs": 40,
        "loss": math.log1p(math.exp(-step / 100)) if loss is None else loss,
        "margin": margin,
        "accuracy": interval(0.5 + step / 200, 0.05),
        "policy_accuracy": interval(0.6, 0.05),
        "reference_accuracy": interval(0.55, 0.05),
        "has_effect": not margin["low"] <= 0 <= margin["high"],
    }


def pairs_of(step: int, **changes: Any) -> dict[str, Any]:
    """The fields that a preference stage's step has beside those of any."""
    fields = {"rewards_chosen": -step / 200, "rewards_rejected": -step / 100}
    fields |= {"margin": step / 200, "accuracy": 0.75, "logps_chosen": -9.0, "logps_rejected": -8.0}
    return {"loss": 0.6, **fields, **changes}


def announce(run: Run, last_step: int, kinds: dict[str, str], **changes: Any) -> None:
    recipe = {
        "name": "tuned",
        "start_from": "models/base",
        "samples": {"prompts": [QUESTION], "chat": True},
        "stages": [{"name": "stable"}],
    }
    stages = [
        {
            "name": "stable",
            "first_step": 0,
            "num_steps": last_step,
            "batch_tokens": BATCH,
            "mixture": {name: 1 / len(kinds) for name in kinds},
            "learning_rate": 1e-4,
            "learning_rate_at_end": 1e-6,
        }
    ]
    fields = {"plan": PLAN, "recipe": recipe, "stages": stages, "data_kinds": kinds}
    run.start(last_step, start_from="models/base", parameters=134_515_008, **fields | changes)


def sample(run: Run, step: int, text: str) -> None:
    run.write("sample", step=step, prompt=QUESTION, text=text)


def write_preferences(
    directory: Path,
    *,
    num_steps: int = 40,
    reach: float = 0.1,
    answers: tuple[str, str] = ("a", "b"),
) -> Path:
    """A stage over pairs alone, validated every ten steps; no `validation` event."""
    with Run(directory) as run:
        announce(run, num_steps, {"pairs": "preferences"})
        for step in range(num_steps + 1):
            if step:
                run.steps(step, step, **pairs_of(step))
            if step % 10 == 0:
                each = {"pairs": score(step, reach=0.0 if step == 0 else reach)}
                of = each["pairs"]
                together = {"loss": of["loss"], "accuracy": of["accuracy"]["mean"]}
                run.write("preference", step=step, **together, datasets=each)
            if step == 0:
                sample(run, 0, answers[0])
                run.write("stage", step=0, name="stable")
        sample(run, num_steps, answers[1])
        run.write("end", step=num_steps, final="final", bits_per_byte=None)
    return directory


def write_chats(directory: Path, *, early: bool = False, samples: bool = True) -> Path:
    """A stage over conversations; with `early` it ends at step 30 of 40."""
    with Run(directory) as run:
        announce(run, 40, {"chats": "chats"})
        for step in range(31 if early else 41):
            if step:
                run.steps(step, step)
            if step % 10 == 0:
                bits = 1.5 - step / 100 if step <= 10 else 1.6
                run.write("validation", step=step, bits_per_byte=bits, datasets={"chats": bits})
            if step == 0:
                if samples:
                    sample(run, 0, "before it learned")
                run.write("stage", step=0, name="stable")
        last = 30 if early else 40
        if early:
            fields = {"measure": "bits_per_byte", "value": 1.4, "validations": 2}
            run.write("early_stop", step=last, **fields)
        if samples:
            sample(run, last, "after it learned")
        run.write("end", step=last, final="final", bits_per_byte=1.6)
    return directory
