"""The verbs `import` and `export`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import llamita

Dtype = Annotated[str, typer.Option(help="Weights in float32, bfloat16 or float16.")]
Force = Annotated[
    bool, typer.Option("--force", help="Replace what an earlier import or export wrote there.")
]
Out = Annotated[Path, typer.Option(help="The Hugging Face directory to write.")]


def add_formats(app: typer.Typer) -> None:
    app.command("import")(import_)
    app.command("export")(export)


def import_(
    model: Annotated[Path, typer.Argument(help="A .gguf file.")],
    out: Out,
    dtype: Dtype = "float32",
    force: Force = False,
) -> None:
    """Turn a GGUF file into a Hugging Face directory, with its tokenizer and chat template."""
    llamita.import_model(model, out, dtype=dtype, force=force)


def export(
    model: Annotated[
        str, typer.Argument(help="A directory, a run, an adapter, a .gguf file or a hub id.")
    ],
    out: Annotated[Path, typer.Option(help="The directory (hf) or file (gguf) to write.")],
    to: Annotated[str, typer.Option("--to", help="The format: hf or gguf.")] = "hf",
    dtype: Annotated[
        str | None,
        typer.Option(help="With hf: weights in float32 (the default), bfloat16 or float16."),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(help="With gguf: the type, such as q8_0 (the default), f16 or q4_k_m."),
    ] = None,
    force: Force = False,
) -> None:
    """Write a model for other programs: as a Hugging Face directory, or as GGUF for llama.cpp.

    An adapter is folded into its base.
    """
    llamita.export_model(model, out, to=to, dtype=dtype, quantize=quantize, force=force)
