"""`quickstart`: from the Python that is installed here to a model that writes, in one command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamita.architecture.counts import flops_per_token
from llamita.errors import UserError
from llamita.planning.quantities import duration
from llamita.recipes.loading import dump_recipe, load_recipe
from llamita.recipes.schema import Recipe

if TYPE_CHECKING:
    from llamita.training.telemetry import Observer

VOCAB_SIZE = 4096
_VALIDATION = 0.02
# Share of the measured matmul rate that the recipe's model trains at, compiled, on two cores.
_EXPECTED_MFU = 0.33
_STEPS_ROUNDED_TO = 100
# However fast the machine, the data are not read more than about three times.
_MOST_TIMES_PLANNED = 4


def quickstart(
    out: str | Path = "quickstart",
    *,
    minutes: float = 5.0,
    say: Callable[[str], None] = print,
    observers: Sequence[Observer] = (),
) -> dict[str, Any]:
    """Collect a corpus, train a tokenizer, build data, train, write, judge.

    Everything goes into `out`; the same call goes on where an earlier one stopped.

    Args:
        minutes: training time to aim at, from this machine's measured matmul rate.
        observers: as of `llamita.train`.

    Returns:
        The summary that is also written to `out/summary.json`.

    Raises:
        UserError: `minutes` out of range, or anything the stages raise.
    """
    from llamita.starter.judgement import judge
    from llamita.training.run import TrainingResult, train

    if not 0 < minutes <= 24 * 60:
        raise UserError(f"--minutes {minutes:g}: give a time above 0 and up to a day (1440)")
    folder = Path(out)
    _make_data(folder, say)
    recipe = settle_recipe(folder, minutes, say)
    say("\n[4/5] training")
    result = train(recipe, out=folder / "run", say=say, observers=observers)
    assert isinstance(result, TrainingResult)
    say("\n[5/5] judging on files that training never saw")
    summary = judge(folder, recipe, say=say)
    text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    (folder / "summary.json").write_text(text, encoding="utf-8")
    say(
        f"\nThe run to look at: {result.run / 'report.html'}\n"
        f"Yours now: {folder / 'run' / 'final'} (a Hugging Face directory). Write with it:\n"
        f"  llamita generate {folder / 'run'} 'def read_lines(path):' --max-tokens 60\n"
        "Then train on your own text: llamita train laptop --dry-run, and docs/recipes.md."
    )
    return summary


def _make_data(folder: Path, say: Callable[[str], None]) -> None:
    from llamita.data.build import build_data
    from llamita.data.tokenizer_training import train_tokenizer
    from llamita.starter.corpus import collect_python_corpus

    corpus, tokenizer = folder / "corpus", folder / "tokenizer"
    prose, code = corpus / "prose.jsonl", corpus / "code.jsonl"
    if prose.is_file() and code.is_file():
        say(f"[1/5] corpus: {corpus} is there already")
    else:
        say("[1/5] corpus: reading the documentation and source of the Python installed here")
        found = collect_python_corpus(corpus)
        say(
            f"      prose {found.prose_bytes / 1e6:.1f} MB (docstrings, pydoc topics, package "
            f"descriptions), code {found.code_bytes / 1e6:.1f} MB (standard library, docstrings "
            "stripped)"
        )
    if (tokenizer / "tokenizer.json").is_file():
        say(f"[2/5] tokenizer: {tokenizer} is there already")
    else:
        say(f"[2/5] tokenizer: byte-level BPE of {VOCAB_SIZE:,} tokens")
        train_tokenizer([prose, code], tokenizer, VOCAB_SIZE, max_bytes=12_000_000)
    say("[3/5] data: split by file, so that no docstring of a held-out file is trained on")
    for name, source in (("prose", prose), ("code", code)):
        manifest = build_data(
            source, folder / "data" / name, tokenizer, validation=_VALIDATION, split_by="file"
        )
        splits = manifest.splits
        say(
            f"      {name}: {splits['train'].tokens:,} tokens to train on, "
            f"{splits['validation'].tokens:,} held out"
        )


def settle_recipe(
    folder: Path, minutes: float, say: Callable[[str], None], overrides: Iterable[str] = ()
) -> Recipe:
    """The shipped recipe over `folder/data`, with as many tokens as the minutes hold here.

    Written down as `folder/recipe.yaml` at first and read from there later, because a run that
    goes on must not change its mind.
    """
    file = folder / "recipe.yaml"
    if file.is_file():
        say(f"      going on with {file}; remove {folder} to begin again with other settings")
        return load_recipe(file)
    import torch

    from llamita.training.devices import matmul_rate
    from llamita.training.preparation import prepare

    places = [f"datasets.{name}.path={folder / 'data' / name}" for name in ("prose", "code")]
    places += overrides
    plan = prepare(load_recipe("quickstart", places)).plan
    device = torch.device("cpu")
    rate = max(matmul_rate(device, dtype) for dtype in (torch.bfloat16, torch.float32))
    each = flops_per_token(plan.config, plan.recipe.sequence_length)
    wanted = minutes * 60 * rate * _EXPECTED_MFU / each
    unit = plan.recipe.batch_tokens * _STEPS_ROUNDED_TO
    tokens = max(unit, min(plan.tokens * _MOST_TIMES_PLANNED, round(wanted / unit) * unit))
    stages = [
        f"stages.{number}.tokens={round(tokens * stage.tokens / plan.tokens)}"
        for number, stage in enumerate(plan.stages)
    ]
    settled = load_recipe("quickstart", [*places, *stages])
    file.write_text(dump_recipe(settled), encoding="utf-8")
    say(
        f"      {tokens / 1e6:.1f}M tokens of training fit into about {duration(minutes * 60)} at "
        f"this machine's {rate / 1e9:.0f} GFLOP/s"
    )
    return settled
