"""The engine on GGUF files of small models: what comes out against llama.cpp bare, our decoder and
known texts; who waits for whom; that nothing is left open, running or lost."""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llamita.data.chat_template import ChatTemplate, chat_template
from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError
from llamita.inference.drawing import Sampler, candidates
from llamita.inference.engine import Finish, Handle, Piece, Request, Stream, Token
from llamita.inference.gguf_ids import giving_ids, read_vocabulary
from llamita.inference.llama_cpp_engine import LlamaCppEngine
from llamita.inference.llama_cpp_server import _params
from llamita.inference.sampling import Sampling
from llamita.model.decoder import Decoder
from tests.data.chats import MARKERS, byte_level
from tests.formats.llama_cpp import llama_cpp
from tests.inference.written_models import as_gguf, random_decoder, scripted_decoder

xllamacpp = pytest.importorskip("xllamacpp")

SCRIPT = "\n0123😀é; stop=hAEY,日!jklmnvwxyz"  # no token twice
CONTEXT = 4000  # no multiple of 256, to which llama.cpp rounds
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_level(*MARKERS)


@pytest.fixture(scope="module")
def template(tokenizer: Tokenizer) -> ChatTemplate:
    return chat_template(tokenizer, "chatml")


@pytest.fixture(scope="module")
def script(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(SCRIPT)


@pytest.fixture(scope="module")
def files(
    tokenizer: Tokenizer, script: list[int], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    decoders = {
        "scripted": scripted_decoder(tokenizer, script),
        # As a model does that has learnt to stop: after "3" comes the end of the text.
        "ending": scripted_decoder(tokenizer, [*tokenizer.encode("0123"), tokenizer.eos_id or 0]),
        "random": random_decoder(tokenizer),
    }
    return {
        name: as_gguf(folder / f"{name}.gguf", decoder, tokenizer)
        for name, decoder in decoders.items()
    }


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def opened(
    files: dict[str, Path], tokenizer: Tokenizer, template: ChatTemplate
) -> Iterator[dict[str, LlamaCppEngine]]:
    def engine(name: str, slots: int) -> LlamaCppEngine:
        return LlamaCppEngine(
            files[name], tokenizer, template, slots=slots, context=CONTEXT, threads=1
        )

    engines = {
        "scripted": engine("scripted", 2), "ending": engine("ending", 1),
        "random": engine("random", 1),
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llamita.inference.llama_cpp_server._params", exact_params)
        engines["exact"] = engine("random", 1)
    yield engines
    for engine in engines.values():
        engine.close()


@pytest.fixture
def scripted(opened: dict[str, LlamaCppEngine]) -> LlamaCppEngine:
    return opened["scripted"]


@pytest.fixture
def exact(opened: dict[str, LlamaCppEngine]) -> LlamaCppEngine:
    return opened["exact"]


@pytest.fixture
def random(opened: dict[str, LlamaCppEngine]) -> LlamaCppEngine:
    return opened["random"]


def exact_params(*arguments: Any) -> Any:
    """As the engine's, but keys, values and attention in float32."""
    found = _params(*arguments)
    found.cache_type_k = found.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    found.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return found


def asked(prompt: tuple[int, ...] | list[int], sampling: Sampling = GREEDY, **more: Any) -> Request:
    return Request(tuple(prompt), sampling, **more)


def written(engine: LlamaCppEngine, request: Request) -> tuple[list[str], list[Token], Finish]:
    stream = Stream(engine, request)
    pieces = list(stream)
    assert stream.finish is not None
    return (
        [piece.text for piece in pieces],
        [token for piece in pieces for token in piece.tokens],
        stream.finish,
    )


class Heard:
    """A receiver that keeps what it is told, and can be waited for."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.ends: list[Finish | Exception] = []
        self.began, self.ended = threading.Event(), threading.Event()

    def __call__(self, event: Piece | Finish | Exception) -> None:
        if isinstance(event, Piece):
            self.pieces.append(event)
            self.began.set()
        else:
            self.ends.append(event)
            self.ended.set()

    def finish(self) -> Finish:
        assert self.ended.wait(20)
        (end,) = self.ends
        assert isinstance(end, Finish), end
        return end


def begun(engine: LlamaCppEngine, request: Request) -> tuple[Heard, Handle]:
    heard = Heard()
    return heard, engine.submit(request, heard)


# -- what comes out -----------------------------------------------------------------------------


def test_every_character_and_every_id_of_a_text_comes(
    scripted: LlamaCppEngine, tokenizer: Tokenizer, script: list[int]
) -> None:
    texts, tokens, finish = written(scripted, asked(script[:1], max_tokens=len(script) - 1))
    assert [token.id for token in tokens] == script[1:]
    assert "".join(texts) == tokenizer.decode(script[1:])
    assert b"".join(token.data for token in tokens) == tokenizer.decode(script[1:]).encode()
    assert "😀" in texts  # whole, though its tokens came one by one
    assert len(texts) >= len(script) - 1
    assert (finish.reason, finish.completion_tokens) == ("length", len(script) - 1)
    assert finish.prompt_tokens == 1
    assert finish.prompt_seconds > 0
    assert finish.decode_seconds > 0


def test_half_a_character_at_the_end_is_a_replacement(
    scripted: LlamaCppEngine, tokenizer: Tokenizer, script: list[int]
) -> None:
    first = script.index(tokenizer.encode("😀")[0])
    texts, tokens, _ = written(scripted, asked(script[: first - 1], max_tokens=3))
    assert len(tokens) == 3
    assert "".join(texts) == b"".join(token.data for token in tokens).decode(errors="replace")
    assert "".join(texts).endswith("\ufffd")


def test_greedy_ids_are_bare_llama_cpps(
    random: LlamaCppEngine, files: dict[str, Path], tokenizer: Tokenizer
) -> None:
    prompt = tokenizer.encode("the user")
    with llama_cpp(files["random"]) as bare:
        wanted, _ = bare.greedy(prompt, 40, 1)
    _, tokens, _ = written(random, asked(prompt, max_tokens=40))
    # Bare, the ids inside a character are lost: all others are there, in this order.
    ids = [token.id for token in tokens]
    assert len(ids) == 40
    rest = iter(ids)
    assert all(number in rest for number in wanted)
    assert len(wanted) > 10


@torch.no_grad()
@pytest.mark.parametrize(("kind", "tolerance"), [("random", 2e-2), ("exact", 2e-4)])
def test_log_probabilities_are_our_decoders(
    opened: dict[str, LlamaCppEngine], tokenizer: Tokenizer, kind: str, tolerance: float
) -> None:
    """llama.cpp keeps keys and values in float16; without that nothing but rounding is left."""
    engine = opened[kind]
    model, prompt = random_decoder(tokenizer), tokenizer.encode("the user")
    # Neither penalties nor temperature count.
    sampling = Sampling(temperature=0.5, seed=3, presence_penalty=2.0)
    _, tokens, _ = written(engine, asked(prompt, sampling, max_tokens=30, top_log_probs=20))
    assert len(tokens) > 10
    ids = [*prompt, *(token.id for token in tokens)]
    rows = model(torch.tensor([ids]))[0, len(prompt) - 1 : -1].log_softmax(-1)
    for row, token in zip(rows, tokens, strict=True):
        assert token.log_prob == pytest.approx(row[token.id].item(), abs=tolerance)
        best = row.topk(20).values.tolist()
        assert [each.log_prob for each in token.top] == pytest.approx(best, abs=tolerance)
        for each in token.top:
            assert each.log_prob == pytest.approx(row[each.id].item(), abs=tolerance)
            special = each.id in tokenizer.special_ids
            assert each.data == (b"" if special else tokenizer.token_bytes()[each.id])
    _, plain, _ = written(engine, asked(prompt, sampling, max_tokens=2, top_log_probs=0))
    assert all(token.log_prob is not None and token.top == () for token in plain)
    _, bare, _ = written(engine, asked(prompt, sampling, max_tokens=2))
    assert all(token.log_prob is None for token in bare)


@torch.no_grad()
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0, repetition_penalty=1.4),
        Sampling(0, presence_penalty=1.5, frequency_penalty=0.4),
        Sampling(0, presence_penalty=1.0, logit_bias={70: 2.5, 71: -3.0, 72: 2.0}),
    ],
)
def test_penalties_and_biases_are_ours(
    exact: LlamaCppEngine, tokenizer: Tokenizer, sampling: Sampling
) -> None:
    """Our sampler is tested against Transformers' processors."""
    model, prompt = random_decoder(tokenizer), tokenizer.encode("the user and the assistant")
    sampler = Sampler(sampling, prompt, tokenizer.vocab_size)
    ids = list(prompt)
    for _ in range(25):
        ids.append(sampler.choose(model(torch.tensor([ids]), logits_to_keep=1)[0, -1].float()))
    _, tokens, _ = written(exact, asked(prompt, sampling, max_tokens=25))
    assert [token.id for token in tokens] == ids[len(prompt) :]


@torch.no_grad()
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.5, top_k=4, top_p=1),
        Sampling(0.8, top_k=0, top_p=0.7),
        Sampling(1.2, top_k=0, top_p=1, min_p=0.2),
        Sampling(1.2, top_k=6, top_p=0.8, min_p=0.1),
    ],
)
def test_draws_are_from_the_candidates_by_their_probabilities(
    exact: LlamaCppEngine, tokenizer: Tokenizer, sampling: Sampling
) -> None:
    model, prompt = random_decoder(tokenizer), tokenizer.encode("the user")
    logits = model(torch.tensor([prompt]), logits_to_keep=1)[0, -1].float()
    ids, probabilities = candidates(logits, sampling)
    counts, draws = dict.fromkeys(ids.tolist(), 0), 200
    for seed in range(draws):
        again = Sampling(**{**vars(sampling), "seed": seed})
        _, tokens, finish = written(exact, asked(prompt, again, max_tokens=1))
        drawn = tokens[0].id if tokens else finish.stopped_by  # the end of text
        counts[drawn] += 1  # a KeyError is a token that must not come
    expected = probabilities * draws
    found = torch.tensor([counts[number] for number in ids.tolist()])
    common = expected >= 5
    chi_squared = ((found - expected) ** 2 / expected)[common].sum().item()
    assert chi_squared < 2 * common.sum().item() + 15


def test_a_seed_repeats_and_another_does_not(random: LlamaCppEngine, tokenizer: Tokenizer) -> None:
    def ids(seed: int | None) -> tuple[int, ...]:
        sampling = Sampling(temperature=1.0, top_k=0, top_p=1, seed=seed)
        _, tokens, _ = written(random, asked(tokenizer.encode("a"), sampling, max_tokens=12))
        return tuple(token.id for token in tokens)

    seeds = (0, 1, 2**31, 2**31 + 1, 2**32 - 1, -5)
    assert [ids(seed) for seed in seeds] == [ids(seed) for seed in seeds]
    assert len({ids(seed) for seed in seeds}) > 4  # 0 and 2**32 - 1 are one
    assert ids(None) != ids(None)


# -- where it ends ------------------------------------------------------------------------------


def test_a_stop_string_across_tokens(scripted: LlamaCppEngine, script: list[int]) -> None:
    texts, tokens, finish = written(scripted, asked(script[:1], stop=("p=hA", "zzz")))
    assert "".join(texts) == "0123😀é; sto"
    assert (finish.reason, finish.stopped_by) == ("stop", "p=hA")
    assert len(tokens) == finish.completion_tokens
    assert finish.decode_seconds > 0


def test_a_stop_id_of_the_request(
    scripted: LlamaCppEngine, tokenizer: Tokenizer, script: list[int]
) -> None:
    (semicolon,) = tokenizer.encode(";")
    request = asked(script[:1], stop_ids=frozenset({semicolon}), stop=("; x",))
    texts, tokens, finish = written(scripted, request)
    assert "".join(texts) == "0123😀é"
    assert (finish.reason, finish.stopped_by) == ("stop", semicolon)
    assert semicolon not in [token.id for token in tokens]
    assert finish.completion_tokens == len(tokens)


@pytest.mark.parametrize("named", [True, False])
def test_the_end_of_text_ends_it_named_or_not(
    opened: dict[str, LlamaCppEngine], tokenizer: Tokenizer, named: bool
) -> None:
    engine, end = opened["ending"], tokenizer.eos_id
    assert end in engine.end_ids
    stop_ids = engine.end_ids if named else frozenset()
    texts, tokens, finish = written(engine, asked(tokenizer.encode("0"), stop_ids=stop_ids))
    assert "".join(texts) == "123"
    assert [token.data for token in tokens] == [b"1", b"2", b"3"]
    assert (finish.reason, finish.stopped_by, finish.completion_tokens) == ("stop", end, 3)


def test_special_tokens_are_tokens_without_text(
    opened: dict[str, LlamaCppEngine], tokenizer: Tokenizer
) -> None:
    marker = tokenizer.id_of(MARKERS[0])
    assert marker is not None
    sampling = Sampling(temperature=0, logit_bias={marker: 1e4})
    texts, tokens, finish = written(
        opened["random"], asked(tokenizer.encode("0"), sampling, max_tokens=3)
    )
    assert "".join(texts) == ""
    assert [(token.id, token.data) for token in tokens] == [(marker, b"")] * 3
    assert finish.reason == "length"


def test_the_context_is_as_promised_and_no_longer(
    scripted: LlamaCppEngine, script: list[int]
) -> None:
    prompt = (script * CONTEXT)[: CONTEXT - 5]
    _, tokens, finish = written(scripted, asked(prompt))
    assert (finish.reason, len(tokens)) == ("length", 5)
    _, tokens, _ = written(scripted, asked(prompt, max_tokens=3))
    assert len(tokens) == 3


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (asked(()), "the prompt is empty"),
        (asked((70,) * CONTEXT), "shorten the prompt"),
        (asked((400,)), "the prompt names token 400, and the vocabulary ends at 399"),
        (asked((-1,)), "the prompt names token -1"),
        (asked((70,), Sampling(logit_bias={400: 1.0})), "logit_bias names token 400, and"),
        (asked((70,), max_tokens=0), "max_tokens 0"),
        (asked((70,), stop=("",)), "stop string is empty"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    scripted: LlamaCppEngine, request_: Request, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        scripted.submit(request_, lambda _event: None)
    assert scripted.waiting() == (0, 0)


# -- who waits for whom -------------------------------------------------------------------------


def test_a_prompt_that_goes_on_is_not_computed_again(
    random: LlamaCppEngine, tokenizer: Tokenizer
) -> None:
    first = tokenizer.encode("the user and the assistant")
    _, tokens, finish = written(random, asked(first, max_tokens=10))
    # The last token written was drawn, and never read.
    second = [*first, *(token.id for token in tokens), *tokenizer.encode(" system")]
    _, _, finish = written(random, asked(second, max_tokens=4))
    assert finish.cached_tokens == len(first) + 9
    other = [*first[:4], *tokenizer.encode(" system"), 70, 71, 72]
    _, _, finish = written(random, asked(other, max_tokens=4))
    assert finish.cached_tokens == 4


def test_two_run_at_once_and_the_third_waits(scripted: LlamaCppEngine, script: list[int]) -> None:
    alone, _, _ = written(scripted, asked(script[:1], max_tokens=100))
    (one, _), (two, cancel) = (
        begun(scripted, asked(script[:1], max_tokens=600)),
        begun(scripted, asked(script[3:4])),
    )
    assert one.began.wait(20)
    assert two.began.wait(20)
    three, _ = begun(scripted, asked(script[:1], max_tokens=100))
    assert scripted.waiting() == (2, 1)
    assert one.finish().completion_tokens == 600
    assert three.finish().completion_tokens == 100
    assert not two.ended.is_set()
    cancel.cancel()
    assert two.finish().reason == "cancelled"
    assert "".join(piece.text for piece in three.pieces) == "".join(alone)
    assert "".join(piece.text for piece in one.pieces)[: len("".join(alone)) - 4].startswith(
        "".join(alone)[:-4]
    )


def test_a_cancelled_request_frees_its_slot_and_a_waiting_one_ends_at_once(
    opened: dict[str, LlamaCppEngine], tokenizer: Tokenizer
) -> None:
    engine = opened["random"]
    assert engine.slots == 1
    bias = Sampling(temperature=0, logit_bias={70: 1e4})  # no end of text comes
    first, first_handle = begun(engine, asked((70,), bias))
    second, second_handle = begun(engine, asked((70,), bias))
    third, _ = begun(engine, asked((70,), bias, max_tokens=3))
    assert first.began.wait(20)
    assert engine.waiting() == (1, 2)
    second_handle.cancel()
    assert second.finish() == Finish("cancelled", 1, 0)
    assert not first.ended.is_set()
    assert engine.waiting() == (1, 1)
    start = time.perf_counter()
    first_handle.cancel()
    assert first.finish().reason == "cancelled"
    assert 0 < first.finish().completion_tokens < 3000
    assert third.finish().completion_tokens == 3
    assert time.perf_counter() - start < 2
    first_handle.cancel()  # what has ended has ended
    assert len(first.ends) == 1


def test_those_that_wait_come_in_their_order(
    opened: dict[str, LlamaCppEngine], tokenizer: Tokenizer
) -> None:
    engine, ended = opened["random"], []
    done = threading.Event()

    def receiver(number: int) -> Any:
        def receive(event: Piece | Finish | Exception) -> None:
            if isinstance(event, Finish):
                ended.append(number)
                if len(ended) == 6:
                    done.set()

        return receive

    for number in range(6):
        engine.submit(asked((70 + number,), max_tokens=5), receiver(number))
    assert done.wait(20)
    assert ended == list(range(6))


def test_leaving_the_stream_cancels(scripted: LlamaCppEngine, script: list[int]) -> None:
    stream = Stream(scripted, asked(script[:1]))
    for piece in stream:
        if "😀" in piece.text:
            break
    stream.close()
    assert stream.finish is not None
    assert stream.finish.reason == "cancelled"
    assert scripted.waiting() == (0, 0)


def test_a_receiver_that_raises_is_reported_and_its_request_cancelled(
    scripted: LlamaCppEngine, script: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard()

    def receive(event: Piece | Finish | Exception) -> None:
        heard(event)
        if len(heard.pieces) == 3:
            raise LookupError("the receiver's own")

    scripted.submit(asked(script[:1]), receive)
    deadline = time.monotonic() + 20
    while scripted.waiting() != (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert scripted.waiting() == (0, 0)
    assert (len(heard.pieces), heard.ends) == (3, [])
    assert "the receiver's own" in caplog.text
    _, tokens, _ = written(scripted, asked(script[:1], max_tokens=4))
    assert len(tokens) == 4


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ({"error": {"code": 400, "message": "no"}}, UserError),
        ({"error": {"code": 500, "message": "no"}}, RuntimeError),
        ({"what": 1}, KeyError),
        (None, RuntimeError),
    ],
)
def test_what_llama_cpp_says_instead_is_delivered_once(
    scripted: LlamaCppEngine,
    script: list[int],
    monkeypatch: pytest.MonkeyPatch,
    answer: dict[str, Any] | None,
    kind: type[Exception],
) -> None:
    class Failing:
        def handle_completions(self, _body: str, callback: Any) -> None:
            if answer is not None:
                assert callback(json.dumps(answer)) is True

    monkeypatch.setattr(scripted, "_server", [Failing()])
    heard, _ = begun(scripted, asked(script[:1]))
    assert heard.ended.wait(20)
    (end,) = heard.ends
    assert type(end) is kind


# -- opening and closing ------------------------------------------------------------------------


def test_closing_ends_what_runs_and_what_waits(
    files: dict[str, Path], tokenizer: Tokenizer, template: ChatTemplate, script: list[int]
) -> None:
    engine = LlamaCppEngine(files["scripted"], tokenizer, template, context=CONTEXT, threads=1)
    running, _ = begun(engine, asked(script[:1]))
    waiting, _ = begun(engine, asked(script[:1]))
    assert running.began.wait(20)
    engine.close()
    assert running.finish().reason == "cancelled"
    assert waiting.finish() == Finish("cancelled", 1, 0)
    assert engine.waiting() == (0, 0)
    engine.close()
    with pytest.raises(UserError, match="closed"):
        engine.submit(asked(script[:1]), lambda _event: None)


def test_an_engine_that_is_forgotten_ends_its_threads(
    files: dict[str, Path], tokenizer: Tokenizer, template: ChatTemplate
) -> None:
    before = threading.active_count()
    engine = LlamaCppEngine(files["scripted"], tokenizer, template, context=64, threads=1)
    assert threading.active_count() == before + 2
    known = weakref.ref(engine)
    del engine
    gc.collect()
    assert known() is None
    assert threading.active_count() == before


def test_python_ends_while_a_request_runs(
    files: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    code = f"""
from pathlib import Path
import threading
from llamita.data.chat_template import chat_template
from llamita.data.tokenizer import load_tokenizer
from llamita.inference.engine import Request
from llamita.inference.llama_cpp_engine import LlamaCppEngine
from llamita.inference.sampling import Sampling
tokenizer, file = load_tokenizer({str(tmp_path)!r}), Path({str(files["scripted"])!r})
engine = LlamaCppEngine(file, tokenizer, chat_template(tokenizer), context={CONTEXT}, threads=1)
began = threading.Event()
engine.submit(Request((70,), Sampling(0)), lambda event: began.set())
assert began.wait(20)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_nothing_listens_and_nothing_is_printed(
    files: dict[str, Path],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    psutil = pytest.importorskip("psutil")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    engine = LlamaCppEngine(files["scripted"], tokenizer, template, context=64, threads=1)
    written(engine, asked((70,), max_tokens=2))
    listening = [
        each for each in psutil.Process().net_connections("inet") if each.status == "LISTEN"
    ]
    assert listening == []
    assert list(tmp_path.iterdir()) == []  # neither the socket nor the directory it was made in
    signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]  # Ctrl-C is still Python's
    engine.close()
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_cut_says_so(
    files: dict[str, Path], tokenizer: Tokenizer, template: ChatTemplate, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(files["scripted"].read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"cannot load cut\.gguf .*not within the file bounds"):
        LlamaCppEngine(cut, tokenizer, template, context=64, threads=1)
    with pytest.raises(UserError, match=r"2 × 10,000,000,000 .* more than llama.cpp counts"):
        LlamaCppEngine(files["scripted"], tokenizer, template, context=10**10, slots=2, threads=1)
    cut.write_bytes(b"no GGUF at all")
    with pytest.raises(UserError, match="does not begin with GGUF"):
        LlamaCppEngine(cut, tokenizer, template, threads=1)
    with pytest.raises(UserError, match="cannot be read"):
        LlamaCppEngine(tmp_path / "absent.gguf", tokenizer, template, threads=1)
    assert capfd.readouterr() == ("", "")


def test_the_file_stays_as_it_is_and_the_copy_differs_in_types_alone(
    files: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    import gguf

    before = files["random"].read_bytes()
    vocabulary = read_vocabulary(files["random"])
    assert (vocabulary.size, vocabulary.context) == (tokenizer.vocab_size, 8192)
    copy = tmp_path / "copy.gguf"
    with giving_ids(files["random"], vocabulary) as path:
        copy.write_bytes(Path(path).read_bytes())
    assert files["random"].read_bytes() == before
    theirs, ours = gguf.GGUFReader(files["random"]), gguf.GGUFReader(copy)
    for name, field in theirs.fields.items():
        if name != "tokenizer.ggml.token_type":
            assert ours.fields[name].contents() == field.contents()
    types = ours.fields["tokenizer.ggml.token_type"].contents()
    assert types == [int(gguf.TokenType.CONTROL)] * tokenizer.vocab_size
    for one, other in zip(theirs.tensors, ours.tensors, strict=True):
        assert (one.data == other.data).all()
    with giving_ids(copy, read_vocabulary(copy)) as path:
        assert path == str(copy)


def test_the_context_is_the_files_where_none_is_given(
    files: dict[str, Path], tokenizer: Tokenizer, template: ChatTemplate
) -> None:
    engine = LlamaCppEngine(files["scripted"], tokenizer, template, threads=1)
    assert engine.context == 8192
    engine.close()


def test_decoder_of_scripts_is_one(tokenizer: Tokenizer, script: list[int]) -> None:
    """The models above are what they claim to be, by our decoder."""
    model: Decoder = scripted_decoder(tokenizer, script)
    with torch.no_grad():
        chosen = model(torch.tensor([script]))[0].argmax(-1).tolist()
    assert chosen == [*script[1:], script[0]]
