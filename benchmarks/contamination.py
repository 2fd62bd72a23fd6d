"""How fast training text is searched for evaluation items, beside lm-eval's own search.

    python benchmarks/contamination.py [--items FILE ...] [--text FILE ...] [--megabytes 24]
                                       [--repeats 3] [--peer-megabytes 4]

The peer is `Janitor` of lm-evaluation-harness, which its decontamination uses: n-grams of 13 words
in a Python set, one n-gram of the text after another. Both get the same items and the same texts,
in memory as Python strings; the items' table counts for both. The peer gets the first
`--peer-megabytes` of the text, as it is slow. Then the same text out of shards: read, decoded and
searched. All use one thread and are measured by its CPU time, so that neighbours on the machine
matter less. They take turns, the best of each counts.

Last, whatever was found in the text is listed: false positives, where it is known to be clean.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from llamita.data.blocks import ParseSettings
from llamita.data.build import build_data
from llamita.data.documents import parse_block, read_blocks
from llamita.data.sources import list_sources
from llamita.data.tokenizer_training import train_tokenizer
from llamita.evaluation.contamination import Overlap, find_overlaps
from llamita.evaluation.training_text import shard_texts

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", nargs="+", type=Path, help=".jsonl; ../shared's if absent")
    parser.add_argument("--text", nargs="+", type=Path, help="sources; ../shared's if absent")
    parser.add_argument("--megabytes", type=int, default=24, help="text of each source to use")
    parser.add_argument("--peer-megabytes", type=int, default=4, help="text for the peer")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    items = _items(options.items or sorted((SHARED / "evals").glob("*.jsonl")))
    sources = options.text or sorted((SHARED / "corpora").glob("*.jsonl.gz"))
    if not items or not sources:
        sys.exit("there is no ../shared; name --items and --text")
    texts = {source.name: _take(source, options.megabytes << 20) for source in sources}
    documents = [text for part in texts.values() for text in part]
    print(f"{len(items):,} items, {_size(documents) / 1e6:.1f} MB in {len(documents):,} documents")
    _compare(items, documents, options.peer_megabytes << 20, options.repeats)
    for name, part in texts.items():
        _list_found(name, find_overlaps(items, part), _size(part))


def _items(files: Iterable[Path]) -> dict[str, str]:
    """The strings of each record, those in lists too, one behind the other."""
    found = {}
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
            parts = [
                str(part)
                for value in json.loads(line).values()
                for part in (value if isinstance(value, list) else [value])
                if isinstance(part, str)
            ]
            found[f"{file.stem}/{number}"] = " ".join(parts)
    return found


def _take(source: Path, size: int) -> list[str]:
    """The first documents of a source, up to `size` bytes."""
    texts: list[str] = []
    for block in read_blocks(list_sources(source).files, 1 << 20):
        for document in parse_block(block, ParseSettings(), ()).documents:
            if size <= 0:
                return texts
            texts.append(document.text)
            size -= len(document.encoded)
    return texts


def _compare(items: dict[str, str], documents: list[str], peer_bytes: int, repeats: int) -> None:
    few = _first(documents, peer_bytes)
    ours = peer = shards = 0.0
    with tempfile.TemporaryDirectory() as folder:
        data = _build(documents, Path(folder))
        for _ in range(repeats):
            ours = max(ours, _rate(documents, lambda: find_overlaps(items, documents)))
            peer = max(peer, _rate(few, lambda: _janitor(items, few)))
            shards = max(shards, _rate(documents, lambda: find_overlaps(items, shard_texts(data))))
    print(f"  in memory       {ours:7.1f} MB/s")
    print(f"  from shards     {shards:7.1f} MB/s")
    print(f"  lm-eval Janitor {peer:7.1f} MB/s  (ours in memory: {ours / peer:.0f} x)")


def _build(documents: list[str], work: Path) -> Path:
    source = work / "text.jsonl"
    with source.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"text": text}) + "\n" for text in documents)
    tokenizer = train_tokenizer(source, work / "tokenizer", 8192)
    build_data(source, work / "data", tokenizer, validation=0, dedup=False)
    return work / "data"


def _janitor(items: dict[str, str], documents: list[str]) -> int:
    from lm_eval.decontamination.janitor import Janitor, word_ngrams

    janitor = Janitor()
    for text in items.values():
        janitor.register_contaminant_python(text)
    return sum(
        gram in janitor.dirt_ngrams
        for text in documents
        for gram in word_ngrams(janitor.normalize_string(text), 13)
    )


def _first(documents: list[str], size: int) -> list[str]:
    found: list[str] = []
    for text in documents:
        if size <= 0:
            break
        found.append(text)
        size -= len(text.encode())
    return found


def _size(documents: list[str]) -> int:
    return sum(len(text.encode()) for text in documents)


def _rate(documents: list[str], work: Callable[[], object]) -> float:
    """MB of text a second of CPU time."""
    start = time.process_time()
    work()
    return _size(documents) / 1e6 / (time.process_time() - start)


def _list_found(name: str, overlaps: dict[str, Overlap], size: int) -> None:
    found = {item: overlap for item, overlap in overlaps.items() if overlap.covered}
    unjudged = sum(not overlap.judged for overlap in overlaps.values())
    print(f"{name}: {size / 1e6:.1f} MB, {len(found)} of {len(overlaps)} items found, ", end="")
    print(f"{unjudged} too short to judge")
    for item, overlap in sorted(found.items(), key=lambda each: -each[1].share):
        print(f"  {item:22} {overlap.share:5.1%} of {overlap.words} words: {overlap.longest[:90]}")


if __name__ == "__main__":
    main()
