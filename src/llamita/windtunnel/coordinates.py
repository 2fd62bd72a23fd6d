"""How large is what flows through a model, and how far do a few optimizer steps move it?

The measuring half of muP's coordinate check (Yang et al., arXiv 2203.03466, appendix on verifying
an implementation by coordinate checking): where the parametrisation is right, the elements of every
activation keep their size when the model gets wider, and so do their changes under training.
`coordinate_check.py` judges that over widths.

The steps are those that training makes, of the recipe's own batches, by `TrainingStep`: a test
holds them to the weights that `train` ends with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llamita.data.batch import Batch, Cursor, StageData
from llamita.errors import UserError
from llamita.model.decoder import Block, Decoder
from llamita.model.devices import choose_device
from llamita.model.initialization import initialize, learning_rate_multipliers
from llamita.planning.plan import StagePlan
from llamita.recipes.schema import LanguageModelling, Recipe
from llamita.training.devices import Compute
from llamita.training.environment import settle_passes
from llamita.training.guards import Diverged, StepGuard
from llamita.training.objective import Objective, build_objective
from llamita.training.optimizer import build_optimizer
from llamita.training.parallelism import World
from llamita.training.preparation import Preparation, prepare
from llamita.training.process import deterministic
from llamita.training.step import TrainingStep
from llamita.windtunnel.coordinate_check import check_coordinates

__all__ = ["activations", "check_coordinates", "measure_coordinates"]

ROWS = 4
"""Of the first batch that is looked at."""
PEAK_SHARE = 0.1
"""Of the peak learning rate that steps are made at, by default."""
LOGIT_POSITIONS = 128
"""At the end of each of these rows whose logits are kept: with a vocabulary of 73,440, 150 MB."""


def measure_coordinates(
    recipe: Recipe,
    *,
    steps: Sequence[int],
    peak_share: float = PEAK_SHARE,
    rows: int = ROWS,
    device: str | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Train a new model of this recipe for `max(steps)` steps and look into it on the way.

    All as the recipe has it, but for the learning rate: `peak_share` of its first stage's peak at
    every step, without warm-up. muP's exponents hold at any fixed rate, but at the whole peak from
    the first step on narrow models are thrown about, and that is what is then measured: of
    MiniCPM's rule at 0.01 (2 blocks, 10 steps of 512 tokens) the residual stream came to 239 at
    width 64 and to 16 at 512, from 6.4 at both, and one learning rate for all showed as width^0.33
    after a step. At a tenth it came to 7.5 and 7.0, and the same showed as width^0.56.

    In float32 and uncompiled whatever `runtime` says: the question is one of arithmetic, and what
    bfloat16 rounds off is as large as a small update.

    Args:
        steps: optimizer steps after which to look; before the first one is looked in any case.
        peak_share: of the peak learning rate.
        rows: of the first batch; the same ones are run forward each time.
        device: in place of the recipe's `runtime.device`.

    Returns:
        step, as JSON writes keys → what → {"activation": root mean square of the elements,
        "update": that of their change since before the first step}; of step 0 no updates.

    Raises:
        UserError: nothing that starts from new weights and learns text, or what `prepare` refuses.
        Diverged: loss or gradients were not finite.
    """
    if recipe.runtime.threads is not None:
        torch.set_num_threads(recipe.runtime.threads)
    wanted = sorted(set(steps))
    assert wanted[0] > 0, f"steps {steps}"
    bench = _build(recipe, peak_share, choose_device(device or recipe.runtime.device))
    with deterministic(recipe.runtime, bench.step.device):
        batch, cursor = bench.data.batch(Cursor.beginning())
        fixed = batch.rows(0, rows).to(bench.step.device)
        start = activations(bench.model, fixed)
        found = {"0": {what: {"activation": _rms(x)} for what, x in start.items()}}
        for step in range(1, wanted[-1] + 1):
            bench.take(batch, step)
            batch, cursor = bench.data.batch(cursor)
            if step in wanted:
                found[str(step)] = {
                    what: {"activation": _rms(x), "update": _rms(x - start[what])}
                    for what, x in activations(bench.model, fixed).items()
                }
    return found


def _rms(x: Tensor) -> float:
    """Over all elements, in float64: a square may exceed float32 where the element does not."""
    return float(x.double().square().mean().sqrt())


# -- looking --------------------------------------------------------------------------------------


def activations(model: Decoder, batch: Batch) -> dict[str, Tensor]:
    """What flows through a model, of rows on its device; float32 for a model that computes in it.

    All (B, T, H) but for the logits (B, up to LOGIT_POSITIONS, V). The outputs of attention and
    MLP are as they leave their last matrix, before `residual_multiplier`.
    """
    with torch.no_grad(), _watched(model) as seen:
        logits = model(
            batch.tokens,
            positions=batch.positions,
            documents=batch.documents,
            logits_to_keep=min(LOGIT_POSITIONS, batch.tokens.shape[1]),
        )
    assert isinstance(logits, Tensor)
    return {**seen, "logits": logits}


@contextmanager
def _watched(model: Decoder) -> Iterator[dict[str, Tensor]]:
    """A dictionary that a forward pass fills in; nothing watches any more afterwards."""
    seen: dict[str, Tensor] = {}

    def keep_output(what: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            seen[what] = output

        return hook

    def keep_input(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen["embedding"] = inputs[0]

    blocks = [block for block in model.model.layers if isinstance(block, Block)]
    last = blocks[-1]
    with ExitStack() as stack:
        # The embedding is multiplied outside any module: what the first block is given has it all.
        handles = [blocks[0].register_forward_pre_hook(keep_input)]
        for name, block in _quarters(len(blocks)).items():
            handles.append(blocks[block - 1].register_forward_hook(keep_output(name)))
        for name, module in (
            ("attention of the last block", last.self_attn),
            ("MLP of the last block", last.mlp),
            ("final norm", model.model.norm),
        ):
            handles.append(module.register_forward_hook(keep_output(name)))
        for handle in handles:
            stack.callback(handle.remove)
        yield seen


def _quarters(layers: int) -> dict[str, int]:
    """Name of the residual stream after each quarter of the blocks → blocks that it has behind it.

    By shares and not by numbers, so that models of other depths have the same. Where fewer than
    four blocks leave two quarters at the same place, the later one names it.
    """
    ends = {-(-layers * quarter // 4): quarter for quarter in (1, 2, 3, 4)}
    return {f"residual after {quarter}/4 of the blocks": block for block, quarter in ends.items()}


# -- stepping -------------------------------------------------------------------------------------


@dataclass
class _Bench:
    """A model and what trains it, as `training.run` puts them together for a new run."""

    model: Decoder
    step: TrainingStep
    data: StageData
    objective: Objective
    micro_batch_size: int
    learning_rate: float

    def take(self, batch: Batch, number: int) -> None:
        result = self.step(self.objective, batch, self.micro_batch_size, self.learning_rate)
        if bool(result.verdict.non_finite):
            raise Diverged(
                f"loss or gradients were not finite at step {number}, "
                f"at a learning rate of {self.learning_rate:g}; lower it"
            )


def _build(recipe: Recipe, peak_share: float, device: torch.device) -> _Bench:
    """
    Raises:
        UserError: a recipe that goes on from weights, adapts them, or learns preferences.
    """
    if recipe.start_from is not None or recipe.adapter is not None:
        raise UserError(
            f"{recipe.name}: coordinates are measured from new weights on; leave out start_from "
            "and adapter"
        )
    if not isinstance(recipe.stages[0].objective, LanguageModelling):
        raise UserError(
            f"{recipe.name}: stage {recipe.stages[0].name} learns preferences, which takes a "
            "trained model; measure coordinates in a stage of language modelling"
        )
    preparation = prepare(recipe)
    plan = preparation.plan
    stage = plan.stages[0]
    compute = Compute(device, torch.float32, compile=False, matmul_rate=0.0, reasons=())
    rows, checkpointing = settle_passes(plan, recipe.runtime.micro_batch_size, 1, compute)
    model = Decoder(plan.config)
    initialize(model, plan.parametrization, seed=recipe.seed, std=recipe.initializer_std)
    model.checkpoint_blocks = checkpointing
    model.to(device)
    multipliers = learning_rate_multipliers(model, plan.parametrization)
    step = TrainingStep(
        model,
        build_optimizer(model, recipe.optimizer, multipliers),
        StepGuard(recipe.guard, device),
        device=device,
        clip_grad_norm=recipe.optimizer.clip_grad_norm,
        world=World(),
    )
    objective = build_objective(stage.stage.objective)
    rate = peak_share * stage.learning_rate
    return _Bench(model, step, _data(preparation, stage), objective, rows, rate)


def _data(preparation: Preparation, stage: StagePlan) -> StageData:
    return StageData(
        {name: dataset.train for name, dataset in preparation.datasets.items()},
        stage.stage.mixture,
        sequence_length=stage.sequence_length,
        windows_per_step=stage.windows_per_step,
        seed=preparation.recipe.seed,
        document_masking=getattr(stage.stage.objective, "document_masking", False),
    )
