"""SmolLM2-135M-Instruct, 50 prompts, alone and sixteen at a time: Transformers' text.

LLAMITA_SMOLLM2_GGUF names its GGUF file; see tests/model/test_smollm2.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from llamita.data.chat_template import chat_template
from llamita.data.tokenizer import load_tokenizer
from llamita.inference.torch_engine import TorchEngine
from llamita.model.huggingface import load_model
from tests.inference.engine_helpers import Receiver, ask, their_greedy

pytestmark = pytest.mark.slow

NOUNS = (
    "a river",
    "iron",
    "the moon",
    "bread",
    "a clock",
    "rain",
    "salt",
    "a bridge",
    "ice",
    "tea",
)
ASKED = ("What is {}?", "Name a use of {}.", "Write about {}.", "Why {}?", "Translate: {}")
NEW = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("accelerate", reason="Transformers needs accelerate to read a GGUF file")
    named = Path(os.environ.get("LLAMITA_SMOLLM2_GGUF", ""))
    if not named.is_file():
        pytest.skip("no SmolLM2 weights: set LLAMITA_SMOLLM2_GGUF")
    model = AutoModelForCausalLM.from_pretrained(
        named.parent,
        gguf_file=named.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    out = tmp_path_factory.mktemp("smollm2")
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(named.parent, gguf_file=named.name).save_pretrained(out)
    return out


def test_fifty_prompts(folder: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id = None
    theirs.generation_config.repetition_penalty = 1.0
    tokenizer = load_tokenizer(folder)
    prompts = [tuple(tokenizer.encode(form.format(noun))) for noun in NOUNS for form in ASKED]
    assert len(prompts) == 50
    expected = [their_greedy(theirs, prompt, NEW) for prompt in prompts]
    for slots in (1, 16):
        model = load_model(folder)
        engine = TorchEngine(model, tokenizer, chat_template(tokenizer), slots=slots, context=256)
        received = [Receiver(engine, ask(prompt, NEW)) for prompt in prompts]
        for prompt, got, wanted in zip(prompts, received, expected, strict=True):
            got.finish()
            assert got.ids == wanted, (slots, prompt)
        engine.close()


def test_bfloat16_log_probabilities(folder: Path) -> None:
    """Of what was written in bfloat16, against Transformers in float32: as near as Transformers
    in bfloat16 comes, whose mean error on such texts is 0.022 and whose largest is 0.24."""
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(folder)
    prompts = [tuple(tokenizer.encode(ASKED[0].format(noun))) for noun in NOUNS]
    for slots in (1, 4):
        model = load_model(folder)
        model.compute_dtype = torch.bfloat16
        engine = TorchEngine(model, tokenizer, chat_template(tokenizer), slots=slots, context=256)
        received = [Receiver(engine, ask(prompt, NEW, top_log_probs=0)) for prompt in prompts]
        errors = []
        for prompt, got in zip(prompts, received, strict=True):
            got.finish()
            with torch.no_grad():
                logits = theirs(torch.tensor([[*prompt, *got.ids]])).logits[0]
            expected = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            errors += [
                abs(token.log_prob - float(row[token.id]))
                for token, row in zip(got.tokens, expected, strict=True)
            ]
        engine.close()
        assert len(errors) == NEW * len(prompts)
        assert sum(errors) / len(errors) <= 0.022, slots
        assert max(errors) <= 0.24, slots
