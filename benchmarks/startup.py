"""How long the command line takes to say hello, and whether `import llamita` stays light.

    python benchmarks/startup.py [--rounds 10]

Bars: `llamita --help` under 0.3 s, an answer of `llamita plan` under 0.5 s; no torch imported by
`import llamita`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import llamita": ["-c", "import llamita"],
    "llamita --help": ["-m", "llamita", "--help"],
    "llamita train --help": ["-m", "llamita", "train", "--help"],
    "train … --dry-run": ["-m", "llamita", "train", "tinyllama-1.1b", "--dry-run"],
    "plan, FLOPs": ["-m", "llamita", "plan", "--quality", "13B", "--serve-tokens", "2e12"],
    "plan, cost": ["-m", "llamita", "plan", "--quality=2B", "--requests=1e9", "--hardware=8xh100"],
    "plan of a recipe": ["-m", "llamita", "plan", "tinyllama-1.1b", "--hardware", "8xh100"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    best = dict.fromkeys(COMMANDS, float("inf"))
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            best[name] = min(best[name], time.perf_counter() - start)
    for name, seconds in best.items():
        print(f"{name:<24}{seconds * 1000:8.0f} ms")
    probe = "import llamita, llamita.cli, sys; print('torch' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    print(f"import llamita loads torch: {loaded.stdout.strip()}")


if __name__ == "__main__":
    main()
