"""One step's work before the first step: how long will this take?"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from llamita.model.devices import synchronize
from llamita.planning.quantities import duration
from llamita.training.compilation import graphs_met
from llamita.training.loop import Trainer
from llamita.training.objective import build_objective


def probe(trainer: Trainer, say: Callable[[str], None]) -> dict[str, float]:
    """Compile and time one micro-batch, forward and backward, and undo its gradients.

    Weights, optimizer, data order and random state are untouched. Returns seconds: to compile
    (zero where nothing is compiled), for a step, for the rest of the run.
    """
    plan, position = trainer.plan, trainer.position
    stage = plan.stages[min(position.stage, len(plan.stages) - 1)]
    batch, _ = trainer.stage_data(stage).batch(position.cursor)
    rows = trainer.world.rows(batch)
    micro = rows.rows(0, trainer.micro_batch_size).to(trainer.compute.device)
    objective = build_objective(stage.stage.objective)
    seconds = []
    device = trainer.compute.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for _ in range(3):
            start = time.perf_counter()
            loss, _ = objective.loss_sum(trainer.model, micro)
            torch.autograd.backward(loss)
            synchronize(device)
            seconds.append(time.perf_counter() - start)
    trainer.optimizer.zero_grad()
    best = min(seconds[1:])
    compiling = max(0.0, seconds[0] - best) if trainer.compute.compile else 0.0
    step = best * len(rows.tokens) / len(micro.tokens)
    rest = step * (trainer.last_step - position.step)
    compiled = ""
    if compiling:
        found, missed = graphs_met()
        kept = f", {found} of {found + missed} graphs kept from before" if found else ""
        compiled = f"compiled in {duration(compiling)}{kept}; "
    say(
        f"  time        {compiled}about {step:.3g} s a step, {duration(rest)} for the "
        f"{trainer.last_step - position.step:,} steps to come"
    )
    return {"compile_seconds": compiling, "step_seconds": step, "rest_seconds": rest}
