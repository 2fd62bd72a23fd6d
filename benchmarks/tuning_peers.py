"""The peers of tuning_step.py and preference_step.py: TRL's SFTTrainer and DPOTrainer with PEFT.

    python benchmarks/tuning_peers.py --data chats.json [--peer sft|dpo] [--model DIR] [--steps 4]
        [--settings 'packing=bfd rows=1' 'packing=wrapped rows=2 compile' …]

Looks for the setting at which TRL is fastest: each setting is tried in a fresh process, and the
tokens of text a second of its steps after two to warm up are printed beside the peak of its
resident set. Padding is not counted; all tokens of a chat that pass through are, the prompt's too.
Tokens a CPU second tell more than tokens a second where other work shares the machine; with
OMP_NUM_THREADS=1 they do not depend on it.

A setting is words: packing=bfd|wrapped|none, rows=N (of a step), length=N, attention=sdpa|eager,
workers=N, precompute=1 (DPO), and the flags checkpointing, bf16, compile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llamita.training.devices import forget_peak_memory, matmul_rate, peak_memory
from tuning_common import rates

MODEL = ".venv/models/smollm2-hf"
WARM_UP = 2
RANK, ALPHA = 16, 32
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

SETTINGS = {
    "sft": (
        "packing=bfd rows=1 length=512",
        "packing=bfd rows=1 length=1024",
        "packing=bfd rows=2 length=512",
        "packing=wrapped rows=1 length=1024",
        "packing=wrapped rows=4 length=512",
        "packing=none rows=8 length=1024",
        "packing=wrapped rows=4 length=512 compile",
        "packing=wrapped rows=4 length=512 checkpointing",
        "packing=bfd rows=1 length=1024 checkpointing",
        "packing=none rows=8 length=1024 checkpointing",
    ),
    "dpo": (
        "rows=1 length=1024",
        "rows=2 length=1024",
        "rows=4 length=1024",
        "rows=2 length=1024 precompute=1",
        "rows=2 length=1024 checkpointing",
    ),
}


@dataclass(frozen=True)
class Setting:
    packing: str = "none"
    rows: int = 8
    length: int = 1024
    attention: str = "sdpa"
    workers: int = 0
    precompute: int = 0
    flags: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, words: str) -> Setting:
        named: dict[str, Any] = {}
        flags = set()
        for word in words.split():
            name, equals, value = word.partition("=")
            if not equals:
                flags.add(name)
            else:
                named[name] = int(value) if value.isdigit() else value
        unknown = flags - {"checkpointing", "bf16", "compile"}
        if unknown:
            raise SystemExit(f"no such flag: {', '.join(sorted(unknown))}")
        return cls(**named, flags=frozenset(flags))


@dataclass
class Counted:
    """What the steps after the warm-up took."""

    tokens: int = 0
    learnt: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def chats(path: Path) -> list[dict[str, Any]]:
    """Alpaca's rows as TRL's conversational prompt and completion: the answer alone learns."""
    records = []
    for row in json.loads(path.read_text("utf-8")):
        asked = "\n".join(part for part in (row["instruction"], row.get("input", "")) if part)
        records.append(
            {
                "prompt": [{"role": "user", "content": asked}],
                "completion": [{"role": "assistant", "content": row["output"]}],
            }
        )
    return records


def pairs(path: Path) -> list[dict[str, Any]]:
    """ShareGPT's preference rows as TRL's conversational prompt, chosen and rejected."""
    roles = {"human": "user", "gpt": "assistant", "system": "system"}

    def turn(message: Mapping[str, str]) -> dict[str, str]:
        return {"role": roles[message["from"]], "content": message["value"]}

    return [
        {
            "prompt": [turn(message) for message in row["conversations"]],
            "chosen": [turn(row["chosen"])],
            "rejected": [turn(row["rejected"])],
        }
        for row in json.loads(path.read_text("utf-8"))
    ]


def common_arguments(setting: Setting, directory: str, steps: int) -> dict[str, Any]:
    """What SFTConfig and DPOConfig share; what only costs time is off."""
    return {
        "output_dir": directory,
        "per_device_train_batch_size": setting.rows,
        "gradient_accumulation_steps": 1,
        "max_length": setting.length,
        "max_steps": steps,
        "learning_rate": 2e-4,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "bf16": "bf16" in setting.flags,
        "use_cpu": True,
        "torch_compile": "compile" in setting.flags,
        "gradient_checkpointing": "checkpointing" in setting.flags,
        "dataloader_num_workers": setting.workers,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": 0,
    }


def real_tokens(inputs: Mapping[str, Any]) -> int:
    """Tokens that are no padding. Packed batches have no attention mask: nothing is padding."""
    if "attention_mask" in inputs:
        return int(inputs["attention_mask"].sum())
    return int(inputs["input_ids"].numel())


def build_trainer(
    peer: str,
    model: str,
    data: Path,
    setting: Setting,
    directory: str,
    steps: int,
    **changes: Any,
) -> Any:
    """The trainer of a setting; `changes` are arguments of SFTConfig and DPOConfig."""
    import datasets
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    base = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation=setting.attention
    )
    base.config.use_cache = False
    arguments = common_arguments(setting, directory, steps) | changes
    shared = {
        "model": base,
        "processing_class": AutoTokenizer.from_pretrained(model),
        "peft_config": LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=PROJECTIONS, task_type="CAUSAL_LM"
        ),
    }
    if peer == "sft":
        packing = setting.packing != "none"
        arguments["packing"] = packing
        if packing:
            arguments["packing_strategy"] = setting.packing
        return SFTTrainer(
            args=SFTConfig(**arguments),
            train_dataset=datasets.Dataset.from_list(chats(data)),
            **shared,
        )
    return DPOTrainer(
        args=DPOConfig(**arguments, precompute_ref_log_probs=bool(setting.precompute)),
        train_dataset=datasets.Dataset.from_list(pairs(data)),
        **shared,
    )


def time_reference(found: dict[str, float]) -> None:
    """Have DPOTrainer say what computing the reference's log-probabilities took."""
    from trl import DPOTrainer

    compute = DPOTrainer._precompute_ref_logps

    def timed(trainer: Any, dataset: Any, name: str, batch_size: int) -> Any:
        tokens = 0

        def collate(rows: Any) -> Any:
            nonlocal tokens
            batch = collator(rows)
            tokens += real_tokens(batch)
            return batch

        collator, trainer.data_collator = trainer.data_collator, collate
        wall, cpu = time.perf_counter(), time.process_time()
        dataset = compute(trainer, dataset, name, batch_size)
        found["seconds"] = time.perf_counter() - wall
        found["cpu_seconds"] = time.process_time() - cpu
        found["tokens"] = tokens
        trainer.data_collator = collator
        return dataset

    DPOTrainer._precompute_ref_logps = timed


def measure(peer: str, model: str, data: Path, setting: Setting, steps: int) -> dict[str, Any]:
    """In this process: tokens of text a second and a CPU second, peak memory, losses."""
    from transformers import TrainerCallback

    device, counted = torch.device("cpu"), Counted()
    reference: dict[str, float] = {}
    if setting.precompute:
        time_reference(reference)
    with tempfile.TemporaryDirectory() as directory:
        begun = time.process_time()
        trainer = build_trainer(peer, model, data, setting, directory, WARM_UP + steps)
        building = time.process_time() - begun
        original = trainer.training_step

        def training_step(module: Any, inputs: Any, *given: Any, **named: Any) -> Any:
            counted.tokens += real_tokens(inputs)
            labels = inputs.get("labels", inputs.get("completion_mask"))
            counted.learnt += int((labels > 0).sum())
            loss = original(module, inputs, *given, **named)
            counted.losses.append(float(loss))
            return loss

        class Clock(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                now, cpu = time.perf_counter(), time.process_time()
                if state.global_step == WARM_UP:
                    forget_peak_memory(device)
                    counted.tokens = counted.learnt = 0
                    self.began, self.began_cpu = now, cpu
                elif state.global_step > WARM_UP:
                    counted.seconds = now - self.began
                    counted.cpu_seconds = cpu - self.began_cpu

        trainer.training_step = training_step
        trainer.add_callback(Clock())
        trainer.train()
    rate = matmul_rate(device, torch.bfloat16 if "bf16" in setting.flags else torch.float32)
    return {
        **rates(counted.tokens, counted.seconds, counted.cpu_seconds, reference),
        "learning_share": counted.learnt / counted.tokens,
        "tokens": counted.tokens,
        "peak_bytes": peak_memory(device),
        "matmul_rate": rate,
        "building_cpu_seconds": building,
        "losses": counted.losses,
        "reference": reference or None,
    }


def train_adapter(
    model: str, data: Path, out: Path, *, steps: int, examples: int, rate: float, seed: int
) -> list[float]:
    """A whole run of SFTTrainer as `llamita tune` would do it, whose adapter goes to `out`.

    The same rank, alpha, targets, AdamW, clipping and cosine from `rate` to a tenth of it after
    3% of warming up. Each micro-batch is one chat, unpadded and unpacked: packed rows would see
    one another without FlashAttention.

    Args:
        examples: chats of a step.

    Returns:
        The loss of each step.
    """
    from transformers import set_seed

    set_seed(seed)
    setting = Setting(rows=1, length=2048)
    with tempfile.TemporaryDirectory() as directory:
        trainer = build_trainer(
            "sft",
            model,
            data,
            setting,
            directory,
            steps,
            gradient_accumulation_steps=examples,
            learning_rate=rate,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": 0.1},
            warmup_steps=round(0.03 * steps),
            seed=seed,
        )
        trainer.train()
        trainer.save_model(str(out))
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", choices=sorted(SETTINGS), default="sft")
    parser.add_argument("--model", default=MODEL, help="a Transformers directory")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--settings", nargs="+")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        setting = Setting.parse(arguments.measure)
        found = measure(arguments.peer, arguments.model, arguments.data, setting, arguments.steps)
        print(json.dumps(found))
        return
    command = [sys.executable, __file__, f"--peer={arguments.peer}", f"--model={arguments.model}"]
    command += [f"--data={arguments.data}", f"--steps={arguments.steps}"]
    print(
        f"{'':<52}{'tokens/s':>9}{'a CPU s':>9}{'learn':>7}{'peak GB':>9}{'GFLOP/s':>9}{'loss':>7}"
    )
    for words in arguments.settings or SETTINGS[arguments.peer]:
        done = subprocess.run(
            [*command, f"--measure={words}"],
            capture_output=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            check=False,
        )
        if done.returncode:
            error = done.stderr.decode().strip().splitlines()[-1]
            print(f"{words:<52}failed: {error}", flush=True)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{words:<52}{found['tokens_per_second']:>9.1f}{found['tokens_per_cpu_second']:>9.1f}"
            f"{found['learning_share']:>7.0%}{found['peak_bytes'] / 1e9:>9.2f}"
            f"{found['matmul_rate'] / 1e9:>9.0f}{found['losses'][-1]:>7.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
