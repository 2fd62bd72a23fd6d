"""All products of one decoding step, rows first and weight first: why `decode_step.py` turns them.

    python benchmarks/few_rows.py

Weights of SmolLM2-135M's shapes, joined as the step joins them, more of them
than caches hold; the best of 20 calls each, in milliseconds a step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor

ROWS = (1, 2, 3, 4, 8, 16, 32)
# (out, in, times a step) of SmolLM2-135M.
SHAPES = ((960, 576, 30), (576, 576, 30), (3072, 576, 30), (576, 1536, 30), (49152, 576, 1))
BEYOND_CACHES = 200e6  # bytes


def best(call: Callable[[Tensor], Tensor], weights: list[Tensor]) -> float:
    """Milliseconds, with another weight each time."""
    turns, least = cycle(weights), float("inf")
    for _ in range(22):
        weight = next(turns)
        began = time.perf_counter()
        call(weight)
        least = min(least, time.perf_counter() - began)
    return 1e3 * least


@torch.inference_mode()
def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, ms a step")
    print(f"{'rows':>4}  {'x · Wᵀ':>8}  {'(W · xᵀ)ᵀ':>9}")
    for rows in ROWS:
        first = second = 0.0
        for outs, ins, times in SHAPES:
            x, weight = torch.randn(rows, ins), torch.randn(outs, ins)
            count = max(1, min(20, int(BEYOND_CACHES / weight.nbytes)))
            weights = [weight.clone() for _ in range(count)]
            first += times * best(lambda each, x=x: x @ each.t(), weights)
            second += times * best(lambda each, x=x: (each @ x.t()).t().contiguous(), weights)
        print(f"{rows:4}  {first:8.1f}  {second:9.1f}", flush=True)


if __name__ == "__main__":
    main()
