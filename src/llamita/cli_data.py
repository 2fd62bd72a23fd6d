"""The verbs of data (`data build`, `data show`): parse, call, print."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

import llamita
from llamita.errors import UserError

if TYPE_CHECKING:
    from llamita.reporting.progress import ProgressLine

data_app = typer.Typer(help="Turn text into training data, and look at it.", no_args_is_help=True)

Sources = Annotated[
    list[str],
    typer.Argument(
        help="Folders, globs, text files, .jsonl(.gz, .zst), .parquet, .arrow, .feather, folders "
        "of Dataset.save_to_disk, hf:NAME[/CONFIG][@REVISION][:SPLIT], hf+stream:NAME[…]."
    ),
]
TextField = Annotated[str, typer.Option(help="Field or column of records that holds the text.")]
Where = Annotated[
    list[str] | None,
    typer.Option(help="Keep records for which this holds, e.g. 'meta.lang == en'. Repeatable."),
]
MaxDocuments = Annotated[
    float | None, typer.Option(help="Stop reading after so many documents: for streams.")
]
BadFraction = Annotated[
    float, typer.Option(help="Give up when a larger share of the records is unreadable.")
]


def add_data(app: typer.Typer) -> None:
    app.add_typer(data_app, name="data")


@data_app.command("build")
def data_build(
    context: typer.Context,
    sources: Sources,
    out: Annotated[Path, typer.Option(help="The dataset's directory.")],
    tokenizer: Annotated[Path, typer.Option(help="A tokenizer's directory or tokenizer.json.")],
    chats: Annotated[
        bool, typer.Option("--chats", help="The rows are conversations; only answers are learnt.")
    ] = False,
    preferences: Annotated[
        bool, typer.Option("--preferences", help="The rows are pairs: a chosen answer, a rejected.")
    ] = False,
    template: Annotated[
        str | None,
        typer.Option(
            help="Chat template: chatml, zephyr, llama-2 or a .jinja file. "
            "[default: the tokenizer's]"
        ),
    ] = None,
    learn: Annotated[
        str, typer.Option(help="What is learnt of chats: assistant (its turns), last or all.")
    ] = "assistant",
    name: Annotated[str | None, typer.Option(help="Name in reports. [default: of --out]")] = None,
    text_field: TextField = "text",
    where: Where = None,
    validation: Annotated[
        float | None,
        typer.Option(help="Share held out. [default: 0.01 of text, 0.05 of chats and pairs]"),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(help="Chats or pairs to hold out, in place of a share. Repeatable."),
    ] = None,
    split_by: Annotated[
        str | None,
        typer.Option(help="Field whose value decides what is held out, instead of the text."),
    ] = None,
    bos: Annotated[bool, typer.Option(help="Put BOS before every document.")] = True,
    eos: Annotated[bool, typer.Option(help="Put EOS after every document.")] = True,
    dedup: Annotated[bool, typer.Option(help="Drop documents met before.")] = True,
    workers: Annotated[int | None, typer.Option(help="Processes. [default: all cores]")] = None,
    shard_tokens: Annotated[float, typer.Option(help="Tokens a shard.")] = 500e6,
    block_bytes: Annotated[
        int | None, typer.Option(help="Divide larger documents at line ends into such blocks.")
    ] = None,
    max_bad_fraction: BadFraction = 0.01,
    max_documents: MaxDocuments = None,
    max_tokens: Annotated[
        float | None, typer.Option(help="Stop reading after so many tokens: for streams.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Recorded with the sources. [default: what they say]")
    ] = None,
) -> None:
    """Tokenise text, or chats, into a dataset. Unchanged input is reused, an interrupted build
    starts over."""
    common: dict[str, Any] = {"name": name, "dedup": dedup, "max_bad_fraction": max_bad_fraction}
    if validation is not None:
        common["validation"] = validation
    bound = None if max_documents is None else int(max_documents)
    if chats or preferences:
        if chats and preferences:
            raise UserError("give --chats or --preferences, not both")
        _refuse(context, _OF_TEXT, "of text; chats and preferences know nothing like it")
        _build_chats(
            sources,
            out,
            tokenizer,
            kind="chats" if chats else "preferences",
            template=template,
            learn=_learn(context, learn, preferences=preferences),
            held_out=held_out,
            max_examples=bound,
            **common,
        )
        return
    _refuse(context, _OF_CHATS, "for chats; add --chats or --preferences")
    _build_text(
        sources,
        out,
        tokenizer,
        text_field=text_field,
        where=where,
        split_by=split_by,
        bos=bos,
        eos=eos,
        num_workers=workers,
        shard_tokens=int(shard_tokens),
        block_bytes=block_bytes,
        max_documents=bound,
        max_tokens=None if max_tokens is None else int(max_tokens),
        licence=licence,
        **common,
    )


# Parameters of `data_build` that one kind of data has no use for, as they are written.
_OF_TEXT = {
    "text_field": "--text-field",
    "where": "--where",
    "split_by": "--split-by",
    "bos": "--bos and --no-bos",
    "eos": "--eos and --no-eos",
    "workers": "--workers",
    "shard_tokens": "--shard-tokens",
    "block_bytes": "--block-bytes",
    "max_tokens": "--max-tokens",
    "licence": "--licence",
}
_OF_CHATS = {"template": "--template", "learn": "--learn", "held_out": "--held-out"}


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _refuse(context: typer.Context, options: Mapping[str, str], why: str) -> None:
    for name, written in options.items():
        if _given(context, name):
            raise UserError(f"{written}: {why}")


def _learn(
    context: typer.Context, learn: str, *, preferences: bool
) -> Literal["assistant", "last", "all"]:
    if preferences and _given(context, "learn"):
        raise UserError("--learn: for chats; of preferences it is the answers that are learnt")
    if learn not in ("assistant", "last", "all"):
        raise UserError(f"--learn {learn!r}: write assistant, last or all")
    return cast('Literal["assistant", "last", "all"]', learn)


def _reporter(
    progress: ProgressLine, what: str, max_tokens: int | None = None
) -> Callable[[Any], None]:
    """Shows a build's `Progress`, against `max_tokens` where that is what will end it."""

    def report(state: Any) -> None:
        if state.message:
            progress.say(state.message)
            return
        detail = f"{state.documents:,} {what}, {state.tokens:,} tokens"
        if max_tokens is not None:
            progress.update(min(state.tokens, max_tokens), max_tokens, detail)
        else:
            progress.update(state.bytes_read, state.num_bytes, detail)

    return report


def _build_text(sources: list[str], out: Path, tokenizer: Path, **settings: Any) -> None:
    from llamita.reporting.progress import ProgressLine

    with ProgressLine("encoding") as progress:
        report = _reporter(progress, "documents", settings["max_tokens"])
        manifest = llamita.build_data(sources, out, tokenizer, progress=report, **settings)
    for note in manifest.notes:
        print(note)
    for split, record in manifest.splits.items():
        print(f"{out}: {split} {record.tokens:,} tokens of {record.documents:,} documents")


def _build_chats(sources: list[str], out: Path, tokenizer: Path, **settings: Any) -> None:
    from llamita.reporting.progress import ProgressLine

    lines: list[str] = []
    with ProgressLine("encoding") as progress:
        report = _reporter(progress, "examples")
        llamita.build_chats(sources, out, tokenizer, progress=report, say=lines.append, **settings)
    print("\n".join(lines))


@data_app.command("show")
def data_show(
    datasets: Annotated[
        list[str], typer.Argument(help="Dataset directories, each perhaps with a share: DIR=0.7.")
    ],
    tokens: Annotated[
        float | None, typer.Option(help="Tokens to be trained on, to show epochs.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Sample windows a dataset.")] = 2,
    sample_tokens: Annotated[int, typer.Option(help="Tokens a sample.")] = 128,
    seed: Annotated[int, typer.Option(help="For other samples.")] = 0,
) -> None:
    """Datasets as a tree, with shares and epochs, and decoded samples with their boundaries."""
    paths, shares = [], []
    for dataset in datasets:
        path, equals, share = dataset.rpartition("=")
        if not equals or Path(dataset).exists():
            path, equals = dataset, ""
        if equals:
            try:
                shares.append(float(share))
            except ValueError:
                raise UserError(f"{dataset!r}: write DIR=SHARE, as in data/prose=0.7") from None
        paths.append(path)
    if shares and len(shares) != len(paths):
        raise UserError("give a share to each dataset (DIR=0.7), or to none")
    llamita.show_data(
        paths,
        weights=shares or None,
        tokens=tokens,
        samples=samples,
        sample_tokens=sample_tokens,
        seed=seed,
    )
