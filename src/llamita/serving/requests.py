"""What clients may ask: OpenAI's fields, and a few of ours, strictly typed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)


def _whole(given: Any) -> Any:
    return int(given) if isinstance(given, float) and given.is_integer() else given


# JSON has one kind of numbers: 2.0 is as whole as 2.
WHOLE = BeforeValidator(_whole)
# Lists fail at their first fault: a body of a million wrong items must not become a million
# errors.
Ids = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**31), WHOLE]], Field(min_length=1, fail_fast=True)
]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
# OpenAI takes 4.
MAX_STOPS = 16
MAX_PROMPTS = 128
# OpenAI takes 300.
MAX_BIASES = 1024
_MOST_FIELDS = 100
_NO_EFFECT = "Accepted for clients that send it; without effect here."
_NOT_HERE = "Not supported: null, or left out."


def _few_biases(given: Any) -> Any:
    if isinstance(given, dict) and len(given) > MAX_BIASES:
        raise ValueError(f"{len(given):,} tokens are more than {MAX_BIASES:,}")
    return given


class Schema(BaseModel):
    """A wrong type is an error, as is a name that is not known: a misspelt setting must not be
    ignored."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, given: Any) -> Any:
        """Each unknown name would be an error of its own: seconds of work for one body."""
        if isinstance(given, dict) and len(given) > _MOST_FIELDS:
            raise ValueError(f"it has {len(given):,} fields")
        return given


class TextPart(Schema):
    type: Literal["text"]
    text: str


class ChatMessage(Schema):
    """A turn. `developer` is OpenAI's newer name of `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]
    name: str | None = Field(None, description=_NO_EFFECT)
    # Fields of an answer that clients send back as they got it.
    refusal: str | None = Field(None, description=_NO_EFFECT)
    annotations: list[Any] | None = Field(None, description=_NO_EFFECT)
    audio: None = Field(None, description=_NOT_HERE)
    tool_calls: None = Field(None, description=_NOT_HERE)
    function_call: None = Field(None, description=_NOT_HERE)

    def text(self) -> str:
        """The content; parts are joined with nothing between them."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class StreamOptions(Schema):
    include_usage: bool | None = Field(None, description="A last chunk with the token counts.")
    include_obfuscation: bool | None = Field(None, description=_NO_EFFECT)


class ResponseFormat(Schema):
    type: Literal["text"]


class SamplingFields(Schema):
    """What both endpoints take. Defaults are OpenAI's: temperature 1 and nothing cut off."""

    model: str = Field(description="As /v1/models names it.")
    stream: bool | None = Field(None, description="Server-sent events, ended by [DONE].")
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128), WHOLE] | None = Field(None, description="Answers; 1.")
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = Field(
        None, description="The text ends before the first of these."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description="0 takes the likeliest token; 1 by default."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), WHOLE] | None = Field(
        None, description="The same text again; answer i of n takes seed + i."
    )
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")],
                Annotated[float, Field(ge=-100, le=100)],
            ],
            Field(max_length=MAX_BIASES, json_schema_extra={"additionalProperties": False}),
            BeforeValidator(_few_biases),
        ]
        | None
    ) = Field(None, description="By token id, written as a string.")
    top_k: Annotated[int, Field(ge=-1, lt=2**31), WHOLE] | None = Field(
        None, description="llamita's. Draw from so many tokens; 0 and -1: all."
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="llamita's. Keep tokens with this share of the likeliest's probability."
    )
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = Field(
        None, description="llamita's. Of tokens in the text so far; 1: none."
    )
    user: str | None = Field(None, description=_NO_EFFECT)

    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(dict.fromkeys(self.stop))


class ChatRequest(SamplingFields):
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31), WHOLE] | None = Field(
        None, description="To the end of the context by default."
    )
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31), WHOLE] | None = Field(
        None, description="OpenAI's newer name of max_tokens."
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = Field(
        None, description="With logprobs: so many likely tokens in each place."
    )
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = Field(None, description=_NOT_HERE)
    tool_choice: Literal["none", "auto"] | None = Field(None, description=_NO_EFFECT)
    functions: None = Field(None, description=_NOT_HERE)
    function_call: None = Field(None, description=_NOT_HERE)
    audio: None = Field(None, description=_NOT_HERE)
    prediction: None = Field(None, description=_NOT_HERE)
    web_search_options: None = Field(None, description=_NOT_HERE)
    parallel_tool_calls: bool | None = Field(None, description=_NO_EFFECT)
    metadata: dict[str, Any] | None = Field(None, description=_NO_EFFECT)
    store: bool | None = Field(None, description=_NO_EFFECT)
    service_tier: str | None = Field(None, description=_NO_EFFECT)
    safety_identifier: str | None = Field(None, description=_NO_EFFECT)
    prompt_cache_key: str | None = Field(None, description=_NO_EFFECT)
    prompt_cache_retention: str | None = Field(None, description=_NO_EFFECT)
    reasoning_effort: str | None = Field(None, description=_NO_EFFECT)
    verbosity: str | None = Field(None, description=_NO_EFFECT)


class CompletionRequest(SamplingFields):
    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    ) = Field(description="A text, token ids, or a list of either.")
    max_tokens: Annotated[int, Field(ge=0, lt=2**31), WHOLE] | None = Field(
        None, description="16 by default, as OpenAI's; 0 only with echo."
    )
    logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = Field(
        None, description="So many likely tokens in each place; 0: of the text's own alone."
    )
    echo: bool | None = Field(None, description="Give the prompt back before the text.")
    best_of: Annotated[int, Field(ge=1, le=128), WHOLE] | None = Field(
        None, description="Not supported: n, or left out."
    )
    suffix: None = Field(None, description=_NOT_HERE)

    def prompts(self) -> list[str | list[int]]:
        """One for each text that is to be continued."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [one for one in self.prompt if isinstance(one, int)]
        return [ids] if ids else [one for one in self.prompt if not isinstance(one, int)]
