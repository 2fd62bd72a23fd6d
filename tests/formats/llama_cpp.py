"""llama.cpp itself, in the package xllamacpp, as an oracle: ids of a text, and log-probabilities
of everything that may follow a prompt. One thread, keys and values in float32."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from llamita.inference.llama_cpp_server import started


class LlamaCpp:
    def __init__(self, server: Any) -> None:
        self._server = server

    def ids(self, text: str, *, special: bool = False) -> list[int]:
        """Of a text; `special`: with special strings read, and BOS and EOS added."""
        asked = {"content": text, "add_special": special, "parse_special": special}
        request = urllib.request.Request(
            f"{self._server.listening_address}/tokenize",
            data=json.dumps(asked).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return list(json.load(answer)["tokens"])

    def greedy(
        self, prompt: Sequence[int], length: int, num_probs: int
    ) -> tuple[list[int], list[dict[int, float]]]:
        """The likeliest tokens, and at each place the log-probabilities of the `num_probs`
        likeliest."""
        heard: list[dict[str, Any]] = []
        self._server.handle_completions(
            {
                "prompt": list(prompt),
                "n_predict": length,
                "temperature": 0,
                "n_probs": num_probs,
                "cache_prompt": False,
                "samplers": ["temperature"],
            },
            heard.append,
        )
        (answer,) = heard
        assert "choices" in answer, answer
        content = answer["choices"][0]["logprobs"]["content"]
        places = [{top["id"]: top["logprob"] for top in token["top_logprobs"]} for token in content]
        return [token["id"] for token in content], places


@contextmanager
def llama_cpp(path: Path, context: int = 512) -> Iterator[LlamaCpp]:
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup, params.fit_params = context, 1, False, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_gpu_layers, params.verbosity, params.port = 0, 0, 0
    float32 = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cache_type_k = params.cache_type_v = float32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = started(xllamacpp, params)
    yield LlamaCpp(server)
    del server


@torch.no_grad()
def greatest_difference(
    engine: LlamaCpp,
    model: Callable[[torch.Tensor], Any],
    prompt: Sequence[int],
    length: int,
    num_probs: int = 97,
    *,
    greedy: bool = True,
) -> float:
    """Between llama.cpp's log-probabilities of the likeliest `num_probs` tokens, at every place of
    its greedy answer, and a model's on the same ids. With `greedy`, the model's own greedy answer
    must be the same. It may end before `length`."""
    answer, places = engine.greedy(prompt, length, num_probs)
    assert len(answer) >= min(4, length)
    found = model(torch.tensor([[*prompt, *answer]]))
    found = getattr(found, "logits", found)
    ours = found[0, len(prompt) - 1 : -1].log_softmax(-1)
    if greedy:
        assert ours.argmax(-1).tolist() == answer
    worst = 0.0
    for row, place in zip(ours, places, strict=True):
        assert len(place) == num_probs
        worst = max(worst, *(abs(row[number].item() - value) for number, value in place.items()))
    return worst
