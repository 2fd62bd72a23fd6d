"""OpenAI's own client is the judge of shapes, streams and errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import openai
import pytest
from openai import OpenAI

from llamita.data.chat_template import ChatTemplate
from llamita.inference.engine import Capabilities
from tests.serving.serving_fakes import (
    END_OF_TEXT,
    IM_END,
    FakeEngine,
    Running,
    Script,
    running_server,
)

MESSAGES = [{"role": "user", "content": "hi"}]
# ChatML of a user's "hi" with its generation prompt, a token a byte and one a mark:
# <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n
PROMPT = 1 + 5 + 2 + 1 + 1 + 1 + 10
TEXT = "Hello, wörld!"
TOKENS = len(TEXT.encode())


def client_of(served: Running, key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0, timeout=20)


@pytest.fixture
def client(served: Running) -> Iterator[OpenAI]:
    with client_of(served) as made:
        yield made


def last_request(served: Running):
    return served.engine.requests[-1]


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "llamita"
    with pytest.raises(openai.NotFoundError, match="'tiny'"):
        client.models.retrieve("other/model")


def test_chat(client: OpenAI, served: Running) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", TEXT)
    assert (choice.finish_reason, choice.logprobs) == ("stop", None)
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (PROMPT, TOKENS)
    assert usage.total_tokens == PROMPT + TOKENS
    assert usage.prompt_tokens_details.cached_tokens == 0
    asked = last_request(served)
    assert asked.stop_ids == {IM_END, END_OF_TEXT}
    # OpenAI's defaults.
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.top_k) == (1, 1, 0)
    assert (asked.max_tokens, asked.top_log_probs) == (None, None)


def test_every_setting_reaches_the_engine(client: OpenAI, served: Running) -> None:
    client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        temperature=0.3,
        top_p=0.8,
        seed=5,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        logit_bias={"65": 3, "7": -100},
        max_completion_tokens=9,
        stop=["zz", "yy"],
        n=2,
        extra_body={"top_k": 7, "min_p": 0.05, "repetition_penalty": 1.2},
    )
    first, second = served.engine.requests[-2:]
    sampling = first.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.3, 0.8, 7)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.05, 1.2)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.25, -0.5)
    assert sampling.logit_bias == {65: 3, 7: -100}
    assert (first.max_tokens, first.stop) == (9, ("zz", "yy"))
    # Two equal seeds would write the same text twice.
    assert [first.sampling.seed, second.sampling.seed] == [5, 6]
    assert replace(first, sampling=second.sampling) == second


def test_stream(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == TEXT
    # Characters of two bytes are never cut.
    assert all("\ufffd" not in (delta.content or "") for delta in deltas)
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-2:] == [None, "stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == TOKENS
    assert chunks[-1].usage.prompt_tokens == PROMPT
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_stream_of_several_answers(client: OpenAI) -> None:
    texts = ["", "", ""]
    reasons = []
    for chunk in client.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, n=3, max_tokens=5
    ):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        reasons += [choice.finish_reason] if choice.finish_reason else []
    assert texts == [TEXT[:5]] * 3
    assert reasons == ["length"] * 3


def test_prompt_counts_once_for_several_answers(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.prompt_tokens == PROMPT
    assert answer.usage.completion_tokens == 3 * TOKENS


@pytest.mark.parametrize("stream", [False, True])
def test_stop_string_ends_text_and_log_probs(client: OpenAI, stream: bool) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, stop="lo, w", logprobs=True, stream=stream
    )
    if stream:
        choices = [chunk.choices[0] for chunk in answer]
        text = "".join(choice.delta.content or "" for choice in choices)
        tokens = [
            one.token for choice in choices if choice.logprobs for one in choice.logprobs.content
        ]
        reason = choices[-1].finish_reason
    else:
        choice = answer.choices[0]
        text, reason = choice.message.content, choice.finish_reason
        tokens = [one.token for one in choice.logprobs.content]
    assert (text, reason) == ("Hel", "stop")
    assert tokens == ["H", "e", "l"]


def test_log_probs_of_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, logprobs=True, top_logprobs=2
    )
    found = answer.choices[0].logprobs.content
    assert bytes(byte for one in found for byte in one.bytes).decode() == TEXT
    assert {one.logprob for one in found} == {-0.5}
    assert [(one.token, one.logprob) for one in found[0].top_logprobs] == [("H", -0.5), ("I", -1.5)]
    # ö is two tokens, and neither is text.
    assert [one.token for one in found[8:10]] == ["\\xc3", "\\xb6"]


def test_log_probs_of_stream_are_those_of_the_whole(client: OpenAI) -> None:
    settings = {"model": "tiny", "messages": MESSAGES, "logprobs": True, "top_logprobs": 1}
    whole = client.chat.completions.create(**settings).choices[0].logprobs.content
    chunks = client.chat.completions.create(**settings, stream=True)
    choices = [chunk.choices[0] for chunk in chunks]
    assert [
        one for choice in choices if choice.logprobs for one in choice.logprobs.content
    ] == whole


def test_completion(client: OpenAI, served: Running) -> None:
    answer = client.completions.create(model="tiny", prompt="abc", logprobs=2, max_tokens=9)
    choice = answer.choices[0]
    # The ninth token is the first half of a character, which is shown as what it is: broken.
    assert (choice.text, choice.finish_reason) == ("Hello, w\ufffd", "length")
    assert choice.logprobs.tokens == [*"Hello, w", "bytes:\\xc3"]
    assert choice.logprobs.token_logprobs == [-0.5] * 9
    assert choice.logprobs.top_logprobs[0] == {"H": -0.5, "I": -1.5}
    assert choice.logprobs.text_offset == list(range(9))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 9)
    assert last_request(served).prompt == (97, 98, 99)


def test_completion_writes_16_tokens_by_default(client: OpenAI, served: Running) -> None:
    client.completions.create(model="tiny", prompt="abc")
    assert last_request(served).max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("ab", [(97, 98)]),
        (["ab", "c"], [(97, 98), (99,)]),
        ([97, 98], [(97, 98)]),
        ([[97, 98], [99]], [(97, 98), (99,)]),
    ],
)
def test_forms_of_prompts(client: OpenAI, served: Running, prompt, ids) -> None:
    answer = client.completions.create(model="tiny", prompt=prompt, n=2, max_tokens=2, echo=True)
    asked = served.engine.requests[-2 * len(ids) :]
    assert [request.prompt for request in asked] == [one for one in ids for _ in range(2)]
    texts = [bytes(one).decode() + "He" for one in ids for _ in range(2)]
    assert [choice.text for choice in answer.choices] == texts
    assert [choice.index for choice in answer.choices] == list(range(2 * len(ids)))
    assert answer.usage.prompt_tokens == sum(map(len, ids))
    assert answer.usage.completion_tokens == 2 * 2 * len(ids)


def test_completion_stream(client: OpenAI) -> None:
    chunks = list(client.completions.create(model="tiny", prompt="ab", stream=True, echo=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "ab" + TEXT
    assert chunks[-1].choices[0].finish_reason == "stop"


class ScoringEngine(FakeEngine):
    def score(self, ids) -> list[float]:
        return [-float(number) for number in ids[1:]]


def test_echo_scores_the_prompt_where_the_engine_can() -> None:
    able = Capabilities(streaming=True, log_probs=True, scoring=True, adapters=False)
    with running_server(ScoringEngine(capabilities=able)) as served, client_of(served) as client:
        settings = {"model": "tiny", "prompt": "aé", "echo": True, "logprobs": 0}
        answer = client.completions.create(**settings, max_tokens=1)
        probs = answer.choices[0].logprobs
        assert answer.choices[0].text == "aéH"
        assert probs.tokens == ["a", "bytes:\\xc3", "bytes:\\xa9", "H"]
        assert probs.token_logprobs == [None, -0xC3, -0xA9, -0.5]
        assert probs.text_offset == [0, 1, 1, 2]
        alone = client.completions.create(**settings, max_tokens=0)
        assert alone.choices[0].text == "aé"
        assert alone.choices[0].logprobs.token_logprobs == [None, -0xC3, -0xA9]
        assert (alone.usage.prompt_tokens, alone.usage.completion_tokens) == (3, 0)
        assert len(served.engine.requests) == 1
        with pytest.raises(openai.BadRequestError, match="logprobs: with echo"):
            client.completions.create(**{**settings, "logprobs": 1})


def test_what_the_engine_cannot_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="cannot score") as caught:
        client.completions.create(model="tiny", prompt="a", echo=True, logprobs=0)
    assert caught.value.param == "echo"
    unable = Capabilities(streaming=True, log_probs=False, scoring=False, adapters=False)
    with (
        running_server(FakeEngine(capabilities=unable)) as served,
        client_of(served) as other,
        pytest.raises(openai.BadRequestError, match="no log-probabilities"),
    ):
        other.chat.completions.create(model="tiny", messages=MESSAGES, logprobs=True)


def test_cached_tokens_are_told() -> None:
    engine = FakeEngine(Script(cached_tokens=7))
    with running_server(engine) as served, client_of(served) as client:
        usage = client.chat.completions.create(model="tiny", messages=MESSAGES, n=2).usage
        assert usage.prompt_tokens_details.cached_tokens == 7


def test_answer_may_be_sent_back_as_it_came(client: OpenAI, served: Running) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES).choices[0].message
    developer = {"role": "developer", "content": [{"type": "text", "text": "be"}] * 2}
    client.chat.completions.create(
        model="tiny",
        messages=[developer, *MESSAGES, answer.model_dump(), *MESSAGES],
        user="someone",
        metadata={"a": "b"},
        store=False,
    )
    prompt = served.engine.tokenizer.decode(last_request(served).prompt)
    assert prompt.startswith("<|im_start|>system\nbebe<|im_end|>")
    assert f"<|im_start|>assistant\n{TEXT}<|im_end|>" in prompt


def test_errors_are_the_clients_classes(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="other", messages=MESSAGES)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    long = [{"role": "user", "content": "x" * 5000}]
    with pytest.raises(openai.BadRequestError, match="4,096") as caught:
        client.chat.completions.create(model="tiny", messages=long)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


def test_error_in_a_stream(client: OpenAI) -> None:
    engine = FakeEngine(Script(error=RuntimeError("a secret of the machine")))
    with running_server(engine) as served, client_of(served) as broken:
        stream = broken.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
        texts = []
        with pytest.raises(openai.APIError, match="the server failed"):
            texts += [chunk.choices[0].delta.content or "" for chunk in stream]
        with pytest.raises(openai.InternalServerError) as caught:
            broken.chat.completions.create(model="tiny", messages=MESSAGES)
        assert "secret" not in str(caught.value)
        # What fails before the first token has its status, stream or not.
        engine.script = Script(text="", error=RuntimeError("no"))
        with pytest.raises(openai.InternalServerError):
            broken.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
        engine.wait_idle()


def test_templates_that_refuse() -> None:
    from tests.serving.serving_fakes import byte_tokenizer

    source = (
        "{%- for m in messages -%}{%- if m.role == 'system' -%}{{ raise_exception('no system') }}"
        "{%- endif -%}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}"
        "{{ raise_exception('turns must alternate') }}{%- endif -%}{{ m.content }}{%- endfor -%}"
    )
    assert byte_tokenizer().chat_template is None
    engine = FakeEngine(template=ChatTemplate("strict", source))
    with running_server(engine) as served, client_of(served) as client:
        system = [{"role": "system", "content": "be"}, *MESSAGES]
        with pytest.raises(openai.BadRequestError, match="first user's message"):
            client.chat.completions.create(model="tiny", messages=system)
        with pytest.raises(openai.BadRequestError, match="alternate") as caught:
            client.chat.completions.create(model="tiny", messages=MESSAGES * 2)
        assert caught.value.param == "messages"


def test_keys() -> None:
    keys = ["first-key", "second-key"]
    with running_server(FakeEngine(), api_keys=keys) as served:
        for key in keys:
            with client_of(served, key) as client:
                assert client.chat.completions.create(model="tiny", messages=MESSAGES)
        for wrong in ("first-ke", "first-keyx", "FIRST-KEY"):
            with client_of(served, wrong) as client:
                with pytest.raises(openai.AuthenticationError) as caught:
                    client.models.list()
                assert caught.value.code == "invalid_api_key"
