"""How well the quickstart's model predicts text: beside compressors and n-grams, on the same
held-out bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llamita.data.shards import TokenStream, open_dataset
from llamita.data.tokenizer import Tokenizer, load_tokenizer
from llamita.inference.generation import continue_prompt
from llamita.inference.sampling import Sampling
from llamita.inference.scoring import held_out, score_text
from llamita.model.decoder import Decoder
from llamita.model.huggingface import load_model
from llamita.recipes.schema import Recipe
from llamita.starter.baselines import (
    BYTE_BOS,
    BYTE_VOCAB_SIZE,
    NGramModel,
    bits_per_byte,
    byte_stream,
    primed_xz_bits_per_byte,
    xz_bits_per_byte,
)
from llamita.starter.python_check import parses, tokenizes

# The byte 5-gram learns from this much of each dataset, evenly spread: it needs 60 bytes of memory
# a byte of text.
_BYTE_GRAM_BYTES = 8_000_000
_CODE_PROMPTS = (
    "class Reader:\n",
    "import os\nimport sys\n\n",
    "def main():\n",
    "import re\n\ndef parse(text):\n",
    "def read_lines(path):\n",
    "    for name in names:\n",
    "try:\n",
    "from collections import ",
)
_PROSE_PROMPTS = ("The following example", "Return the ", "# json\n\n")
_SAMPLES_A_PROMPT = 4
_SAMPLE_TOKENS = 80


def judge(folder: Path, recipe: Recipe, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Score, compare and sample the model in `folder/run/final`; prints a table.

    Where the last stage tunes, the model as it was before is scored too: tuning forgets.

    Returns:
        Bits per byte of the model and of each baseline, by dataset of text and together, and the
        samples with the shares of code that tokenise and parse as Python.
    """
    model = load_model(folder / "run" / "final")
    tokenizer = load_tokenizer(folder / "run" / "final")
    texts = _texts_of(recipe)
    length = recipe.sequence_length
    bits = {"this model": _model_bits(model, texts, length)}
    if texts.keys() != recipe.stages[-1].mixture.keys():
        *_, before, _ = stage_ends(folder / "run", recipe).items()
        bits[f"before its stage {recipe.stages[-1].name}"] = _model_bits(
            load_model(before[1]), texts, length
        )
    bits |= _baseline_bits(texts, tokenizer)
    names = [*texts, "together"]
    say(f"      this model sees {length // 2} to {length} tokens before each it predicts")
    say(f"      {'bits per byte':<44}" + "".join(f"{name:>10}" for name in names))
    for label, row in bits.items():
        say(f"      {label:<44}" + "".join(f"{row[name]:>10.3f}" for name in names))
    ours = bits["this model"]["together"]
    for label in ("xz -9e", "5-gram with back-off, bytes", "5-gram with back-off, tokens"):
        verdict = "beaten" if ours < bits[label]["together"] else "NOT beaten"
        say(f"      {label}: {verdict}")
    samples = _write_samples(model, tokenizer)
    code = [sample["text"] for sample in samples if sample["kind"] == "code"]
    share_tokenizes = sum(map(tokenizes, code)) / len(code)
    share_parses = sum(map(parses, code)) / len(code)
    say(
        f"      of {len(code)} code samples {share_tokenizes:.0%} tokenise as Python and "
        f"{share_parses:.0%} parse"
    )
    for kind in ("prose", "code"):
        shown = next(sample["text"] for sample in samples if sample["kind"] == kind)
        say(f"\n--- {kind} it wrote ---\n{shown}")
    return {
        "bits_per_byte": bits,
        "share_tokenizes": share_tokenizes,
        "share_parses": share_parses,
        "samples": samples,
    }


def stage_ends(run: Path, recipe: Recipe) -> dict[str, Path]:
    """Stage → the model as that stage left it; of the last one, `final/`."""
    ends, step = {}, 0
    for stage in recipe.stages:
        step += -(-stage.tokens // (stage.batch_tokens or recipe.batch_tokens))
        ends[stage.name] = run / f"step-{step}"
    return ends | {recipe.stages[-1].name: run / "final"}


@dataclass(frozen=True)
class _Text:
    """A dataset of text."""

    train: TokenStream
    validation: TokenStream


def _texts_of(recipe: Recipe) -> dict[str, _Text]:
    found = {}
    for name, source in recipe.datasets.items():
        dataset = open_dataset(source.path)
        if isinstance(dataset.train, TokenStream):
            assert isinstance(dataset.validation, TokenStream)
            found[name] = _Text(dataset.train, dataset.validation)
    return found


def _model_bits(
    model: Decoder, texts: Mapping[str, _Text], sequence_length: int
) -> dict[str, float]:
    scores = {
        name: score_text(
            model,
            held_out(text.validation),
            sequence_length=sequence_length,
            rows=16,
            stride=sequence_length // 2,
        )
        for name, text in texts.items()
    }
    first, *others = scores.values()
    together = sum(others, first)
    return {name: score.bits_per_byte for name, score in scores.items()} | {
        "together": together.bits_per_byte
    }


def _baseline_bits(
    datasets: Mapping[str, _Text], tokenizer: Tokenizer
) -> dict[str, dict[str, float]]:
    """Baselines on the held-out documents; the n-grams learn from the same training split."""
    table = tokenizer.token_bytes()
    silent = tokenizer.special_ids
    held = {name: _texts(data.validation, table, silent) for name, data in datasets.items()}
    trained = {name: _texts(data.train, table, silent) for name, data in datasets.items()}
    held["together"] = [text for texts in list(held.values()) for text in texts]
    everything = [text for texts in trained.values() for text in texts]
    part = [text for texts in trained.values() for text in _spread(texts, _BYTE_GRAM_BYTES)]
    over_bytes = NGramModel(5, BYTE_VOCAB_SIZE).fit(byte_stream(part))
    over_tokens = NGramModel(5, tokenizer.vocab_size).fit(
        np.concatenate([_tokens(data.train) for data in datasets.values()])
    )
    held_tokens = {name: _tokens(data.validation) for name, data in datasets.items()}
    held_tokens["together"] = np.concatenate(list(held_tokens.values()))
    assert tokenizer.bos_id is not None
    free = (tokenizer.bos_id,)
    sizes = {name: sum(map(len, texts)) for name, texts in held.items()}
    return {
        "xz -9e": {name: xz_bits_per_byte(texts) for name, texts in held.items()},
        "xz -9e after 8 MB of training text": {
            name: primed_xz_bits_per_byte(everything, texts) for name, texts in held.items()
        },
        "5-gram with back-off, bytes": {
            name: bits_per_byte(over_bytes, byte_stream(texts), sizes[name], (BYTE_BOS,))
            for name, texts in held.items()
        },
        "5-gram with back-off, tokens": {
            name: bits_per_byte(over_tokens, tokens, sizes[name], free)
            for name, tokens in held_tokens.items()
        },
    }


def _tokens(stream: TokenStream) -> Any:
    return np.concatenate(
        [np.asarray(stream.document(i), dtype=np.int64) for i in range(stream.num_documents)]
    )


def _texts(stream: TokenStream, table: list[bytes], silent: frozenset[int]) -> list[bytes]:
    return [
        b"".join(table[token] for token in stream.document(index).tolist() if token not in silent)
        for index in range(stream.num_documents)
    ]


def _spread(texts: list[bytes], limit: int) -> list[bytes]:
    """Whole texts at even steps, of about `limit` bytes in all."""
    every = max(1, round(sum(map(len, texts)) / limit))
    return texts[::every]


def _write_samples(model: Decoder, tokenizer: Tokenizer) -> list[dict[str, str]]:
    samples = []
    for kind, prompts, count in (
        ("prose", _PROSE_PROMPTS, 1),
        ("code", _CODE_PROMPTS, _SAMPLES_A_PROMPT),
    ):
        for prompt in prompts:
            for seed in range(count):
                pieces = continue_prompt(
                    model,
                    tokenizer,
                    prompt,
                    max_tokens=_SAMPLE_TOKENS,
                    sampling=Sampling(temperature=0.7, seed=seed),
                )
                text = prompt + "".join(pieces)
                samples.append({"kind": kind, "prompt": prompt, "text": text})
    return samples
