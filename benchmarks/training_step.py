"""One training step of a 30.9M Llama beside Transformers and litgpt, in one process.

    python benchmarks/training_step.py [--rounds 5] [--steps 3] [--only llamita,…]

Hidden 512, 8 layers, 8 heads / 2 KV, ffn 1408, vocabulary 8192, untied; 8 × 512 tokens;
bfloat16 (each peer in the way it is used: Transformers and litgpt under autocast with float32
weights), AdamW fused, gradient norm clipped at 1. Peers take turns, `--rounds` times `--steps`
steps each; the best step counts, because other work on the machine only ever adds time. The
share of the matmul rate is 6·matmul parameters + 12·L·heads·head_dim·T FLOPs a token over the
best 2048³ bfloat16 product, measured between the rounds.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from llamita.architecture.config import ModelConfig
from llamita.architecture.counts import flops_per_token, num_parameters
from llamita.recipes.schema import AdamW, Guard, LanguageModelling
from llamita.training.devices import matmul_rate

CONFIG = ModelConfig(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=2,
    max_position_embeddings=512,
)
ROWS, LENGTH = 8, 512
Step = Callable[[Tensor, Tensor], float]


def llamita_step(compiled: bool) -> Step:
    """The loop's own step: objective, token-weighted loss, guard, AdamW."""
    from llamita.data.batch import Batch
    from llamita.model.decoder import Decoder, compile_model
    from llamita.model.initialization import initialize, learning_rate_multipliers
    from llamita.training.guards import StepGuard
    from llamita.training.objective import build_objective
    from llamita.training.optimizer import build_optimizer
    from llamita.training.step import TrainingStep

    model = Decoder(CONFIG)
    initialize(model, "llama")
    model.compute_dtype = torch.bfloat16
    if compiled:
        compile_model(model)
    device, settings = torch.device("cpu"), AdamW(learning_rate=1e-3)
    optimizer = build_optimizer(model, settings, learning_rate_multipliers(model, "llama"))
    take = TrainingStep(
        model, optimizer, StepGuard(Guard(), device), device=device, clip_grad_norm=1.0
    )
    objective = build_objective(LanguageModelling())

    def step(tokens: Tensor, targets: Tensor) -> float:
        batch = Batch(tokens, targets, None, np.zeros(len(tokens), dtype=np.int64))
        return float(take(objective, batch, len(tokens), 1e-3).loss)

    return step


def sdpa_step() -> Step:
    """llamita compiled, with PyTorch's own attention kernel in place of explicit blocks."""
    from llamita.model import blocked_attention

    chosen, step = blocked_attention.applies, llamita_step(True)

    def without_blocks(tokens: Tensor, targets: Tensor) -> float:
        # Compiled code is guarded by this function, so it must be in place at every step.
        blocked_attention.applies = _never
        try:
            return step(tokens, targets)
        finally:
            blocked_attention.applies = chosen

    return without_blocks


def _never(q: Tensor, k: Tensor, mask: object) -> bool:
    return False


def peer_step(model: nn.Module, loss_of: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Step:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )

    def step(tokens: Tensor, targets: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def transformers_step(compiled: bool) -> Step:
    from transformers import LlamaConfig, LlamaForCausalLM

    keys = CONFIG.to_huggingface()
    model: nn.Module = LlamaForCausalLM(LlamaConfig(**keys, attn_implementation="sdpa"))
    model.config.use_cache = False
    if compiled:
        model = torch.compile(model)

    def loss_of(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
        logits = model(tokens, use_cache=False).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    return peer_step(model, loss_of)


def litgpt_step(compiled: bool) -> Step:
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    config = Config(
        block_size=LENGTH,
        padded_vocab_size=CONFIG.vocab_size,
        vocab_size=CONFIG.vocab_size,
        n_layer=CONFIG.num_hidden_layers,
        n_head=CONFIG.num_attention_heads,
        n_query_groups=CONFIG.num_key_value_heads,
        n_embd=CONFIG.hidden_size,
        head_size=CONFIG.head_dim,
        intermediate_size=CONFIG.intermediate_size,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        norm_eps=1e-5,
    )
    model: nn.Module = GPT(config)
    if compiled:
        model = torch.compile(model)

    def loss_of(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
        return chunked_cross_entropy(model(tokens), targets, chunk_size=0)

    return peer_step(model, loss_of)


CONTENDERS: dict[str, Callable[[], Step]] = {
    "llamita": lambda: llamita_step(False),
    "llamita compiled": lambda: llamita_step(True),
    "llamita compiled with SDPA": sdpa_step,
    "transformers": lambda: transformers_step(False),
    "transformers compiled": lambda: transformers_step(True),
    "litgpt": lambda: litgpt_step(False),
    "litgpt compiled": lambda: litgpt_step(True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", default=",".join(CONTENDERS))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    tokens = torch.randint(0, CONFIG.vocab_size, (ROWS, LENGTH + 1))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    steps: dict[str, Step] = {}
    best: dict[str, float] = {}
    for name in arguments.only.split(","):
        torch.manual_seed(0)
        start = time.perf_counter()
        steps[name] = CONTENDERS[name]()
        loss = steps[name](inputs, targets)
        seconds = time.perf_counter() - start
        print(f"{name}: first step {seconds:.1f} s, loss {loss:.4f}", flush=True)
    rate = 0.0
    for _ in range(arguments.rounds):
        rate = max(rate, matmul_rate(torch.device("cpu"), torch.bfloat16))
        for name, step in steps.items():
            for _ in range(arguments.steps):
                start = time.perf_counter()
                step(inputs, targets)
                best[name] = min(best.get(name, 1e9), time.perf_counter() - start)
    flops = flops_per_token(CONFIG, LENGTH) * ROWS * LENGTH
    print(
        f"\n{num_parameters(CONFIG):,} parameters, {ROWS} × {LENGTH} tokens, bfloat16, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}; "
        f"2048³ products at {rate / 1e9:.0f} GFLOP/s\n"
    )
    print(f"{'':<28}{'best step':>10}{'tokens/s':>10}{'of matmul rate':>16}")
    for name, seconds in best.items():
        share = flops / seconds / rate
        print(f"{name:<28}{seconds:>9.3f}s{ROWS * LENGTH / seconds:>10,.0f}{share:>15.1%}")
    rivals = {n: s for n, s in best.items() if "compiled" in n and not n.startswith("llamita")}
    if rivals and "llamita compiled" in best:
        rival = min(rivals, key=rivals.__getitem__)
        ratio = rivals[rival] / best["llamita compiled"]
        print(f"\nllamita compiled does {ratio:.2f} times the work of {rival} in the same time")


if __name__ == "__main__":
    main()
