"""What the engine costs on top of llama.cpp: our stream of pieces against xllamacpp left bare.

    python benchmarks/llama_cpp_overhead.py [--quantize q8_0,q4_1] [--tokens 128] [--record]

Both have a server of their own in this process, of the same GGUF with the same settings, and take
turns, so that what else the machine does meets both. They continue the same prompts greedily; each
prompt begins with a token of its own, so that no cache of prompts helps. Bare means a callback that
notes the time and does nothing else, and a request for text alone. The best of `--repeats` counts.

- first token: from the request to the first callback, or to the first piece;
- stream: from there to the last one, as whoever reads the stream sees it;
- decode: llama.cpp's own time for the same tokens (`predicted_ms`), in the same request.

The overhead is the stream over the decode, less one, of the request in which it was least.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamita.cores import num_threads
from llamita.data.chat_records import Message
from llamita.formats.gguf_made import gguf_of
from llamita.inference.engine import Request, Stream
from llamita.inference.engines import open_engine
from llamita.inference.llama_cpp_engine import LlamaCppEngine, completion
from llamita.inference.llama_cpp_server import open_server
from llamita.inference.sampling import Sampling
from tuning_common import MODEL, record

MOST_OVERHEAD, MOST_DELAY = 0.03, 0.020
QUESTIONS = (
    "Write a long story about a lighthouse keeper who finds a letter in a bottle.",
    "Explain in detail how bread is made, from the field to the table.",
    "Describe a walk through a large city on a rainy evening.",
)
CONTEXT = 1024
# What the engine asks for and a plain request does not.
_EXTRA = ("verbose", "response_fields", "timings_per_token", "return_progress")
_NUM_MARKS = 1000
Found = dict[str, float]


def bare(server: Any, request: Request) -> Found:
    body = completion(request, CONTEXT)
    body = {name: value for name, value in body.items() if name not in _EXTRA}
    times: list[float] = []
    said = ""

    def receive(event: str) -> bool:
        nonlocal said
        times.append(time.perf_counter())
        said = event
        return False

    start = time.perf_counter()
    server.handle_completions(json.dumps(body), receive)
    timings = json.loads(said)["timings"]
    # The last event but one is the last token.
    return _figures(start, times[0], times[-2], timings["predicted_ms"], timings["predicted_n"])


def ours(engine: LlamaCppEngine, request: Request) -> Found:
    start = time.perf_counter()
    stream = Stream(engine, request)
    times = [time.perf_counter() for _ in stream]
    end = stream.finish
    assert end is not None
    assert end.cached_tokens == 0, "a prompt was not computed anew"
    return _figures(start, times[0], times[-1], 1000 * end.decode_seconds, end.completion_tokens)


def _figures(start: float, first: float, last: float, decode_ms: float, tokens: int) -> Found:
    stream = last - first
    return {
        "first_token_ms": 1000 * (first - start),
        "tokens_per_second": (tokens - 1) / stream,
        "ms_per_token": 1000 * stream / (tokens - 1),
        "overhead": 1000 * stream / decode_ms - 1,
    }


def best(found: Sequence[Found]) -> Found:
    return {
        name: (max if name == "tokens_per_second" else min)(each[name] for each in found)
        for name in found[0]
    }


def measure(arguments: argparse.Namespace, quantize: str) -> dict[str, Any]:
    engine = open_engine(
        arguments.model, engine="llama.cpp", quantize=quantize, context=CONTEXT, say=_aside
    )
    assert isinstance(engine, LlamaCppEngine)
    file = gguf_of(arguments.model, quantize=quantize, say=_aside)
    server = open_server(str(file), file.name, 1, CONTEXT, num_threads())
    prompts = [
        engine.tokenizer.encode_chat(
            engine.template.render([Message("user", question)], add_generation_prompt=True)
        )
        for question in QUESTIONS
    ]
    found: dict[str, list[Found]] = {"bare": [], "llamita": []}
    for turn in range(-1, arguments.repeats):  # the first warms up
        for number, prompt in enumerate(prompts):
            mark = _NUM_MARKS + (turn + 1) * len(prompts) + number
            request = Request((mark, *prompt), Sampling(temperature=0), arguments.tokens)
            sides = [("bare", bare, server), ("llamita", ours, engine)]
            for name, write, writer in sides[:: 1 if turn % 2 else -1]:
                figures = write(writer, request)  # type: ignore[operator]
                if turn >= 0:
                    found[name].append(figures)
    engine.close()
    del server
    sides_best = {name: best(each) for name, each in found.items()}
    one, other = sides_best["llamita"], sides_best["bare"]
    delay = one["first_token_ms"] - other["first_token_ms"]
    slower = other["tokens_per_second"] / one["tokens_per_second"] - 1
    return {**sides_best, "first_token_delay_ms": delay, "slower_than_bare": slower}


def _aside(line: str) -> None:
    print(line, file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--quantize", default="q8_0,q4_1")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="write recorded/NAME.json")
    arguments = parser.parse_args()
    kinds = {kind: measure(arguments, kind) for kind in arguments.quantize.split(",")}
    print(f"{'':6}{'':10}{'first token':>14}{'tokens/s':>10}{'ms/token':>10}{'overhead':>10}")
    for kind, found in kinds.items():
        for side in ("bare", "llamita"):
            figures = found[side]
            print(
                f"{kind:6}{side:10}{figures['first_token_ms']:11.1f} ms"
                f"{figures['tokens_per_second']:10.1f}{figures['ms_per_token']:10.2f}"
                f"{figures['overhead']:10.2%}"
            )
        print(
            f"{kind:6}first token {found['first_token_delay_ms']:+.1f} ms (at most "
            f"{1000 * MOST_DELAY:.0f}), overhead {found['llamita']['overhead']:.2%} (at most "
            f"{MOST_OVERHEAD:.0%}), against bare {found['slower_than_bare']:+.2%}"
        )
    if arguments.record:
        settings = {"tokens": arguments.tokens, "repeats": arguments.repeats}
        record("llama_cpp_overhead", {"settings": settings, "threads": num_threads(), **kinds})


if __name__ == "__main__":
    main()
