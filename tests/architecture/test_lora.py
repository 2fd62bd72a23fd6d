"""What an adapter adds up to: a paper's shape, PEFT's own count, and what is refused."""

from __future__ import annotations

import math
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from llamita.architecture.config import ModelConfig
from llamita.architecture.lora import PROJECTIONS, Lora, lora_parameters, lora_targets
from llamita.architecture.presets import PRESETS
from llamita.errors import UserError


def _preset(name: str) -> ModelConfig:
    return PRESETS[name].config


def test_minicpm_2_4b_of_rank_8_on_q_and_v() -> None:
    # 40 layers · 8 · (2304 + 2304) twice, 36 heads of keys: OpenBMB's fine-tuning default.
    lora = Lora(rank=8, alpha=32, targets=("q_proj", "v_proj"))
    assert lora_parameters(_preset("minicpm-2.4b"), lora) == 2_949_120


@pytest.mark.parametrize("targets", ["all-linear", "k_proj,down_proj"])
def test_tinyllama_as_peft_counts_it(targets: str) -> None:
    config = _preset("tinyllama-1.1b")
    names = list(lora_targets(targets))
    with torch.device("meta"):
        base = LlamaForCausalLM(LlamaConfig(**config.to_huggingface()))
        asked = "all-linear" if targets == "all-linear" else names
        theirs = get_peft_model(base, LoraConfig(r=16, target_modules=asked, task_type="CAUSAL_LM"))
    learned, _ = theirs.get_nb_trainable_parameters()
    assert lora_parameters(config, Lora(rank=16, alpha=32, targets=tuple(names))) == learned


def test_scaling_is_pefts() -> None:
    assert Lora(rank=16, alpha=24).scaling == 1.5
    assert Lora(rank=16, alpha=24, rslora=True).scaling == 24 / math.sqrt(16)


def test_targets_are_canonical() -> None:
    assert lora_targets("all-linear") == tuple(sorted(PROJECTIONS))
    assert lora_targets("v_proj, q_proj,v_proj") == ("q_proj", "v_proj")
    assert lora_targets(["v_proj", "q_proj"]) == ("q_proj", "v_proj")
    assert Lora(rank=1, alpha=1, targets=("v_proj", "k_proj")).targets == ("k_proj", "v_proj")


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ("q_prj", "Did you mean 'q_proj'?"),
        ("lm_head", "'lm_head' gets no adapter, because the head"),
        ("model.embed_tokens", "because the embedding"),
        ("input_layernorm", "because a norm"),
        ("model.layers.0.self_attn.q_proj", "write 'q_proj'"),
        (["all-linear", "q_proj"], "stands alone"),
        ([], "none given"),
        ("", "none given"),
    ],
)
def test_other_targets_are_refused(targets: str | list[str], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        lora_targets(targets)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"rank": 1.5},
        {"rank": True},
        {"alpha": 0},
        {"alpha": math.inf},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"quantization": "fp4"},
    ],
)
def test_impossible_numbers_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"LoRA|quantisation"):
        Lora(**{"rank": 8, "alpha": 16, **wrong})
