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
    out: Out,
    to: Annotated[str, typer.Option("--to", help="The format: hf.")] = "hf",
    dtype: Dtype = "float32",
    force: Force = False,
) -> None:
    """Write a model as a whole Hugging Face directory; an adapter is folded into its base."""
    llamita.export_model(model, out, to=to, dtype=dtype, force=force)
