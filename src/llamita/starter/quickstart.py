"""`quickstart`: from the Python that is installed here to a model that writes, in one command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamita.data.manifest import MANIFEST_NAME
from llamita.errors import UserError
from llamita.planning.quantities import duration
from llamita.recipes.loading import check_recipe, dump_recipe, load_recipe, override_recipe
from llamita.recipes.schema import Recipe
from llamita.starter.questions import QUESTIONS, read_questions, write_questions

if TYPE_CHECKING:
    from llamita.training.telemetry import Observer

VOCAB_SIZE = 4096
# Of the text's files, and so of the functions that are asked about: see `starter.questions`.
_VALIDATION = 0.04
# Fewer pairs, of 54 tokens, would be read more than four times by the stages as they are planned.
_FEWEST_PAIRS = 5000
# Share of the measured matmul rate that the recipe's model trains at, compiled, on two cores: with
# bfloat16 units products are so fast that other work shows; AVX2's float32 was seen at 0.53.
_EXPECTED_MFU = {"bfloat16": 0.33, "float32": 0.5}
_STEPS_ROUNDED_TO = 100
# However fast the machine, no dataset is read more often than this.
_MOST_EPOCHS = 3.5


def quickstart(
    out: str | Path = "quickstart",
    *,
    minutes: float = 5.0,
    say: Callable[[str], None] = print,
    observers: Sequence[Observer] = (),
) -> dict[str, Any]:
    """Collect a corpus, train a tokenizer, build data, train, write, ask, judge.

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
    from llamita.starter.questioning import judge_answers
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
    if QUESTIONS in recipe.datasets:
        summary["answers"] = judge_answers(folder, recipe, say=say)
    text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    (folder / "summary.json").write_text(text, encoding="utf-8")
    say(
        f"\nThe run to look at: {result.run / 'report.html'}\n"
        f"Yours now: {folder / 'run' / 'final'} (a Hugging Face directory). Write with it:\n"
        f"  llamita generate {folder / 'run'} 'def read_lines(path):' --max-tokens 60\n"
        f"{_ask_it(folder) if QUESTIONS in recipe.datasets else ''}"
        "Then train on your own text: llamita train laptop --dry-run, and docs/recipes.md; or tune "
        "a model\nto your own questions and answers: docs/tune.md."
    )
    return summary


def _ask_it(folder: Path) -> str:
    return f"Ask it:\n  llamita generate {folder / 'run'} --chat 'What does `os.path.join` do?'\n"


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
    _make_questions(folder, tokenizer, say)


def _make_questions(folder: Path, tokenizer: Path, say: Callable[[str], None]) -> None:
    """Conversations about public functions; none where this Python has too few of them."""
    from llamita.data.chat_build import build_chats

    files = train, held_out = [folder / QUESTIONS / f"{n}.jsonl" for n in ("train", "held-out")]
    if not all(file.is_file() for file in files):
        write_questions(folder / "corpus", folder / QUESTIONS, held_out=_VALIDATION)
    asked, kept_back = read_questions(train), read_questions(held_out)
    if len(asked) < _FEWEST_PAIRS or not kept_back:
        say(
            f"      questions: too few ({len(asked):,} to train on, {len(kept_back):,} about files "
            "held out) in the library of this Python; training goes on with text alone"
        )
        return
    manifest = build_chats(
        train, folder / "data" / QUESTIONS, tokenizer, held_out=held_out, say=lambda _: None
    )
    splits = manifest.splits
    say(
        f"      questions: {splits['train'].tokens:,} tokens about "
        f"{len({question.name for question in asked}):,} public names to train on, "
        f"{splits['validation'].tokens:,} about {len({question.name for question in kept_back}):,} "
        "held out"
    )


def settle_recipe(
    folder: Path, minutes: float, say: Callable[[str], None], overrides: Iterable[str] = ()
) -> Recipe:
    """The shipped recipe over `folder/data`, with as many tokens as the minutes hold here; its last
    stage, and what it mixes in before, only where there are questions.

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

    recipe = load_recipe("quickstart", overrides)
    if not (folder / "data" / QUESTIONS / MANIFEST_NAME).is_file():
        recipe = _without_questions(recipe)
    places = [f"datasets.{name}.path={folder / 'data' / name}" for name in recipe.datasets]
    recipe = override_recipe(recipe, places)
    plan = prepare(recipe).plan
    device = torch.device("cpu")
    rates = {name: matmul_rate(device, getattr(torch, name)) for name in _EXPECTED_MFU}
    dtype = max(rates, key=lambda name: rates[name])
    rate = rates[dtype]
    each = plan.flops_per_token(plan.recipe.sequence_length)
    wanted = minutes * 60 * rate * _EXPECTED_MFU[dtype] / each
    unit = plan.recipe.batch_tokens * _STEPS_ROUNDED_TO
    epochs = max(after for stage in plan.stages for _, after in stage.epochs.values())
    most = int(plan.tokens * _MOST_EPOCHS / epochs / unit)
    tokens = unit * max(1, min(most, round(wanted / unit)))
    stages = [
        f"stages.{number}.tokens={round(tokens * stage.tokens / plan.tokens)}"
        for number, stage in enumerate(plan.stages)
    ]
    settled = override_recipe(recipe, stages)
    file.write_text(dump_recipe(settled), encoding="utf-8")
    say(
        f"      {tokens / 1e6:.1f}M tokens of training fit into about {duration(minutes * 60)} at "
        f"this machine's {rate / 1e9:.0f} GFLOP/s"
    )
    return settled


def _without_questions(recipe: Recipe) -> Recipe:
    """The stages of text: the later one reads what the first does."""
    values = recipe.model_dump()
    del values["datasets"][QUESTIONS]
    values["stages"] = [
        {**stage, "mixture": values["stages"][0]["mixture"]}
        for stage in values["stages"]
        if set(stage["mixture"]) != {QUESTIONS}
    ]
    return check_recipe(values, f"recipe {recipe.name}")
