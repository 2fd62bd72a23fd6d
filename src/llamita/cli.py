"""The verbs: parse, call, print. Everything heavy is imported inside its verb."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import llamita
from llamita.cli_chat import add_chat
from llamita.cli_data import BadFraction, MaxDocuments, Sources, TextField, Where, add_data
from llamita.cli_evaluation import add_evaluation
from llamita.cli_formats import add_formats
from llamita.cli_planning import add_planning
from llamita.cli_serving import add_serving
from llamita.cli_tuning import add_tuning
from llamita.cli_tunnel import add_tunnel
from llamita.errors import UserError

app = typer.Typer(
    name="llamita",
    help="Train a small language model from your own text, and write with it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_INTERRUPTIONS = (
    ("llamita.training.run", "RunInterrupted"),
    ("llamita.windtunnel.verb", "StudyInterrupted"),
)
tokenizer_app = typer.Typer(help="Make a tokenizer.", no_args_is_help=True)
app.add_typer(tokenizer_app, name="tokenizer")
add_data(app)
add_planning(app)
add_formats(app)
add_tuning(app)
add_chat(app)
add_serving(app)
add_evaluation(app)
add_tunnel(app)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(llamita.__version__)
        raise typer.Exit


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Where corpus, data and run go.")] = Path("quickstart"),
    minutes: Annotated[float, typer.Option(help="Training time to aim at.")] = 5.0,
    plain: Annotated[
        bool, typer.Option("--plain", help="Plain lines on a terminal too, not the live panel.")
    ] = False,
) -> None:
    """Train a small model on the Python that is installed here, and judge it."""
    from llamita.reporting.panel import watching

    with watching(plain=plain) as view:
        llamita.quickstart(out, minutes=minutes, say=view.say, observers=view.observers)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or a shipped recipe's name.")],
    out: Annotated[
        Path | None, typer.Option(help="The run's directory. [default: runs/NAME]")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE over the recipe, e.g. stages.0.tokens=2e9."),
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option("--from", help="A Hugging Face directory, or a checkpoint to branch from."),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the plan and stop.")] = False,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or mps: the recipe's runtime.device.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32 or bfloat16: the recipe's runtime.dtype.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write where the time of three steps went.")
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Plain lines on a terminal too, not the live panel.")
    ] = False,
) -> None:
    """Train what a recipe describes. The same command goes on with an interrupted run."""
    from llamita.reporting.panel import watching

    with watching(plain=plain) as view:
        llamita.train(
            recipe,
            out=out,
            overrides=overrides or (),
            start_from=start_from,
            dry_run=dry_run,
            device=device,
            dtype=dtype,
            say=view.say,
            observers=view.observers,
            profile=profile,
        )


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="A Hugging Face directory, a run, or a hub id.")],
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads standard input.")],
    max_tokens: Annotated[int, typer.Option(help="New tokens at most.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.7,
    top_k: Annotated[int, typer.Option(help="Draw from so many tokens; 0: all.")] = 50,
    top_p: Annotated[float, typer.Option(help="Draw from this much probability.")] = 0.95,
    chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is a question, put by the chat template.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="For the same text again.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
) -> None:
    """Continue a prompt, or answer a question, streaming."""
    text = sys.stdin.read() if prompt == "-" else prompt
    pieces = llamita.generate(
        model,
        text,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        chat=chat,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    if not chat:
        sys.stdout.write(text)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="A Hugging Face directory, a run, or a hub id.")],
) -> None:
    """Shape, parameters, arithmetic, memory, tokenizer and provenance of a model."""
    print("\n".join(llamita.info(model)))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="A run's directory, or several to overlay.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The page. [default: RUN/report.html; of several: report.html]"),
    ] = None,
    png: Annotated[
        Path | None, typer.Option(help="Also write the main plots as PNGs into this directory.")
    ] = None,
) -> None:
    """Show a run, or several overlaid, as one HTML page that needs nothing else."""
    llamita.report(runs, out=out, png=png)


@tokenizer_app.command("train")
def tokenizer_train(
    sources: Sources,
    out: Annotated[Path, typer.Option(help="The tokenizer's directory.")],
    vocab_size: Annotated[int, typer.Option(help="Tokens in all.")] = 8192,
    pre_tokenizer: Annotated[
        str, typer.Option(help="llama.cpp's name of how text is cut: llama-bpe, gpt-2, qwen2, …")
    ] = "llama-bpe",
    special: Annotated[
        list[str] | None,
        typer.Option(help="Special tokens after <s>, </s>, <pad>, instead of chat's. Repeatable."),
    ] = None,
    chat_template: Annotated[
        Path | None, typer.Option(help="File with a Jinja chat template to store.")
    ] = None,
    text_field: TextField = "text",
    where: Where = None,
    max_bytes: Annotated[
        float, typer.Option(help="Learn from about so many bytes, spread over all documents.")
    ] = 256e6,
    max_documents: MaxDocuments = None,
    max_bad_fraction: BadFraction = 0.01,
) -> None:
    """Train a byte-level BPE tokenizer on your text."""
    from llamita.reporting.progress import ProgressLine

    template = None
    if chat_template is not None:
        if not chat_template.is_file():
            raise UserError(f"--chat-template {chat_template}: there is no such file")
        template = chat_template.read_text(encoding="utf-8")
    chosen = {} if special is None else {"special_tokens": special}
    with ProgressLine("reading") as progress:
        tokenizer = llamita.train_tokenizer(
            sources,
            out,
            vocab_size,
            pre_tokenizer=pre_tokenizer,
            chat_template=template,
            text_field=text_field,
            where=where,
            max_bytes=int(max_bytes),
            max_documents=None if max_documents is None else int(max_documents),
            max_bad_fraction=max_bad_fraction,
            progress=lambda done, total: progress.update(done, total),
            **chosen,
        )
    print(f"{out}: {tokenizer.vocab_size:,} tokens, fingerprint {tokenizer.fingerprint[:16]}")


def main() -> None:
    """Entry point. What a user can put right is one message; a defect keeps its traceback."""
    try:
        app()
    except UserError as error:
        print(f"llamita: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of our output has gone; Python would complain once more at exit.
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        # Imported already if a run raised it: torch stays out of the other verbs.
        for module, name in _INTERRUPTIONS:
            imported = sys.modules.get(module)
            if imported is not None and isinstance(error, getattr(imported, name)):
                print(error, file=sys.stderr)
                sys.exit(128 + error.signal_number)
        raise
