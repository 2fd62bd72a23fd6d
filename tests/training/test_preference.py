"""DPO and its kin: losses, gradients and metrics against TRL's own code."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from llamita.data.batch import Batch
from llamita.inference.scoring import score_batch
from llamita.model.decoder import Decoder
from llamita.model.head import IGNORE
from llamita.model.initialization import learning_rate_multipliers
from llamita.recipes.schema import AdamW, Guard, Preference
from llamita.training.answers import answer_sums
from llamita.training.guards import StepGuard
from llamita.training.objective import build_objective
from llamita.training.optimizer import build_optimizer
from llamita.training.parallelism import World
from llamita.training.preference_scoring import (
    mean_interval,
    preferred,
    score_preferences,
    wilson_interval,
)
from llamita.training.reference import AnswerTable, answer_table
from llamita.training.step import TrainingStep
from tests.model.shapes import transformers_model
from tests.training.pairs import PairStream, ours, random_pairs

CPU = torch.device("cpu")
BETA = 0.3
# A row of two pairs and padding, one of three, and one of padding alone.
LAYOUT = ((0, 1), (2, 3, 4), ())
NAMES = {
    "rewards_chosen": "rewards/chosen",
    "rewards_rejected": "rewards/rejected",
    "margin": "rewards/margins",
    "accuracy": "rewards/accuracies",
    "logps_chosen": "logps/chosen",
    "logps_rejected": "logps/rejected",
}


class OtherModel:
    """A reference that is another decoder."""

    def __init__(self, model: Decoder) -> None:
        self.model = model

    @torch.no_grad()
    def log_probs(self, model: Decoder, batch: Batch) -> Tensor:
        return answer_sums(score_batch(self.model, batch).log_probs, batch)


@pytest.fixture(scope="module")
def stream() -> PairStream:
    return PairStream(random_pairs(5), LAYOUT)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return ours(transformers_model("llama-untied"), tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return ours(transformers_model("llama-untied", seed=1), tmp_path_factory.mktemp("reference"))


def step_of(model: Decoder, world: World | None = None) -> TrainingStep:
    settings = AdamW(learning_rate=1e-3)
    optimizer = build_optimizer(model, settings, learning_rate_multipliers(model, "llama"))
    guard = StepGuard(Guard(), CPU)
    return TrainingStep(
        model, optimizer, guard, device=CPU, clip_grad_norm=None, world=world or World()
    )


Judged = tuple[float, dict[str, float], dict[str, Tensor]]


def judged(
    model: Decoder, other: Decoder, settings: Preference, batch: Batch, rows: int = 1
) -> Judged:
    """Loss, metrics and gradients, in micro-batches of `rows` rows, as the loop computes them."""
    model.zero_grad()
    objective = build_objective(settings, OtherModel(other))
    means = step_of(model).gradients(objective, batch.split(rows), objective.count(batch))
    metrics = {name: float(value) for name, value in means.metrics.items()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return float(means.loss), metrics, gradients


# -- TRL ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trl(tmp_path_factory: pytest.TempPathFactory, stream: PairStream) -> Callable[..., Judged]:
    """TRL's trainer on the same pairs: (loss_type, label_smoothing, one pair a batch) → Judged."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(97)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t2", pad_token="t0")
    trainer = DPOTrainer(
        model=transformers_model("llama-untied"),
        ref_model=transformers_model("llama-untied", seed=1),
        args=DPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            use_cpu=True,
            bf16=False,
            report_to="none",
            beta=BETA,
        ),
        # It wants a dataset; what is compared goes through its collator, already in tokens.
        train_dataset=Dataset.from_list([{"prompt": "t3", "chosen": " t4", "rejected": " t5"}]),
        processing_class=tokenizer,
    )
    examples = [{f"{key}_ids": value for key, value in asdict(p).items()} for p in stream.pairs]

    def judge(loss_type: str, label_smoothing: float = 0.0, *, singly: bool = False) -> Judged:
        trainer.loss_types, trainer.label_smoothing = [loss_type], label_smoothing
        trainer.model.zero_grad()
        trainer._metrics = {mode: _Lists() for mode in ("train", "eval")}
        parts = [[example] for example in examples] if singly else [examples]
        total = 0.0
        for part in parts:
            loss = trainer._compute_loss(trainer.model, trainer.data_collator(part), False)
            (loss / len(parts)).backward()
            total += float(loss.detach()) / len(parts)
        told = trainer._metrics["train" if trainer.model.training else "eval"]
        metrics = {our: float(np.mean(told[their])) for our, their in NAMES.items()}
        gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters()}
        return total, metrics, gradients

    return judge


class _Lists(dict[str, list[Any]]):
    def __missing__(self, key: str) -> list[Any]:
        return self.setdefault(key, [])


@pytest.mark.parametrize(
    ("settings", "their_loss"),
    [
        (Preference(beta=BETA), ("sigmoid", 0.0)),
        (Preference(beta=BETA, loss="ipo"), ("ipo", 0.0)),
        # TRL's sigmoid does not smooth. Of a single pair, its sorted transport loss is cDPO's.
        (Preference(beta=BETA, label_smoothing=0.2), ("aot", 0.2)),
    ],
    ids=["sigmoid", "ipo", "cdpo"],
)
def test_losses_gradients_and_metrics_are_trls(
    settings: Preference,
    their_loss: tuple[str, float],
    trl: Callable[..., Judged],
    stream: PairStream,
    policy: Decoder,
    reference: Decoder,
) -> None:
    loss, metrics, gradients = judged(policy, reference, settings, stream.batch())
    wanted, their_metrics, their_gradients = trl(*their_loss, singly=their_loss[0] == "aot")
    assert loss == pytest.approx(wanted, rel=2e-5)
    assert metrics == pytest.approx(their_metrics, rel=2e-4, abs=2e-5)
    assert 0 < metrics["accuracy"] < 1, "the comparison is about something"
    assert gradients.keys() == their_gradients.keys()
    for name, gradient in gradients.items():
        scale = float(their_gradients[name].abs().max())
        torch.testing.assert_close(
            gradient, their_gradients[name], rtol=1e-3, atol=2e-5 * scale, msg=name
        )


# -- mathematics --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (Preference(beta=BETA), math.log(2)),
        (Preference(beta=BETA, label_smoothing=0.1), math.log(2)),
        (Preference(beta=BETA, loss="ipo"), (1 / (2 * BETA)) ** 2),
    ],
)
def test_a_policy_that_is_its_own_reference(
    settings: Preference, wanted: float, stream: PairStream, policy: Decoder
) -> None:
    loss, metrics, gradients = judged(policy, policy, settings, stream.batch(), rows=3)
    assert loss == pytest.approx(wanted, rel=1e-6)
    assert metrics["margin"] == metrics["rewards_chosen"] == metrics["accuracy"] == 0
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 0


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
@pytest.mark.parametrize("row", [2, 0], ids=["padding", "nothing learns"])
def test_rows_without_pairs_teach_nothing(
    loss: str, row: int, stream: PairStream, policy: Decoder, reference: Decoder
) -> None:
    settings = Preference.model_validate({"beta": BETA, "loss": loss})
    batch = stream.batch().rows(row, row + 1)
    assert batch.examples is not None
    batch.examples.fill_(-1)
    batch.targets.fill_(IGNORE)
    found, metrics, gradients = judged(policy, reference, settings, batch)
    assert found == 0
    assert not any(metrics.values())
    assert not any(bool(gradient.any()) for gradient in gradients.values())


def test_count_is_of_pairs(stream: PairStream, reference: Decoder) -> None:
    objective = build_objective(Preference(), OtherModel(reference))
    counts = [objective.count(part) for part in stream.batch().split(1)]
    assert counts == [2, 3, 0]


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_micro_batches_change_only_rounding(
    loss: str, stream: PairStream, policy: Decoder, reference: Decoder
) -> None:
    settings = Preference.model_validate({"beta": BETA, "loss": loss})
    whole = judged(policy, reference, settings, stream.batch(), rows=3)
    split = judged(policy, reference, settings, stream.batch(), rows=1)
    assert split[0] == pytest.approx(whole[0], rel=1e-5)
    assert split[1] == pytest.approx(whole[1], rel=1e-4, abs=1e-5)
    for name, gradient in split[2].items():
        torch.testing.assert_close(gradient, whole[2][name], rtol=1e-3, atol=1e-5)


def test_pairs_are_learned(tmp_path: Path, stream: PairStream, reference: Decoder) -> None:
    """After some steps every pair has a margin, on the pairs that were learned."""
    model = ours(transformers_model("llama-untied", seed=1), tmp_path)
    objective, take = build_objective(Preference(), OtherModel(reference)), step_of(model)
    results = [take(objective, stream.batch(), 2, 3e-3) for _ in range(12)]
    assert float(results[0].loss) == pytest.approx(math.log(2), rel=1e-5)
    assert float(results[-1].loss) < 0.4
    assert float(results[-1].metrics["accuracy"]) == 1.0
    assert float(results[-1].metrics["margin"]) > 1.0


# -- held-out pairs -----------------------------------------------------------------------------


def tables(stream: Any, *models: Decoder) -> list[AnswerTable]:
    return [answer_table(m, stream, sequence_length=48, rows=2) for m in models]


@pytest.mark.parametrize(
    ("settings", "their_loss"),
    [(Preference(beta=BETA), "sigmoid"), (Preference(beta=BETA, loss="ipo"), "ipo")],
    ids=["sigmoid", "ipo"],
)
def test_scores_are_trls(
    settings: Preference,
    their_loss: str,
    trl: Callable[..., Judged],
    stream: Any,
    policy: Decoder,
    reference: Decoder,
) -> None:
    (table,) = tables(stream, reference)
    found = score_preferences(policy, stream, table, settings, sequence_length=48, rows=2)
    wanted, metrics, _ = trl(their_loss)
    assert len(found.pairs) == 5
    assert found.loss == pytest.approx(wanted, rel=2e-5)
    assert found.margin.mean == pytest.approx(metrics["margin"], rel=1e-4)
    assert found.accuracy.mean == pytest.approx(metrics["accuracy"])
    gap = metrics["logps_chosen"] - metrics["logps_rejected"]
    assert float(found.policy.mean()) == pytest.approx(gap, rel=1e-4)


def test_accuracy_without_a_reference(stream: Any, policy: Decoder, reference: Decoder) -> None:
    mine, other = tables(stream, policy, reference)
    found = score_preferences(policy, stream, other, Preference(), sequence_length=48, rows=2)
    lengths = np.array([[len(p.chosen), len(p.rejected)] for p in stream.pairs])
    sums = mine.log_probs.view(-1, 2).numpy()
    means = sums / lengths
    assert found.policy_accuracy.mean == pytest.approx((sums[:, 0] > sums[:, 1]).mean())
    assert found.policy_accuracy_per_token.mean == pytest.approx((means[:, 0] > means[:, 1]).mean())
    theirs = other.log_probs.view(-1, 2).numpy()
    gaps = theirs / lengths
    assert found.reference == pytest.approx(theirs[:, 0] - theirs[:, 1], rel=1e-4)
    assert found.reference_per_token == pytest.approx(gaps[:, 0] - gaps[:, 1], rel=1e-4)
    assert found.accuracy_gain.mean == pytest.approx(
        found.policy_accuracy.mean - found.reference_accuracy.mean
    )
    assert found.accuracy_gain_per_token.mean == pytest.approx(
        found.policy_accuracy_per_token.mean - found.reference_accuracy_per_token.mean
    )


def test_a_policy_that_is_its_own_reference_has_no_effect(stream: Any, policy: Decoder) -> None:
    (table,) = tables(stream, policy)
    found = score_preferences(policy, stream, table, Preference(), sequence_length=48, rows=2)
    assert not found.has_effect
    assert found.margin == (0, 0, 0)
    assert found.accuracy.mean == 0.5
    assert found.accuracy_gain == (0, 0, 0)
    assert found.loss == pytest.approx(math.log(2))


def test_only_some_rows(stream: Any, policy: Decoder, reference: Decoder) -> None:
    (table,) = tables(stream, reference)
    found = score_preferences(
        policy, stream, table, Preference(), sequence_length=48, rows=2, indices=np.array([1])
    )
    assert found.pairs.tolist() == [2, 3, 4]
    assert found.as_json()["pairs"] == 3


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (5, 7), (70, 100), (100, 100)])
def test_wilsons_interval(successes: int, trials: int) -> None:
    wanted = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    found = wilson_interval(successes, trials)
    assert found[1:] == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_the_interval_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(0.2, 1.0, 50)
    wanted = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    assert mean_interval(values)[1:] == pytest.approx(wanted, abs=1e-12)
    single = mean_interval(values[:1])
    assert single.as_json() == {"mean": values[0], "low": None, "high": None}


def test_a_tie_is_half() -> None:
    assert preferred(np.array([-1.0, 0.0, 2.0])).tolist() == [0.0, 0.5, 1.0]
