"""What tuning a real model brings, and what LoRA saves and costs against tuning every parameter.

    python benchmarks/tuning_quality.py [--model DIR] [--examples N] [--epochs 2] [--seeds 3]
        [--full-seeds 3] [--answers 20] [--pairs 200] [--skip-align] [--trl] [--folder DIR]
        [--tiny] [--record]

SmolLM2 tuned on Alpaca's demo with `llamita.tune`, as LoRA of rank 16 and with all parameters, for
several seeds; the last step counts, as nothing is held out of a run that would choose another. The
same 60 chats, chosen by hash before anything else, score the base, and each run, in nats a token
that learns and bits per byte. Then `llamita.align` goes on from the first seed's LoRA with pairs.

Intervals are of 95%: over seeds by Student's t, between base and tuned paired by conversation (the
mean over seeds of each), of shares by Wilson. `--trl` trains TRL's LoRA on the same chats with the
same settings, as many chats a step, and has the same scorer judge its adapter: Welch's interval of
the difference says whether the losses differ.

Memory is each run's own `memory` event, planned and measured in a fresh process. What each part
will take is said before it begins, at 3 forward passes a token at first and from then on as fast as
the run before. On a CPU of some 80 tokens a second this takes under half an hour:

    --examples 60 --held-out 20 --epochs 1 --answers 4 --max-tokens 128
        --pairs 16 --held-out-pairs 8
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from llamita.model.huggingface import load_model
from llamita.tuning.settings import LORA_LEARNING_RATE
from tuning_common import INSTRUCT, add_common_flags, record, there, workplace
from tuning_scores import (
    ChatScore,
    Endings,
    HeldOutExamples,
    compare_pairs,
    endings,
    questions,
    shown,
    split,
    t_interval,
    welch_interval,
)

LABELS = {"lora": "LoRA, rank 16", "all": "all parameters", "trl": "TRL, LoRA, rank 16"}
FIRST_SEED = 42


# -- jobs, each in a process of its own -----------------------------------------------------------


def do_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """A run from beginning to end, in this process."""
    out = Path(job["out"])
    wall, cpu = time.perf_counter(), time.process_time()
    if job["verb"] == "trl":
        from tuning_peers import train_adapter

        losses = train_adapter(
            job["model"],
            Path(job["data"]),
            out,
            steps=job["steps"],
            examples=job["examples_a_step"],
            rate=LORA_LEARNING_RATE,
            seed=job["seed"],
        )
        found: dict[str, Any] = {"final": str(out), "steps": job["steps"], "losses": losses}
    else:
        import llamita

        named = {key: job[key] for key in ("learn", "epochs", "seed")}
        say = lambda line: print(line, file=sys.stderr)  # noqa: E731
        verb = getattr(llamita, job["verb"])
        result = verb(job["model"], job["data"], out=out, validation=0.0, say=say, **named)
        found = {"final": str(result.final), "steps": result.step, **sizes(result.run)}
    found["seconds"] = time.perf_counter() - wall
    found["cpu_seconds"] = time.process_time() - cpu
    return found


def sizes(run: Path) -> dict[str, int]:
    """Bytes: memory planned and measured, the newest checkpoint, and the model that is kept."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    memory = next(event for event in events if event["event"] == "memory")
    checkpoints = sorted(run.glob("step-*"), key=lambda path: int(path.name.split("-")[1]))
    return {
        "planned_bytes": sum(memory["estimate"].values()),
        "measured_bytes": memory["peak_bytes"] - memory["baseline_bytes"],
        "checkpoint_bytes": weight_of(checkpoints[-1]),
        "final_bytes": weight_of(run / "final"),
    }


def weight_of(directory: Path) -> int:
    """Bytes of what a checkpoint adds: a tokenizer's files are the same for all."""
    files = (path for path in directory.rglob("*.safetensors") if path.is_file())
    return sum(path.stat().st_size for path in files)


def start(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do a job in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, f"--job={json.dumps(job)}"],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{job['verb']} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# -- the study ----------------------------------------------------------------------------------


class Study:
    """All runs and scores; each part says what it will take."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.model = arguments.model.resolve()
        self.train, self.held_out = split(
            arguments.data, folder, arguments.held_out, arguments.examples or sys.maxsize
        )
        self.chats = HeldOutExamples(self.held_out, folder / "held-out", self.model, "chats")
        self.questions = questions(self.held_out, arguments.answers)
        self.scores: dict[str, list[ChatScore]] = {}
        self.endings: dict[str, Endings] = {}
        self.runs: dict[str, list[dict[str, Any]]] = {}
        self.seconds: dict[str, float] = {}
        self.pairs: dict[str, Any] | None = None

    @property
    def seeds(self) -> range:
        return range(FIRST_SEED, FIRST_SEED + self.arguments.seeds)

    def once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `make` gives, kept in the folder, where the same command finds it again."""
        kept = self.folder / f"{name}.json"
        if not kept.is_file():
            kept.write_text(json.dumps(make()))
        found: dict[str, Any] = json.loads(kept.read_text())
        return found

    def score(self, name: str, directory: Path) -> ChatScore:
        def make() -> dict[str, Any]:
            return asdict(self.chats.score(directory), dict_factory=plain_lists)

        found = self.once(f"{name}-score", make)
        return ChatScore(np.array(found["nats"]), np.array(found["tokens"]), found["num_bytes"])

    def score_base(self) -> None:
        began = time.perf_counter()
        self.scores["base"] = [self.score("base", self.model)]
        seconds = time.perf_counter() - began
        # The text's size tells its tokens nearly enough for a forecast.
        tokens = self.chats.num_tokens * (
            self.train.stat().st_size / self.held_out.stat().st_size * self.arguments.epochs
        )
        forward = self.chats.num_tokens / seconds
        self.seconds = dict.fromkeys(LABELS, 3 * tokens / forward)
        say(
            f"base: {self.scores['base'][0].loss:.4f} nats a token; {forward:,.0f} tokens/s "
            f"forward. A run reads some {tokens:,.0f} tokens"
        )
        self.answer("base", self.model)

    def answer(self, name: str, directory: Path) -> None:
        if not self.questions:
            return
        found = self.once(
            f"{name}-endings",
            lambda: asdict(endings(directory, self.questions, self.arguments.max_tokens)),
        )
        share = self.endings[name] = Endings(**found)
        say(f"  {share.ended} of {share.answers} answers ended by themselves")

    def tune(self, learn: str, seed: int) -> None:
        """A run, and its score."""
        say(f"{LABELS[learn]}, seed {seed}: about {self.seconds[learn] / 60:.1f} min")
        job = {
            "verb": "trl" if learn == "trl" else "tune",
            "model": str(self.model),
            "data": str(self.train),
            "out": str(self.folder / f"{learn}-{seed}"),
            "learn": learn,
            "epochs": self.arguments.epochs,
            "seed": seed,
        }
        if learn == "trl":
            job |= self.as_ours()
        found = self.once(f"{learn}-{seed}", lambda: start(job))
        self.seconds[learn] = found["seconds"]
        self.runs.setdefault(learn, []).append(found)
        score = self.score(f"{learn}-{seed}", Path(found["final"]))
        self.scores.setdefault(learn, []).append(score)
        say(f"  {score.loss:.4f} nats a token after {found['steps']} steps")
        if seed == self.seeds[0] and learn != "trl":
            self.answer(learn, Path(found["final"]))

    def as_ours(self) -> dict[str, int]:
        """TRL's steps and chats of a step: as many as llamita's packed rows held on average."""
        steps = self.runs["lora"][0]["steps"]
        read = len(json.loads(self.train.read_text("utf-8"))) * self.arguments.epochs
        return {"steps": steps, "examples_a_step": max(1, round(read / steps))}

    def align(self) -> None:
        """DPO from the first seed's LoRA: policy and reference on the same held-out pairs."""
        from llamita.training.stage_pairs import describe

        arguments, before = self.arguments, Path(self.runs["lora"][0]["final"])
        train, held_out = split(
            arguments.preferences, self.folder, arguments.held_out_pairs, arguments.pairs
        )
        pairs = HeldOutExamples(held_out, self.folder / "pairs", self.model, "preferences")
        began = time.perf_counter()
        reference = pairs.table(load_model(before, merge=True).eval())
        seconds = time.perf_counter() - began
        per_pair = seconds / arguments.held_out_pairs
        # The reference's pass, and three of training.
        say(f"align, {arguments.pairs} pairs: about {4 * per_pair * arguments.pairs / 60:.1f} min")
        job = {
            "verb": "align",
            "model": str(before),
            "data": str(train),
            "out": str(self.folder / "aligned"),
            "learn": "lora",
            "epochs": arguments.align_epochs,
            "seed": FIRST_SEED,
        }
        found = self.once("aligned", lambda: start(job))
        policy = pairs.table(load_model(found["final"], merge=True).eval())
        score = compare_pairs(policy, reference)
        say(f"  {describe(score)}")
        self.pairs = {**found, **score.as_json()}

    # -- what came of it --------------------------------------------------------------------------

    def rows(self) -> dict[str, dict[str, Any]]:
        """Of each kind of run: everything the table shows."""
        base = self.scores["base"][0]
        found: dict[str, dict[str, Any]] = {}
        for name, scores in self.scores.items():
            row: dict[str, Any] = {
                "loss": t_interval(np.array([score.loss for score in scores])),
                "bits_per_byte": t_interval(np.array([score.bits_per_byte for score in scores])),
            }
            if name != "base":
                tuned = np.mean([score.losses for score in scores], axis=0)
                row["gain_by_conversation"] = t_interval(base.losses - tuned)
            if name in self.endings:
                row["ended"] = self.endings[name].share
                row["answers"] = self.endings[name].answers
            runs = self.runs.get(name, [])
            for key in ("planned_bytes", "measured_bytes", "checkpoint_bytes", "final_bytes"):
                values = [run[key] for run in runs if key in run]
                if values:
                    row[key] = max(values)
            if runs:
                row["cpu_seconds"] = float(np.mean([run["cpu_seconds"] for run in runs]))
            found[name] = row
        return found

    def against_trl(self) -> str | None:
        if "trl" not in self.scores:
            return None
        ours, theirs = (
            np.array([score.loss for score in self.scores[name]]) for name in ("lora", "trl")
        )
        difference = welch_interval(ours, theirs)
        equal = difference.low <= 0 <= difference.high
        return (
            f"LoRA, llamita − TRL: {shown(difference)} nats a token: "
            f"{'no difference beyond the noise of seeds' if equal else 'they differ'}"
        )


def plain_lists(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in items}


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """In Markdown."""
    lines = [
        "| | nats a token | bits per byte | gained on the base, paired | answers that end "
        "| planned GB | measured GB | checkpoint MB | model MB | CPU s |",
        "|---|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        gain, ended = row.get("gain_by_conversation"), row.get("ended")
        effect = "" if gain is None or not gain.low <= 0 <= gain.high else ", no effect"
        cells = [
            LABELS.get(name, name),
            shown(row["loss"]),
            shown(row["bits_per_byte"]),
            "" if gain is None else shown(gain) + effect,
            "" if ended is None else f"{shown(ended, 2)} of {row['answers']}",
            *(
                f"{row[key] / unit:.{digits}f}" if key in row else ""
                for key, unit, digits in (
                    ("planned_bytes", 1e9, 2),
                    ("measured_bytes", 1e9, 2),
                    ("checkpoint_bytes", 1e6, 1),
                    ("final_bytes", 1e6, 1),
                    ("cpu_seconds", 1, 0),
                )
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def saving(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What LoRA saves and what it costs."""
    lora, whole = rows["lora"], rows["all"]
    return (
        f"LoRA needs {lora['measured_bytes'] / whole['measured_bytes']:.2f} of the memory, "
        f"{lora['checkpoint_bytes'] / whole['checkpoint_bytes']:.3f} of the checkpoint and "
        f"{lora['cpu_seconds'] / whole['cpu_seconds']:.2f} of the CPU time of tuning all "
        f"parameters, for {lora['loss'].mean - whole['loss'].mean:+.4f} nats a token"
    )


def say(line: str) -> None:
    print(line, flush=True)


def parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common_flags(parser, "alpaca_en_demo.json")
    parser.add_argument("--preferences", type=Path, default=INSTRUCT / "dpo_en_demo.json")
    parser.add_argument("--examples", type=int, help="chats to learn from [default: all]")
    parser.add_argument("--held-out", type=int, default=60, help="chats that score")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--full-seeds", type=int, default=3, help="of them with all parameters too")
    parser.add_argument("--answers", type=int, default=20, help="greedy answers of each; 0: none")
    parser.add_argument("--max-tokens", type=int, default=256, help="of an answer")
    parser.add_argument("--pairs", type=int, default=200, help="pairs to learn from")
    parser.add_argument("--held-out-pairs", type=int, default=40)
    parser.add_argument("--align-epochs", type=float, default=1.0)
    parser.add_argument("--skip-align", action="store_true")
    parser.add_argument("--trl", action="store_true", help="TRL's LoRA on the same chats, too")
    parser.add_argument("--folder", type=Path, help="keep runs and scores there, and go on there")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args(given)


def main() -> None:
    arguments = parse()
    if arguments.job is not None:
        print(json.dumps(do_job(json.loads(arguments.job))))
        return
    needed = [arguments.model, arguments.data]
    if not there(*needed, *([] if arguments.skip_align else [arguments.preferences])):
        return
    with workplace(arguments) as folder:
        study = Study(arguments, folder)
        study.score_base()
        for seed in study.seeds:
            study.tune("lora", seed)
            if seed < FIRST_SEED + min(arguments.full_seeds, arguments.seeds):
                study.tune("all", seed)
            if arguments.trl:
                study.tune("trl", seed)
        if not arguments.skip_align:
            study.align()
        rows = study.rows()
        closing = [saving(rows)] + ([line] if (line := study.against_trl()) else [])
        print("", *table(rows), "", *closing, sep="\n")
        if arguments.record:
            plain = {
                name: {k: v.as_json() if hasattr(v, "as_json") else v for k, v in row.items()}
                for name, row in rows.items()
            }
            settings = {
                key: value.name if isinstance(value, Path) else value
                for key, value in vars(arguments).items()
                if key not in ("job", "record", "folder")
            }
            runs = {
                learn: [
                    {key: value for key, value in run.items() if key != "final"} for run in each
                ]
                for learn, each in study.runs.items()
            }
            found = {"settings": settings, "rows": plain, "runs": runs, "align": study.pairs}
            record("tuning_quality", found)


if __name__ == "__main__":
    main()
