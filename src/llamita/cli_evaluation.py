"""The verb `eval`: parse, call, print."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

import llamita
from llamita.errors import UserError

if TYPE_CHECKING:
    from llamita.evaluation.published import PublishedTable
    from llamita.evaluation.scores import Evaluation


def add_evaluation(app: typer.Typer) -> None:
    app.command("eval")(evaluate)


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL…",
            help="A directory, a run, an adapter, a .gguf file or a hub id; with --compare, "
            "folders or files of results.",
        ),
    ],
    suite: Annotated[
        list[str] | None,
        typer.Option(help="tinyllama, instructeval or minicpm. Repeatable."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="lm-eval's task or group, a task YAML, or your own questions (.json, .jsonl, "
            ".csv). Repeatable."
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="A file, folder or dataset to measure bits per byte on. Repeatable."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of results, in which each model has one of its own.")
    ] = Path("evaluations"),
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of datasets, TASK/SPLIT.jsonl, looked into before the hub."),
    ] = None,
    limit: Annotated[
        float | None, typer.Option(help="Items of each task; below 1, a share of them.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Examples in each prompt. [default: the task's]", min=0)
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put questions through the chat template.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="What prompts begin with.")] = None,
    template: Annotated[
        str | None,
        typer.Option(help="chatml, zephyr, llama-2 or a .jinja file. [default: the model's own]"),
    ] = None,
    gen: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE over how tasks write, e.g. max_gen_toks=64. Repeatable."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Programs for each coding problem.", min=1)] = 1,
    pass_at: Annotated[
        list[int] | None, typer.Option(help="k of pass@k. Repeatable. [default: 1]")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of several programs. [default: 0.8]", min=0)
    ] = None,
    unsafe_code: Annotated[
        bool, typer.Option("--unsafe-code", help="Run programs where no sandbox can be had.")
    ] = False,
    trained_on: Annotated[
        list[str] | None,
        typer.Option(help="A run or dataset whose training text is searched for the items."),
    ] = None,
    overlap: Annotated[
        float, typer.Option(help="Share of an item's words found from which it counts as seen.")
    ] = 0.5,
    engine: Annotated[
        str, typer.Option(help="What writes texts: torch or llama.cpp (of a model in q8_0).")
    ] = "torch",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    context: Annotated[
        int | None, typer.Option(help="Tokens read at most. [default: the model's]", min=2)
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Of --text, in tokens. [default: half the context]", min=1)
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a pass: more memory, more speed.", min=1)
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="Earlier results to print beside these. Repeatable."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare results item by item; run nothing.")
    ] = False,
    every_checkpoint: Annotated[
        bool, typer.Option("--every-checkpoint", help="Of a run, all that it kept.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="A page of it all.")] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Ask everything anew, and keep nothing.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Leave the hub alone.")] = False,
) -> None:
    """Judge a model: benchmarks with error bars, bits per byte, comparisons."""
    from llamita.evaluation.results import load_evaluation
    from llamita.evaluation.suites import load_suite

    for name in suite or ():
        load_suite(name)  # a typing error must not be looked for among lm-eval's thousands
    earlier = [load_evaluation(path) for path in beside or ()]
    if compare:
        _compare(models, html)
        return
    if len(models) > 1:
        raise UserError(
            f"{len(models)} models: evaluate one after the other, then `llamita eval --compare` "
            "their results"
        )
    asked: dict[str, Any] = {
        "text": text or (),
        "data": data,
        "limit": limit,
        "num_fewshot": num_fewshot,
        "chat": chat,
        "system": system,
        "template": template,
        "gen_kwargs": _gen_kwargs(gen or ()),
        "samples": samples,
        "pass_at": pass_at or (1,),
        "temperature": temperature,
        "unsafe_code": unsafe_code,
        "trained_on": trained_on or (),
        "overlap": overlap,
        "engine": engine,
        "device": device,
        "dtype": dtype,
        "context": context,
        "stride": stride,
        "batch_tokens": batch_tokens,
        "cache": not no_cache,
        "offline": offline,
        "say": lambda line: print(line, file=sys.stderr, flush=True),
    }
    chosen = _checkpoints(models[0]) if every_checkpoint else [models[0]]
    names = (*(suite or ()), *(task or ()))
    try:
        found = [llamita.evaluate(each, names, out=out, **asked) for each in chosen]
    except KeyboardInterrupt:
        kept = "nothing is kept" if no_cache else "the answers so far are kept"
        again = shlex.join(("llamita", *sys.argv[1:]))
        print(f"\ninterrupted: {kept}. Go on with: {again}", file=sys.stderr)
        raise typer.Exit(130) from None
    _show(found, earlier, suite or (), html)


def _compare(paths: list[str], html: Path | None) -> None:
    from llamita.evaluation.comparison import compare
    from llamita.evaluation.comparison_text import describe_comparison
    from llamita.evaluation.results import load_evaluation

    found = [load_evaluation(Path(each)) for each in paths]
    print("\n".join(describe_comparison(compare(found))))
    _page(found, (), html)


def _show(
    found: Sequence[Evaluation],
    earlier: Sequence[Evaluation],
    suites: Sequence[str],
    html: Path | None,
) -> None:
    from llamita.evaluation.comparison_text import describe_evaluation
    from llamita.evaluation.published import published_table
    from llamita.evaluation.suites import load_suite

    names = [load_suite(each).published for each in suites]
    published = [published_table(each) for each in dict.fromkeys(names) if each is not None]
    for each in found:
        others = [*earlier, *(other for other in found if other is not each)]
        print("\n".join(describe_evaluation(each, published=published, earlier=others)))
    _page([*found, *earlier], published, html)


def _page(
    found: Sequence[Evaluation], published: Sequence[PublishedTable], html: Path | None
) -> None:
    from llamita.reporting.evaluation_report import write_evaluation_page

    if html is not None:
        command = ("llamita", *sys.argv[1:])
        page = write_evaluation_page(found, html, published=published, command=command)
        print(f"page: {page}", file=sys.stderr)


def _checkpoints(run: str) -> list[str]:
    from llamita.model.records import step_directories

    found = [str(path) for path in step_directories(Path(run)).values()]
    if not found:
        raise UserError(f"{run} holds no checkpoint: --every-checkpoint is for the folder of a run")
    return found


def _gen_kwargs(given: Sequence[str]) -> dict[str, Any]:
    found = {}
    for each in given:
        name, sign, value = each.partition("=")
        if not sign:
            raise UserError(f"--gen {each}: write KEY=VALUE, such as max_gen_toks=64")
        found[name] = yaml.safe_load(value)
    return found
