"""Conversations, tokenizers with chat markers, and Transformers' reading of them."""

from __future__ import annotations

import json
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llamita.data.chat_records import Message
from llamita.data.tokenizer import Tokenizer
from tests.data.corpus import sentences

MARKERS = ("<|im_start|>", "<|im_end|>")

CHATS: list[list[tuple[str, str]]] = [
    [("user", "What is a model?"), ("assistant", "A model learns.")],
    [
        ("system", "Be brief."),
        ("user", "  the text \n\nof people "),
        ("assistant", "\nwrote before.  "),
        ("user", "and?"),
        ("assistant", "plain\n\n text 😀 naïve 漢字\n"),
    ],
    [
        ("user", "assistant"),
        ("assistant", "user"),
        ("user", "assistant\nuser"),
        ("assistant", "assistant"),
        ("user", "What now?"),
    ],
    [("user", "{{ 1 + 1 }}"), ("assistant", "{% raw %} 'x' \"y\" & <b> \\n </b>")],
]


def messages(chat: list[tuple[str, str]]) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in chat)


def dicts(chat: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in chat]


def byte_level(*extra: str, trim_offsets: bool = False) -> Tokenizer:
    """A byte-level BPE of the kind of GPT-2, with special tokens `extra`."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>", *extra]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = "assistant user system Human: Assistant: ### <| |>\n\n " * 40
    backend.train_from_iterator([sentences(0, 200), words], trainer=trainer)
    if trim_offsets:
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return Tokenizer(backend.to_str(), bos_id=0, eos_id=1)


def llama_like(*extra: str) -> Tokenizer:
    """A BPE with byte fallback and Llama-2's normaliser: a space in front, spaces as ▁."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    specials = ["<unk>", "<s>", "</s>", *extra]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*specials, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
        max_token_length=9,
    )
    words = [f" {word}" for word in (sentences(0, 200) + "assistant user system INST SYS").split()]
    backend.train_from_iterator(words, trainer=trainer)
    made = json.loads(backend.to_str())
    made["added_tokens"] = [
        token for token in made["added_tokens"] if not token["content"].startswith("<0x")
    ]
    return Tokenizer(json.dumps(made), bos_id=1, eos_id=2)


def theirs(tokenizer: Tokenizer, template: str | None = None) -> Any:
    """Transformers' tokenizer of the same vocabulary."""

    def token(number: int | None) -> str | None:
        return None if number is None else tokenizer.token_of(number)

    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer.to_json()),
        bos_token=token(tokenizer.bos_id),
        eos_token=token(tokenizer.eos_id),
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = template
    return made
