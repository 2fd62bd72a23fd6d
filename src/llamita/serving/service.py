"""What stands behind the endpoints: one engine, who may use it, and what it did."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from starlette.responses import JSONResponse, Response

from llamita.errors import UserError
from llamita.serving.admission import Admission
from llamita.serving.answers import Answers
from llamita.serving.errors import ApiError, shutting_down
from llamita.serving.log_probs import echoed_log_probs
from llamita.serving.metrics import Metrics
from llamita.serving.prompts import chat_requests, completion_requests
from llamita.serving.requests import ChatRequest, CompletionRequest, SamplingFields
from llamita.serving.responses import (
    Completion,
    CompletionChoice,
    ModelCard,
    PromptDetails,
    Usage,
)
from llamita.serving.shapes import ChatShape, CompletionShape, Echo, Shape
from llamita.serving.streaming import AnswersResponse

if TYPE_CHECKING:
    from llamita.inference.engine import Engine, Request

Asked = TypeVar("Asked", bound=SamplingFields)


class _Scoring(Protocol):
    """An engine whose capabilities say `scoring`."""

    def score(self, ids: Sequence[int]) -> list[float]: ...


class Service:
    """One model behind the endpoints."""

    def __init__(
        self, engine: Engine, model_name: str, admission: Admission, metrics: Metrics
    ) -> None:
        self.engine = engine
        self.model_name = model_name
        self.admission, self.metrics = admission, metrics
        self._created = int(time.time())
        # One thread: templates and tokenizers are not made for several, and reading prompts is
        # little beside answering them.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="prompts")

    def card(self) -> ModelCard:
        return ModelCard(
            id=self.model_name,
            created=self._created,
            context=self.engine.context,
            engine=self.engine.name,
            about=self.engine.about,
        )

    def check_model(self, name: str) -> None:
        if name != self.model_name:
            raise ApiError(
                404,
                f"there is no model {name[:100]!r} here; the one served is {self.model_name!r}",
                param="model",
                code="model_not_found",
            )

    async def chat(self, asked: ChatRequest) -> Response:
        self.check_model(asked.model)
        count = asked.n or 1
        answers = await self._begin(asked, count, chat_requests)
        log_probs = (asked.top_logprobs or 0) if asked.logprobs else None
        return self._response(asked, answers, ChatShape(self.model_name, count, log_probs))

    async def complete(self, asked: CompletionRequest) -> Response:
        self.check_model(asked.model)
        if asked.max_tokens == 0 and asked.echo:
            return await self._echo_alone(asked)
        each = asked.n or 1
        count = each * len(asked.prompts())
        answers = await self._begin(asked, count, completion_requests)
        try:
            echoes = await self._echoes(asked)
        except BaseException:
            answers.leave()
            raise
        shape = CompletionShape(self.model_name, count, asked.logprobs, each, echoes)
        return self._response(asked, answers, shape)

    def _response(self, asked: SamplingFields, answers: Answers, shape: Shape) -> Response:
        usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
        return AnswersResponse(answers, shape, stream=bool(asked.stream), usage=usage)

    async def _begin(
        self, asked: Asked, count: int, read: Callable[[Engine, Asked], list[Request]]
    ) -> Answers:
        """Read the prompt, and hand `count` requests to the engine."""
        began = time.monotonic()
        self.admission.enter(count)
        answers = Answers(
            self.engine, self.admission, self.metrics, began, bounded=bool(asked.stream)
        )
        left = count
        try:
            for request in await self._read(read, asked):
                answers.submit(request)
                left -= 1
        except UserError as error:
            answers.leave()
            if self.admission.closing:
                raise shutting_down(self.admission.retry_after()) from error
            raise ApiError(400, str(error), code="invalid_value") from error
        except BaseException:
            answers.leave()
            raise
        finally:
            for _ in range(left):
                self.admission.leave()
        return answers

    async def _read(
        self, read: Callable[[Engine, Asked], list[Request]], asked: Asked
    ) -> list[Request]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reader, read, self.engine, asked)

    async def _echo_alone(self, asked: CompletionRequest) -> Response:
        """Prompts given back, scored if they are to be, with nothing written."""
        if asked.stream:
            raise ApiError(
                400,
                "stream: max_tokens 0 writes nothing; leave stream out",
                param="stream",
                code="invalid_value",
            )
        each = asked.n or 1
        count = each * len(asked.prompts())
        self.admission.enter(count)
        try:
            requests = (await self._read(completion_requests, asked))[::each]
            echoes = await self._echoes(asked)
        finally:
            for _ in range(count):
                self.admission.leave()
        tokens = sum(len(request.prompt) for request in requests)
        shape = CompletionShape(self.model_name, 0, None, each)
        answer = Completion(
            id=shape.id,
            created=shape.created,
            model=self.model_name,
            choices=[
                CompletionChoice(
                    index=index,
                    text=echoes[index // each].text,
                    logprobs=echoes[index // each].log_probs,
                    finish_reason="length",
                )
                for index in range(count)
            ],
            usage=Usage(
                prompt_tokens=tokens,
                completion_tokens=0,
                total_tokens=tokens,
                prompt_tokens_details=PromptDetails(cached_tokens=0),
            ),
        )
        return JSONResponse(answer.model_dump())

    async def _echoes(self, asked: CompletionRequest) -> list[Echo]:
        if not asked.echo:
            return []
        loop = asyncio.get_running_loop()
        scored = asked.logprobs is not None
        return [
            await loop.run_in_executor(self._reader, _echo, self.engine, prompt, scored)
            for prompt in asked.prompts()
        ]


def _echo(engine: Engine, prompt: str | list[int], scored: bool) -> Echo:
    tokenizer = engine.tokenizer
    text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
    if not scored:
        return Echo(text)
    ids = tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else prompt
    table = tokenizer.token_bytes()
    scores = cast("_Scoring", engine).score(ids) if len(ids) > 1 else []
    # A BOS that the tokenizer put in front is a token, and no part of the text.
    unseen = isinstance(prompt, str) and ids[0] == tokenizer.bos_id
    unseen = unseen and not text.encode().startswith(table[ids[0]])
    return Echo(text, echoed_log_probs([table[number] for number in ids], scores, unseen=unseen))
