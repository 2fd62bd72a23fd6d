"""llama.cpp as an engine, through the wheel `xllamacpp`: ids in, ids out.

llama.cpp computes and samples. Chat templates, tokenisation, text and stop strings are ours, so
that they are the same whichever engine runs.
"""

from __future__ import annotations

import json
import logging
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llamita.cores import num_threads
from llamita.data.chat_template import ChatTemplate, end_of_turn_ids
from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError
from llamita.inference.engine import (
    Alternative,
    Capabilities,
    Deliver,
    Finish,
    Handle,
    Piece,
    Request,
    Token,
    check_request,
)
from llamita.inference.gguf_ids import giving_ids, read_vocabulary
from llamita.inference.llama_cpp_server import open_server
from llamita.inference.text_stream import TextStream
from llamita.inference.turns import Turns

if TYPE_CHECKING:
    import xllamacpp

    from llamita.inference.sampling import Sampling

_log = logging.getLogger(__name__)
# llama.cpp takes a seed of 32 bits, and the greatest to mean "draw one".
_NUM_SEEDS = 2**32 - 1


class LlamaCppEngine:
    """A GGUF, run by llama.cpp on the CPU.

    Repetition penalties and biases, where both are asked for, are applied in llama.cpp's order: the
    bias first.

    Args:
        gguf: the file; a copy of it is what runs (gguf_ids.py), so it may go.
        tokenizer, template: of the same model.
        slots: requests that are worked on at a time.
        context: tokens of prompt and answer that each may have; by default what the file says that
            the model was trained for.
        threads: by default OMP_NUM_THREADS, or as many as there are cores for this process.
        about: what it is and why, for people.
        end_ids: where answers end; by default at the template's end of a turn and the tokenizer's
            end of text.

    Raises:
        UserError: xllamacpp is not installed; a file that llama.cpp cannot load, with what it says;
            no memory for the context.
    """

    name = "llama.cpp"
    capabilities = Capabilities(streaming=True, log_probs=True, scoring=False, adapters=False)

    def __init__(
        self,
        gguf: Path,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        slots: int = 1,
        context: int | None = None,
        threads: int | None = None,
        about: str = "",
        end_ids: frozenset[int] | None = None,
    ) -> None:
        self.tokenizer, self.template = tokenizer, template
        if end_ids is None:
            end_ids = frozenset(end_of_turn_ids(tokenizer, template))
        self.end_ids = end_ids
        self.slots = slots
        self._vocabulary = read_vocabulary(gguf)
        self.context = context or self._vocabulary.context
        threads = threads or num_threads()
        self.about = about or f"llama.cpp, {gguf.name}"
        with giving_ids(gguf, self._vocabulary) as path:
            server = open_server(path, gguf.name, slots, self.context, threads)
        self._server: list[xllamacpp.Server] = [server]
        self._turns = Turns(slots, "llama.cpp")
        # Also when the engine is forgotten, and before Python ends: a thread that came back from
        # llama.cpp while Python is being taken down would end the process with an error.
        self._close = weakref.finalize(self, _close, self._turns, self._server)

    def submit(self, request: Request, deliver: Deliver) -> Handle:
        """See `Engine.submit`.

        Raises:
            UserError: as there.
        """
        check_request(self, request)
        size = self._vocabulary.size
        bias = request.sampling.logit_bias
        for name, ids in (("the prompt", request.prompt), ("logit_bias", bias)):
            wrong = [token for token in ids if not 0 <= token < size]
            if wrong:
                raise UserError(
                    f"{name} names token {wrong[0]:,}, and the vocabulary ends at {size - 1:,}"
                )
        server = next(iter(self._server), None)
        if server is None:
            raise UserError("the engine is closed: open it again")
        body = completion(request, self.context)
        writing = _Writing(server, body, request, deliver, self.tokenizer)
        self._turns.add(writing)
        return _Handle(self._turns, writing)

    def waiting(self) -> tuple[int, int]:
        """Requests that run, and that wait."""
        return self._turns.waiting()

    def close(self) -> None:
        """Cancel what runs, end the threads, free the memory. May be called twice."""
        self._close()


def _close(turns: Turns, server: list[xllamacpp.Server]) -> None:
    turns.close()
    server.clear()


def completion(request: Request, context: int) -> dict[str, Any]:
    """A request as llama.cpp's server reads it."""
    room = context - len(request.prompt)
    body: dict[str, Any] = {
        "prompt": request.prompt,
        "n_predict": room if request.max_tokens is None else min(request.max_tokens, room),
        "stream": True,
        "cache_prompt": True,
        # Ids come in `__verbose` alone; its last one would repeat all settings and the prompt.
        "verbose": True,
        "response_fields": ["stop_type"],
        "timings_per_token": True,
        # Events while a prompt is read, so that it can be cancelled there.
        "return_progress": True,
        # A sign of life in a silent stream: xllamacpp takes it for JSON.
        "sse_ping_interval": -1,
        **_sampling(request.sampling, context),
    }
    if request.top_log_probs is not None:
        # At least one, else there is no log-probability of the token itself.
        body["n_probs"] = max(request.top_log_probs, 1)
    return body


def _sampling(sampling: Sampling, context: int) -> dict[str, Any]:
    samplers = ["penalties"] if sampling.counts_tokens else []
    found: dict[str, Any] = {
        "repeat_last_n": context,
        "repeat_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": [[token, bias] for token, bias in sampling.logit_bias.items()],
        "seed": -1 if sampling.seed is None else sampling.seed % _NUM_SEEDS,
    }
    if sampling.temperature == 0:
        return {**found, "samplers": [*samplers, "top_k"], "top_k": 1}
    # Only those that do something: each goes through the whole vocabulary.
    samplers.append("temperature")
    if sampling.top_k > 0:
        samplers.append("top_k")
    if sampling.top_p < 1:
        samplers.append("top_p")
    if sampling.min_p > 0:
        samplers.append("min_p")
    return {
        **found,
        "samplers": samplers,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
    }


class _Handle:
    def __init__(self, turns: Turns, writing: _Writing) -> None:
        self._turns, self._writing = turns, writing

    def cancel(self) -> None:
        self._turns.cancel(self._writing)


class _Writing:
    """A request on its way: what llama.cpp says of it becomes pieces and one end."""

    def __init__(
        self,
        server: xllamacpp.Server,
        body: Mapping[str, Any],
        request: Request,
        deliver: Deliver,
        tokenizer: Tokenizer,
    ) -> None:
        self.cancelled = False
        self._server, self._body = server, body
        self._request = request
        self._deliver: Deliver | None = deliver
        self._special_ids = tokenizer.special_ids
        self._text = TextStream(tokenizer, request.stop)
        # Special tokens since the last piece: the last may prove to be where llama.cpp ends.
        self._held: tuple[Token, ...] = ()
        self._last_id: int | None = None
        self._written = 0
        self._timings: Mapping[str, float] = {}
        self._stopped_by: str | int | None = None
        self._at_length = False
        self._error: Exception | None = None

    def run(self) -> None:
        """Write the text, and say how it ended."""
        try:
            if not self.cancelled:
                self._server.handle_completions(json.dumps(self._body), self._receive)
            end: Finish | Exception = self._end()
        except Exception as error:
            end = error
        self._tell(end)

    def _receive(self, event: str) -> bool:
        """Take an event; whether llama.cpp shall end. It calls this, and ignores exceptions."""
        try:
            return self.cancelled or self._take(json.loads(event))
        except Exception as error:
            self._error = error
            return True

    def _take(self, event: Mapping[str, Any]) -> bool:
        if "error" in event:
            raise _as_error(event["error"])
        self._timings = event["timings"]
        if "prompt_progress" in event:
            return False
        choice = event["choices"][0]
        if choice["finish_reason"] is not None:
            self._take_last(event["__verbose"]["stop_type"])
            return True
        (number,) = event["__verbose"]["tokens"]
        if number in self._request.stop_ids:
            self._stopped_by = number
            return True
        self._last_id = number
        tokens = (*self._held, self._token(number, choice["logprobs"]))
        if number in self._special_ids:
            self._held = tokens
            return False
        self._held = ()
        self._hand_over(Piece(self._text.push(number), tokens))
        return self.cancelled or self._text.stopped is not None

    def _take_last(self, stop_type: str) -> None:
        if stop_type == "eos":
            # One of the ids that llama.cpp ends at, and that the request does not name.
            self._stopped_by = self._last_id
            self._held = self._held[:-1]
        else:
            self._at_length = True

    def _token(self, number: int, log_probs: Mapping[str, Any] | None) -> Token:
        data = self._text.bytes_of(number)
        if log_probs is None:
            return Token(number, data)
        (entry,) = log_probs["content"]
        most = self._request.top_log_probs or 0
        top = tuple(
            Alternative(each["id"], self._text.bytes_of(each["id"]), each["logprob"])
            for each in entry["top_logprobs"][:most]
        )
        return Token(number, data, entry["logprob"], top)

    def _hand_over(self, piece: Piece) -> None:
        self._written += len(piece.tokens)
        self._tell(piece)

    def _tell(self, event: Piece | Finish | Exception) -> None:
        """To the receiver; one that raises has had its last event."""
        if self._deliver is None:
            return
        try:
            self._deliver(event)
        except Exception:
            self._deliver = None
            self.cancelled = True
            _log.exception("the receiver of a request raised; the request is cancelled")

    def _end(self) -> Finish:
        if self._error is not None:
            raise self._error
        rest = self._text.finish()
        if rest or self._held:
            self._hand_over(Piece(rest, self._held))
        stopped_by = self._text.stopped if self._stopped_by is None else self._stopped_by
        reason: Literal["stop", "length", "cancelled"]
        if stopped_by is not None:
            reason = "stop"
        elif self._at_length:
            reason = "length"
        elif self.cancelled:
            reason = "cancelled"
        else:
            raise RuntimeError("llama.cpp ended the request and did not say why")
        return Finish(
            reason,
            prompt_tokens=len(self._request.prompt),
            completion_tokens=self._written,
            cached_tokens=int(self._timings.get("cache_n", 0)),
            stopped_by=stopped_by,
            prompt_seconds=self._timings.get("prompt_ms", 0) / 1000,
            decode_seconds=self._timings.get("predicted_ms", 0) / 1000,
        )


def _as_error(error: Mapping[str, Any]) -> Exception:
    """What llama.cpp answers instead of a text: a request that it refuses, or a failure."""
    message = f"llama.cpp: {error.get('message', error)}"
    return UserError(message) if error.get("code") == 400 else RuntimeError(message)
