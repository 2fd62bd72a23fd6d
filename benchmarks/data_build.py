"""`data build` beside the raw rate of `tokenizers` on the same documents and the same cores.

    python benchmarks/data_build.py [--source FILE ...] [--tokenizer PATH] [--repeats 5]

The peers are `encode_batch` and `encode_batch_fast` of all documents, already in memory as Python
strings, on all cores; nothing else counts for them: no reading, no parsing, no array of ids. The
build reads and decompresses the sources, parses, hashes, deduplicates, encodes and writes fsynced
shards. Peers and build take turns and the best of each counts, as the machine may be shared.
The bar: the build reaches 85% of `encode_batch`.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import tokenizers

from llamita.data.blocks import ParseSettings
from llamita.data.build import build_data
from llamita.data.documents import parse_block, read_blocks
from llamita.data.sources import list_sources
from llamita.data.tokenizer import Tokenizer, load_tokenizer
from llamita.data.tokenizer_training import train_tokenizer

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CORPORA = ("nat-python-doc", "nat-linux-doc", "code-python-stdlib")
BAR = 0.85


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--source", nargs="+", type=Path, help="sources; the shared corpora if absent"
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="one tokenizer, in place of the two usual ones"
    )
    parser.add_argument(
        "--vocab-size", type=int, default=8192, help="of the self-trained tokenizer"
    )
    parser.add_argument("--megabytes", type=int, default=24, help="text to use")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source, texts = _take(options.source or _usual_sources(work), options.megabytes, work)
        size = sum(len(text.encode()) for text in texts)
        print(f"{len(texts):,} documents, {size / 1e6:.1f} MB, {os.cpu_count()} cores")
        for name, tokenizer in _tokenizers(options, source, work).items():
            _compare(name, tokenizer, source, texts, size, options.repeats, work)


def _usual_sources(work: Path) -> list[Path]:
    found = [SHARED / "corpora" / f"{name}.jsonl.gz" for name in CORPORA]
    if all(file.is_file() for file in found):
        return found
    print("no ../shared corpora: generated text (--source names others)")
    generator = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(generator.choices(letters, k=generator.randint(2, 9))) for _ in range(20_000)]
    # Zipf's law, as words of a language have it
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))
    file = work / "generated.jsonl"
    with file.open("w") as stream:
        for _ in range(12_000):
            text = " ".join(generator.choices(words, cum_weights=weights, k=400))
            stream.write(json.dumps({"text": text}) + "\n")
    return [file]


def _take(sources: list[Path], megabytes: int, work: Path) -> tuple[Path, list[str]]:
    """The first megabytes of each source as one .jsonl.gz, and its texts."""
    texts: list[str] = []
    for source in sources:
        left = (megabytes << 20) // len(sources)
        for block in read_blocks(list_sources(source).files, 1 << 20):
            for document in parse_block(block, ParseSettings(), ()).documents:
                if left > 0:
                    texts.append(document.text)
                    left -= len(document.encoded)
            if left <= 0:
                break
    texts = list(dict.fromkeys(texts))
    file = work / "text.jsonl.gz"
    with gzip.open(file, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return file, texts


def _tokenizers(options: argparse.Namespace, source: Path, work: Path) -> dict[str, Tokenizer]:
    if options.tokenizer:
        return {str(options.tokenizer): load_tokenizer(options.tokenizer)}
    name = f"byte-level BPE {options.vocab_size}"
    found = {name: train_tokenizer(source, work / "tokenizer", options.vocab_size)}
    if (SHARED / "tokenizers/llama2").is_dir():
        found["Llama 2"] = load_tokenizer(SHARED / "tokenizers/llama2")
    return found


def _compare(
    name: str,
    tokenizer: Tokenizer,
    source: Path,
    texts: list[str],
    size: int,
    repeats: int,
    work: Path,
) -> None:
    # a fresh object for each call: no table of words is warm for the peers or for the build
    def peer(method: str) -> None:
        backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
        backend.encode_special_tokens = True
        getattr(backend, method)(texts, add_special_tokens=False)

    def build() -> None:
        build_data(source, work / "out", tokenizer, num_workers=os.cpu_count())

    runs: dict[str, Callable[[], None]] = {
        "encode_batch": lambda: peer("encode_batch"),
        "encode_batch_fast": lambda: peer("encode_batch_fast"),
        "data build": build,
    }
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        for key, run in runs.items():
            shutil.rmtree(work / "out", ignore_errors=True)
            start = time.perf_counter()
            run()
            best[key] = min(best[key], time.perf_counter() - start)
    for key, seconds in best.items():
        print(f"{name:>24}  {key:<18} {size / seconds / 1e6:7.2f} MB/s")
    for key in ("encode_batch", "encode_batch_fast"):
        print(f"{name:>24}  build / {key}: {best[key] / best['data build']:.0%} (bar {BAR:.0%})")


if __name__ == "__main__":
    main()
