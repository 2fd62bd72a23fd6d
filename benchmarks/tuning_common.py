"""What tuning_step.py, preference_step.py and tuning_quality.py share: a small stand-in for the
model, llamita's own measured run, contenders in turns, and where results go.

A token of text counts once, prompts included and padding left out, for llamita as for its peers. Of
preferences the prompt counts with either answer, as both sides read it twice.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from llamita.training.devices import forget_peak_memory, matmul_rate, peak_memory
from plan_memory import circumstances

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
MODEL = PROJECT / ".venv/models/smollm2-hf"
INSTRUCT = PROJECT.parent / "shared/data/instruct"
WARM_UP = 1
"""Steps of llamita before the clock runs: they compile, and one is several of the peers' passes."""
SPEED_BAR, MEMORY_BAR = 2.5, 0.7
OURS, THEIRS = "llamita", "TRL"

Found = dict[str, Any]


# -- what is trained, and on what ---------------------------------------------------------------


def tiny_model(tokenizer_of: Path, out: Path) -> Path:
    """A Llama of random weights, hidden 64 and 2 layers, with a real model's tokenizer."""
    from llamita.architecture.config import ModelConfig
    from llamita.model.decoder import Decoder
    from llamita.model.huggingface import save_model
    from llamita.model.initialization import initialize

    real = json.loads((tokenizer_of / "config.json").read_text("utf-8"))
    config = ModelConfig(
        vocab_size=real["vocab_size"],
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=real["bos_token_id"],
        eos_token_id=real["eos_token_id"],
    )
    model = Decoder(config)
    initialize(model, "llama", seed=0)
    save_model(out, model, config)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer_of / name, out)
    return out


def add_common_flags(parser: argparse.ArgumentParser, data: str) -> None:
    parser.add_argument(
        "--model", type=Path, default=MODEL, help="a directory that `llamita import` made"
    )
    parser.add_argument("--data", type=Path, default=INSTRUCT / data)
    parser.add_argument(
        "--tiny", action="store_true", help="random weights, hidden 64, 2 layers: a smoke test"
    )
    parser.add_argument(
        "--record", action="store_true", help="write the result into benchmarks/recorded too"
    )


def there(*paths: Path) -> bool:
    """Whether the files are there; says which are not."""
    missing = [path for path in paths if not path.exists()]
    for path in missing:
        hint = ""
        if path == MODEL:
            hint = f" (llamita import .venv/models/smollm2.gguf --out {path})"
        print(f"skipped: there is no {path}{hint}")
    return not missing


@contextlib.contextmanager
def workplace(arguments: argparse.Namespace) -> Iterator[Path]:
    """A folder for the runs, `--folder` where there is one, which is kept; with --tiny, the model's
    stand-in is made in it."""
    kept: Path | None = getattr(arguments, "folder", None)
    with contextlib.ExitStack() as stack:
        folder = kept or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        if arguments.tiny:
            arguments.model = tiny_model(arguments.model, folder / "tiny")
        yield folder


def sample(data: Path, most: int | None, out: Path) -> Path:
    """Up to `most` rows of a JSON array, evenly spaced, as a file of their own."""
    rows = json.loads(data.read_text("utf-8"))
    if most is None or most >= len(rows):
        return data
    chosen = [rows[index * len(rows) // most] for index in range(most)]
    out.write_text(json.dumps(chosen), "utf-8")
    return out


# -- llamita's own run --------------------------------------------------------------------------


class _Enough(Exception):
    """All steps that are measured were taken."""


class _Meter:
    """Stands in for `TrainingStep.__call__`: counts what follows the warm-up, then ends the run."""

    def __init__(self, steps: int) -> None:
        self.steps, self.taken = steps, 0
        self.tokens = self.learnt = self.wall = self.cpu = 0.0
        self.losses: list[float] = []
        self.reference: dict[str, float] = {}

    def install(self) -> None:
        from llamita.data.packed_stream import PackedStream
        from llamita.training import stage_pairs
        from llamita.training.step import TrainingStep

        take, table, device = TrainingStep.__call__, stage_pairs.answer_table, torch.device("cpu")

        def counted(step: Any, objective: Any, batch: Any, rows: int, rate: float) -> Any:
            result = take(step, objective, batch, rows, rate)
            self.taken += 1
            if self.taken == WARM_UP:
                forget_peak_memory(device)
                self.wall, self.cpu = time.perf_counter(), time.process_time()
            elif self.taken > WARM_UP:
                self._count(batch, float(result.loss))
            if self.taken == WARM_UP + self.steps:
                self.wall = time.perf_counter() - self.wall
                self.cpu = time.process_time() - self.cpu
                raise _Enough
            return result

        def timed(model: Any, stream: PackedStream, **named: Any) -> Any:
            length = named["sequence_length"]
            some = range(min(named["rows"], stream.num_windows(length)))
            table(model, stream, **{**named, "indices": some})  # compiles
            wall, cpu = time.perf_counter(), time.process_time()
            found = table(model, stream, **named)
            self.reference = {
                "seconds": time.perf_counter() - wall,
                "cpu_seconds": time.process_time() - cpu,
                "tokens": int(stream.packing(length).lengths.sum()),
            }
            return found

        TrainingStep.__call__ = counted
        stage_pairs.answer_table = timed

    def _count(self, batch: Any, loss: float) -> None:
        # An example of n tokens takes n − 1 places: its last token is a target only.
        num_examples = batch.examples.shape[1]
        self.tokens += int((batch.documents < num_examples).sum() + (batch.examples >= 0).sum())
        self.learnt += int((batch.targets >= 0).sum())
        self.losses.append(loss)


def measure_llamita(
    verb: str, model: Path, data: Path, overrides: Sequence[str], steps: int
) -> Found:
    """`llamita tune` or `llamita align` in this process, ended after some steps."""
    import llamita

    meter = _Meter(steps)
    meter.install()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        with contextlib.suppress(_Enough):
            getattr(llamita, verb)(
                model,
                data,
                out=out,
                validation=0.0,
                overrides=overrides,
                say=lambda line: print(line, file=sys.stderr),
            )
        events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    if meter.taken < WARM_UP + steps:
        raise SystemExit(f"the run has only {meter.taken} steps; lower --steps or give more data")
    started = next(event for event in events if event["event"] == "start")
    return {
        **rates(meter.tokens, meter.wall, meter.cpu, meter.reference),
        "learning_share": meter.learnt / meter.tokens,
        "tokens": int(meter.tokens),
        "peak_bytes": peak_memory(torch.device("cpu")),
        "losses": meter.losses,
        "reference": meter.reference or None,
        "environment": started["environment"],
    }


def rates(tokens: float, wall: float, cpu: float, reference: Mapping[str, float]) -> Found:
    """Tokens a second and a CPU second. A reference that was computed before the steps adds its
    time a token to theirs, as in a run that reads the pairs once."""
    seconds, cpu_seconds = wall / tokens, cpu / tokens
    if reference:
        seconds += reference["seconds"] / reference["tokens"]
        cpu_seconds += reference["cpu_seconds"] / reference["tokens"]
    return {"tokens_per_second": 1 / seconds, "tokens_per_cpu_second": 1 / cpu_seconds}


# -- in turns -----------------------------------------------------------------------------------


def take_turns(
    commands: Mapping[str, Sequence[str]], repeat: int, tell: Callable[[str], None] = print
) -> dict[str, list[Found]]:
    """Each contender in a fresh process, all of them once and then all again.

    The rate of matrix products is measured between the turns, and the mean of before and after
    goes with each: what else the machine does slows both.
    """
    cpu, turns = torch.device("cpu"), {name: [] for name in commands}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    before = matmul_rate(cpu, torch.float32)
    for number in range(repeat):
        for name, command in commands.items():
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, *command],
                capture_output=True,
                text=True,
                env=environment,
                check=False,
            )
            after = matmul_rate(cpu, torch.float32)
            if done.returncode:
                lines = done.stderr.strip().splitlines() or ["no message"]
                tell(f"{name}: failed: {lines[-1]}")
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            found["matmul_rate"] = (before + after) / 2
            before = after
            turns[name].append(found)
            tell(
                f"turn {number + 1}, {name}: {found['tokens_per_second']:.1f} tokens/s, "
                f"{found['tokens_per_cpu_second']:.1f} a CPU second, "
                f"{found['peak_bytes'] / 1e9:.2f} GB ({time.perf_counter() - began:.0f} s)"
            )
    return {name: found for name, found in turns.items() if found}


def best_of(turns: Mapping[str, Sequence[Found]]) -> dict[str, Found]:
    """Of each contender the best turn by wall time, by CPU time and by wall time for the matmul
    rate around it, and the least peak: other work on the machine only ever adds."""

    def most(found: Sequence[Found], value: Callable[[Found], float]) -> float:
        return max(value(turn) for turn in found)

    return {
        name: {
            "tokens_per_second": most(found, lambda turn: turn["tokens_per_second"]),
            "tokens_per_cpu_second": most(found, lambda turn: turn["tokens_per_cpu_second"]),
            "tokens_per_gflop": most(
                found, lambda turn: turn["tokens_per_second"] / turn["matmul_rate"] * 1e9
            ),
            "peak_bytes": min(turn["peak_bytes"] for turn in found),
            "learning_share": found[0]["learning_share"],
            "loss": found[0]["losses"][-1],
        }
        for name, found in turns.items()
    }


def table(best: Mapping[str, Found]) -> list[str]:
    """In Markdown."""
    lines = [
        "| | tokens/s | a CPU second | per GFLOP of products | peak GB | learn | last loss |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, found in best.items():
        lines.append(
            f"| {name} | {found['tokens_per_second']:.1f} | {found['tokens_per_cpu_second']:.1f} "
            f"| {found['tokens_per_gflop']:.2f} | {found['peak_bytes'] / 1e9:.2f} "
            f"| {found['learning_share']:.0%} | {found['loss']:.3f} |"
        )
    return lines


def ratios(best: Mapping[str, Found], defaults: str) -> list[Found]:
    """llamita's fastest against TRL's fastest, against its leanest, and against its defaults."""
    ours = [name for name in best if name.startswith(OURS)]
    theirs = [name for name in best if name.startswith(THEIRS)]
    if not ours or not theirs:
        return []

    def speed(name: str) -> float:
        return float(best[name]["tokens_per_cpu_second"])

    mine = max(ours, key=speed)
    rivals = {
        "fastest setting": max(theirs, key=speed),
        "leanest setting": min(theirs, key=lambda name: best[name]["peak_bytes"]),
    }
    if defaults in best:
        rivals["defaults"] = defaults
    measures = ("tokens_per_second", "tokens_per_cpu_second", "tokens_per_gflop", "peak_bytes")
    return [
        {
            "llamita": mine,
            "rival": rival,
            "of": what,
            **{measure: best[mine][measure] / best[rival][measure] for measure in measures},
        }
        for what, rival in rivals.items()
    ]


def say_ratios(found: Sequence[Found]) -> list[str]:
    lines = []
    for each in found:
        speed, memory = each["tokens_per_cpu_second"], each["peak_bytes"]
        lines.append(
            f"{each['llamita']} against TRL's {each['of']} ({each['rival']}): "
            f"{each['tokens_per_second']:.2f}× the tokens a second, {speed:.2f}× a CPU second "
            f"(bar {SPEED_BAR:g}: {'met' if speed >= SPEED_BAR else 'missed'}), "
            f"{each['tokens_per_gflop']:.2f}× for the matmul rate; {memory:.2f} of the peak memory "
            f"(bar {MEMORY_BAR:g}: {'met' if memory <= MEMORY_BAR else 'missed'})"
        )
    return lines


def compare(
    commands: Mapping[str, Sequence[str]], defaults: str, arguments: argparse.Namespace
) -> None:
    """Take turns, print the table and the ratios, and record them where that was asked for."""
    turns = take_turns(commands, arguments.repeat, lambda line: print(line, flush=True))
    best = best_of(turns)
    found = ratios(best, defaults)
    print("", *table(best), "", *say_ratios(found), sep="\n")
    if arguments.record:
        settings = {
            "model": arguments.model.name,
            "data": arguments.data.name,
            "steps": arguments.steps,
            "repeat": arguments.repeat,
        }
        name = Path(sys.argv[0]).stem
        record(name, {"settings": settings, "best": best, "ratios": found, "turns": turns})


def record(name: str, found: Found) -> None:
    about = circumstances("cpu")
    for package in ("transformers", "peft", "trl"):
        about["versions"][package] = version(package)
    path = HERE / "recorded" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**about, **found}, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"\nrecorded: {path}")
