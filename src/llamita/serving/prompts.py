"""From what clients ask to what the engine is asked. Runs in a thread of its own: a template and
a tokenizer take milliseconds for every 100 kB, and the event loop must not wait for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llamita.data.chat_records import Message
from llamita.errors import UserError
from llamita.inference.engine import Request
from llamita.serving.errors import ApiError
from llamita.serving.requests import ChatRequest, CompletionRequest, SamplingFields

if TYPE_CHECKING:
    from llamita.inference.engine import Engine
    from llamita.inference.sampling import Sampling

# OpenAI's default of /v1/completions.
_COMPLETION_TOKENS = 16


def chat_requests(engine: Engine, asked: ChatRequest) -> list[Request]:
    """`n` requests for a conversation.

    Raises:
        ApiError: the template refuses it, it leaves no room in the context, or fields contradict
            each other.
    """
    from llamita.inference.conversation import prompt_of

    _check_stream(asked)
    most = asked.max_completion_tokens
    if most is None:
        most = asked.max_tokens
    elif asked.max_tokens not in (None, most):
        raise _wrong("max_tokens", "it says another number than max_completion_tokens: give one")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise _wrong("top_logprobs", "it needs logprobs: true")
    top = (asked.top_logprobs or 0) if asked.logprobs else None
    _check_log_probs(engine, top, "logprobs")
    messages = [
        Message("system" if turn.role == "developer" else turn.role, turn.text())
        for turn in asked.messages
    ]
    try:
        prompt = prompt_of(engine, messages)
    except UserError as error:
        raise _wrong("messages", str(error)) from error
    return _requests(engine, asked, prompt, most, top, "messages")


def completion_requests(engine: Engine, asked: CompletionRequest) -> list[Request]:
    """`n` requests for each prompt, those of the first prompt first.

    Raises:
        ApiError: as `chat_requests`.
    """
    _check_stream(asked)
    if asked.best_of not in (None, asked.n or 1):
        raise _wrong("best_of", "choosing the best of several is not supported; leave it out")
    if asked.max_tokens == 0 and not asked.echo:
        raise _wrong("max_tokens", "0 is for echo: true alone; give 1 or more")
    _check_log_probs(engine, asked.logprobs, "logprobs")
    if asked.echo and asked.logprobs is not None:
        if not engine.capabilities.scoring:
            message = f"the engine {engine.name} cannot score a prompt; leave echo or logprobs out"
            raise _wrong("echo", message, "unsupported_parameter")
        if asked.logprobs > 0:
            message = "with echo, 0 is supported: of the text's own tokens, without alternatives"
            raise _wrong("logprobs", message, "unsupported_parameter")
    most = _COMPLETION_TOKENS if asked.max_tokens is None else max(asked.max_tokens, 1)
    return [
        request
        for prompt in asked.prompts()
        for request in _requests(
            engine, asked, _ids(engine, prompt), most, asked.logprobs, "prompt"
        )
    ]


def _ids(engine: Engine, prompt: str | list[int]) -> tuple[int, ...]:
    if isinstance(prompt, str):
        return tuple(engine.tokenizer.encode_prompt(prompt))
    size = engine.tokenizer.vocab_size
    outside = next((number for number in prompt if number >= size), None)
    if outside is not None:
        raise _wrong("prompt", f"there is no token {outside}; the vocabulary has {size:,}")
    return tuple(prompt)


def _requests(
    engine: Engine,
    asked: SamplingFields,
    prompt: Sequence[int],
    max_tokens: int | None,
    top: int | None,
    param: str,
) -> list[Request]:
    if not prompt:
        raise _wrong(param, "it has no tokens, and the tokenizer adds no BOS token to begin with")
    if len(prompt) >= engine.context:
        raise ApiError(
            400,
            f"the prompt has {len(prompt):,} tokens and the context holds {engine.context:,} with "
            "the answer: shorten the prompt",
            param=param,
            code="context_length_exceeded",
        )
    return [
        Request(
            prompt=tuple(prompt),
            sampling=_sampling(engine, asked, number),
            max_tokens=max_tokens,
            stop_ids=engine.end_ids,
            stop=asked.stops(),
            top_log_probs=top,
        )
        for number in range(asked.n or 1)
    ]


def _sampling(engine: Engine, asked: SamplingFields, number: int) -> Sampling:
    from llamita.inference.sampling import Sampling

    bias = {int(token): value for token, value in (asked.logit_bias or {}).items()}
    size = engine.tokenizer.vocab_size
    outside = next((token for token in bias if token >= size), None)
    if outside is not None:
        raise _wrong("logit_bias", f"there is no token {outside}; the vocabulary has {size:,}")
    seed = asked.seed
    if seed is not None:
        # Of 63 bits: the largest seed's successor is the smallest.
        seed = (seed + number + 2**63) % 2**64 - 2**63
    try:
        return Sampling(
            temperature=_or(asked.temperature, 1.0),
            top_k=max(asked.top_k or 0, 0),
            top_p=_or(asked.top_p, 1.0),
            min_p=_or(asked.min_p, 0.0),
            repetition_penalty=_or(asked.repetition_penalty, 1.0),
            presence_penalty=_or(asked.presence_penalty, 0.0),
            frequency_penalty=_or(asked.frequency_penalty, 0.0),
            logit_bias=bias,
            seed=seed,
        )
    except UserError as error:
        raise ApiError(400, str(error), code="invalid_value") from error


def _or(given: float | None, default: float) -> float:
    return default if given is None else given


def _check_stream(asked: SamplingFields) -> None:
    if asked.stream_options is not None and not asked.stream:
        raise _wrong("stream_options", "it needs stream: true")


def _check_log_probs(engine: Engine, top: int | None, param: str) -> None:
    if top is not None and not engine.capabilities.log_probs:
        message = f"the engine {engine.name} gives no log-probabilities; leave it out"
        raise _wrong(param, message, "unsupported_parameter")


def _wrong(param: str, message: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, f"{param}: {message}", param=param, code=code)
