"""Validation bits per byte after three minutes of training, beside the Trainer and litgpt.

    python benchmarks/time_to_quality.py [--seconds 180] [--grid 1e-3,2e-3,4e-3,8e-3]
        [--seeds 0,1,2] [--contenders llamita,transformers,litgpt] [--out FILE] [--work DIR]

    python benchmarks/time_to_quality.py --seconds 10 --grid 2e-3 --seeds 0 \\
        --validation-tokens 16384 --out /tmp/trial.jsonl                # does it work at all?

Alike for all: text, tokenizer (byte-level BPE of 4096), a Llama of 5.48M parameters (hidden 256,
6 layers, 4 heads / 2 KV, ffn 704, tied), windows of 256 tokens at 7:3, tokens a step, the grid of
peak learning rates (searched with the first seed, the best then run with all), bfloat16, compiled,
threads, and seconds. What each does with that is its own: schedule, initialisation, optimizer.

Contenders are processes that take turns of about five seconds, so that whatever else the machine
does hits all alike; each one's clock runs in its own turns only, and never while it starts,
compiles, validates or saves (benchmarks/time_to_quality_contenders.py says how). All end in a
Hugging Face directory, and llamita's scorer judges it in float32 on all held-out documents, each
token once; Transformers' own loss must agree to 1%.

Runs are appended to --out one by one: the same command goes on where it was stopped. A full grid of
four and three seeds is 18 runs, about an hour. Text is ../shared/data/corpora (Python and Linux
documentation to the Python standard library) or --prose and --code.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import platform
import shutil
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from time_to_quality_contenders import CONTENDERS, SETTINGS, contend
from time_to_quality_turns import MIXTURE, WARMUP, Job

CORPORA = Path(__file__).resolve().parents[2] / "shared" / "data" / "corpora"
RESULTS = Path(__file__).resolve().parent / "results"
VOCAB_SIZE = 4096
CHECKED_WINDOWS = 32
# A run stops at the last step that its recent steps say will fit; one slowed just then ends late.
LATE_SECONDS = 1.0
Record = dict[str, Any]


def main() -> None:
    arguments = parse()
    prepare_data(arguments)
    bench = Bench(arguments)
    first = arguments.seeds[0]
    for batch_tokens in arguments.batch_tokens:
        for rate in arguments.grid:
            bench.play([(name, rate, batch_tokens, first) for name in arguments.contenders])
    best = {name: bench.best(name) for name in arguments.contenders}
    for seed in arguments.seeds[1:]:
        bench.play([(name, *best[name], seed) for name in arguments.contenders])
    print("\n".join(report(bench, best)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prose", nargs="+", type=Path)
    parser.add_argument("--code", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=180.0, help="active time of a run")
    parser.add_argument("--grid", default="1e-3,2e-3,4e-3,8e-3", help="peak learning rates")
    parser.add_argument("--batch-tokens", default="2048", help="tokens a step; several: a grid too")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--seeds", default="0,1,2", help="the first one searches the grid")
    parser.add_argument("--contenders", default="llamita,transformers,litgpt")
    parser.add_argument("--slice", type=float, default=5.0, help="seconds of a turn")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--validation-tokens", type=int, help="held-out tokens of each dataset; default all"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "time_to_quality.jsonl")
    parser.add_argument("--work", type=Path, default=Path("runs/time-to-quality"))
    arguments = parser.parse_args()
    arguments.grid = [float(rate) for rate in arguments.grid.split(",")]
    arguments.batch_tokens = [int(tokens) for tokens in arguments.batch_tokens.split(",")]
    arguments.seeds = [int(seed) for seed in arguments.seeds.split(",")]
    arguments.contenders = arguments.contenders.split(",")
    unknown = set(arguments.contenders) - set(CONTENDERS)
    if unknown:
        parser.error(f"no contender {', '.join(sorted(unknown))}: {', '.join(CONTENDERS)}")
    if any(tokens % arguments.sequence_length for tokens in arguments.batch_tokens):
        parser.error("--batch-tokens must be multiples of --sequence-length")
    if (arguments.prose is None) != (arguments.code is None):
        parser.error("give both --prose and --code, or neither")
    if arguments.prose is None and not CORPORA.is_dir():
        parser.error(f"there is no {CORPORA}: name your text with --prose and --code")
    return arguments


def prepare_data(arguments: argparse.Namespace) -> None:
    from llamita.data.build import build_data
    from llamita.data.tokenizer_training import train_tokenizer

    prose = arguments.prose or [
        CORPORA / "nat-python-doc.jsonl.gz",
        CORPORA / "nat-linux-doc.jsonl.gz",
    ]
    code = arguments.code or [CORPORA / "code-python-stdlib.jsonl.gz"]
    tokenizer = arguments.work / "tokenizer"
    if not tokenizer.is_dir():
        train_tokenizer([*prose, *code], tokenizer, VOCAB_SIZE, max_bytes=12_000_000)
    for name, sources in (("prose", prose), ("code", code)):
        out = arguments.work / "data" / name
        splits = build_data(sources, out, tokenizer, validation=0.02).splits
        print(
            f"{name}: {splits['train'].tokens:,} tokens to train on, "
            f"{splits['validation'].tokens:,} held out"
        )


class Bench:
    """Plays rounds, keeps their records."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from llamita.data.shards import open_dataset

        self.arguments, self.out = arguments, arguments.out
        self.data = arguments.work / "data"
        self.datasets = {name: open_dataset(self.data / name) for name in MIXTURE}
        self.records: list[Record] = []
        if self.out.is_file():
            lines = self.out.read_text(encoding="utf-8").splitlines()
            self.records = [json.loads(line) for line in lines]

    def key(self, name: str, rate: float, batch_tokens: int, seed: int) -> Record:
        """What makes a run the same run."""
        a = self.arguments
        settings = json.dumps([SETTINGS[name], MIXTURE, WARMUP], sort_keys=True)
        return {
            "contender": name,
            "learning_rate": rate,
            "batch_tokens": batch_tokens,
            "seed": seed,
            "sequence_length": a.sequence_length,
            "seconds": a.seconds,
            "threads": a.threads,
            "held_out": a.validation_tokens,
            "settings": hashlib.blake2b(settings.encode(), digest_size=8).hexdigest(),
            "data": [dataset.fingerprint for dataset in self.datasets.values()],
        }

    def find(self, name: str, rate: float, batch_tokens: int, seed: int) -> Record | None:
        key = self.key(name, rate, batch_tokens, seed)
        found = [r for r in self.records if all(r[field] == key[field] for field in key)]
        return found[-1] if found else None

    def play(self, entries: Sequence[tuple[str, float, int, int]]) -> None:
        """Train those that have no record yet, taking turns, then score and record them."""
        missing = [entry for entry in entries if self.find(*entry) is None]
        if not missing:
            return
        shown = ", ".join(f"{name} {rate:g}" for name, rate, _, _ in missing)
        print(f"\nseed {missing[0][3]}: {shown}", flush=True)
        jobs = [self.job(*entry) for entry in missing]
        load = os.getloadavg()[0]
        reports, failed = take_turns(jobs)
        for entry, job in zip(missing, jobs, strict=True):
            if job.contender not in reports:
                continue
            ended = reports[job.contender]
            over = ended["active_seconds"] - job.seconds
            if over > LATE_SECONDS:
                failed.append(f"{job.contender} ended {over:.1f} s late: not recorded")
                continue
            record = {
                **self.key(*entry),
                **ended,
                **self.score(Path(ended.pop("model"))),
                "together_with": [other.contender for other in jobs if other is not job],
                "load_before": round(load, 2),
                "versions": versions(),
                "cpu": cpu(),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            record.pop("model")
            self.records.append(record)
            self.out.parent.mkdir(parents=True, exist_ok=True)
            with self.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            shutil.rmtree(job.directory)
            print(one_line(record), flush=True)
        if failed:
            failed.append("The same command goes on from here.")
            raise SystemExit("\n".join(failed))

    def job(self, name: str, rate: float, batch_tokens: int, seed: int) -> Job:
        a = self.arguments
        directory = a.work / "runs" / f"{name.replace(' ', '-')}-{rate:g}-{batch_tokens}-{seed}"
        shutil.rmtree(directory, ignore_errors=True)
        return Job(
            name,
            seed,
            rate,
            batch_tokens,
            a.sequence_length,
            a.seconds,
            a.slice,
            a.threads,
            self.data,
            directory,
        )

    def best(self, name: str) -> tuple[float, int]:
        """Learning rate and tokens a step of the grid's lowest bits per byte."""
        a = self.arguments
        results = {
            (rate, tokens): self.find(name, rate, tokens, a.seeds[0])
            for rate in a.grid
            for tokens in a.batch_tokens
        }
        bits = {k: r["bits_per_byte"] for k, r in results.items() if r and r["bits_per_byte"]}
        if not bits:
            raise SystemExit(f"no learning rate of the grid gave {name} a finite loss")
        chosen = min(bits, key=bits.__getitem__)
        if len(a.grid) > 1 and chosen[0] in (min(a.grid), max(a.grid)):
            print(f"{name} is best at {chosen[0]:g}, an end of the grid: widen it")
        return chosen

    def score(self, directory: Path) -> Record:
        """Bits per byte on all held-out documents, by one scorer, and whether Transformers agrees.

        A loss that is not finite is written as null.
        """
        import torch

        from llamita.architecture.counts import num_parameters
        from llamita.inference.scoring import Score, held_out, score_text
        from llamita.model.huggingface import load_model, read_config

        torch.set_num_threads(self.arguments.threads)
        length, most = self.arguments.sequence_length, self.arguments.validation_tokens
        model = load_model(directory)
        scores = {
            name: score_text(
                model, held_out(data.validation, most), sequence_length=length, rows=32
            )
            for name, data in self.datasets.items()
        }
        together = sum(scores.values(), Score(0.0, 0, 0))
        return {
            "bits_per_byte": finite(together.bits_per_byte),
            "by_dataset": {name: finite(score.bits_per_byte) for name, score in scores.items()},
            # At the training mixture, so that it can be laid beside the trainers' own losses.
            "validation_loss": finite(sum(MIXTURE[n] * score.loss for n, score in scores.items())),
            "validation_tokens": together.num_tokens,
            "parameters": num_parameters(read_config(directory)),
            "transformers_differs_by": self.check(directory, model),
        }

    def check(self, directory: Path, model: Any) -> float | None:
        """Relative difference to Transformers' own loss of the same directory, first windows."""
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        from llamita.inference.scoring import HeldOut, score_text

        logging.disable_progress_bar()
        length = self.arguments.sequence_length
        stream = self.datasets["prose"].validation
        tokens = stream.windows(range(min(CHECKED_WINDOWS, stream.num_windows(length))), length)
        theirs_model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        with torch.no_grad():
            rows = torch.from_numpy(tokens)
            targets = rows[:, 1:].contiguous()
            theirs = theirs_model(rows[:, :-1], labels=targets, shift_labels=targets).loss.item()
        ours = sum(
            score_text(model, HeldOut(row, 1), sequence_length=length, rows=1).nats
            for row in tokens
        ) / (len(tokens) * length)
        if not math.isfinite(ours):
            return None
        difference = abs(theirs / ours - 1)
        if difference > 0.01:
            raise SystemExit(
                f"{directory}: {ours:.4f} nats a token, Transformers says {theirs:.4f}"
            )
        return round(difference, 6)


# -- turns --------------------------------------------------------------------------------------


def take_turns(jobs: Sequence[Job]) -> tuple[dict[str, Record], list[str]]:
    """Start the jobs one after another, then let them run in turn until all are done.

    Returns the report of each that did, and what became of the others.
    """
    context = multiprocessing.get_context("spawn")
    running: dict[str, tuple[Any, Connection]] = {}
    reports: dict[str, Record] = {}
    failed: list[str] = []
    waiting = list(jobs)
    while waiting or running:
        if waiting:
            job = waiting.pop(0)
            pipe, theirs = context.Pipe()
            process = context.Process(target=contend, args=(job, theirs))
            process.start()
            theirs.close()
            running[job.contender] = (process, pipe)
            turns = [job.contender]  # it compiles before the next one starts
        else:
            turns = list(running)
        for name in turns:
            what, said = one_turn(*running[name])
            if what in ("done", "failed"):
                running.pop(name)[0].join()
            if what == "done":
                reports[name] = said
            elif what == "failed":
                failed.append(f"{name}: {said}")
    return reports, failed


def one_turn(process: Any, pipe: Connection) -> tuple[str, Any]:
    pipe.send("go")
    try:
        what, said = pipe.recv()
    except EOFError:
        process.join()
        return "failed", f"its process ended with {process.exitcode}"
    return what, said


# -- what is printed ----------------------------------------------------------------------------


def finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def versions() -> dict[str, str]:
    return {n: version(n) for n in ("llamita", "torch", "transformers", "litgpt", "lightning")} | {
        "python": platform.python_version()
    }


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def one_line(record: Record) -> str:
    busy = record["cpu_seconds"] / record["active_seconds"] / record["threads"]
    bits = record["bits_per_byte"]
    return (
        f"  {record['contender']:<18} lr {record['learning_rate']:g}: "
        + (f"{bits:.4f} bits per byte" if bits else "not finite")
        + f", {record['tokens']:,} tokens in {record['steps']} steps and "
        f"{record['active_seconds']:.1f} s ({busy:.0%} of its threads), own last losses "
        f"{record['train_loss']:.3f}, held out {record['validation_loss'] or math.nan:.3f}"
    )


def report(bench: Bench, best: dict[str, tuple[float, int]]) -> list[str]:
    """Two Markdown tables: the grid, and the best of it with all seeds."""
    a = bench.arguments
    lines = ["", f"Bits per byte over the grid, seed {a.seeds[0]}:", ""]
    columns = [(rate, tokens) for tokens in a.batch_tokens for rate in a.grid]
    several = len(a.batch_tokens) > 1
    heads = [f"{rate:g}" + (f" × {tokens}" if several else "") for rate, tokens in columns]
    lines += [f"| contender | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for name in a.contenders:
        found = [bench.find(name, *column, a.seeds[0]) for column in columns]
        cells = [f"{r['bits_per_byte']:.4f}" if r and r["bits_per_byte"] else "–" for r in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        f"After {a.seconds:g} s, best learning rate of each, seeds {a.seeds}:",
        "",
        "| contender | learning rate | bits per byte | lowest to highest | prose | code | tokens/s "
        "| threads busy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    used: list[Record] = []
    for name in a.contenders:
        runs = [r for seed in a.seeds if (r := bench.find(name, *best[name], seed)) is not None]
        used += runs
        lines.append(row(name, best[name], runs))
    lines += ["", describe(a, used)]
    compiled = [r for r in used if r["graphs_compiled_on_the_clock"]]
    lines += [f"{r['contender']}, seed {r['seed']}, compiled on the clock" for r in compiled]
    return lines


def row(name: str, chosen: tuple[float, int], runs: Sequence[Record]) -> str:
    bits = [r["bits_per_byte"] or math.nan for r in runs]
    spread = f" ± {statistics.stdev(bits):.4f}" if len(bits) > 1 else ""
    parts = [statistics.mean(r["by_dataset"][part] or math.nan for r in runs) for part in MIXTURE]
    rate = statistics.mean(r["tokens"] / r["active_seconds"] for r in runs)
    busy = statistics.mean(r["cpu_seconds"] / r["active_seconds"] / r["threads"] for r in runs)
    return (
        f"| {name} | {chosen[0]:g} | {statistics.mean(bits):.4f}{spread} "
        f"| {min(bits):.4f} to {max(bits):.4f} | {parts[0]:.4f} | {parts[1]:.4f} "
        f"| {rate:,.0f} | {busy:.0%} |"
    )


def describe(a: argparse.Namespace, used: Sequence[Record]) -> str:
    sizes = sorted({r["parameters"] for r in used})
    active = [r["active_seconds"] for r in used]
    shown = ", ".join(f"{name} {number}" for name, number in versions().items())
    return (
        f"{' / '.join(f'{size:,}' for size in sizes)} parameters, T {a.sequence_length}, "
        f"{'/'.join(map(str, a.batch_tokens))} tokens a step, {a.threads} threads, bfloat16, "
        f"compiled; active time {min(active):.1f} to {max(active):.1f} s; "
        f"{used[0]['validation_tokens']:,} held-out tokens. ± is the standard deviation over "
        f"seeds. {cpu()}, {shown}, {time.strftime('%Y-%m-%d')}"
    )


if __name__ == "__main__":
    main()
