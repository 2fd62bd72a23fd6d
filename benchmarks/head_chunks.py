"""How many tokens' logits at a time: the compiled head, forward and backward, on this CPU.

    python benchmarks/head_chunks.py [--rounds 12]

4,096 tokens of hidden size 512 in bfloat16; sizes take turns, the best of the rounds counts.
"""

from __future__ import annotations

import argparse
import time

import torch

from llamita.model.head import HeadFunctions, target_log_probs

CHUNKS = (128, 256, 512, 1024, 2048)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    rounds = parser.parse_args().rounds
    functions = HeadFunctions.compiled()
    hidden = torch.randn(4096, 512).bfloat16().requires_grad_()
    print(f"{'vocabulary':<12}" + "".join(f"{size:>10}" for size in CHUNKS))
    for vocab_size in (8192, 32_000):
        weight = torch.randn(vocab_size, 512).mul_(0.02).requires_grad_()
        targets = torch.randint(0, vocab_size, (4096,))
        best = dict.fromkeys(CHUNKS, float("inf"))
        for number in range(rounds + 1):
            for size in CHUNKS:
                start = time.perf_counter()
                log_probs, _ = target_log_probs(
                    hidden,
                    weight,
                    targets,
                    vocab_size=vocab_size,
                    chunk_size=size,
                    functions=functions,
                )
                (-log_probs.mean()).backward()
                if number:  # the first compiles
                    best[size] = min(best[size], time.perf_counter() - start)
                hidden.grad = weight.grad = None
        print(f"{vocab_size:<12,}" + "".join(f"{best[size] * 1e3:>7.1f} ms" for size in CHUNKS))


if __name__ == "__main__":
    main()
