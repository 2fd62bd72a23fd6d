"""How many answers end by themselves: greedy ones, and drawn as `llamita chat` draws them.

    python benchmarks/endings.py MODEL… [--answers 40] [--max-tokens 512]

The questions of ../shared/data/instruct/alpaca_en_demo.json that `tuning_quality.py` holds out,
each asked alone.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from llamita.inference.sampling import Sampling
from tuning_common import INSTRUCT, there
from tuning_scores import GREEDY, endings, questions, shown, split

# As `llamita chat` draws.
WAYS = {
    "greedy": GREEDY,
    "drawn": Sampling(temperature=0.7, top_k=50, top_p=0.95, seed=0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--data", type=Path, default=INSTRUCT / "alpaca_en_demo.json")
    parser.add_argument("--answers", type=int, default=40)
    parser.add_argument("--max-tokens", type=int, default=512)
    arguments = parser.parse_args()
    if not there(arguments.data, *arguments.models):
        return
    with tempfile.TemporaryDirectory() as folder:
        _, held_out = split(arguments.data, Path(folder), arguments.answers, 1)
        asked = questions(held_out, arguments.answers)
    for model in arguments.models:
        for way, sampling in WAYS.items():
            found = endings(model, asked, arguments.max_tokens, sampling)
            print(
                f"{model}, {way}: {found.ended} of {found.answers} ended ({shown(found.share)}), "
                f"{found.tokens / found.answers:.0f} tokens each",
                flush=True,
            )


if __name__ == "__main__":
    main()
