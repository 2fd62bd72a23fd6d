"""How fast tasks are scored, beside lm-evaluation-harness's own `hf` model: the same weights, the
same tasks through the same harness, each side in a process of its own, in turns, best of N.

    python benchmarks/eval_speed.py MODEL [--shared ../shared] [--limit 20] [--turns 3]

Tasks: zero-shot HellaSwag; MMLU with the five worked examples of a subject before questions (there
are five a subject in ../shared, so the questions are those of other subjects: what is shared is as
it is in MMLU, the accuracy is not); HumanEval's prompts, continued by 64 tokens, greedy. Seconds
are those inside the model's methods, tokenisation included; memory is the process's peak, or what
the GPU had allocated at most. `cpu s` are the process's own seconds of CPU in those methods: where
other work shares the machine, they tell more than the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TASKS = ("hellaswag", "mmlu", "generation")
SIDES = ("hf", "llamita")
SHOTS, SUBJECTS, TO_WRITE = 5, 2, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--limit", type=int, default=20, help="items of each task")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--hf-batch", type=int, default=8, help="rows of a batch of hf")
    parser.add_argument("--batch-tokens", type=int, help="tokens of a pass of llamita")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(one_side(given)))
        return
    print(
        f"{'task':12} {'side':8} {'best s':>8} {'cpu s':>8} {'all':>24} {'peak MiB':>9} "
        f"{'score':>7}"
    )
    for task in given.tasks:
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for turn in range(given.turns):
            for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
                runs[side].append(in_process(side, task))
        for side in SIDES:
            seconds = [run["seconds"] for run in runs[side]]
            peak = min(run["peak"] for run in runs[side]) / 2**20
            listed = " ".join(f"{each:.1f}" for each in seconds)
            score = runs[side][0]["score"]
            cpu = min(run["cpu"] for run in runs[side])
            print(
                f"{task:12} {side:8} {min(seconds):8.2f} {cpu:8.2f} {listed:>24} {peak:9.0f} "
                f"{score:7.3f}"
            )
        best = [min(run["seconds"] for run in runs[side]) for side in SIDES]
        differ = max(
            abs(a - b)
            for a, b in zip(runs["hf"][0]["values"], runs["llamita"][0]["values"], strict=True)
        )
        print(f"{task:12} {best[0] / best[1]:.2f} times as fast; largest difference {differ:.1e}")


def in_process(side: str, task: str) -> dict[str, Any]:
    command = [sys.executable, *sys.argv, "--side", side, "--tasks", task]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def one_side(given: argparse.Namespace) -> dict[str, Any]:
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    (task,) = given.tasks
    model = (hugging_face if given.side == "hf" else ours)(given)
    seconds = cpu = 0.0

    def timed(method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal seconds, cpu
            began, cpu_began = time.perf_counter(), time.process_time()
            found = method(*args, **kwargs)
            seconds += time.perf_counter() - began
            cpu += time.process_time() - cpu_began
            return found

        return call

    for name in ("loglikelihood", "generate_until"):
        setattr(model, name, timed(getattr(model, name)))
    with tempfile.TemporaryDirectory() as folder:
        names = write_tasks(task, given.shared / "data/evals", Path(folder), given.limit)
        found = simple_evaluate(
            model=model,
            tasks=names,
            task_manager=TaskManager(include_path=folder, include_defaults=False),
            bootstrap_iters=0,
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if given.device != "cpu":
        peak = torch.cuda.max_memory_allocated()
    samples = [sample for name in names for sample in found["samples"][name]]
    values = [
        float(each[0]) if isinstance(each, list | tuple) else float(len(each))
        for sample in samples
        for each in (sample["filtered_resps"] if task != "generation" else sample["resps"][0])
    ]
    key = "score,none" if task == "generation" else "acc,none"
    scores = [found["results"][name].get(key, 0.0) for name in names]
    return {
        "seconds": seconds,
        "cpu": cpu,
        "peak": peak,
        "score": sum(scores) / len(scores),
        "values": values,
    }


def hugging_face(given: argparse.Namespace) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=str(given.model),
        device=given.device,
        dtype=given.dtype,
        batch_size=given.hf_batch,
    )


def ours(given: argparse.Namespace) -> Any:
    import torch

    from llamita.data.tokenizer import load_tokenizer
    from llamita.evaluation.harness import HarnessModel
    from llamita.model.adapters import freeze_to
    from llamita.model.huggingface import load_model

    model = load_model(given.model, device=given.device)
    model.compute_dtype = getattr(torch, given.dtype)
    model.requires_grad_(False)
    freeze_to(model, model.compute_dtype)
    return HarnessModel(
        model,
        load_tokenizer(given.model),
        name=given.model.name,
        batch_tokens=given.batch_tokens,
        slots=given.hf_batch,
    )


def write_tasks(task: str, evals: Path, folder: Path, limit: int) -> list[str]:
    """Task files of the harness with their data; returns the tasks' names."""
    if task == "hellaswag":
        items = read(evals / "hellaswag_100.jsonl")[:limit]
        docs = [
            {
                "query": f"{item['activity_label']}: {item['ctx']}",
                "choices": item["endings"],
                "label": item["expected_index"],
            }
            for item in items
        ]
        choice = "{{choices}}"
        write_task(folder, "hellaswag_local", docs, multiple_choice("{{query}}", choice))
        return ["hellaswag_local"]
    if task == "mmlu":
        return write_mmlu(read(evals / "mmlu_dev_cot.jsonl"), folder, limit)
    docs = [{"prompt": item["prompt"]} for item in read(evals / "HumanEval.jsonl")[:limit]]
    settings = {
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "",
        "generation_kwargs": {"until": ["\nclass", "\ndef"], "max_gen_toks": TO_WRITE},
        "metric_list": [{"metric": "bypass"}],
    }
    write_task(folder, "generation_local", docs, settings)
    return ["generation_local"]


def write_mmlu(items: list[dict[str, Any]], folder: Path, limit: int) -> list[str]:
    names = []
    subjects = list(dict.fromkeys(item["subject"] for item in items))
    for subject in subjects[:SUBJECTS]:
        shots = [item for item in items if item["subject"] == subject][:SHOTS]
        asked = [item for item in items if item["subject"] not in subjects[:SUBJECTS]]
        settings = multiple_choice(
            "{{question}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\n"
            "D. {{choices[3]}}\nAnswer:",
            ["A", "B", "C", "D"],
        )
        settings["doc_to_target"] = "answer"
        settings["description"] = (
            "The following are multiple choice questions (with answers) about "
            f"{subject.replace('_', ' ')}.\n\n"
        )
        settings |= {"num_fewshot": len(shots), "fewshot_split": "dev"}
        settings["fewshot_config"] = {"sampler": "first_n"}
        names.append(f"mmlu_{subject}_local")
        write_task(folder, names[-1], asked[: limit // SUBJECTS], settings, shots)
    return names


def multiple_choice(question: str, choices: str | list[str]) -> dict[str, Any]:
    return {
        "output_type": "multiple_choice",
        "doc_to_text": question,
        "doc_to_choice": choices,
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }


def write_task(
    folder: Path,
    name: str,
    docs: list[dict[str, Any]],
    settings: dict[str, Any],
    shots: list[dict[str, Any]] | None = None,
) -> None:
    files = {}
    for split, rows in (("test", docs), ("dev", shots)):
        if rows:
            path = folder / f"{name}-{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            files[split] = str(path)
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        **settings,
        "metadata": {"version": 0},
    }
    # JSON is YAML.
    (folder / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


if __name__ == "__main__":
    main()
