"""The real SmolLM2-135M-Instruct, exported: llama.cpp's ids, log-probabilities and answer are ours.

Where the file is: see tests/model/test_smollm2.py.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
import torch

from llamita.data.chat_template import Message, chat_template
from llamita.data.tokenizer import load_tokenizer
from llamita.formats.exporting import export_model
from llamita.formats.gguf_file import GgufFile
from llamita.formats.importing import import_model
from llamita.model.huggingface import load_model
from tests.formats.gguf_models import quiet
from tests.formats.llama_cpp import greatest_difference, llama_cpp
from tests.formats.test_tokenizer import corpus

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("LLAMITA_SMOLLM2_GGUF")
    if not named or not Path(named).is_file():
        pytest.skip("no SmolLM2 weights: set LLAMITA_SMOLLM2_GGUF")
    return import_model(named, tmp_path_factory.mktemp("smollm2") / "model", say=quiet)


@pytest.mark.parametrize(("quantize", "most"), [("f32", 1e-3), ("f16", 5e-2)])
def test_llama_cpp(
    quantize: str, most: float, directory: Path, tmp_path: Path, shared_dir: Path
) -> None:
    """Of the 50 likeliest tokens at 24 places of an answer; f16 beside rounding the products."""
    path = export_model(directory, tmp_path / "m.gguf", to="gguf", quantize=quantize, say=quiet)
    tokenizer = load_tokenizer(directory)
    template = chat_template(tokenizer)
    question = [Message("user", "What is the capital of France, and what is it known for?")]
    prompt = tokenizer.encode_chat(template.render(question, add_generation_prompt=True))
    with llama_cpp(path) as engine:
        worst = greatest_difference(engine, load_model(directory), prompt, 24, 50)
        print(f"{quantize}: {worst:.2e}")
        assert worst <= most
        for text in corpus(shared_dir / "data", characters=5000):
            assert engine.ids(text) == tokenizer.encode(text), text[:80]


@torch.no_grad()
def _bits_per_byte(directory: Path, text: str) -> float:
    tokenizer, model = load_tokenizer(directory), load_model(directory)
    tokens = torch.tensor([tokenizer.encode(text)])[:, :1024]
    scores = model(tokens[:, :-1]).log_softmax(-1)
    found = scores.gather(-1, tokens[:, 1:, None]).sum().item()
    covered = len(tokenizer.decode(tokens[0, 1:].tolist()).encode())
    return -found / covered / 0.6931471805599453


def test_what_types_cost(directory: Path, tmp_path: Path, shared_dir: Path) -> None:
    """Bits per byte of 1,024 tokens of Python's documentation, beside those of f32."""
    with gzip.open(shared_dir / "data/corpora/nat-python-doc.jsonl.gz", "rt") as lines:
        text = json.loads(next(iter(lines)))["text"][:12_000]
    base = _bits_per_byte(directory, text)
    for quantize, most in (("q8_0", 0.005), ("q4_k_m", 0.1)):
        path = tmp_path / f"{quantize}.gguf"
        said: list[str] = []
        export_model(directory, path, to="gguf", quantize=quantize, say=said.append)
        print("\n".join(said), GgufFile(path).type_counts())
        found = _bits_per_byte(import_model(path, tmp_path / quantize, say=quiet), text)
        print(f"{quantize}: {found:.4f} bits per byte, {found / base - 1:+.3%} of {base:.4f}")
        assert abs(found / base - 1) <= most
