"""The plan's memory against what training takes, over many shapes, each in a fresh process.

    python benchmarks/plan_memory.py [--device cpu|cuda] [--only NAME,…] [--ranks] [--tuning]
        [--out FILE]

Every shape goes through `llamita.train` on a small synthetic dataset: what its `memory` event tells
is compared, the plan and the peak above what the process held before the model was made, over two
steps, validation and a checkpoint (compiling is over by then). On a CPU the peak is of the resident
set and may differ from the plan by 20%; on a GPU it is the allocator's and may differ by 10%. The
exit code is 1 where a shape is outside. `--ranks` adds two processes under FSDP2, each of which may
differ by 30%: what a step leaves in the heap stays while whole weights are gathered for saving.
`--tuning` adds adapters to a base of random weights, frozen in the compute type or in nf4.

Linux alone can forget a peak, which leaving out the compiler's own memory needs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BAR = {"cpu": 0.20, "cuda": 0.10}
RANKS_BAR = 0.30
STEPS = 2


@dataclass(frozen=True)
class Shape:
    """A model and how it is trained; `changes` are keys of the recipe. With `adapter` a base of
    that shape stands still."""

    name: str
    model: Mapping[str, int | bool]
    rows: int
    length: int
    compiled: bool
    dtype: str = "bfloat16"
    micro_batches: int = 1
    checkpointing: bool = False
    ranks: int = 1
    changes: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] | None = None


def _model(
    hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, vocab: int, *, tied: bool
) -> dict[str, int | bool]:
    return {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
    }


MUON = {"optimizer": {"kind": "muon", "learning_rate": 1e-3}}
AVERAGE = {"averaging": {"kind": "ema", "half_life_tokens": 1e6}}
OF_9M = _model(256, 704, 6, 4, 4, 8192, tied=False)
OF_31M = _model(512, 1408, 8, 8, 2, 8192, tied=False)
OF_110M = _model(768, 2048, 12, 12, 12, 32_000, tied=True)
OF_55M = _model(512, 1408, 8, 8, 2, 32_000, tied=False)
OF_135M = _model(576, 1536, 30, 9, 3, 49_152, tied=True)  # SmolLM2-135M's

SHAPES = (
    Shape("1M", _model(128, 352, 3, 4, 2, 4096, tied=True), 16, 128, compiled=False),
    # the quickstart's
    Shape("2M-muon", _model(128, 384, 6, 2, 1, 4096, tied=True), 8, 256, True, changes=MUON),
    Shape("9M-float32", OF_9M, 8, 256, False, "float32"),
    Shape("16M-muon", _model(384, 1024, 8, 6, 2, 8192, tied=True), 8, 512, True, changes=MUON),
    Shape("31M-average", OF_31M, 4, 512, True, micro_batches=2, changes=AVERAGE),
    Shape("55M", OF_55M, 8, 512, compiled=True),
    Shape("55M-uncompiled", OF_55M, 1, 2048, compiled=False, micro_batches=2),
    Shape("55M-checkpointed", OF_55M, 2, 1024, compiled=False, checkpointing=True),
    Shape("110M-float32", OF_110M, 2, 512, compiled=False, dtype="float32"),
    Shape("135M", OF_135M, 2, 1024, compiled=True),
)
R16 = {"rank": 16}
NF4 = {"rank": 16, "quantize_base": "nf4"}
TUNING = (
    Shape("9M-lora-float32", OF_9M, 4, 256, False, "float32", adapter=R16),
    Shape("9M-nf4-float32", OF_9M, 4, 256, False, "float32", adapter=NF4),
    Shape("31M-lora", OF_31M, 8, 512, compiled=False, adapter=R16),
    Shape("31M-lora-compiled", OF_31M, 8, 512, compiled=True, adapter=R16),
    Shape("110M-lora-float32", OF_110M, 2, 512, False, "float32", adapter=R16),
    Shape("135M-nf4", OF_135M, 2, 512, compiled=False, adapter=NF4),
    Shape("135M-nf4-spared", OF_135M, 2, 512, False, checkpointing=True, adapter=NF4),
)
RANKS = (Shape("31M-2-ranks", OF_31M, 2, 256, compiled=False, ranks=2),)


def make_dataset(folder: Path) -> Path:
    """Random words, enough for the steps of every shape."""
    import numpy as np

    from llamita.data.build import build_data
    from llamita.data.tokenizer_training import train_tokenizer

    rng = np.random.default_rng(0)
    words = np.array(["".join(rng.choice(list("etaoinshr"), 6)) for _ in range(2000)])
    source = folder / "text"
    source.mkdir()
    for number in range(100):
        (source / f"{number}.txt").write_text(" ".join(rng.choice(words, 1000)))
    train_tokenizer([source], folder / "tokenizer", 1024)
    build_data([source], folder / "data", folder / "tokenizer", validation=0.05, num_workers=0)
    return folder / "data"


def make_base(shape: Shape, data: Path) -> Path:
    """A model of random weights with the dataset's tokenizer."""
    from llamita.architecture.config import ModelConfig
    from llamita.model.decoder import Decoder
    from llamita.model.huggingface import save_model
    from llamita.model.initialization import initialize

    out = data.parent / f"base-{shape.name}"
    config = ModelConfig(**shape.model, max_position_embeddings=shape.length)  # type: ignore[arg-type]
    model = Decoder(config)
    initialize(model, "llama")
    save_model(out, model.state_dict(), config)
    shutil.copytree(data.parent / "tokenizer", out, dirs_exist_ok=True)
    return out


def recipe_of(shape: Shape, data: Path, device: str) -> dict[str, Any]:
    batch = shape.rows * shape.length * shape.micro_batches * shape.ranks
    what: dict[str, Any] = {"model": {**shape.model, "max_position_embeddings": shape.length}}
    if shape.adapter is not None:
        base = data.parent / f"base-{shape.name}"
        what = {"start_from": str(base), "adapter": dict(shape.adapter)}
    return {
        "name": shape.name,
        **what,
        "sequence_length": shape.length,
        "batch_tokens": batch,
        "optimizer": {"learning_rate": 1e-3},
        "datasets": {"words": {"path": str(data), "max_epochs": 100}},
        "stages": [{"name": "stable", "tokens": STEPS * batch, "mixture": {"words": 1.0}}],
        "validation": {"tokens": 2048},
        "runtime": {
            "device": device,
            "dtype": shape.dtype,
            "compile": "always" if shape.compiled else "never",
            "micro_batch_size": shape.rows,
            "activation_checkpointing": "always" if shape.checkpointing else "never",
        },
        **shape.changes,
    }


def measure(shape: Shape, data: Path, device: str) -> None:
    """Train in this process; what it planned and took goes into a file beside the data."""
    from llamita.recipes.loading import check_recipe
    from llamita.training import run

    tell = run._tell_memory

    def also_write(trainer: Any, environment: Any, baseline: int) -> None:
        # The run's `memory` event, of every rank: events are the first process's alone.
        found = {
            "estimate": asdict(environment.memory),
            "planned_bytes": environment.memory.total,
            "baseline_bytes": baseline,
            "peak_bytes": run.peak_memory(environment.compute.device),
        }
        path = data.parent / f"{shape.name}-{trainer.world.rank}.json"
        path.write_text(json.dumps(found))
        tell(trainer, environment, baseline)

    run._tell_memory = also_write
    recipe = check_recipe(recipe_of(shape, data, device), shape.name)
    run.train(recipe, out=data.parent / f"run-{shape.name}")


def run(shape: Shape, data: Path, device: str) -> list[dict[str, Any]]:
    """The records of a shape, one for each rank, measured in fresh processes."""
    if shape.adapter is not None:
        make_base(shape, data)
    command = [__file__, f"--measure={shape.name}", f"--data={data}", f"--device={device}"]
    launcher = [sys.executable]
    environment = dict(os.environ)
    if shape.ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += [f"--nproc-per-node={shape.ranks}"]
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    done = subprocess.run(
        [*launcher, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{shape.name} failed:\n{done.stdout[-6000:]}")
    bar = BAR[device] if shape.ranks == 1 else RANKS_BAR
    records = []
    for rank in range(shape.ranks):
        found = json.loads((data.parent / f"{shape.name}-{rank}.json").read_text())
        measured = found["peak_bytes"] - found["baseline_bytes"]
        ratio = found["planned_bytes"] / measured
        outside = abs(ratio - 1) > bar
        described = {key: value for key, value in asdict(shape).items() if key != "name"}
        records.append(
            {
                "shape": shape.name,
                "rank": rank,
                "parameters": parameters(shape),
                **described,
                **found,
                "measured_bytes": measured,
                "planned_over_measured": round(ratio, 4),
                "bar": bar,
                "outside": outside,
            }
        )
    return records


def parameters(shape: Shape) -> int:
    from llamita.architecture.config import ModelConfig
    from llamita.architecture.counts import num_parameters

    return num_parameters(ModelConfig(**shape.model))  # type: ignore[arg-type]


def circumstances(device: str) -> dict[str, Any]:
    """Device, versions and date of a run."""
    import torch

    import llamita

    name = torch.cuda.get_device_name() if device == "cuda" else _cpu_name()
    return {
        "device": f"{device}: {name}",
        "threads": torch.get_num_threads(),
        "versions": {
            "llamita": llamita.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "libc": " ".join(platform.libc_ver()),
        },
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def line(record: Mapping[str, Any]) -> str:
    how = [record["dtype"], "compiled" if record["compiled"] else "uncompiled"]
    how += ["checkpointed"] if record["checkpointing"] else []
    how += list(record["changes"])
    how += [f"{key} {value}" for key, value in (record["adapter"] or {}).items()]
    how += [f"rank {record['rank']}"] if record["ranks"] > 1 else []
    batch = f"{record['micro_batches']} × {record['rows']} × {record['length']}"
    return (
        f"{record['shape']:<18}{record['parameters'] / 1e6:>7.1f}M {batch:<13}"
        f"{record['planned_bytes'] / 1e9:>7.3f}{record['measured_bytes'] / 1e9:>9.3f}"
        f"{record['planned_over_measured']:>7.2f}{'  OUTSIDE' if record['outside'] else ''}"
        f"  {', '.join(how)}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=sorted(BAR))
    parser.add_argument("--only", help="names of shapes, joined by commas")
    parser.add_argument("--ranks", action="store_true", help="two processes under FSDP2, too")
    parser.add_argument("--tuning", action="store_true", help="adapters, too")
    parser.add_argument("--out", type=Path, help="default: results/plan_memory-DEVICE.json here")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    known = {shape.name: shape for shape in (*SHAPES, *TUNING, *RANKS)}
    if arguments.measure:
        measure(known[arguments.measure], arguments.data, arguments.device)
        return 0
    added = (*(TUNING if arguments.tuning else ()), *(RANKS if arguments.ranks else ()))
    names = [shape.name for shape in (*SHAPES, *added)]
    if arguments.only:
        names = arguments.only.split(",")
        unknown = sorted(set(names) - set(known))
        if unknown:
            parser.error(f"no shape is named {', '.join(unknown)}; there are {', '.join(known)}")
    print(f"{'shape':<18}parameters  passes         planned   took GB  ratio")
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        data = make_dataset(Path(folder))
        for name in names:
            for record in run(known[name], data, arguments.device):
                records.append(record)
                print(line(record), flush=True)
    out = arguments.out or HERE / "results" / f"plan_memory-{arguments.device}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    found = {**circumstances(arguments.device), "records": records}
    out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\n{out}")
    return int(any(record["outside"] for record in records))


if __name__ == "__main__":
    sys.exit(main())
