"""How fast batches are served: windows of a mixture, laid out as tensors.

    python benchmarks/batches.py [--seconds 3]

The bar is 20M tokens a second, which no model that llamita trains consumes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from llamita.data.batch import Cursor, StageData
from llamita.data.build import build_data
from llamita.data.shards import open_dataset
from llamita.data.tokenizer_training import train_tokenizer


def make_datasets(folder: Path) -> dict[str, Path]:
    """Two datasets of random words, some 10 MB of text each."""
    rng = np.random.default_rng(0)
    words = np.array(["".join(rng.choice(list("etaoinshr"), 6)) for _ in range(2000)])
    paths = {}
    for name in ("prose", "code"):
        source = folder / name
        source.mkdir()
        for number in range(20):
            text = " ".join(rng.choice(words, 70_000))
            (source / f"{number}.txt").write_text(text.replace(words[0], words[0] + "\n"))
        paths[name] = source
    train_tokenizer([*paths.values()], folder / "tokenizer", 2048, max_bytes=1_000_000)
    return {
        name: (
            build_data(source, folder / f"{name}.data", folder / "tokenizer")
            and folder / f"{name}.data"
        )
        for name, source in paths.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        paths = make_datasets(Path(folder))
        streams = {name: open_dataset(path).train for name, path in paths.items()}
        for length in (512, 2048):
            for masked in (False, True):
                stage = StageData(
                    streams,
                    {"prose": 0.7, "code": 0.3},
                    sequence_length=length,
                    windows_per_step=(1 << 20) // length,
                    seed=0,
                    document_masking=masked,
                )
                cursor, best = Cursor.beginning(), 0.0
                end = time.perf_counter() + seconds
                while time.perf_counter() < end:
                    start = time.perf_counter()
                    batch, cursor = stage.batch(cursor)
                    best = max(best, batch.tokens.numel() / (time.perf_counter() - start))
                kind = "document-masked" if masked else "plain"
                print(f"T = {length:>5} {kind:<16} {best / 1e6:8.1f}M tokens/s")


if __name__ == "__main__":
    main()
