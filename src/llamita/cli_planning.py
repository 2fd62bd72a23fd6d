"""The verbs of planning (`plan`, `law`, `hardware`): parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import llamita

hardware_app = typer.Typer(help="What one can train and serve on.", no_args_is_help=True)
law_app = typer.Typer(help="Scaling laws: by name, and of your own runs.", no_args_is_help=True)


def add_planning(app: typer.Typer) -> None:
    app.command()(plan)
    app.add_typer(law_app, name="law")
    app.add_typer(hardware_app, name="hardware")


def plan(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe, for its memory and time; none: a question.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(help="A run, to compare with the plan written into it.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE over the recipe.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="The best model for 5000usd, 1e21flops, 2000gpu-hours or 14d."),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(help="The cheapest model of this loss: 2.1, in the law's unit, 0.9bits/byte."),
    ] = None,
    quality: Annotated[
        str | None,
        typer.Option(help="The cheapest as good as 13B, 13B@1T (tokens) or tinyllama-1.1b@3T."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="A size that is chosen already, such as 7B.")
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="Tokens to train on, such as 300B.")] = None,
    requests: Annotated[
        str | None, typer.Option(help="Requests to serve: 1.5e9 in all, or 1e6/day.")
    ] = None,
    request: Annotated[
        str | None, typer.Option(help="IN+OUT of one: 70+215 tokens, or 50words+160words.")
    ] = None,
    serve_tokens: Annotated[
        str | None, typer.Option(help="Tokens to serve: 2e12 in all, or 10B/day.")
    ] = None,
    serve_words: Annotated[
        str | None, typer.Option(help="Words to serve: 1e12 in all, or 1B/day.")
    ] = None,
    lifetime: Annotated[str | None, typer.Option(help="How long it is served: 2y, 300d.")] = None,
    tokens_per_word: Annotated[
        float | None, typer.Option(help="Of words that are served. [default: 1.333]")
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            help="Trains: 8xa100-80, 2xp4d.24xlarge, cpu (measured now), 427gflops, a run."
        ),
    ] = None,
    serve_hardware: Annotated[
        str | None, typer.Option(help="Serves. [default: --hardware]")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of training. [default: bfloat16 where its rate is known]")
    ] = None,
    serve_precision: Annotated[
        str | None, typer.Option(help="Of serving. [default: the same way]")
    ] = None,
    mfu: Annotated[
        float | None, typer.Option(help="Share of the peak in training. [default: 0.5]")
    ] = None,
    prefill_mfu: Annotated[
        float | None, typer.Option(help="The same in reading requests. [default: 0.5]")
    ] = None,
    decode_mfu: Annotated[
        float | None, typer.Option(help="The same in writing answers. [default: 0.01]")
    ] = None,
    price: Annotated[
        list[str] | None, typer.Option(help="NAME=1.40usd/h of a device or node. Repeatable.")
    ] = None,
    power_price: Annotated[
        str | None, typer.Option(help="Electricity too, at 0.30usd/kWh.")
    ] = None,
    watts: Annotated[
        float | None, typer.Option(help="Of one training device, where none is known.")
    ] = None,
    hardware_file: Annotated[
        list[Path] | None, typer.Option(help="Your own hardware and prices. Repeatable.")
    ] = None,
    unique_tokens: Annotated[
        str | None, typer.Option(help="Text that there is; more than that is repeated.")
    ] = None,
    max_epochs: Annotated[
        float | None, typer.Option(help="Read it no more often than this.")
    ] = None,
    deadline: Annotated[
        str | None, typer.Option(help="Training takes no longer than 14d on --hardware.")
    ] = None,
    max_size: Annotated[str | None, typer.Option(help="No more parameters than 8B.")] = None,
    fits: Annotated[
        str | None, typer.Option(help="What must hold the model: rtx-4090, or 16GB.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Format of its weights there: bfloat16, q8_0, q4_0. [default: bfloat16]"),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens of context there. [default: 2048]")
    ] = None,
    law: Annotated[
        str | None, typer.Option(help="A law's name or file. [default: beyond-chinchilla]")
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(help="Shapes to propose: tinyllama, minicpm, llamita. [default: tinyllama]"),
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Their vocabulary. [default: the family's]")
    ] = None,
    experts: Annotated[
        str | None, typer.Option(help="Mixtures of experts: 8/2 for 8, 2 of them a token.")
    ] = None,
    write_recipe: Annotated[
        Path | None, typer.Option(help="Write a recipe for the first shape to this file.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the answer as a page.")] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Write figures (PNG, SVG) into this directory.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, no lines.")] = False,
) -> None:
    """Which model, on how many tokens, on which hardware, for how much, and whether it fits."""
    llamita.plan(
        recipe,
        check=check,
        overrides=overrides or (),
        budget=budget,
        loss=loss,
        quality=quality,
        size=size,
        tokens=tokens,
        requests=requests,
        request=request,
        serve_tokens=serve_tokens,
        serve_words=serve_words,
        lifetime=lifetime,
        tokens_per_word=tokens_per_word,
        hardware=hardware,
        serve_hardware=serve_hardware,
        precision=precision,
        serve_precision=serve_precision,
        mfu=mfu,
        prefill_mfu=prefill_mfu,
        decode_mfu=decode_mfu,
        price=price or (),
        power_price=power_price,
        watts=watts,
        hardware_file=hardware_file or (),
        unique_tokens=unique_tokens,
        max_epochs=max_epochs,
        deadline=deadline,
        max_size=max_size,
        fits=fits,
        weights=weights,
        context=context,
        law=law,
        family=family,
        vocab_size=vocab_size,
        experts=experts,
        write_recipe=write_recipe,
        html=html,
        figures=figures,
        as_json=as_json,
    )


@hardware_app.command("show")
def hardware_show(
    name: Annotated[
        str | None, typer.Argument(help="As --hardware: h100, 2xp4d.24xlarge, cpu. [default: all]")
    ] = None,
    hardware_file: Annotated[
        list[Path] | None, typer.Option(help="Your own hardware and prices. Repeatable.")
    ] = None,
) -> None:
    """Peaks, memory, power and prices, each with its source and date."""
    print("\n".join(llamita.show_hardware(name, hardware_file=hardware_file or ())))


@law_app.command("show")
def law_show(
    name: Annotated[
        str | None, typer.Argument(help="A law's name or file. [default: a table of all]")
    ] = None,
) -> None:
    """The laws that come with llamita, or all about one: constants, source, range, optima."""
    print("\n".join(llamita.show_laws(name)))


@law_app.command("fit")
def law_fit(
    sources: Annotated[
        list[str], typer.Argument(help="Tables (.csv, .tsv, .jsonl) and directories of runs.")
    ],
    out: Annotated[Path, typer.Option(help="The law's file, for wherever a law is named.")],
    name: Annotated[str | None, typer.Option(help="The law's name. [default: of --out]")] = None,
    parameters: Annotated[
        str | None, typer.Option(help="A table's column of N, if it bears no usual name.")
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="The same, of D.")] = None,
    loss: Annotated[str | None, typer.Option(help="The same, of the loss.")] = None,
    group: Annotated[
        str | None,
        typer.Option(help="The same, of what shares noise and is resampled together."),
    ] = None,
    loss_unit: Annotated[
        str | None,
        typer.Option(
            help="What a table's loss is in: 'nats per token', 'nats per byte', 'bits per byte'. "
            "[default: as the column says, else nats per token]"
        ),
    ] = None,
    counts: Annotated[
        str | None, typer.Option(help="What N counts: total or non-embedding. [default: total]")
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="Residuals of log-loss beyond it count linearly. [default: 0.001]"),
    ] = None,
    bootstrap: Annotated[
        int | None, typer.Option(help="Fits behind the intervals; 0: none. [default: 400]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="For another bootstrap. [default: 0]")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the residuals into this .png or .svg.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fit a scaling law to the losses of runs, with bootstrap intervals."""
    import json

    from llamita.planning.law_verbs import describe_fit, fit_as_json
    from llamita.reporting.progress import ProgressLine

    with ProgressLine("fitting") as progress:
        fitted = llamita.fit_law(
            sources,
            out,
            name=name,
            parameters=parameters,
            tokens=tokens,
            loss=loss,
            group=group,
            loss_unit=loss_unit,
            counts=counts,
            delta=delta,
            bootstrap=bootstrap,
            seed=seed,
            plot=plot,
            progress=progress.update,
        )
    if as_json:
        print(json.dumps(fit_as_json(fitted), ensure_ascii=False, indent=2))
    else:
        print("\n".join([*describe_fit(fitted), f"{out}: llamita law show {out}"]))
