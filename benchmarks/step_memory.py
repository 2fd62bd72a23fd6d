"""Peak memory of the training step of benchmarks/training_step.py at a vocabulary of 32,000.

    python benchmarks/step_memory.py [--vocab-size 32000] [--only llamita,…]

Each contender runs in a fresh process. The resident set before its model is built is the baseline;
a trivial graph is compiled before that, so that the compiler's own code counts for nobody. Two
steps allocate and compile; then Linux forgets the process's peak, three steps run, and the
peak above the baseline counts. Linux alone can forget a peak.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import torch

import training_step
from llamita.architecture.counts import num_parameters
from llamita.architecture.memory import training_memory
from llamita.training.devices import forget_peak_memory, peak_memory
from training_step import CONTENDERS, LENGTH, ROWS

CONTENDED = (
    "llamita compiled",
    "transformers compiled",
    "litgpt compiled",
    "llamita",
    "transformers",
)


def measure(name: str) -> int:
    """Bytes above the baseline, in this process."""
    device = torch.device("cpu")
    tokens = torch.randint(0, training_step.CONFIG.vocab_size, (ROWS, LENGTH + 1))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    if name.startswith("transformers"):
        import transformers  # noqa: F401  its code is no part of the step
    elif name.startswith("litgpt"):
        import litgpt  # noqa: F401
    torch.compile(lambda x: x * 2)(torch.ones(8))
    forget_peak_memory(device)
    baseline = peak_memory(device)
    step = CONTENDERS[name]()
    for _ in range(2):
        step(inputs, targets)
    forget_peak_memory(device)
    for _ in range(3):
        step(inputs, targets)
    return peak_memory(device) - baseline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--only", default=",".join(CONTENDED))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    training_step.CONFIG = training_step.CONFIG.replace(vocab_size=arguments.vocab_size)
    if arguments.measure:
        print(measure(arguments.measure))
        return
    config = training_step.CONFIG
    planned = training_memory(config, ROWS, LENGTH)
    print(
        f"{num_parameters(config):,} parameters, vocabulary {config.vocab_size:,}, {ROWS} × "
        f"{LENGTH} tokens, bfloat16, torch {torch.__version__}; llamita plans "
        f"{planned.total / 1e9:.2f} GB\n"
    )
    found: dict[str, int] = {}
    for name in arguments.only.split(","):
        command = [sys.executable, __file__, f"--vocab-size={arguments.vocab_size}"]
        output = subprocess.run(
            [*command, f"--measure={name}"], stdout=subprocess.PIPE, check=True, env=os.environ
        ).stdout
        found[name] = int(output.split()[-1])
        print(f"{name:<26}{found[name] / 1e9:>8.2f} GB", flush=True)
    if {"llamita compiled", "transformers compiled"} <= found.keys():
        share = found["llamita compiled"] / found["transformers compiled"]
        print(f"\nllamita compiled needs {share:.0%} of what transformers compiled needs")


if __name__ == "__main__":
    main()
