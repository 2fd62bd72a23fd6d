"""Small random models with tokenizers of two kinds, as directories that Transformers reads."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

TEXTS = (
    "A man is standing on a ladder. He is cleaning the window with a cloth and then he smiles.",
    "Question: What is the capital of France?\nA. Rome\nB. Paris\nC. Oslo\nD. Bern\nAnswer: B",
    "The following are multiple choice questions (with answers) about anatomy.\n\n",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))\n",
    "Ünïcödé, 日本語 and 🦙 are text too; so are    runs of spaces.",
)
TEMPLATE = (
    "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' ~ m.content ~ eos_token ~ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
KINDS = ("byte-level", "metaspace with BOS")


def _tokenizer(kind: str) -> PreTrainedTokenizerFast:
    specials = ["<unk>", "<s>", "</s>"]
    if kind == "byte-level":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
        specials += [f"<0x{byte:02X}>" for byte in range(256)]
        alphabet = []
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([line for text in TEXTS for line in text.splitlines()], trainer)
    if kind != "byte-level":
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    tokens = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    if kind != "byte-level":
        tokens["bos_token"] = "<s>"
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    made.chat_template = TEMPLATE
    return made


def write_tiny_model(folder: Path, kind: str, *, longest: int = 128, seed: int = 0) -> Path:
    """A random Llama of two layers, of `longest` positions, with a tokenizer."""
    tokenizer = _tokenizer(kind)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 3,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=longest,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.15 * noise)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
