"""The time of a 100 × 100 ratio map, counted in FLOPs and in dollars; best of five.

    python benchmarks/ratio_map.py [--num 100] [--laws beyond-chinchilla,epoch]

The bar is 5 seconds; the exit code is 1 where a map takes longer. One thread, no numpy.
"""

from __future__ import annotations

import argparse
import time

from llamita.planning.laws import Law, find_law
from llamita.planning.maps import FLOPS_A_TOKEN, ratio_map, spaced
from llamita.planning.optimum import Spending

BAR_SECONDS = 5.0
# Training on an A100-80 at $1.50 an hour, serving on an A100-40 in int8 at $1.10, MFU 0.5 and 0.01.
DOLLARS_A_TOKEN = Spending(6 * 1.33547e-18 / 0.5, 2 * 4.89672e-19 / 0.01)


def measure(law: Law, a_token: Spending, num: int) -> float:
    """Seconds of the fastest of five."""
    sizes, demands = spaced(1e9, 1e11, num), spaced(1e10, 1e14, num)
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        ratio_map(law, sizes, demands, a_token)
        taken.append(time.perf_counter() - began)
    return min(taken)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--num", type=int, default=100)
    parser.add_argument("--laws", default="beyond-chinchilla,epoch,data-constrained")
    arguments = parser.parse_args()
    slow = False
    for name in arguments.laws.split(","):
        law = find_law(name)
        assert isinstance(law, Law), f"{name} is a rule of thumb"
        for what, a_token in (("FLOPs", FLOPS_A_TOKEN), ("dollars", DOLLARS_A_TOKEN)):
            seconds = measure(law, a_token, arguments.num)
            slow |= seconds > BAR_SECONDS
            cells = arguments.num**2
            print(
                f"{name:20} {what:8} {arguments.num} × {arguments.num}: {seconds:.2f} s, "
                f"{seconds / cells * 1e6:.0f} µs a cell"
            )
    return int(slow)


if __name__ == "__main__":
    raise SystemExit(main())
