"""Steps of LoRA tuning on real chats: llamita beside TRL's SFTTrainer with PEFT.

    python benchmarks/tuning_step.py [--model DIR] [--data chats.json] [--examples N]
        [--steps 2] [--peer-steps 8] [--repeat 2] [--only WORD,…] [--also SETTING …]
        [--quick] [--tiny] [--record]

Rank 16 on all seven projections, float32 weights. Each contender runs in a fresh process, in turns;
its best turn counts. llamita is `llamita tune` itself on the whole file, with the recipe that it
makes, ended after the measured steps, so that `auto` decides as it would; one of its steps is as
many tokens as several of TRL's. Left out on both sides: building data, compiling, warming up.

Memory is the peak of the process's resident set over the measured steps, all libraries included.
Tokens a CPU second say more than tokens a second where other work shares the machine; run with
OMP_NUM_THREADS=1 there, as waiting threads burn CPU time.

TRL's own defaults are rows=8, length 1024, no packing, gradient checkpointing; they would also
compute in bfloat16, which is measured in float32 here, kinder to it on a CPU without bfloat16
units. `--also 'TRL packing=none rows=8 length=1024 checkpointing bf16'` is the letter of it, and
`--also 'llamita runtime.micro_batch_size=1'` another setting of llamita.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tuning_common import (
    HERE,
    OURS,
    THEIRS,
    add_common_flags,
    compare,
    measure_llamita,
    sample,
    there,
    workplace,
)

DEFAULTS = "TRL packing=none rows=8 length=1024 checkpointing"
CONTENDERS = (
    "llamita runtime.compile=auto",
    "llamita runtime.compile=never",
    "TRL packing=bfd rows=1 length=512",
    "TRL packing=bfd rows=2 length=512",
    "TRL packing=bfd rows=4 length=512",
    "TRL packing=bfd rows=1 length=1024",
    DEFAULTS,
)
QUICK = ("llamita runtime.compile=never", "TRL packing=bfd rows=1 length=512")


def commands(
    names: list[str], arguments: argparse.Namespace, verb: str, peer: str
) -> dict[str, list[str]]:
    """How each contender is measured: this program for llamita, tuning_peers.py for TRL."""
    where = [f"--model={arguments.model}", f"--data={arguments.data}"]
    found = {}
    for name in names:
        who, _, words = name.partition(" ")
        if who == OURS:
            script = "tuning_step.py" if verb == "tune" else "preference_step.py"
            found[name] = [str(HERE / script), *where, f"--steps={arguments.steps}"]
        elif who == THEIRS:
            found[name] = [str(HERE / "tuning_peers.py"), *where, f"--peer={peer}"]
            found[name] += [f"--steps={arguments.peer_steps}"]
        else:
            raise SystemExit(f"{name!r}: a contender is {OURS} KEY=VALUE … or {THEIRS} SETTING")
        found[name].append(f"--measure={words}")
    return found


def parse(
    doc: str, data: str, contenders: tuple[str, ...], quick: tuple[str, ...]
) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the contenders that they choose."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    add_common_flags(parser, data)
    parser.add_argument("--examples", type=int, help="read so many of the file's rows only")
    parser.add_argument("--steps", type=int, default=2, help="measured steps of llamita")
    parser.add_argument("--peer-steps", type=int, default=8, help="measured steps of TRL")
    parser.add_argument("--repeat", type=int, default=2, help="turns of each contender")
    parser.add_argument("--only", help="contenders whose names contain one of these, by commas")
    parser.add_argument("--also", nargs="+", default=[], help="more contenders")
    parser.add_argument("--quick", action="store_true", help="one turn, two contenders, few steps")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.peer_steps, arguments.repeat = 1, 2, 1
    names = list(quick if arguments.quick else contenders)
    if arguments.only:
        wanted = arguments.only.split(",")
        names = [name for name in contenders if any(word in name for word in wanted)]
    names += arguments.also
    if not names:
        parser.error(f"--only {arguments.only}: there are {'; '.join(contenders)}")
    return arguments, names


def main(
    doc: str = __doc__,
    verb: str = "tune",
    peer: str = "sft",
    data: str = "alpaca_en_demo.json",
    contenders: tuple[str, ...] = CONTENDERS,
    quick: tuple[str, ...] = QUICK,
    defaults: str = DEFAULTS,
    examples: int | None = None,
) -> None:
    arguments, names = parse(doc, data, contenders, quick)
    if arguments.measure is not None:
        overrides = arguments.measure.split()
        print(
            json.dumps(
                measure_llamita(verb, arguments.model, arguments.data, overrides, arguments.steps)
            )
        )
        return
    if not there(arguments.model, arguments.data):
        return
    with workplace(arguments) as folder:
        most = arguments.examples or examples
        arguments.data = sample(arguments.data, most, folder / Path(data).name)
        compare(commands(names, arguments, verb, peer), defaults, arguments)


if __name__ == "__main__":
    main()
