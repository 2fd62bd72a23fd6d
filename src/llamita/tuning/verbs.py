"""`tune` and `align`: from a MODEL and a file of conversations, or of pairs, to a run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llamita.errors import UserError
from llamita.model.locate import locate
from llamita.model.records import (
    has_training_state,
    read_config,
    recorded_learning_rate,
    tokenizer_directory,
)
from llamita.recipes.loading import check_recipe, check_settings, override_recipe
from llamita.recipes.schema import Adapter, Recipe
from llamita.tuning.settings import (
    ALIGN_LEARNING_RATE,
    FULL_LEARNING_RATE,
    LORA_LEARNING_RATE,
    WARMUP_SHARE,
    batch_rows,
    row_length,
    settle_adapter,
)

if TYPE_CHECKING:
    from llamita.data.chat_encoding import Learn
    from llamita.planning.plan import TrainingPlan
    from llamita.training.run import TrainingResult
    from llamita.training.telemetry import Observer

_VALIDATIONS_AN_EPOCH = 2
"""Each reads a twentieth of the data forward only: a twentieth of the run's time at two."""
_ANSWER_TOKENS = 200
_PAIRS_HELD_OUT = 0.1


def tune(
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    epochs: float = 2.0,
    learn: str = "lora",
    rank: int | None = None,
    alpha: float | None = None,
    dropout: float | None = None,
    targets: Sequence[str] | None = None,
    rslora: bool | None = None,
    quantize: str | None = None,
    learning_rate: float | None = None,
    batch_tokens: int | None = None,
    sequence_length: int | None = None,
    template: str | None = None,
    answers: Learn = "assistant",
    max_bad_fraction: float = 0.01,
    validation: float | None = None,
    held_out: str | Path | Sequence[str | Path] | None = None,
    patience: int | None = None,
    prompts: Sequence[str] = (),
    seed: int = 42,
    overrides: Iterable[str] = (),
    dry_run: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    say: Callable[[str], None] = print,
    observers: Sequence[Observer] = (),
) -> TrainingResult | TrainingPlan:
    """Tune a model to conversations; the same call goes on with a run that was interrupted.

    Args:
        model: a Hugging Face directory, a run, an adapter, a GGUF file, or a hub id.
        data: files of conversations in any form of `data.chat_records`.
        out: the run's directory; default runs/MODEL-tuned. The data built from `data` lie in it.
        epochs: how often the conversations are read.
        learn: `lora` (an adapter) or `all` (every parameter).
        rank, alpha, dropout, targets, rslora, quantize: of the adapter, see `recipes.schema`'s
            `Adapter`; alpha is 2·rank by default. A MODEL that is an adapter goes on with its own.
        learning_rate: peak, by default 2e-4 of an adapter; of all parameters the rate at which the
            run behind MODEL ended (MiniCPM's order of things), else 2e-5.
        batch_tokens, sequence_length: by default from the data, so that some hundred steps are
            taken and the longest conversation fits.
        template: a chat template by name or a file, in place of the tokenizer's own.
        answers: which turns learn: `assistant`, `last` or `all`.
        max_bad_fraction: give up when a larger share of the rows is no conversation.
        validation: share of the conversations held out, 0.05 by default.
        held_out: files of conversations to hold out in place of such a share.
        patience: stop when so many validations running were no better.
        prompts: questions answered before the first step and after the last.
        overrides: `key.path=value` over the recipe that comes of all this.
        dry_run: print the plan; nothing is kept.

    Raises:
        UserError: anything the user can put right.
        RunInterrupted: SIGINT or SIGTERM arrived; a checkpoint was written.
    """
    given = _given(rank, alpha, dropout, targets, rslora, quantize)
    start = _Start(model, learn, given)
    rate = learning_rate or (LORA_LEARNING_RATE if start.adapter else start.rate_at_end)
    return _run(
        start,
        data,
        kind="chats",
        out=Path(out) if out is not None else Path("runs") / f"{start.name}-tuned",
        epochs=epochs,
        objective={"kind": "language_modelling"},
        learning_rate=rate or FULL_LEARNING_RATE,
        batch_tokens=batch_tokens,
        sequence_length=sequence_length,
        template=template,
        answers=answers,
        max_bad_fraction=max_bad_fraction,
        validation=validation,
        held_out=held_out,
        patience=patience,
        prompts=prompts,
        seed=seed,
        overrides=overrides,
        dry_run=dry_run,
        device=device,
        dtype=dtype,
        say=say,
        observers=observers,
    )


def align(
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    epochs: float = 1.0,
    loss: Literal["sigmoid", "ipo"] = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    reference: Literal["auto", "precomputed", "live"] = "auto",
    learn: str = "lora",
    rank: int | None = None,
    alpha: float | None = None,
    dropout: float | None = None,
    targets: Sequence[str] | None = None,
    rslora: bool | None = None,
    quantize: str | None = None,
    learning_rate: float | None = None,
    batch_tokens: int | None = None,
    sequence_length: int | None = None,
    template: str | None = None,
    max_bad_fraction: float = 0.01,
    validation: float | None = None,
    held_out: str | Path | Sequence[str | Path] | None = None,
    patience: int | None = None,
    prompts: Sequence[str] = (),
    seed: int = 42,
    overrides: Iterable[str] = (),
    dry_run: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    say: Callable[[str], None] = print,
    observers: Sequence[Observer] = (),
) -> TrainingResult | TrainingPlan:
    """Teach a model which of two answers is preferred; the same call goes on with a run.

    Args:
        data: files of pairs: prompt, chosen, rejected, as strings or messages.
        out: the run's directory; default runs/MODEL-aligned.
        loss, beta, label_smoothing, reference: see `recipes.schema`'s `Preference`.
        learning_rate: peak of a cosine, by default MiniCPM's 1e-5.
        validation: share of the pairs held out, 0.1 by default.
        The rest as of `tune`.

    Raises:
        UserError, RunInterrupted: as `tune`.
    """
    given = _given(rank, alpha, dropout, targets, rslora, quantize)
    start = _Start(model, learn, given)
    return _run(
        start,
        data,
        kind="preferences",
        out=Path(out) if out is not None else Path("runs") / f"{start.name}-aligned",
        epochs=epochs,
        objective={
            "kind": "preference",
            "loss": loss,
            "beta": beta,
            "label_smoothing": label_smoothing,
            "reference": reference,
        },
        learning_rate=learning_rate or ALIGN_LEARNING_RATE,
        batch_tokens=batch_tokens,
        sequence_length=sequence_length,
        template=template,
        answers="assistant",
        max_bad_fraction=max_bad_fraction,
        validation=_PAIRS_HELD_OUT if validation is None and held_out is None else validation,
        held_out=held_out,
        patience=patience,
        prompts=prompts,
        seed=seed,
        overrides=overrides,
        dry_run=dry_run,
        device=device,
        dtype=dtype,
        say=say,
        observers=observers,
    )


def _given(
    rank: int | None,
    alpha: float | None,
    dropout: float | None,
    targets: Sequence[str] | None,
    rslora: bool | None,
    quantize: str | None,
) -> dict[str, Any]:
    """`Adapter`'s keys that the caller named."""
    named: dict[str, Any] = {
        "rank": rank,
        "alpha": alpha,
        "dropout": dropout,
        "targets": _targets(targets),
        "rslora": rslora,
        "quantize_base": quantize,
    }
    return {key: value for key, value in named.items() if value is not None}


def _targets(targets: Sequence[str] | None) -> str | list[str] | None:
    if not targets:
        return None
    names = [targets] if isinstance(targets, str) else list(targets)
    return "all-linear" if names == ["all-linear"] else names


class _Start:
    """The MODEL that a run starts from, and what of it learns."""

    def __init__(self, model: str | Path, learn: str, given: dict[str, Any]) -> None:
        from llamita.model.adapter_directory import is_adapter, read_adapter

        self.directory = locate(model)
        # A hub id stays one: the place of its copy here means nothing elsewhere.
        self.start_from = str(self.directory if Path(model).expanduser().exists() else model)
        self.config = read_config(self.directory)
        self.fresh_optimizer = has_training_state(self.directory)
        if is_adapter(self.directory):
            if learn != "lora":
                raise UserError(
                    f"{model} is an adapter; to train every parameter, fold it into its base "
                    f"first: llamita export {model} --to hf --out DIR"
                )
            lora, _ = read_adapter(self.directory)
            kept = {
                "rank": lora.rank,
                "alpha": lora.alpha,
                "targets": list(lora.targets),
                "rslora": lora.rslora,
                "quantize_base": lora.quantization,
            }
            self.adapter: Adapter | None = check_settings(Adapter, kept | given, "the adapter")
        else:
            self.adapter = settle_adapter(learn, given)

    @property
    def name(self) -> str:
        """A plain name for what is made of it: a run's, or the directory's."""
        folder = self.directory.resolve()
        inside = folder.name == "final" or folder.name.startswith("step-")
        return (folder.parent if inside else folder).name

    @property
    def rate_at_end(self) -> float | None:
        return recorded_learning_rate(self.directory)


def _run(
    start: _Start,
    data: str | Path | Sequence[str | Path],
    *,
    kind: Literal["chats", "preferences"],
    out: Path,
    template: str | None,
    answers: Learn,
    max_bad_fraction: float,
    validation: float | None,
    held_out: str | Path | Sequence[str | Path] | None,
    overrides: Iterable[str],
    dry_run: bool,
    device: str | None,
    dtype: str | None,
    say: Callable[[str], None],
    observers: Sequence[Observer],
    **settings: Any,
) -> TrainingResult | TrainingPlan:
    """Build the data, make the recipe of them, and train."""
    from llamita.data.chat_build import build_chats
    from llamita.data.tokenizer import load_tokenizer
    from llamita.training.run import train

    with ExitStack() as stack:
        folder = out / "data"
        if dry_run:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        build_chats(
            data,
            folder / kind,
            load_tokenizer(tokenizer_directory(start.directory)),
            kind=kind,
            template=template,
            learn=answers,
            max_bad_fraction=max_bad_fraction,
            validation=validation,
            held_out=held_out,
            say=say,
        )
        recipe = _recipe(start, folder / kind, kind, name=out.name, **settings)
        recipe = override_recipe(recipe, overrides)
        return train(
            recipe,
            out=out,
            dry_run=dry_run,
            device=device,
            dtype=dtype,
            say=say,
            observers=observers,
        )


def _recipe(
    start: _Start,
    path: Path,
    kind: Literal["chats", "preferences"],
    *,
    name: str,
    epochs: float,
    objective: dict[str, Any],
    learning_rate: float,
    batch_tokens: int | None,
    sequence_length: int | None,
    patience: int | None,
    prompts: Sequence[str],
    seed: int,
) -> Recipe:
    """One stage over the data, as long as the epochs."""
    from llamita.data.shards import open_dataset

    if not epochs > 0:
        raise UserError(f"--epochs {epochs:g}: give a number above 0")
    dataset = open_dataset(path)
    stream, pairs = dataset.train, kind == "preferences"
    longest, context = int(stream.document_lengths().max()), start.config.max_position_embeddings
    length = sequence_length or row_length(longest, context, group=2 if pairs else 1)
    num_rows = stream.num_windows(length)
    batch = batch_tokens or length * batch_rows(num_rows, length, epochs)
    tokens = max(batch, round(epochs * num_rows * length))
    steps_an_epoch = num_rows * length / batch
    every = max(1, round(steps_an_epoch / _VALIDATIONS_AN_EPOCH))
    held_out = dataset.validation.num_documents > 0
    stage = "align" if pairs else "tune"
    return check_recipe(
        {
            "name": name,
            "description": f"{start.name} on {kind}",
            "start_from": start.start_from,
            "fresh_optimizer": start.fresh_optimizer,
            "adapter": None if start.adapter is None else start.adapter.model_dump(),
            "seed": seed,
            "sequence_length": length,
            "batch_tokens": batch,
            "optimizer": {
                "learning_rate": learning_rate,
                "betas": [0.9, 0.999],
                "weight_decay": 0.0,
            },
            "datasets": {kind: {"path": str(path), "max_epochs": epochs + 1}},
            "stages": [
                {
                    "name": stage,
                    "tokens": tokens,
                    "mixture": {kind: 1.0},
                    "objective": objective,
                    "schedule": {
                        "kind": "cosine",
                        "warmup_tokens": round(tokens * WARMUP_SHARE),
                        "final_fraction": 0.1,
                    },
                }
            ],
            "checkpoints": {"every_steps": every, "final": "best" if held_out else "last"},
            "validation": {"every_steps": every if held_out else None, "patience": patience},
            "samples": {
                "prompts": list(prompts),
                "chat": bool(prompts),
                "max_tokens": _ANSWER_TOKENS,
                "temperature": 0.0,
            },
        },
        f"recipe of {stage}",
    )
