"""The examples of docs/chat.md run, with a tiny random model in place of theirs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from llamita.data.chat_records import Message
from llamita.data.chat_template import chat_template
from llamita.inference import loading
from llamita.terminal.commands import COMMANDS
from tests.data.chats import byte_level, llama_like
from tests.inference.written_models import save_chat_model

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "chat.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", DOCS, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model `smol`, of the byte-level kind and with Zephyr's template."""
    place = tmp_path_factory.mktemp("docs")
    save_chat_model(place / "smol", byte_level(), "zephyr", max_position_embeddings=512)
    return place


@pytest.mark.parametrize("number", range(3))
def test_the_examples_run(
    number: int, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(EXAMPLES) == 3
    monkeypatch.chdir(place)
    torch.manual_seed(0)
    # The engine that no compiled library is needed for.
    opened = loading.load
    monkeypatch.setattr(
        "llamita.load", lambda model, **given: opened(model, **{**given, "engine": "torch"})
    )
    names: dict[str, object] = {}
    exec(compile(EXAMPLES[number], "docs/chat.md", "exec"), names)
    out = capsys.readouterr().out
    assert out.strip()
    if number == 1:
        assert len(re.findall(r"^\d+ of \d+ tokens were known$", out, re.MULTILINE)) == 2
    if number == 2:
        assert names["prompt"] == zephyr_of_the_docs()


def zephyr_of_the_docs() -> str:
    found = re.search(r"^```text\n(<\|system\|>.*?)^```$", DOCS, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_prompt_that_is_shown_is_the_articles() -> None:
    messages = [
        Message(
            "system", "You are a friendly chatbot who always responds in the style of a pirate"
        ),
        Message("user", "How many helicopters can a human eat in one sitting?"),
    ]
    rendered = chat_template(llama_like(), "zephyr").render(messages, add_generation_prompt=True)
    assert zephyr_of_the_docs() == rendered


def test_every_command_is_told_of() -> None:
    assert all(f"`{name}" in DOCS for name in COMMANDS)
