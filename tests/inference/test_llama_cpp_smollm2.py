"""The engine on SmolLM2-135M-Instruct, whose GGUF the environment variable LLAMITA_SMOLLM2_GGUF
names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llamita.data.chat_records import Message
from llamita.inference.conversation import prompt_of
from llamita.inference.engine import Engine, Finish, Request, Stream
from llamita.inference.engines import open_engine
from llamita.inference.sampling import Sampling
from llamita.model.huggingface import load_model
from llamita.model.locate import locate
from tests.formats.llama_cpp import llama_cpp

pytest.importorskip("xllamacpp")
psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.slow
QUESTION = Message("user", "Say hello in Chinese and with an emoji.")


@pytest.fixture(scope="module")
def smollm2() -> Path:
    named = os.environ.get("LLAMITA_SMOLLM2_GGUF")
    if not named:
        pytest.skip("LLAMITA_SMOLLM2_GGUF does not name the GGUF of SmolLM2-135M-Instruct")
    return Path(named)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def written(engine: Engine, prompt: tuple[int, ...], **more: int) -> tuple[str, list[int], Finish]:
    asked = Request(prompt, Sampling(temperature=0), stop_ids=engine.end_ids, **more)
    stream = Stream(engine, asked)
    pieces = list(stream)
    assert stream.finish is not None
    ids = [token.id for piece in pieces for token in piece.tokens]
    return "".join(piece.text for piece in pieces), ids, stream.finish


def test_a_chat_goes_on_where_it_was(smollm2: Path) -> None:
    engine = open_engine(smollm2, engine="llama.cpp", context=1024)
    first = prompt_of(engine, [QUESTION])
    text, ids, finish = written(engine, first, max_tokens=40)
    assert text == engine.tokenizer.decode(ids, skip_special_tokens=True)
    assert finish.cached_tokens == 0
    turns = [QUESTION, Message("assistant", text), Message("user", "And in French?")]
    second = prompt_of(engine, turns)
    # The last token that was drawn was not read: one of the answer, or the end of the turn.
    read = (*first, *ids) if finish.reason == "stop" else (*first, *ids)[:-1]
    same = [one == other for one, other in zip(read, second, strict=False)]
    shared = same.index(False) if False in same else len(same)
    _, _, finish = written(engine, second, max_tokens=4)
    assert finish.cached_tokens == shared > len(first)
    with llama_cpp(smollm2) as bare:
        wanted, _ = bare.greedy(first, 8, 1)
    # Of a character in several tokens, bare llama.cpp names the last alone.
    rest = iter(ids)
    assert all(number in rest for number in wanted)
    engine.close()


@torch.no_grad()
def test_log_probabilities_are_our_decoders(smollm2: Path) -> None:
    """In float32 but for llama.cpp's keys and values, which are float16."""
    engine = open_engine(smollm2, quantize="f32", context=512, say=lambda _line: None)
    prompt = prompt_of(engine, [QUESTION])
    asked = Request(prompt, Sampling(temperature=0), max_tokens=16, top_log_probs=20)
    tokens = [token for piece in Stream(engine, asked) for token in piece.tokens]
    engine.close()
    ids = [*prompt, *(token.id for token in tokens)]
    rows = load_model(locate(smollm2))(torch.tensor([ids]))[0, len(prompt) - 1 : -1]
    for row, token in zip(rows.log_softmax(-1), tokens, strict=True):
        assert token.id == int(row.argmax())
        assert token.log_prob == pytest.approx(row[token.id].item(), abs=1e-2)
        assert [each.log_prob for each in token.top] == pytest.approx(
            [row[each.id].item() for each in token.top], abs=3e-2
        )


def test_closing_gives_the_memory_back(smollm2: Path) -> None:
    process, taken = psutil.Process(), []
    for _ in range(4):
        before = process.memory_info().rss
        engine = open_engine(smollm2, engine="llama.cpp", context=2048)
        written(engine, prompt_of(engine, [QUESTION]), max_tokens=8)
        while_open = process.memory_info().rss
        engine.close()
        taken.append((before, while_open, process.memory_info().rss))
    print([[round(value / 1e6) for value in each] for each in taken])
    assert min(opened - before for before, opened, _ in taken) > 50e6
    # The first leaves behind what Python and llama.cpp load once.
    assert taken[-1][2] - taken[0][2] < 20e6
