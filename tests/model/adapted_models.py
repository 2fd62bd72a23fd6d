"""Small models with adapters, ours and PEFT's, for comparisons between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from llamita.model.decoder import Decoder
from llamita.model.huggingface import load_model
from tests.model.shapes import transformers_model


def stored_base(shape: str, directory: Path) -> Path:
    transformers_model(shape).save_pretrained(directory)
    return directory


def randomise(module: torch.nn.Module, seed: int = 7) -> None:
    """Away from zero: B starts there, and every adapter would be equal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def peft_model(shape: str, **settings: Any) -> PeftModel:
    """A random base with a random adapter."""
    known = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(transformers_model(shape), LoraConfig(**{**known, **settings}))
    randomise(model)
    return model.eval()


def our_base(shape: str, directory: Path) -> Decoder:
    return load_model(stored_base(shape, directory))
