"""The engine writes what Transformers' generate writes, whoever else writes beside it."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers.modeling_utils import PreTrainedModel

from llamita.architecture.lora import Lora
from llamita.errors import UserError
from llamita.inference.engine import Finish, Piece, Request, Stream
from llamita.inference.sampling import Sampling
from llamita.inference.torch_engine import TorchEngine
from llamita.model.adapters import add_adapters
from llamita.model.huggingface import load_model
from tests.inference.engine_helpers import (
    GREEDY,
    TEMPLATE,
    TOKENIZER,
    Receiver,
    ask,
    pair,
    their_greedy,
)
from tests.model.shapes import transformers_model

CONTEXT = 64
HOT = Sampling(temperature=1.0, top_k=0, top_p=1.0, seed=11)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PreTrainedModel, TorchEngine]]:
    theirs, engine = pair("llama-tied", tmp_path_factory.mktemp("tied"), slots=3)
    yield theirs, engine
    engine.close()


@pytest.fixture
def engine(both: tuple[PreTrainedModel, TorchEngine]) -> TorchEngine:
    return both[1]


def some_prompt(dice: random.Random, longest: int = 40) -> tuple[int, ...]:
    return tuple(dice.randrange(3, 97) for _ in range(dice.randint(1, longest)))


@pytest.mark.parametrize(
    ("shape", "slots"),
    [("llama-tied", 1), ("llama-tied", 3), ("minicpm-shaped", 3), ("llama-dynamic", 2)],
)
def test_greedy_text_at_random_arrivals(shape: str, slots: int, tmp_path: Path) -> None:
    """Prompts that share beginnings, cancelled and whole ones, more than there are slots."""
    theirs, engine = pair(shape, tmp_path, slots=slots)
    longest, dice = min(engine.context // 2, 40), random.Random(slots)
    prompts = [some_prompt(dice, longest) for _ in range(3)]
    prompts += [each[: len(each) // 2 + 1] + some_prompt(dice, longest // 3) for each in prompts]
    counts = [min(dice.randint(1, 12), engine.context - len(each)) for each in prompts]
    requests = [each for each in zip(prompts, counts, strict=True) for _ in range(2)]
    received = []
    for prompt, count in requests:
        lost = Receiver(engine, ask(prompt, None)) if dice.random() < 0.4 else None
        received.append(Receiver(engine, ask(prompt, count)))
        if dice.random() < 0.3:
            received[-1].first()
        if lost is not None:
            lost.handle.cancel()
    expected = {each: their_greedy(theirs, *each) for each in set(requests)}
    cached = 0
    for (prompt, count), got in zip(requests, received, strict=True):
        finish = got.finish()
        assert got.ids == expected[prompt, count]
        assert finish.reason == "length"
        assert (finish.prompt_tokens, finish.completion_tokens) == (len(prompt), count)
        cached += finish.cached_tokens
    assert cached > 0
    engine.close()


def test_what_a_slot_holds_is_not_read_again(
    both: tuple[PreTrainedModel, TorchEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, engine = both
    read: list[int] = []
    forward = engine._model.forward

    def counted(tokens: torch.Tensor, *rest: object, **named: object) -> object:
        read.append(tokens.shape[1])
        return forward(tokens, *rest, **named)  # type: ignore[arg-type]

    prompt = tuple(range(20, 40))
    first = Receiver(engine, ask(prompt, 5))
    first.finish()
    with monkeypatch.context() as patch:
        patch.setattr(engine._model, "forward", counted)
        # The whole conversation so far, and another question.
        longer = prompt + tuple(first.ids) + (50, 51, 52)
        second = Receiver(engine, ask(longer, 3))
        # The last token of the answer was written and not yet read.
        assert second.finish().cached_tokens == 24
        assert read == [4], "tokens that the decoder read; steps take another way"
        assert second.ids == their_greedy(theirs, longer, 3)
        # The same again: its last token is read again, for the logits behind it.
        again = Receiver(engine, ask(longer, 3))
        assert again.finish().cached_tokens == len(longer) - 1
        assert again.ids == second.ids
    other = Receiver(engine, ask((3, *prompt), 3))
    assert other.finish().cached_tokens == 0


def test_the_slot_with_the_longest_common_prefix_is_taken(engine: TorchEngine) -> None:
    slots = engine._slots
    held = {slot.number: list(slot.ids) for slot in slots.free}
    try:
        by_number = sorted(slots.free, key=lambda slot: slot.number)
        for slot, ids in zip(by_number, ([7, 8], [7, 8, 9, 10], []), strict=True):
            slot.ids[:] = ids
        assert slots.take([7, 8, 9, 11]).ids == [7, 8, 9]
        assert slots.take([7, 8, 9, 11]).ids == [7, 8]
        assert slots.take([7, 8, 9, 11]).ids == []
    finally:
        slots.free = [type(slot)(number) for number in held]


def test_a_whole_context(both: tuple[PreTrainedModel, TorchEngine]) -> None:
    theirs, engine = both
    assert engine.context == CONTEXT
    dice = random.Random(3)
    almost = tuple(dice.randrange(3, 97) for _ in range(CONTEXT - 1))
    got = Receiver(engine, ask(almost, 10))
    assert got.finish().reason == "length"
    assert got.ids == their_greedy(theirs, almost, 1)
    open_ended = Receiver(engine, ask(almost[:5], None))
    assert open_ended.finish().completion_tokens == CONTEXT - 5
    assert open_ended.ids == their_greedy(theirs, almost[:5], CONTEXT - 5)


def test_prompts_longer_than_a_chunk(
    both: tuple[PreTrainedModel, TorchEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, engine = both
    monkeypatch.setattr("llamita.inference.torch_engine._CHUNK", 7)
    monkeypatch.setattr("llamita.inference.torch_engine._CHUNK_BESIDE", 3)
    dice = random.Random(5)
    prompts = [tuple(dice.randrange(3, 97) for _ in range(length)) for length in (30, 14, 41)]
    received = [Receiver(engine, ask(prompt, 12)) for prompt in prompts]
    for prompt, got in zip(prompts, received, strict=True):
        got.finish()
        assert got.ids == their_greedy(theirs, prompt, 12)


def test_a_running_stream_goes_on_while_a_prompt_is_read(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamita.inference.torch_engine._CHUNK_BESIDE", 2)
    order: list[str] = []
    took = engine._slots

    def read(*rest: object) -> torch.Tensor:
        order.append("read")
        return type(took).read(took, *rest)  # type: ignore[arg-type]

    def step(*rest: object) -> torch.Tensor:
        order.append("step")
        return type(took).step(took, *rest)  # type: ignore[arg-type]

    running = Receiver(engine, ask((5, 6), None))
    running.first()
    monkeypatch.setattr(took, "read", read)
    monkeypatch.setattr(took, "step", step)
    long = Receiver(engine, ask(tuple(range(60, 90)), 1))
    long.finish()
    running.handle.cancel()
    running.finish()
    assert order.count("read") == 15
    last = len(order) - order[::-1].index("read")
    assert "read,read" not in ",".join(order[:last])


@pytest.mark.parametrize("top", [0, 5])
def test_log_probs_are_the_models_own(both: tuple[PreTrainedModel, TorchEngine], top: int) -> None:
    """Before penalties, temperature and truncation: log_softmax of Transformers' logits."""
    theirs, engine = both
    prompt = (5, 9, 30, 31)
    sampling = Sampling(0.7, 10, 0.9, repetition_penalty=1.5, logit_bias={40: 3.0}, seed=1)
    got = Receiver(engine, ask(prompt, 12, sampling=sampling, top_log_probs=top))
    got.finish()
    with torch.no_grad():
        logits = theirs(torch.tensor([[*prompt, *got.ids]])).logits[0]
    expected = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    for token, row in zip(got.tokens, expected, strict=True):
        assert token.log_prob == pytest.approx(float(row[token.id]), abs=1e-5)
        values, ids = row.topk(top)
        assert [each.id for each in token.top] == ids.tolist()
        assert [each.log_prob for each in token.top] == pytest.approx(values.tolist(), abs=1e-5)
        assert all(
            each.data == TOKENIZER.token_bytes()[each.id] for each in token.top if each.id > 2
        )
    plain = Receiver(engine, ask(prompt, 2))
    plain.finish()
    assert plain.tokens[0].log_prob is None


def test_scores(both: tuple[PreTrainedModel, TorchEngine]) -> None:
    theirs, engine = both
    ids = list(range(30, 60))
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    wanted = [float(row[token]) for row, token in zip(expected, ids[1:], strict=True)]
    assert engine.score(ids) == pytest.approx(wanted, abs=1e-5)
    assert engine.score([5]) == []
    with pytest.raises(UserError, match="the context holds 64"):
        engine.score([5] * 65)
    with pytest.raises(UserError, match="ids from 0 to 96"):
        engine.score([5, 97])


def test_a_seed_gives_the_same_text_whatever_else_runs(engine: TorchEngine) -> None:
    request = ask((5, 6, 7), 20, sampling=HOT)
    alone = Receiver(engine, request)
    alone.finish()
    other = ask((9, 8), 30, sampling=dataclasses.replace(HOT, seed=None))
    others = [Receiver(engine, other) for _ in range(2)]
    beside = Receiver(engine, request)
    beside.finish()
    assert beside.ids == alone.ids
    for each in others:
        each.finish()
    assert others[0].ids != others[1].ids


def test_stop_ids_and_stop_strings(engine: TorchEngine) -> None:
    prompt = (5, 6, 7)
    free = Receiver(engine, ask(prompt, 30))
    free.finish()
    at = 9
    stop_id = free.ids[at]
    until = free.ids.index(stop_id)
    by_id = Receiver(engine, ask(prompt, 30, stop_ids=frozenset({stop_id})))
    assert by_id.finish().stopped_by == stop_id
    assert by_id.finish().reason == "stop"
    assert by_id.ids == free.ids[:until]
    stop = free.text[10:13]
    by_text = Receiver(engine, ask(prompt, 30, stop=(stop,)))
    assert by_text.finish().stopped_by == stop
    assert by_text.text == free.text[: free.text.index(stop)]
    assert by_text.finish().completion_tokens == len(by_text.ids) < 30
    whole = b"".join(token.data for token in free.tokens)
    assert whole.decode("utf-8", "replace") == free.text


def test_cancelling(engine: TorchEngine) -> None:
    running = [Receiver(engine, ask((5, number), None)) for number in range(3, 6)]
    waiting = Receiver(engine, ask((9, 9), None))
    waiting.handle.cancel()
    assert waiting.finish().reason == "cancelled"
    assert waiting.finish().completion_tokens == 0
    for each in running:
        each.handle.cancel()
        each.handle.cancel()
    for each in running:
        assert each.finish().reason in ("cancelled", "length")
        assert sum(isinstance(event, Finish) for event in each.events) == 1


def test_leaving_a_stream_early_cancels_it(engine: TorchEngine) -> None:
    stream = Stream(engine, ask((5, 6), None))
    for piece in stream:
        assert isinstance(piece, Piece)
        break
    assert stream.finish is not None
    assert stream.finish.reason in ("cancelled", "length")
    assert engine.waiting() == (0, 0)


def test_no_slot_is_lost_and_memory_stays(both: tuple[PreTrainedModel, TorchEngine]) -> None:
    theirs, engine = both
    memory = [each.data_ptr() for each in engine._slots.cache.keys]
    dice = random.Random(7)
    prompts = [some_prompt(dice, 20) for _ in range(10)]
    expected = {prompt: their_greedy(theirs, prompt, 6) for prompt in prompts}
    failures: list[object] = []

    def submit(seed: int) -> None:
        own = random.Random(seed)
        for _ in range(30):
            prompt = own.choice(prompts)
            got = Receiver(engine, ask(prompt, 6))
            if own.random() < 0.5:
                if own.random() < 0.5:
                    got.first()
                got.handle.cancel()
            finish = got.finish()
            if got.ids != expected[prompt][: len(got.ids)] or (
                finish.reason == "length" and len(got.ids) != 6
            ):
                failures.append((prompt, got.events))

    threads = [threading.Thread(target=submit, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    Receiver(engine, ask((5,), 1)).finish()
    engine.wake()
    settled = threading.Event()
    for _ in range(100):
        if engine.waiting() == (0, 0):
            break
        settled.wait(0.05)
    assert sorted(slot.number for slot in engine._slots.free) == [0, 1, 2]
    assert [each.data_ptr() for each in engine._slots.cache.keys] == memory


def test_a_receiver_that_raises(engine: TorchEngine, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[object] = []

    def deliver(event: object) -> None:
        calls.append(event)
        raise RuntimeError("the receiver is broken")

    engine.submit(ask((5, 6), None), deliver)
    after = [Receiver(engine, ask((7, number), 4)) for number in range(3, 8)]
    for each in after:
        assert each.finish().reason == "length"
    assert len(calls) == 1
    assert "the receiver is broken" in caplog.text
    assert "Traceback" in caplog.text


def test_a_step_that_fails(
    both: tuple[PreTrainedModel, TorchEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, engine = both
    prompts = [(60 + number, number) for number in range(3, 6)]
    running = [Receiver(engine, ask(prompt, None)) for prompt in prompts]
    for each in running:
        each.first()
    with monkeypatch.context() as patch:
        broken = RuntimeError("no memory left")

        def step(*_: object) -> None:
            raise broken

        patch.setattr(engine._slots, "step", step)
        ends = [each.end() for each in running]
        assert broken in ends
        # What a step left half done is no prefix of anything.
        again = Receiver(engine, ask(prompts[ends.index(broken)], 1))
        assert again.finish().cached_tokens == 0
        assert all(each is broken or isinstance(each, Finish) for each in ends)
    with monkeypatch.context() as patch:
        patch.setattr(engine._slots, "read", step)
        assert Receiver(engine, ask((5, 6))).end() is broken
    healthy = Receiver(engine, ask((5, 3), 9))
    healthy.finish()
    assert healthy.ids == their_greedy(theirs, (5, 3), 9)


def test_closing(tmp_path: Path) -> None:
    _, engine = pair("llama-tied", tmp_path, slots=2)
    received = [Receiver(engine, ask((5, number), None)) for number in range(3, 9)]
    received[0].first()
    engine.close()
    engine.close()
    for each in received:
        assert each.finish().reason in ("cancelled", "length")
    assert not engine._thread.is_alive()
    with pytest.raises(UserError, match="the engine is closed"):
        engine.submit(ask((5,)), print)
    with pytest.raises(UserError, match="the engine is closed"):
        engine.score([5, 6])


def test_python_ends_while_requests_run(tmp_path: Path) -> None:
    transformers_model("llama-tied").save_pretrained(tmp_path)
    code = f"""
import threading
from llamita.inference.torch_engine import TorchEngine
from llamita.model.huggingface import load_model
from tests.inference.engine_helpers import TEMPLATE, TOKENIZER, ask
engine = TorchEngine(load_model({str(tmp_path)!r}), TOKENIZER, TEMPLATE)
began = threading.Event()
for _ in range(500):
    engine.submit(ask((5, 3), None), lambda event: began.set())
assert began.wait(60)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_what_is_refused(engine: TorchEngine, tmp_path: Path) -> None:
    def refused(request: Request, match: str) -> None:
        with pytest.raises(UserError, match=match):
            engine.submit(request, print)

    refused(ask(()), "prompt is empty")
    refused(ask((5,) * CONTEXT), "the context holds 64")
    refused(ask((5, 97)), "token 97, and the model's vocabulary ends at 96")
    refused(ask((-1,)), "token -1")
    refused(ask((5,), 0), "max_tokens 0")
    refused(ask((5,), stop=("",)), "stop string is empty")
    refused(ask((5,), sampling=Sampling(logit_bias={97: 1.0})), "logit_bias names token 97")
    refused(ask((5,), top_log_probs=21), "top_log_probs 21")
    assert engine.waiting() == (0, 0)
    with pytest.raises(UserError, match="context 65: give 2 to 64"):
        pair("llama-tied", tmp_path, context=65)
    with pytest.raises(UserError, match="slots 0"):
        pair("llama-tied", tmp_path, slots=0)


def test_an_adapter_runs_beside_its_base(tmp_path: Path) -> None:
    """Against PEFT's way to put it: the adapter folded into the weights, in Transformers."""
    theirs, plain = pair("llama-tied", tmp_path)
    plain.close()
    model = load_model(tmp_path)
    add_adapters(model, Lora(rank=4, alpha=8, targets=("q_proj", "down_proj")), seed=0)
    with torch.no_grad():
        for name, module in model.named_modules():
            if hasattr(module, "lora_B"):
                module.lora_B.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
                theirs.get_submodule(name).weight.copy_(module.merged_weight())
    engine = TorchEngine(model, TOKENIZER, TEMPLATE, slots=2)
    prompts = ((5, 6, 7), (40, 41))
    received = [Receiver(engine, ask(prompt, 12)) for prompt in prompts]
    for prompt, got in zip(prompts, received, strict=True):
        got.finish()
        assert got.ids == their_greedy(theirs, prompt, 12)
    engine.close()


def test_what_an_engine_says_of_itself(engine: TorchEngine) -> None:
    assert (engine.name, engine.slots, engine.context) == ("torch", 3, CONTEXT)
    assert engine.about == "torch, float32 on cpu"
    assert TOKENIZER.eos_id in engine.end_ids
    assert GREEDY.takes_the_likeliest
