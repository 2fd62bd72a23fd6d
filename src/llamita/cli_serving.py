"""The verb `serve`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import llamita


def add_serving(app: typer.Typer) -> None:
    app.command()(serve)


def serve(
    model: Annotated[
        str, typer.Argument(help="A directory, a run, an adapter, a .gguf file or a hub id.")
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all, with keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    engine: Annotated[str, typer.Option(help="auto, torch or llama.cpp.")] = "auto",
    quantize: Annotated[
        str | None, typer.Option(help="Of llama.cpp: q8_0, q4_k_m, f16, … [default: q8_0]")
    ] = None,
    slots: Annotated[int, typer.Option(help="Answers written at a time.", min=1)] = 4,
    context: Annotated[
        int | None, typer.Option(help="Tokens that each answer and its prompt may have.", min=1)
    ] = None,
    max_waiting: Annotated[
        int, typer.Option(help="Answers that may wait for a slot; beyond it, 429.", min=0)
    ] = 64,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="Keys, one a line; LLAMITA_API_KEYS (commas) counts as well."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Web pages of this origin may use it; * for all. Repeatable."),
    ] = None,
    grace: Annotated[
        float, typer.Option(help="Seconds for answers to end after Ctrl-C.", min=0)
    ] = 30.0,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model. [default: MODEL's last part]")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="chatml, zephyr, llama-2 or a .jinja file. [default: the model's own]"),
    ] = None,
    device: Annotated[str, typer.Option(help="Of engine torch: auto, cpu, cuda, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Of engine torch: float32 or bfloat16.")] = "auto",
) -> None:
    """Serve a model: OpenAI's HTTP interface, and a page to talk to it."""
    llamita.serve(
        model,
        host=host,
        port=port,
        engine=engine,
        quantize=quantize,
        slots=slots,
        context=context,
        max_waiting=max_waiting,
        api_key_file=api_key_file,
        allow_origin=allow_origin or (),
        grace=grace,
        name=name,
        template=template,
        device=device,
        dtype=dtype,
        say=lambda line: print(line, flush=True),
    )
