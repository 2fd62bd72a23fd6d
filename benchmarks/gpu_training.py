"""TinyLlama-1.1B's training step on one GPU, beside Transformers, litgpt and torchtitan.

    python benchmarks/gpu_training.py [--rounds 2] [--steps 8] [--micro-batch 8]
        [--global-batch 32] [--only "llamita,transformers"] [--out FILE]

    python benchmarks/gpu_training.py --device cpu --tiny      # the same code, where no GPU is

Preset tinyllama-1.1b (vocabulary 32,000, T 2048), bfloat16 with float32 weights and moments, fused
AdamW, gradient norm clipped at 1, all compiled; no activation checkpointing. A step is one update
from --global-batch windows, taken --micro-batch at a time, on fixed random tokens. llamita takes
its loop's own step (objective, guard, optimizer, tokens copied from the host); peers find their
tokens on the device. "litgpt true bf16" keeps weights and moments in bfloat16, which is litgpt's
own default and less work and memory than the others do: it is shown, and is no rival.

A GPU does not hold several of these at once, so each measurement is a fresh process, and contenders
alternate, --rounds times. --warmup steps, the compiling one among them, are not timed. A step is
the time between CUDA events around it; tokens/s is from the median step, and the best is shown too.
Who runs out of memory goes on with half the micro-batch and the same global batch, and the table
says so.

MFU = tokens/s · (6·matmul parameters + 12·L·heads·head_dim·T) ÷ rate, where the rate is the best
8192³ bfloat16 product measured between the rounds, and an H100's data sheet (989 TFLOP/s).
Measurements are appended to --out one by one; the table is of this command's own.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llamita.architecture.config import ModelConfig
from llamita.architecture.counts import flops_per_token, num_parameters
from llamita.architecture.presets import preset
from llamita.model.devices import synchronize
from llamita.training.devices import matmul_rate, memory_used

RESULTS = Path(__file__).resolve().parent / "results"
DATA_SHEET_FLOPS = {"H100": 989e12}  # dense bfloat16 of the SXM card
Rows = tuple[Tensor, Tensor]
Step = Callable[[], Tensor]
"""One update of the weights; returns the loss, in nats a token, without waiting for the device."""


class Unavailable(Exception):
    """Why a contender cannot run here."""


@dataclass(frozen=True)
class Job:
    """One measurement. micro_batch, global_batch: windows."""

    contender: str
    device: str
    tiny: bool
    micro_batch: int
    global_batch: int
    warmup: int
    steps: int

    @property
    def config(self) -> ModelConfig:
        config = preset("tinyllama-1.1b").config
        if not self.tiny:
            return config
        return config.replace(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=None,
            max_position_embeddings=64,
        )

    @property
    def length(self) -> int:
        return self.config.max_position_embeddings

    @property
    def tokens(self) -> int:
        return self.global_batch * self.length


# -- contenders ---------------------------------------------------------------------------------


def random_rows(job: Job) -> Rows:
    """Inputs and targets of the global batch, (global_batch, T) each, the same for all."""
    generator = torch.Generator().manual_seed(0)
    shape = (job.global_batch, job.length + 1)
    tokens = torch.randint(0, job.config.vocab_size, shape, generator=generator)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def llamita_step(job: Job, *, fp8: bool = False) -> Step:
    """The loop's own step."""
    from llamita.data.batch import Batch
    from llamita.model.decoder import Decoder, compile_model
    from llamita.model.initialization import initialize, learning_rate_multipliers
    from llamita.recipes.schema import AdamW, Guard, LanguageModelling
    from llamita.training.guards import StepGuard
    from llamita.training.objective import build_objective
    from llamita.training.optimizer import build_optimizer
    from llamita.training.step import TrainingStep

    device = torch.device(job.device)
    model = Decoder(job.config)
    initialize(model, "tinyllama")
    model.compute_dtype = torch.bfloat16
    model.to(device)
    if fp8:
        to_fp8(model, job)
    compile_model(model)
    settings = AdamW(learning_rate=1e-4)
    optimizer = build_optimizer(model, settings, learning_rate_multipliers(model, "tinyllama"))
    guard = StepGuard(Guard(), device)
    take = TrainingStep(model, optimizer, guard, device=device, clip_grad_norm=1.0)
    objective = build_objective(LanguageModelling())
    batch = Batch(*random_rows(job), None, np.zeros(job.global_batch, dtype=np.int64))
    return lambda: take(objective, batch, job.micro_batch, 1e-4).loss


def to_fp8(model: Any, job: Job) -> None:
    """What `runtime.float8` does; the tiny shape, where there are no float8 products, emulates."""
    from llamita.errors import UserError
    from llamita.model.float8 import float8_obstacle, use_float8

    obstacle = float8_obstacle(torch.device(job.device), compiled=True)
    if obstacle and not job.tiny:
        raise Unavailable(obstacle)
    try:
        use_float8(model, emulate=obstacle is not None)
    except UserError as error:
        raise Unavailable(str(error)) from error


def peer_step(
    job: Job,
    model: nn.Module,
    loss_sum: Callable[[nn.Module, Tensor, Tensor], Tensor],
    *,
    autocast: bool = True,
) -> Step:
    """A compiled peer under autocast, its micro-batches on the device."""
    found = sum(parameter.numel() for parameter in model.parameters())
    if found != num_parameters(job.config):
        raise RuntimeError(f"{found:,} parameters, {num_parameters(job.config):,} were meant")
    inputs, targets = (rows.to(job.device) for rows in random_rows(job))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    micros = list(zip(inputs.split(job.micro_batch), targets.split(job.micro_batch), strict=True))

    def step() -> Tensor:
        total = torch.zeros((), device=job.device)
        for tokens, wanted in micros:
            with torch.autocast(torch.device(job.device).type, torch.bfloat16, enabled=autocast):
                loss = loss_sum(model, tokens, wanted) / len(micros)
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def transformers_step(job: Job) -> Step:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**job.config.to_huggingface(), attn_implementation="sdpa")
    config.use_cache = False
    with torch.device(job.device):
        model = LlamaForCausalLM(config)
    model.to(job.device, torch.float32)

    def loss_of(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
        # Its own loss, told the targets so that all T positions learn.
        return model(tokens, labels=targets, shift_labels=targets, use_cache=False).loss

    return peer_step(job, torch.compile(model), loss_of)


def litgpt_step(job: Job, *, true_bfloat16: bool = False) -> Step:
    try:
        from litgpt import GPT
        from litgpt.utils import chunked_cross_entropy

        from time_to_quality_peers import litgpt_config
    except ImportError as error:
        raise Unavailable(f"litgpt cannot be imported ({error})") from error
    with torch.device(job.device):
        model: nn.Module = GPT(litgpt_config(job.config, job.length))
    model.to(job.device, torch.bfloat16 if true_bfloat16 else torch.float32)

    def loss_of(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
        return chunked_cross_entropy(model(tokens), targets)  # as litgpt.pretrain calls it

    return peer_step(job, torch.compile(model), loss_of, autocast=not true_bfloat16)


def torchtitan_step(job: Job) -> Step:
    """torchtitan's Llama with blocks and loss compiled, as it does itself.

    Kinder than usual: causal attention by PyTorch's own kernels, where its trainer masks documents,
    and rotary embeddings by cosines and sines, which compile, where its Llama has complex numbers.
    """
    try:
        from torchtitan.models import llama3
        from torchtitan.models.common import CosSinRoPE, Embedding, Linear, RMSNorm
        from torchtitan.models.common.attention import ScaledDotProductAttention
        from torchtitan.models.common.config_utils import make_ffn_config, make_gqa_config
    except ImportError as error:
        raise Unavailable(f"torchtitan 0.3 cannot be imported ({error})") from error
    config = job.config
    hidden, vocab_size = config.hidden_size, config.vocab_size
    normal = {"weight": lambda weight: nn.init.normal_(weight, std=0.02)}
    norm = RMSNorm.Config(
        normalized_shape=hidden, eps=config.rms_norm_eps, param_init={"weight": nn.init.ones_}
    )
    rope = CosSinRoPE.Config(
        dim=config.head_dim, max_seq_len=job.length, theta=config.rope_theta, scaling="none"
    )

    def block() -> Any:
        attention = make_gqa_config(
            dim=hidden,
            n_heads=config.num_attention_heads,
            n_kv_heads=config.num_key_value_heads,
            wqkv_param_init=normal,
            wo_param_init=normal,
            inner_attention=ScaledDotProductAttention.Config(),
            fuse_qkv=True,
            rope=rope,
        )
        ffn = make_ffn_config(
            dim=hidden,
            hidden_dim=config.intermediate_size,
            w1_param_init=normal,
            w2w3_param_init=normal,
        )
        return llama3.Llama3TransformerBlock.Config(
            attention=attention, feed_forward=ffn, attention_norm=norm, ffn_norm=norm
        )

    built = llama3.Llama3Model.Config(
        dim=hidden,
        vocab_size=vocab_size,
        tok_embeddings=Embedding.Config(
            num_embeddings=vocab_size, embedding_dim=hidden, param_init=normal
        ),
        norm=norm,
        lm_head=Linear.Config(in_features=hidden, out_features=vocab_size, param_init=normal),
        layers=[block() for _ in range(config.num_hidden_layers)],
    )
    model = built.build()
    model.to(job.device)
    model.init_states(buffer_device=torch.device(job.device))
    for layer in model.layers.values():
        layer.compile(fullgraph=True)

    @torch.compile
    def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    return peer_step(job, model, lambda model, tokens, y: cross_entropy(model(tokens), y))


CONTENDERS: dict[str, Callable[[Job], Step]] = {
    "llamita": llamita_step,
    "llamita fp8": lambda job: llamita_step(job, fp8=True),
    "transformers": transformers_step,
    "litgpt": litgpt_step,
    "torchtitan": torchtitan_step,
    "litgpt true bf16": lambda job: litgpt_step(job, true_bfloat16=True),
}
NO_RIVALS = {"litgpt true bf16"}


# -- measuring: one process each ----------------------------------------------------------------


def measure(job: Job, pipe: Connection) -> None:
    """A process's whole life; sends one of ok, out of memory, unavailable, failed."""
    try:
        pipe.send(("ok", timed(job)))
    except Unavailable as error:
        pipe.send(("unavailable", str(error)))
    except torch.OutOfMemoryError as error:
        pipe.send(("out of memory", str(error).splitlines()[0]))
    except Exception as error:
        import traceback

        traceback.print_exc()
        pipe.send(("failed", f"{type(error).__name__}: {error}"))


def timed(job: Job) -> dict[str, Any]:
    device = torch.device(job.device)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    started = time.perf_counter()
    step = CONTENDERS[job.contender](job)
    losses = [float(step())]
    first = time.perf_counter() - started
    for _ in range(job.warmup - 1):
        losses.append(float(step()))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds, kept = (
        cuda_seconds(step, job.steps) if device.type == "cuda" else cpu_seconds(step, job.steps)
    )
    memory = memory_used(device)
    losses += [float(loss) for loss in kept]
    if not all(map(math.isfinite, losses)):
        raise RuntimeError(f"losses are not finite: {losses}")
    del step, kept
    gc.collect()
    return {
        "step_seconds": [round(value, 6) for value in seconds],
        "first_step_seconds": round(first, 1),
        "peak_bytes": memory,
        "losses": [round(value, 4) for value in losses],
        "matmul_flops": matmul_rate(device, torch.bfloat16, size=512 if job.tiny else 8192),
    }


def cuda_seconds(step: Step, steps: int) -> tuple[list[float], list[Tensor]]:
    """Times between events around each step; the host waits once, at the end."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    losses = []
    synchronize(torch.device("cuda"))
    marks[0].record()
    for mark in marks[1:]:
        losses.append(step())
        mark.record()
    synchronize(torch.device("cuda"))
    pairs = itertools.pairwise(marks)
    return [start.elapsed_time(end) / 1000 for start, end in pairs], losses


def cpu_seconds(step: Step, steps: int) -> tuple[list[float], list[Tensor]]:
    seconds, losses = [], []
    for _ in range(steps):
        start = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
    return seconds, losses


def run_one(job: Job) -> tuple[Job, str, Any]:
    """Measure in a fresh process; out of memory, with half the micro-batch, and so on.

    Returns the job as it was measured, what came of it, and the measurement or the reason.
    """
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=measure, args=(job, theirs))
    process.start()
    theirs.close()
    try:
        what, said = pipe.recv()
    except EOFError:
        process.join()
        what, said = "failed", f"its process ended with {process.exitcode}"
    process.join()
    if what == "out of memory" and job.micro_batch > 1:
        half = job.micro_batch // 2
        print(f"  {job.contender}: out of memory at {job.micro_batch} windows, now {half}")
        return run_one(replace(job, micro_batch=half))
    return job, what, said


# -- the table ----------------------------------------------------------------------------------


def main() -> None:
    a = parse()
    job = Job("", a.device, a.tiny, a.micro_batch, a.global_batch, a.warmup, a.steps)
    wanted, records = list(a.only), []
    sizes = dict.fromkeys(wanted, a.micro_batch)  # what fitted the last time
    for number in range(a.rounds):
        for name in list(wanted):
            measured = replace(job, contender=name, micro_batch=sizes[name])
            measured, what, said = run_one(measured)
            if what != "ok":
                print(f"  {name}: {what}, {said}" + (" (skipped)" if what != "failed" else ""))
                wanted.remove(name)
                continue
            sizes[name] = measured.micro_batch
            records.append(record_of(measured, said))
            a.out.parent.mkdir(parents=True, exist_ok=True)
            with a.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(records[-1]) + "\n")
            best = min(said["step_seconds"])
            print(
                f"round {number + 1}: {name}, {job.tokens / best:,.0f} tokens/s at best, "
                f"first step {said['first_step_seconds']} s, losses "
                f"{said['losses'][0]:.3f} to {said['losses'][-1]:.3f}",
                flush=True,
            )
    if not records:
        raise SystemExit("nothing could be measured")
    print("\n".join(table(job, records)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--micro-batch", type=int, default=8, help="windows a pass")
    parser.add_argument("--global-batch", type=int, default=32, help="windows a step")
    parser.add_argument("--only", default=",".join(CONTENDERS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a shape to try the code with")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_training.jsonl")
    a = parser.parse_args()
    a.only = a.only.split(",")
    unknown = set(a.only) - set(CONTENDERS)
    if unknown:
        parser.error(f"no contender {', '.join(sorted(unknown))}: {', '.join(CONTENDERS)}")
    if a.global_batch % a.micro_batch or a.micro_batch & (a.micro_batch - 1):
        parser.error("--micro-batch must be a power of two that divides --global-batch")
    if min(a.rounds, a.steps, a.warmup) < 1:
        parser.error("--rounds, --steps and --warmup are 1 or more")
    if torch.device(a.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; try the code with --device cpu --tiny")
    return a


def record_of(job: Job, measured: dict[str, Any]) -> dict[str, Any]:
    return {
        "contender": job.contender,
        "model": "tiny" if job.tiny else "tinyllama-1.1b",
        "parameters": num_parameters(job.config),
        "sequence_length": job.length,
        "micro_batch": job.micro_batch,
        "global_batch": job.global_batch,
        "tokens_per_step": job.tokens,
        "flops_per_token": flops_per_token(job.config, job.length),
        **measured,
        "device": device_name(job.device),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for name in ("llamita", "torch", "triton", "transformers", "litgpt", "torchtitan", "torchao"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def table(job: Job, records: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: a row a contender, over all rounds."""
    rate = max(r["matmul_flops"] for r in records)
    name = records[0]["device"]
    sheet = next((flops for card, flops in DATA_SHEET_FLOPS.items() if card in name), None)
    lines = [
        "",
        "| contender | micro-batch | best step | median step | tokens/s | MFU of measured rate "
        "| MFU of data sheet | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    speeds: dict[str, float] = {}
    for contender in dict.fromkeys(r["contender"] for r in records):
        chosen = [r for r in records if r["contender"] == contender]
        steps = [seconds for r in chosen for seconds in r["step_seconds"]]
        speed = speeds[contender] = job.tokens / statistics.median(steps)
        flops = speed * chosen[0]["flops_per_token"]
        memory = max(r["peak_bytes"] for r in chosen)
        micro = "/".join(map(str, sorted({r["micro_batch"] for r in chosen})))
        lines.append(
            f"| {contender} | {micro} × {job.length} | {min(steps):.4f} s "
            f"| {statistics.median(steps):.4f} s | {speed:,.0f} | {flops / rate:.1%} "
            f"| {f'{flops / sheet:.1%}' if sheet else '–'} | {memory / 2**30:.1f} GiB |"
        )
    lines += ["", *verdicts(speeds), describe(job, records, rate)]
    return lines


def verdicts(speeds: dict[str, float]) -> list[str]:
    rivals = {n: s for n, s in speeds.items() if not n.startswith("llamita") and n not in NO_RIVALS}
    if not rivals:
        return []
    rival = max(rivals, key=rivals.__getitem__)
    return [
        f"{name} does {speed / rivals[rival]:.2f} times the work of {rival} in the same time."
        for name, speed in speeds.items()
        if name.startswith("llamita")
    ]


def describe(job: Job, records: Sequence[dict[str, Any]], rate: float) -> str:
    size = 512 if job.tiny else 8192
    shown = ", ".join(f"{name} {number}" for name, number in versions().items())
    return (
        f"{records[0]['parameters']:,} parameters, T {job.length}, {job.tokens:,} tokens a step; "
        f"{size}³ bfloat16 products at {rate / 1e12:.4g} TFLOP/s; "
        f"{records[0]['flops_per_token'] / 1e9:.4g} GFLOPs a token = 6·matmul parameters + "
        f"12·L·heads·head_dim·T. {records[0]['device']}, {shown}, {time.strftime('%Y-%m-%d')}"
    )


if __name__ == "__main__":
    main()
