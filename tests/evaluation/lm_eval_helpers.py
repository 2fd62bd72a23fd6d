"""A stub of a model for lm-eval's tasks, and datasets laid out as a user's folder has them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.model import LM

from llamita.evaluation.suites import resolve
from llamita.evaluation.task_index import Leaf, find_leaves

FIXTURES = Path(__file__).parent / "fixtures"


class StubLM(LM):
    """Log-likelihoods and texts that follow from the request alone, and look like none in
    particular; or, of texts, what it is told to say."""

    tokenizer_name = "stub"

    def __init__(self, says: Iterable[str] = ()) -> None:
        super().__init__()
        self.asked: list[tuple[Any, ...]] = []
        self.calls: list[tuple[str, int]] = []
        self._says = iter(list(says))

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        self._note("loglikelihood", requests)
        return [(-1.0 - 9.0 * _share(each.args), _share(each.args) < 0.3) for each in requests]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        self._note("loglikelihood_rolling", requests)
        return [-2.0 * len(each.args[0]) for each in requests]

    def generate_until(self, requests: list[Any]) -> list[str]:
        self._note("generate_until", requests)
        texts = (" 3", " True", " so #### 10", " 18", " $\\frac{1}{2}$", "So the answer is False.")
        return [next(self._says, texts[int(_share(each.args) * len(texts))]) for each in requests]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        turns = "".join(f"<{each['role']}>{each['content']}" for each in chat_history)
        return turns + ("<assistant>" if add_generation_prompt else "")

    def _note(self, kind: str, requests: list[Any]) -> None:
        self.calls.append((kind, len(requests)))
        self.asked += [each.args for each in requests]


def _share(arguments: tuple[Any, ...]) -> float:
    """A number from 0 to 1 that the arguments make."""
    return hashlib.sha256(repr(arguments).encode()).digest()[0] / 256


def leaves_of(*names: str) -> list[Leaf]:
    """lm-eval's single tasks for names of suites and tasks."""
    return find_leaves([each for each in resolve(names) if each.kind == "lm_eval"])[1]


def lay_out(folder: Path, leaves: Iterable[Leaf]) -> Path:
    """Datasets in a folder, as `--data` wants them: what a benchmark's subjects share is a copy."""
    for leaf in leaves:
        dataset = leaf.config["dataset_path"].rpartition("/")[2]
        config = leaf.config.get("dataset_name") or ""
        places = (FIXTURES / dataset / config, FIXTURES / dataset)
        source = next(each for each in places if any(each.glob("*.jsonl")))
        shutil.copytree(source, folder / dataset / config, dirs_exist_ok=True)
    return folder
