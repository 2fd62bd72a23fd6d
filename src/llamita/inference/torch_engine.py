"""The engine on PyTorch: a thread that reads prompts and writes, for many requests at a time.

Each turn of the thread lets requests go and come, reads a piece of one prompt, and writes one
token of every request whose prompt has been read.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from llamita.data.chat_template import ChatTemplate, end_of_turn_ids
from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError
from llamita.inference.decode_step import DecodeStep, is_plain
from llamita.inference.drawing import Sampler
from llamita.inference.engine import (
    Alternative,
    Capabilities,
    Deliver,
    Finish,
    Piece,
    Request,
    Token,
    check_request,
)
from llamita.inference.slots import Slot, Slots, device_of
from llamita.inference.text_stream import TextStream
from llamita.model.adapters import freeze_to
from llamita.model.decoder import Decoder

_log = logging.getLogger(__name__)

# Tokens of a prompt that are read in one go: with nobody else writing, and else. On two cores at
# 50 GFLOP/s, 64 tokens of 135M parameters hold the others up for a third of a second.
_CHUNK, _CHUNK_BESIDE = 512, 64
_CLOSED = "the engine is closed: open another"


class _Job:
    """A request on its way. Only the engine's thread changes it, but for `cancelled`."""

    def __init__(self, engine: TorchEngine, request: Request, deliver: Deliver) -> None:
        self.request = request
        self.cancelled = False
        self.slot: Slot | None = None
        self.written = 0
        self.cached = 0
        self.last = -1  # the token written last, which no slot holds yet
        self.began = self.first = 0.0  # when its prompt was begun, and had been read
        self.stream = TextStream(engine.tokenizer, request.stop)
        self.sampler = Sampler(request.sampling, request.prompt, engine.vocab_size)
        self._engine = engine
        self._deliver: Deliver | None = deliver

    def cancel(self) -> None:
        self.cancelled = True
        self._engine.wake()

    @property
    def ended(self) -> bool:
        """Whether its receiver has been told so, or has failed."""
        return self._deliver is None

    @property
    def unread(self) -> tuple[int, ...]:
        """What of the prompt has not been read."""
        assert self.slot is not None
        return self.request.prompt[len(self.slot.ids) :]

    def give(self, event: Piece | Finish | Exception) -> None:
        """To the receiver, unless it has had its last event. One that raises has had it."""
        deliver = self._deliver
        if deliver is None:
            return
        if not isinstance(event, Piece):
            self._deliver = None
        try:
            deliver(event)
        except Exception:
            self._deliver = None
            _log.exception("the receiver of a request raised; the request is cancelled")

    def finish(
        self, reason: Literal["stop", "length", "cancelled"], stopped_by: str | int | None = None
    ) -> None:
        now = time.perf_counter()
        self.first = self.first or now
        self.give(
            Finish(
                reason,
                prompt_tokens=len(self.request.prompt),
                completion_tokens=self.written,
                cached_tokens=self.cached,
                stopped_by=stopped_by,
                prompt_seconds=self.first - self.began if self.began else 0.0,
                decode_seconds=now - self.first,
            )
        )


class TorchEngine:
    """A decoder that serves requests in slots; see `llamita.inference.engine.Engine`.

    The engine takes the model over: its parameters are stored in `compute_dtype` once and for
    all and learn no more, and nobody else may use it until the engine is closed.

    Args:
        model: on its device, `compute_dtype` set; a plain one, or one with adapters.
        slots: requests worked on at a time.
        context: tokens that each may have; by default what the model was made for. All memory of
            keys and values is reserved here; on a CPU its pages are taken as they are used.
        why: this engine, for people: the end of `about`, behind type and device.

    Raises:
        UserError: no slots, or a context that the model was not made for.
    """

    name = "torch"
    capabilities = Capabilities(streaming=True, log_probs=True, scoring=True, adapters=True)

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        slots: int = 1,
        context: int | None = None,
        why: str = "",
    ) -> None:
        longest = model.config.max_position_embeddings
        if slots < 1:
            raise UserError(f"slots {slots}: give 1 or more")
        if context is not None and not 2 <= context <= longest:
            raise UserError(
                f"context {context:,}: give 2 to {longest:,} tokens, which the model was made for"
            )
        device = device_of(model)
        kind, self._alone = _made_ready(model)
        self.tokenizer, self.template = tokenizer, template
        self.end_ids = frozenset(
            {*model.config.eos_token_ids, *end_of_turn_ids(tokenizer, template)}
        )
        self.context, self.slots = context or longest, slots
        self.vocab_size = model.config.vocab_size
        self.about = f"torch, {kind} on {device}" + (f": {why}" if why else "")
        self._model = model
        self._step: Decoder | DecodeStep = model
        if is_plain(model):
            self._step = DecodeStep(model, self.context, self._alone)
        self._slots = Slots(model, slots, self.context)
        self._waiting: deque[_Job] = deque()
        self._running: list[_Job] = []  # in order of arrival
        self._closed = False
        # Guards the four above; told when there may be something to do.
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="llamita-torch", daemon=True)
        self._thread.start()
        # A thread that is in the middle of torch while Python is taken down ends the process with
        # an error.
        atexit.register(self.close)

    def submit(self, request: Request, deliver: Deliver) -> _Job:
        """Begins a request; see `Engine.submit`.

        A receiver that raises is not called again.
        """
        check_request(self, request)
        stray = [token for token in request.prompt if not 0 <= token < self.vocab_size]
        if stray:
            raise UserError(
                f"the prompt has token {stray[0]}, and the model's vocabulary ends at "
                f"{self.vocab_size - 1:,}"
            )
        job = _Job(self, request, deliver)
        with self._changed:
            if self._closed:
                raise UserError(_CLOSED)
            self._waiting.append(job)
            self._changed.notify()
        return job

    def waiting(self) -> tuple[int, int]:
        with self._changed:
            return len(self._running), len(self._waiting)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, all of which a step of one request reads."""
        kind = self._alone or self._model.compute_dtype
        return sum(each.numel() for each in self._model.parameters()) * kind.itemsize

    def forget(self) -> None:
        """Lets free slots forget what they hold, so that nothing of a prompt is known."""
        with self._changed:
            self._slots.forget()

    def wake(self) -> None:
        """Lets the thread see that a request was cancelled."""
        with self._changed:
            self._changed.notify()

    @torch.inference_mode()
    def score(self, ids: Sequence[int]) -> list[float]:
        """The log-probability of each id but the first, after those before it: len(ids) − 1.

        Computed in the caller's thread.

        Raises:
            UserError: more ids than the context holds, ids outside the vocabulary, or a closed
                engine.
        """
        if self._closed:
            raise UserError(_CLOSED)
        if len(ids) > self.context:
            raise UserError(f"{len(ids):,} tokens to score: the context holds {self.context:,}")
        if not all(0 <= token < self.vocab_size for token in ids):
            raise UserError(f"tokens to score must be ids from 0 to {self.vocab_size - 1:,}")
        if len(ids) < 2:
            return []
        tokens = torch.tensor([list(ids)], device=device_of(self._model))
        log_probs, _ = self._model(tokens[:, :-1], tokens[:, 1:])
        found: list[float] = log_probs[0].tolist()
        return found

    def close(self) -> None:
        """Ends all requests as cancelled, and the thread; then the memory is free."""
        atexit.unregister(self.close)
        with self._changed:
            self._closed = True
            self._changed.notify()
        # A receiver may close the engine too; its thread cannot wait for itself.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # -- the engine's thread --------------------------------------------------------------------

    @torch.inference_mode()
    def _work(self) -> None:
        try:
            while self._await_work():
                try:
                    self._turn()
                except Exception as error:
                    self._fail(self._running, error)
        finally:
            with self._changed:
                self._closed = True
                left = [*self._running, *self._waiting]
                self._running, self._waiting = [], deque()
            for job in left:
                job.finish("cancelled")
            del self._slots.cache.keys[:], self._slots.cache.values[:]

    def _await_work(self) -> bool:
        """Sleeps while there is nothing to do; False when the engine was closed."""
        with self._changed:
            while not (self._closed or self._running or self._waiting):
                self._changed.wait()
            return not self._closed

    def _turn(self) -> None:
        with self._changed:
            cancelled = [job for job in (*self._running, *self._waiting) if job.cancelled]
        for job in cancelled:
            job.finish("cancelled")
        self._dismiss()
        self._admit()
        reading = next((job for job in self._running if job.unread), None)
        writing = [job for job in self._running if not job.unread]
        if reading is not None:
            try:
                self._read(reading, _CHUNK_BESIDE if writing else _CHUNK)
            except Exception as error:
                self._fail([reading], error)
        if writing:
            slots = [job.slot for job in writing if job.slot is not None]
            logits = self._slots.step(self._step, slots, [job.last for job in writing])
            self._choose(writing, logits)
        self._dismiss()

    def _dismiss(self) -> None:
        """Lets go of jobs that have ended, and keeps what their slots hold."""
        with self._changed:
            ended = [job for job in self._running if job.ended]
            self._running = [job for job in self._running if not job.ended]
            if any(job.ended for job in self._waiting):
                self._waiting = deque(job for job in self._waiting if not job.ended)
        for job in ended:
            if job.slot is not None:
                self._slots.give_back(job.slot)
                job.slot = None

    def _admit(self) -> None:
        while self._slots.free:
            with self._changed:
                if not self._waiting:
                    return
                job = self._waiting.popleft()
                job.slot = self._slots.take(job.request.prompt)
                self._running.append(job)
            job.cached = len(job.slot.ids)
            job.began = time.perf_counter()

    def _read(self, job: _Job, count: int) -> None:
        assert job.slot is not None
        logits = self._slots.read(self._model, job.slot, job.unread[:count])
        if not job.unread:
            self._choose([job], logits[None])

    def _fail(self, jobs: Sequence[_Job], error: Exception) -> None:
        """Tells jobs of a fault in a step; what it left in their slots is not to be trusted."""
        _log.error("a step failed", exc_info=error)
        for job in list(jobs):
            if job.slot is not None:
                job.slot.ids.clear()
            job.give(error)
        self._dismiss()

    def _choose(self, jobs: Sequence[_Job], logits: Tensor) -> None:
        """Takes each job's next token from logits (R, V), and ends those that are at their end."""
        likeliest = logits.argmax(-1).tolist()
        for number, job in enumerate(jobs):
            wanted = job.request.top_log_probs
            if job.request.sampling.takes_the_likeliest:
                chosen = likeliest[number]
            else:
                chosen = job.sampler.choose(logits[number].cpu())
            if chosen in job.request.stop_ids:
                rest = job.stream.finish()
                if rest:
                    job.give(Piece(rest, ()))
                # What was held back may have become a stop string with its last character.
                job.finish("stop", job.stream.stopped or chosen)
                continue
            data = job.stream.bytes_of(chosen)
            token = Token(chosen, data)
            if wanted is not None:
                token = _with_log_probs(token, logits[number], wanted, job.stream)
            self._write(job, token)

    def _write(self, job: _Job, token: Token) -> None:
        job.last = token.id
        job.written += 1
        if not job.first:
            job.first = time.perf_counter()
        text = job.stream.push(token.id)
        asked = job.request.max_tokens
        full = len(job.request.prompt) + job.written == self.context or job.written == asked
        if full:
            text += job.stream.finish()
        job.give(Piece(text, (token,)))
        if job.stream.stopped is not None:
            job.finish("stop", job.stream.stopped)
        elif full:
            job.finish("length")


def _made_ready(model: Decoder) -> tuple[str, torch.dtype | None]:
    """Stores a model's parameters in the type of its products; says which that is, and in which
    type else one row is multiplied.

    A CPU without bfloat16 units takes 40 times as long for products of many rows in it: there the
    weights are rounded to bfloat16, as was asked, and products are float32's. But one row's are
    as long as reading the weights takes, of which bfloat16 are half as many bytes.
    """
    model.requires_grad_(False)
    freeze_to(model, model.compute_dtype)
    if model.compute_dtype == torch.bfloat16 and not _multiplies_bfloat16(device_of(model)):
        model.compute_dtype = torch.float32
        freeze_to(model, torch.float32)
        if not is_plain(model):  # the decoder itself takes its steps
            return "bfloat16 weights in float32 products (there are no bfloat16 units)", None
        kind = "bfloat16 for one request and float32 for several (there are no bfloat16 units)"
        return kind, torch.bfloat16
    return str(model.compute_dtype).removeprefix("torch."), None


def _multiplies_bfloat16(device: torch.device) -> bool:
    units = torch.cpu.get_capabilities()
    return device.type != "cpu" or any(
        units.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")
    )


def _with_log_probs(token: Token, logits: Tensor, count: int, stream: TextStream) -> Token:
    """A token with its log-probability and those of the `count` likeliest, from logits (V,)."""
    log_probs = logits.float().log_softmax(-1)
    top: tuple[Alternative, ...] = ()
    if count:
        values, ids = log_probs.topk(min(count, len(log_probs)))
        top = tuple(
            Alternative(number, stream.bytes_of(number), value)
            for number, value in zip(ids.tolist(), values.tolist(), strict=True)
        )
    return Token(token.id, token.data, float(log_probs[token.id]), top)
