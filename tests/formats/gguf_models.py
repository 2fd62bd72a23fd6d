"""Small random decoders and tokenizers to write as GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import AddedToken, models, normalizers, processors

from llamita.architecture.config import ModelConfig
from llamita.data.tokenizer import Tokenizer
from llamita.formats.gguf_writing import write_gguf
from llamita.model.decoder import Decoder
from tests.formats.gguf_files import WORDS
from tests.model.shapes import BASE

PROMPT = (1, 5, 60, 7, 33, 8, 9, 10)


def quiet(_text: str) -> None:
    pass


def words(num_words: int = BASE["vocab_size"], **settings: Any) -> Tokenizer:
    """sentencepiece's kind, of whole words: "<unk> <s> </s> ▁w3 ▁w4 …"."""
    tokens = [*WORDS, *(f"▁w{number}" for number in range(3, num_words))]
    ids = {token: number for number, token in enumerate(tokens)}
    model = models.BPE(vocab=ids, merges=[], unk_token="<unk>", fuse_unk=True)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.add_special_tokens([AddedToken(word, special=True) for word in WORDS])
    backend.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A"], pair=["<s>", "$A", "<s>", "$B"], special_tokens=[("<s>", 1)]
    )
    return Tokenizer(backend.to_str(), **{"bos_id": 1, "eos_id": 2, **settings})


@torch.no_grad()
def random_decoder(seed: int = 0, **changes: Any) -> Decoder:
    """Every parameter away from its default."""
    model = Decoder(ModelConfig(**{**BASE, **changes})).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.12 * noise)
    return model.requires_grad_(False)


def for_tokenizer(tokenizer: Tokenizer, rows: int = 0) -> Decoder:
    """A decoder with `rows` more than the tokenizer has tokens."""
    return random_decoder(
        vocab_size=tokenizer.vocab_size + rows, num_hidden_layers=1, tie_word_embeddings=True
    )


def written(
    path: Path, model: Decoder, tokenizer: Tokenizer | None = None, **settings: Any
) -> Path:
    settings = {"quantize": "f32", "say": quiet, **settings}
    write_gguf(path, model.state_dict(), model.config, tokenizer or words(), **settings)
    return path
