"""What clients are answered, in OpenAI's shapes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, model_serializer

FinishReason = Literal["stop", "length"]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail


class Health(BaseModel):
    status: Literal["ok", "closing"]


class ModelCard(BaseModel):
    """`context`, `engine` and `about` are llamita's."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["llamita"] = "llamita"
    context: int
    engine: str
    about: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class PromptDetails(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TopLogProb(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogProb(TopLogProb):
    top_logprobs: list[TopLogProb]


class ChatLogProbs(BaseModel):
    content: list[TokenLogProb]
    refusal: None = None


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogProbs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    """What has come since the last chunk; what has not is left out, as OpenAI leaves it out."""

    role: Literal["assistant"] | None = None
    content: str | None = None

    @model_serializer(mode="plain")
    def _given(self) -> dict[str, str]:
        fields = (("role", self.role), ("content", self.content))
        return {name: value for name, value in fields if value is not None}


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: ChatLogProbs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class CompletionLogProbs(BaseModel):
    """`text_offset` counts characters of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogProbs | None
    finish_reason: FinishReason | None


class Completion(BaseModel):
    """Whole, and a chunk of a stream, in which `usage` is null but for the last."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None
