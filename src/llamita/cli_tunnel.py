"""The verbs of the wind tunnel (`tunnel run`, `show`, `recipe`): parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import llamita

tunnel_app = typer.Typer(
    help="Find a big run's hyper-parameters with tiny runs, and predict its loss.",
    no_args_is_help=True,
)


def add_tunnel(app: typer.Typer) -> None:
    app.add_typer(tunnel_app, name="tunnel")


@tunnel_app.command()
def run(
    spec: Annotated[str, typer.Argument(help="A study's YAML, or a shipped one's name.")],
    out: Annotated[
        Path | None, typer.Option(help="The study's directory. [default: runs/NAME]")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Print every run with what it takes, and stop.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    runs_at_once: Annotated[
        int | None, typer.Option(help="In place of the spec's. [default: as many as fit]")
    ] = None,
    keep_models: Annotated[
        bool, typer.Option(help="Keep the weights of ended runs; else only of trunks.")
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Plain lines on a terminal too, not the live board.")
    ] = False,
) -> None:
    """Make a study's runs and say what they show; the same command goes on."""
    from llamita.reporting.tunnel_board import Board

    if dry_run:
        llamita.tunnel_run(spec, out=out, dry_run=True, device=device, runs_at_once=runs_at_once)
        return
    with Board(Path(spec).stem, plain=plain) as board:
        llamita.tunnel_run(
            spec,
            out=out,
            device=device,
            runs_at_once=runs_at_once,
            keep_models=keep_models,
            board=board,
            say=board.say,
        )


@tunnel_app.command()
def show(
    study: Annotated[Path, typer.Argument(help="A study's directory.")],
) -> None:
    """What a study shows so far; its report, figures and law are written anew."""
    llamita.tunnel_show(study)


@tunnel_app.command()
def recipe(
    study: Annotated[Path, typer.Argument(help="A study's directory.")],
    size: Annotated[
        str,
        typer.Option(help="A preset such as minicpm-1.2b, or one of the study's sizes."),
    ],
    tokens: Annotated[str, typer.Option(help="Training tokens: 30B, or 20N for 20 a parameter.")],
    out: Annotated[Path, typer.Option("--out", help="The recipe's file.")],
) -> None:
    """Write the recipe of a larger run with what the study found, and its predicted loss."""
    written = llamita.tunnel_recipe(study, size=size, tokens=tokens, out=out)
    print(f"{written}: llamita plan {written} says what it takes, llamita train {written} runs it")
