"""The torch engine beside Transformers' generate: one stream, sixteen, and a mixed trace.

    python benchmarks/engine_speed.py --record

Both sides have the same weights, prompts, numbers of new tokens (no text ends by itself) and
threads; each has a process of its own, they take turns, and the best turn of each counts. (In one
process the helper threads of both, more than there are cores, would slow each other.) The trace
has the lengths of prompts and answers of ../shared/data/instruct/dpo_en_demo.json (300 pairs, from
LLaMA-Factory's demonstration data), in the file's order: Transformers gets it in padded batches
of sixteen, each running until its longest answer ends, the engine gets all requests at once.
Tokens a second count the new tokens that were asked for. What one stream reads, all weights once
a token, is compared with the machine's rate of reading: a sum over 256 MB.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from llamita.data.tokenizer import load_tokenizer
from llamita.inference.engine import Request, Stream
from llamita.inference.engines import open_engine
from llamita.inference.sampling import Sampling
from llamita.inference.torch_engine import TorchEngine
from llamita.model.records import read_config
from tuning_common import INSTRUCT, MODEL, record, there

BARS = {"one": 1.4, "sixteen": 2.0, "trace": 4.0}
SLOTS = 16
Load = list[tuple[tuple[int, ...], int]]  # prompts, and new tokens of each
Found = dict[str, Any]
Runner = tuple[Callable[[Load], Found], Found]


def loads(arguments: argparse.Namespace, tokenizer: Any) -> dict[str, Load]:
    rows = json.loads(arguments.data.read_text("utf-8"))
    prompts = [row["conversations"][0]["value"] for row in rows]
    answers = [row["chosen"]["value"] for row in rows]
    text = [token for prompt in prompts for token in tokenizer.encode(prompt)]
    length, new = arguments.prompt, arguments.new
    cut = [tuple(text[start : start + length]) for start in range(0, SLOTS * length, length)]
    trace = []
    for prompt, answer in zip(prompts, answers, strict=True):
        count = len(tokenizer.encode(answer))
        ids = tuple(tokenizer.encode(prompt))
        if ids and count:
            trace.append((ids[: arguments.longest], min(count, arguments.longest)))
    every = max(1, len(trace) // arguments.requests)
    return {
        "one": [(cut[0], new)],
        "sixteen": [(each, new) for each in cut],
        "trace": trace[::every][: arguments.requests],
    }


def peer(model: Any) -> Callable[[Load], Found]:
    """Transformers' generate, sixteen at a time, padded on the left."""

    def run(load: Load) -> Found:
        began = time.perf_counter()
        for start in range(0, len(load), SLOTS):
            batch = load[start : start + SLOTS]
            longest = max(len(prompt) for prompt, _ in batch)
            new = max(count for _, count in batch)
            tokens = torch.zeros(len(batch), longest, dtype=torch.long)
            mask = torch.zeros_like(tokens)
            for row, (prompt, _) in enumerate(batch):
                tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
                mask[row, longest - len(prompt) :] = 1
            model.generate(
                tokens,
                attention_mask=mask,
                max_new_tokens=new,
                do_sample=False,
                repetition_penalty=1.0,
                eos_token_id=model.config.vocab_size + 1,  # none: no text ends by itself
                pad_token_id=0,
            )
        return {"seconds": time.perf_counter() - began}

    return run


def ours(engine: TorchEngine) -> Callable[[Load], Found]:
    def run(load: Load) -> Found:
        engine.forget()
        began = time.perf_counter()
        streams = [
            Stream(engine, Request(prompt, Sampling(temperature=0), max_tokens=count))
            for prompt, count in load
        ]
        for stream in streams:
            for _ in stream:
                pass
        seconds = time.perf_counter() - began
        finish = streams[0].finish
        assert finish is not None
        return {
            "seconds": seconds,
            "decode": finish.decode_seconds / max(1, finish.completion_tokens - 1),
        }

    return run


def reading_rate() -> float:
    """Bytes a second of a sum over 256 MB, best of 5."""
    much = torch.ones(64 * 2**20)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        much.sum()
        best = min(best, time.perf_counter() - began)
    return much.nbytes / best


def open_ours(arguments: argparse.Namespace, dtype: str, slots: int) -> Runner:
    config = read_config(arguments.model)
    engine = open_engine(
        arguments.model,
        engine="torch",
        dtype=dtype,
        slots=slots,
        context=min(config.max_position_embeddings, 2 * arguments.longest + 2),
    )
    assert isinstance(engine, TorchEngine)
    about = {"about": engine.about, "weight_bytes": engine.weight_bytes}
    return ours(engine), about


def open_theirs(arguments: argparse.Namespace, dtype: str, slots: int) -> Runner:
    from transformers import AutoModelForCausalLM

    kind = getattr(torch, dtype)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=kind).eval()
    return peer(model), {}


CONTENDERS = {"llamita": open_ours, "Transformers": open_theirs}


def contender(
    who: str, arguments: argparse.Namespace, dtype: str, slots: int, pipe: Connection
) -> None:
    """In a process of its own: says what it is, then answers each load with its times."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with torch.inference_mode():
        run, about = CONTENDERS[who](arguments, dtype, slots)
        pipe.send(about)
        while load := pipe.recv():
            pipe.send(run(load))


@contextmanager
def contenders(
    arguments: argparse.Namespace, dtype: str, slots: int
) -> Iterator[tuple[dict[str, Callable[[Load], Found]], Found]]:
    """What runs a load, of each; and what ours says of itself."""
    context = get_context("spawn")
    pipes, running, about = {}, [], {}
    for who in CONTENDERS:
        pipes[who], theirs = context.Pipe()
        running.append(
            context.Process(
                target=contender, args=(who, arguments, dtype, slots, theirs), daemon=True
            )
        )
        running[-1].start()
        about |= pipes[who].recv()

    def turn(pipe: Connection, load: Load) -> Found:
        pipe.send(load)
        return dict(pipe.recv())

    yield {who: partial(turn, pipe) for who, pipe in pipes.items()}, about
    for pipe, process in zip(pipes.values(), running, strict=True):
        pipe.send(None)
        process.join()


def measure(dtype: str, arguments: argparse.Namespace) -> Found:
    found: Found = {}
    for name, load in loads(arguments, load_tokenizer(arguments.model)).items():
        if name not in arguments.only.split(","):
            continue
        if dtype == "bfloat16" and name != "one" and not arguments.slow:
            continue
        with contenders(arguments, dtype, min(SLOTS, len(load))) as (running, about):
            found[name] = compared(dtype, name, load, running, about, arguments.repeat)
    return found


def compared(
    dtype: str,
    name: str,
    load: Load,
    running: dict[str, Callable[[Load], Found]],
    about: Found,
    repeat: int,
) -> Found:
    new = sum(count for _, count in load)
    best = {who: {"seconds": float("inf"), "decode": float("inf")} for who in running}
    for run in running.values():
        run([(prompt, 2) for prompt, _ in load[:SLOTS]])  # compile, allocate, load code
    for _ in range(repeat):
        for who, run in running.items():
            for key, value in run(load).items():
                best[who][key] = min(best[who][key], value)
    rates = {who: new / each["seconds"] for who, each in best.items()}
    ratio = rates["llamita"] / rates["Transformers"]
    line = ", ".join(f"{who} {rate:.1f} tokens/s" for who, rate in rates.items())
    verdict = "met" if ratio >= BARS[name] else "missed"
    print(f"{dtype}, {name}: {line}: {ratio:.2f}× (bar {BARS[name]:g}: {verdict})", flush=True)
    found = {
        "about": about["about"],
        "requests": len(load),
        "new_tokens": new,
        "tokens_per_second": rates,
        "ratio": ratio,
        "bar": BARS[name],
    }
    if name == "one":
        share = about["weight_bytes"] / best["llamita"]["decode"] / reading_rate()
        found["share_of_reading_rate"] = share
        print(f"  {about['weight_bytes'] / 1e6:.0f} MB a token: {share:.0%} of the rate of reading")
    return found


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--data", type=Path, default=INSTRUCT / "dpo_en_demo.json")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--only", default="one,sixteen,trace")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of equal prompts")
    parser.add_argument("--new", type=int, default=64, help="new tokens of equal requests")
    parser.add_argument("--requests", type=int, default=48, help="requests of the trace")
    parser.add_argument("--longest", type=int, default=512, help="prompts and answers end there")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, help="by default torch's choice")
    parser.add_argument(
        "--slow",
        action="store_true",
        help="sixteen and the trace in bfloat16 too: hours where a CPU has no such units",
    )
    parser.add_argument("--record", action="store_true")
    return parser.parse_args(words)


def main() -> None:
    arguments = parse()
    if not there(arguments.model, arguments.data):
        return
    results = {dtype: measure(dtype, arguments) for dtype in arguments.dtypes.split(",")}
    if arguments.record:
        settings = {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(arguments).items()
        }
        settings["model"], settings["data"] = arguments.model.name, arguments.data.name
        record("engine_speed", {"settings": settings, "results": results})


if __name__ == "__main__":
    main()
