"""An update by AdamW, by Muon beside it, and by torch's own Muon, in one process.

    python benchmarks/optimizers.py [--rounds 9] [--shape hidden512] [--threads 1] [--clock cpu]

The matrices of a small Llama with random gradients; nothing else is computed, so that the time is
the optimizer's alone. The optimizers take turns and the best of the rounds counts, because other
work on the machine only ever adds time; `--clock cpu` counts processor time, which other work adds
less to (with one thread it is comparable to the time on the wall). For comparison, the time that
the forward and backward passes of a step of `--tokens` would take at `--share` of the best 2048³
product, measured between the rounds: an optimizer's own time is worth what it adds to that.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping

import torch

from llamita.architecture.config import ModelConfig
from llamita.architecture.counts import flops_per_token, num_parameters
from llamita.model.decoder import Decoder
from llamita.model.initialization import initialize, learning_rate_multipliers
from llamita.recipes.schema import AdamW, Muon, Optimizer
from llamita.training.optimizer import build_optimizer, is_block_matrix

SHAPES: Mapping[str, ModelConfig] = {
    "hidden128": ModelConfig(
        vocab_size=4096,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    ),
    "hidden384": ModelConfig(
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "hidden512": ModelConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
    ),
}
"""The quickstart's, the laptop recipe's, and that of benchmarks/training_step.py."""


def model_of(config: ModelConfig, dtype: torch.dtype) -> Decoder:
    model = Decoder(config)
    initialize(model, "llama")
    model.compute_dtype = dtype
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def ours(config: ModelConfig, settings: Optimizer, dtype: torch.dtype) -> Callable[[], None]:
    model = model_of(config, dtype)
    optimizer = build_optimizer(model, settings, learning_rate_multipliers(model, "llama"))
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    optimizer.grad_scale = torch.ones(())  # type: ignore[attr-defined]

    def step() -> None:
        optimizer.step()

    return step


def torchs(config: ModelConfig) -> Callable[[], None]:
    model = model_of(config, torch.bfloat16)
    named = list(model.named_parameters())
    matrices = [parameter for name, parameter in named if is_block_matrix(name, parameter)]
    others = [parameter for name, parameter in named if not is_block_matrix(name, parameter)]
    muon = torch.optim.Muon(matrices, lr=1e-3, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=1e-3, fused=True)

    def step() -> None:
        muon.step()
        adamw.step()

    return step


def product_rate(clock: Callable[[], float], size: int = 2048) -> float:
    """FLOP/s of one size³ product in bfloat16."""
    a, b = (torch.randn(size, size).bfloat16() for _ in range(2))
    start = clock()
    torch.mm(a, b)
    return 2 * size**3 / (clock() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shape", choices=list(SHAPES), default="hidden512")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--share", type=float, default=0.4)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    config = SHAPES[arguments.shape]
    muon = Muon(learning_rate=1e-3)
    steps = {
        "AdamW, fused": ours(config, AdamW(learning_rate=1e-3), torch.bfloat16),
        "Muon, bfloat16": ours(config, muon, torch.bfloat16),
        "Muon, float32": ours(config, muon, torch.float32),
        "Muon, 3 iterations": ours(config, muon.model_copy(update={"ns_steps": 3}), torch.bfloat16),
        "torch's Muon": torchs(config),
    }
    best, rate = dict.fromkeys(steps, float("inf")), 0.0
    for number in range(arguments.rounds + 1):
        for name, step in steps.items():
            start = clock()
            step()
            if number:  # the first round allocates the state
                best[name] = min(best[name], clock() - start)
        rate = max(rate, product_rate(clock))
    flops = arguments.tokens * flops_per_token(config, 512)
    passes = flops / (arguments.share * rate)
    print(f"{arguments.shape}: {num_parameters(config):,} parameters, {arguments.threads} threads")
    print(
        f"a step's passes over {arguments.tokens:,} tokens at {arguments.share:.0%} of "
        f"{rate / 1e9:.0f} GFLOP/s: {passes * 1e3:.0f} ms\n"
    )
    print("| optimizer | ms a step | of the passes |\n|---|---|---|")
    for name, seconds in best.items():
        print(f"| {name} | {seconds * 1e3:.1f} | {seconds / passes:.1%} |")


if __name__ == "__main__":
    main()
