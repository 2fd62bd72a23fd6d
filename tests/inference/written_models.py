"""Small models as GGUF files: one that writes a given text, and one of random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from llamita.architecture.config import ModelConfig
from llamita.data.chat_template import chat_template
from llamita.data.tokenizer import Tokenizer
from llamita.formats.gguf_writing import write_gguf
from llamita.model.decoder import Decoder
from llamita.model.huggingface import save_model
from llamita.model.initialization import initialize
from tests.formats.gguf_models import quiet

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}


def config_for(tokenizer: Tokenizer) -> ModelConfig:
    return ModelConfig(
        vocab_size=tokenizer.vocab_size,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        **SHAPE,  # type: ignore[arg-type]
    )


@torch.no_grad()
def random_decoder(tokenizer: Tokenizer) -> Decoder:
    """Every parameter random, and large enough for distributions that are not flat. With this seed
    the likeliest tokens of the tests' prompts are no special ones."""
    model = Decoder(config_for(tokenizer)).eval()
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.2 * noise)
    return model.requires_grad_(False)


@torch.no_grad()
def scripted_decoder(tokenizer: Tokenizer, script: Sequence[int]) -> Decoder:
    """After a token of the script comes the next one, after the last the first; whatever else is
    read counts for nothing. No token may stand in it twice.

    Blocks add nothing, so that what comes depends on the last token alone.
    """
    assert len(set(script)) == len(script)
    model = Decoder(config_for(tokenizer)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.zero_()
    weights = dict(model.named_parameters())
    embedding, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    weights["model.norm.weight"].fill_(1)
    embedding.copy_(torch.randn(embedding.shape, generator=generator))
    for number, token in enumerate(script):
        head[script[(number + 1) % len(script)]] = embedding[token]
    return model.requires_grad_(False)


def as_gguf(path: Path, model: Decoder, tokenizer: Tokenizer) -> Path:
    write_gguf(path, model.state_dict(), model.config, tokenizer, quantize="f32", say=quiet)
    return path


def save_chat_model(folder: Path, tokenizer: Tokenizer, template: str, **shape: int) -> Path:
    """A random model as a Hugging Face directory, with a chat template by its name."""
    tokenizer.chat_template = chat_template(tokenizer, template).source
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        **shape,
    )
    decoder = Decoder(config)
    initialize(decoder, "llama", seed=3, std=0.3)
    save_model(folder, decoder)
    tokenizer.save(folder)
    return folder
