"""`llamita.load`: the same text as Transformers' generate, and messages in every form."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import llamita
from llamita.data.chat_records import Message
from llamita.errors import UserError
from llamita.inference.loading import Model, as_messages, load
from tests.data.chats import MARKERS, byte_level
from tests.inference.written_models import save_chat_model
from tests.terminal.scripted import ANSWERS, ScriptedEngine

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is a model?"},
    {"role": "assistant", "content": "A text."},
    {"role": "user", "content": "And then?"},
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random chat model."""
    return save_chat_model(
        tmp_path_factory.mktemp("tiny"),
        byte_level(*MARKERS),
        "chatml",
        num_key_value_heads=2,
        max_position_embeddings=256,
    )


@pytest.fixture(scope="module")
def model(directory: Path) -> Iterator[Model]:
    with load(directory, engine="torch") as model:
        yield model


@pytest.mark.parametrize("conversation", [MESSAGES, MESSAGES[1:2]])
def test_a_chat_is_what_transformers_writes(
    model: Model, directory: Path, conversation: list[dict[str, str]]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = tokenizer.apply_chat_template(
        conversation, add_generation_prompt=True, return_dict=False, return_tensors="pt"
    )
    with torch.inference_mode():
        written = theirs.generate(ids, do_sample=False, max_new_tokens=40, pad_token_id=0)
    expected = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    assert len(expected) > 40
    ours = [Message(turn["role"], turn["content"]) for turn in conversation]
    for given in (conversation, ours):
        assert model.chat(given, temperature=0, max_tokens=40) == expected
    pieces = list(model.stream_chat(conversation, temperature=0, max_tokens=40))
    assert "".join(pieces) == expected
    assert len(pieces) > 20
    if len(conversation) == 1:
        text = conversation[0]["content"]
        assert model.chat(text, temperature=0, max_tokens=40) == expected


def test_a_completion_is_what_transformers_writes(model: Model, directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    with torch.inference_mode():
        written = theirs.generate(ids, do_sample=False, max_new_tokens=30, pad_token_id=0)
    expected = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    assert model.complete("Once upon a time", temperature=0, max_tokens=30) == expected
    half = expected[len(expected) // 2 :][:2]
    cut = model.complete("Once upon a time", temperature=0, max_tokens=30, stop=[half])
    assert cut == expected[: expected.index(half)]


def test_a_second_turn_computes_the_new_question_alone(model: Model) -> None:
    conversation = model.conversation(system="Be brief.", temperature=0, max_tokens=20)
    first = conversation.ask("What is a model?")
    text = "".join(piece.text for piece in first)
    known = len(model.tokenizer.encode(text)) + first.prompt_tokens
    second = conversation.ask("And then?")
    list(second)
    assert first.finish is not None
    assert second.finish is not None
    # A random model's answer is not always the tokens that its text is encoded as; a prompt's are.
    assert first.prompt_tokens <= second.finish.cached_tokens <= known
    turns = conversation.messages[:4]
    assert model.chat(turns, temperature=0, max_tokens=20) == conversation.messages[4].content


def test_the_parts_of_a_model(model: Model, directory: Path) -> None:
    assert model.tokenizer is model.engine.tokenizer
    assert model.template is model.engine.template
    assert "torch" in repr(model)
    assert model.chat("hi", max_tokens=5, seed=1) == model.chat("hi", max_tokens=5, seed=1)
    assert llamita.load is load
    closing = load(directory, engine="torch", template="zephyr", context=99)
    assert closing.engine.context == 99
    assert closing.template.name == "zephyr"
    closing.close()
    closing.close()
    with pytest.raises(UserError, match="closed"):
        closing.chat("hi")


def test_leaving_a_stream_stops_the_engine() -> None:
    engine = ScriptedEngine(byte_level(*MARKERS), pause=0.001, answers=[ANSWERS["endless"]])
    stream = Model(engine).stream_chat("go on")
    assert next(stream)
    running = threading.active_count()
    del stream
    gc.collect()
    end = time.monotonic() + 10
    while threading.active_count() >= running and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() < running


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "messages is empty"),
        ({"role": "user", "content": "x"}, "is one message"),
        (["x"], r"messages\[0\] is str"),
        ([{"role": "user"}], r"messages\[0\]: give content as a string"),
        ([{"role": "user", "content": None}], r"messages\[0\]: give content"),
        ([{"role": "user", "content": "x", "name": "y"}], r"messages\[0\] has 'name'"),
    ],
)
def test_messages_that_are_none(messages: Any, error: str) -> None:
    with pytest.raises(UserError, match=error):
        as_messages(messages)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"temperatur": 1}, "Did you mean 'temperature'"),
        ({"temperature": -1}, "temperature -1"),
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"stop": "END"}, "give a list"),
    ],
)
@pytest.mark.parametrize("verb", ["chat", "complete", "stream_chat", "stream_complete"])
def test_settings_that_are_none(verb: str, settings: dict[str, Any], error: str) -> None:
    """At the call, not when a stream is first read."""
    model = Model(ScriptedEngine(byte_level(*MARKERS)))
    with pytest.raises(UserError, match=error):
        getattr(model, verb)("hi", **settings)
