"""The verbs `tune` and `align`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import llamita

Model = Annotated[
    str, typer.Argument(help="A directory, a run, an adapter, a .gguf file or a hub id.")
]
Data = Annotated[
    list[str],
    typer.Option("--data", help="A .json(l), .jsonl.gz or .parquet file, or hf:NAME. Repeatable."),
]
Out = Annotated[Path | None, typer.Option(help="The run's directory. [default: runs/MODEL-…]")]
Learn = Annotated[str, typer.Option(help="lora (an adapter) or all (every parameter).")]
Rank = Annotated[int | None, typer.Option(help="Of the adapter. [default: 16]")]
Alpha = Annotated[float | None, typer.Option(help="The adapter's scale. [default: 2·rank]")]
Dropout = Annotated[float | None, typer.Option(help="Of the adapter's inputs. [default: 0]")]
Targets = Annotated[
    str | None,
    typer.Option(help="Adapted matrices, as q_proj,v_proj. [default: all-linear]"),
]
Rslora = Annotated[
    bool | None, typer.Option("--rslora", help="Scale by alpha/√rank instead of alpha/rank.")
]
Quantize = Annotated[
    str | None, typer.Option(help="Keep the base in nf4 (QLoRA) or int8: extra quantize.")
]
BatchTokens = Annotated[
    float | None, typer.Option(help="Tokens a step. [default: for about 100 steps]")
]
SequenceLength = Annotated[
    int | None, typer.Option(help="Tokens of a row. [default: the longest example's]")
]
Template = Annotated[
    str | None,
    typer.Option(help="chatml, zephyr, llama-2 or a .jinja file. [default: the model's own]"),
]
HeldOut = Annotated[
    list[str] | None,
    typer.Option(help="Files to hold out, in place of a share of --data. Repeatable."),
]
BadFraction = Annotated[
    float, typer.Option(help="Give up when a larger share of the rows is wrong.")
]
Patience = Annotated[
    int | None, typer.Option(help="Stop after so many validations without a gain.")
]
Prompt = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="A question, answered before and after. Repeatable."),
]
Seed = Annotated[int, typer.Option(help="Of data order and the adapter's beginning.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE over the recipe, e.g. optimizer.weight_decay=0.1."),
]
DryRun = Annotated[bool, typer.Option(help="Print the plan and keep nothing.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.")]
Plain = Annotated[
    bool, typer.Option("--plain", help="Plain lines on a terminal too, not the live panel.")
]


def add_tuning(app: typer.Typer) -> None:
    app.command()(tune)
    app.command()(align)


def tune(
    model: Model,
    data: Data,
    out: Out = None,
    epochs: Annotated[float, typer.Option(help="Times to read the data.")] = 2.0,
    learn: Learn = "lora",
    rank: Rank = None,
    alpha: Alpha = None,
    dropout: Dropout = None,
    targets: Targets = None,
    rslora: Rslora = None,
    quantize: Quantize = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak. [default: 2e-4 of an adapter; of all 2e-5, or the run's last]"),
    ] = None,
    batch_tokens: BatchTokens = None,
    sequence_length: SequenceLength = None,
    template: Template = None,
    answers: Annotated[
        str, typer.Option(help="Turns that learn: assistant, last, or all.")
    ] = "assistant",
    max_bad_fraction: BadFraction = 0.01,
    validation: Annotated[
        float | None, typer.Option(help="Share of conversations held out. [default: 0.05]")
    ] = None,
    held_out: HeldOut = None,
    patience: Patience = None,
    prompt: Prompt = None,
    seed: Seed = 42,
    overrides: Set = None,
    dry_run: DryRun = False,
    device: Device = None,
    dtype: Dtype = None,
    plain: Plain = False,
) -> None:
    """Tune a model to your questions and answers. The same command goes on when interrupted."""
    given = {name: value for name, value in locals().items() if name not in ("plain", "prompt")}
    _run("tune", plain, prompt, given)


def align(
    model: Model,
    data: Data,
    out: Out = None,
    epochs: Annotated[float, typer.Option(help="Times to read the data.")] = 1.0,
    loss: Annotated[str, typer.Option(help="sigmoid (DPO) or ipo.")] = "sigmoid",
    beta: Annotated[float, typer.Option(help="Larger strays less from the model.")] = 0.1,
    label_smoothing: Annotated[
        float, typer.Option(help="Share of pairs taken to be the wrong way round (cDPO).")
    ] = 0.0,
    reference: Annotated[
        str, typer.Option(help="The model's own figures: auto, precomputed or live.")
    ] = "auto",
    learn: Learn = "lora",
    rank: Rank = None,
    alpha: Alpha = None,
    dropout: Dropout = None,
    targets: Targets = None,
    rslora: Rslora = None,
    quantize: Quantize = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak of a cosine.")] = None,
    batch_tokens: BatchTokens = None,
    sequence_length: SequenceLength = None,
    template: Template = None,
    max_bad_fraction: BadFraction = 0.01,
    validation: Annotated[
        float | None, typer.Option(help="Share of pairs held out. [default: 0.1]")
    ] = None,
    held_out: HeldOut = None,
    patience: Patience = None,
    prompt: Prompt = None,
    seed: Seed = 42,
    overrides: Set = None,
    dry_run: DryRun = False,
    device: Device = None,
    dtype: Dtype = None,
    plain: Plain = False,
) -> None:
    """Teach a model which of two answers is preferred (DPO)."""
    given = {name: value for name, value in locals().items() if name not in ("plain", "prompt")}
    _run("align", plain, prompt, given)


def _run(verb: str, plain: bool, prompts: list[str] | None, given: dict[str, Any]) -> None:
    from llamita.reporting.panel import watching

    given["overrides"] = given["overrides"] or ()
    if given["batch_tokens"] is not None:
        given["batch_tokens"] = int(given["batch_tokens"])
    if given["targets"] is not None:
        given["targets"] = given["targets"].split(",")
    with watching(plain=plain) as view:
        getattr(llamita, verb)(
            prompts=prompts or (), say=view.say, observers=view.observers, **given
        )
