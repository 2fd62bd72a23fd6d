"""Steps of DPO with LoRA on real pairs: llamita beside TRL's DPOTrainer with PEFT.

    python benchmarks/preference_step.py [--model DIR] [--data pairs.json] [--examples 24]
        [--steps 2] [--peer-steps 6] [--repeat 2] [--only WORD,…] [--also SETTING …]
        [--quick] [--tiny] [--record]

As tuning_step.py measures, see there. The reference's log-probabilities: llamita computes them once
before the first step (its default), TRL in every step or, with precompute=1, before
too. Where they are computed before, their time a token is added to that of the steps, on both sides
alike, as in a run that reads each pair once, `llamita align`'s default; pairs that are read again
would cost a precomputed reference nothing more. What llamita compiles for it is left out, as the
compiling of steps is.

Few of the file's pairs are read, because the reference needs a pass over them all. For so few,
`auto` would not compile; for the whole file it does, so both ways are stated.
"""

from __future__ import annotations

import tuning_step

DEFAULTS = "TRL rows=8 length=1024 checkpointing"
CONTENDERS = (
    "llamita runtime.compile=always",
    "llamita runtime.compile=never",
    "TRL rows=1 length=1024",
    "TRL rows=2 length=1024",
    "TRL rows=1 length=1024 precompute=1",
    "TRL rows=2 length=1024 precompute=1",
    DEFAULTS,
)
QUICK = (CONTENDERS[1], "TRL rows=1 length=1024 precompute=1")

if __name__ == "__main__":
    tuning_step.main(
        __doc__, "align", "dpo", "dpo_en_demo.json", CONTENDERS, QUICK, DEFAULTS, examples=24
    )
