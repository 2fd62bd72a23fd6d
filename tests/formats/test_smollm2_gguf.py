"""The real SmolLM2-135M-Instruct (Q4_1, 98 MB) against Transformers' own reading of the file.

Where the file is: see tests/model/test_smollm2.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from llamita.data.tokenizer import load_tokenizer
from llamita.formats.importing import import_model
from llamita.inference.writing import generate
from llamita.model.huggingface import load_model
from tests.formats.gguf_files import logits
from tests.formats.test_tokenizer import TEXTS, corpus

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gguf_path() -> Path:
    named = os.environ.get("LLAMITA_SMOLLM2_GGUF")
    if not named or not Path(named).is_file():
        pytest.skip("no SmolLM2 weights: set LLAMITA_SMOLLM2_GGUF")
    return Path(named)


@pytest.fixture(scope="module")
def directory(gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_model(gguf_path, tmp_path_factory.mktemp("smollm2") / "out", say=lambda _: None)


def test_logits(gguf_path: Path, directory: Path) -> None:
    pytest.importorskip("accelerate", reason="Transformers needs accelerate to read a GGUF file")
    theirs = AutoModelForCausalLM.from_pretrained(
        gguf_path.parent,
        gguf_file=gguf_path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    ).eval()
    ours = load_model(directory)
    tokens = torch.tensor([load_tokenizer(directory).encode_chat(" ".join(TEXTS))])
    expected = logits(theirs, tokens)
    assert (logits(ours, tokens) - expected).abs().max() <= 1e-4 * expected.abs().max()
    for name, tensor in theirs.state_dict().items():
        if name != "lm_head.weight":
            assert torch.equal(ours.state_dict()[name], tensor), name


def test_ids(gguf_path: Path, directory: Path, shared_dir: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    # Transformers 5.23 has no split for "smollm" and takes GPT-2's, by which " ½" is one word. The
    # published tokenizer.json takes digits apart first.
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    ours = load_tokenizer(directory)
    chat = [{"role": "user", "content": "What is 12345 + 6?"}]
    rendered = theirs.apply_chat_template(chat, tokenize=False)
    for text in (*corpus(shared_dir / "data"), rendered):
        assert ours.encode_chat(text) == theirs(text, add_special_tokens=False).input_ids
        assert ours.encode_prompt(text) == ours.encode_chat(text)  # add_bos_token is false
    assert ours.chat_template == theirs.chat_template
    again = AutoTokenizer.from_pretrained(directory)
    assert again.apply_chat_template(chat, tokenize=False) == rendered


def test_paris(directory: Path) -> None:
    pieces = generate(directory, "The capital of France is", max_tokens=6, temperature=0)
    assert "Paris" in "".join(pieces)
