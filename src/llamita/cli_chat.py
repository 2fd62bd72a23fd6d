"""The verb `chat`: parse, call."""

from __future__ import annotations

from typing import Annotated

import typer

import llamita


def add_chat(app: typer.Typer) -> None:
    app.command()(chat)


def chat(
    model: Annotated[
        str, typer.Argument(help="A directory, a run, an adapter, a .gguf file or a hub id.")
    ],
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    engine: Annotated[str, typer.Option(help="auto, torch or llama.cpp.")] = "auto",
    quantize: Annotated[
        str | None, typer.Option(help="Of llama.cpp: q8_0, q4_k_m, f16, … [default: q8_0]")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="chatml, zephyr, llama-2 or a .jinja file. [default: the model's own]"),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.7,
    top_k: Annotated[int, typer.Option(help="Draw from so many tokens; 0: all.")] = 50,
    top_p: Annotated[float, typer.Option(help="Draw from this much probability.")] = 0.95,
    min_p: Annotated[
        float, typer.Option(help="Leave out tokens below this share of the likeliest one's.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: tokens that have been used become less likely.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="For the same answers again.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Of an answer at most. [default: what the context holds]")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="A text that ends an answer. Repeatable.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens of conversation and answer together.")
    ] = None,
    device: Annotated[str, typer.Option(help="Of torch: auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Of torch: auto, float32 or bfloat16.")] = "auto",
    plain: Annotated[
        bool, typer.Option("--plain", help="On a terminal too: text as it is, no colours.")
    ] = False,
    lines: Annotated[
        bool, typer.Option("--lines", help="Piped in: every line is a question of its own.")
    ] = False,
) -> None:
    """Talk with a model. Piped in, standard input is one question, answered on standard output."""
    given = {name: value for name, value in locals().items() if name != "stop"}
    raise typer.Exit(llamita.chat(**given, stop=stop or ()))
