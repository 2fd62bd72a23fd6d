"""The quickstart's recipe on text of your own, beside xz and 5-gram models on the same bytes.

    python benchmarks/own_text.py --prose FILE… --code FILE… [--minutes 10] [--out DIR]

Without files it takes ../shared/data/corpora: Python and Linux documentation to the Python standard
library, 7:3. Held-out documents are chosen by hash, and none is trained on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from llamita.data.build import build_data
from llamita.data.tokenizer_training import train_tokenizer
from llamita.starter.judgement import judge
from llamita.starter.quickstart import VOCAB_SIZE, settle_recipe
from llamita.training.run import train

CORPORA = Path(__file__).resolve().parents[2] / "shared" / "data" / "corpora"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prose", nargs="+", type=Path)
    parser.add_argument("--code", nargs="+", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("runs/own-text"))
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    if (arguments.prose is None) != (arguments.code is None):
        parser.error("give both --prose and --code, or neither")
    if arguments.prose is None and not CORPORA.is_dir():
        parser.error(f"there is no {CORPORA}: name your text with --prose and --code")
    prose = arguments.prose or [
        CORPORA / "nat-python-doc.jsonl.gz",
        CORPORA / "nat-linux-doc.jsonl.gz",
    ]
    code = arguments.code or [CORPORA / "code-python-stdlib.jsonl.gz"]
    tokenizer = arguments.out / "tokenizer"
    if not tokenizer.is_dir():
        train_tokenizer([*prose, *code], tokenizer, VOCAB_SIZE, max_bytes=12_000_000)
    for name, sources in (("prose", prose), ("code", code)):
        manifest = build_data(sources, arguments.out / "data" / name, tokenizer)
        print(f"{name}: {manifest.splits['train'].tokens:,} tokens to train on")
    recipe = settle_recipe(arguments.out, arguments.minutes, print, arguments.overrides)
    train(recipe, out=arguments.out / "run")
    summary = judge(arguments.out, recipe, say=print)
    (arguments.out / "summary.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
