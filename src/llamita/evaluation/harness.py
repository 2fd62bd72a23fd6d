"""A model as lm-evaluation-harness asks it: likelihoods by our scorer, texts by our engines.

What it answers is what the harness's own `hf` model answers for the same directory. Imports
lm_eval: import this module where it is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from llamita.data.chat_records import Message, RowError
from llamita.data.chat_template import ChatTemplate, chat_template
from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError
from llamita.evaluation.generation_settings import Wanted, wanted_of
from llamita.evaluation.scorer import Continuation, Likelihood, score_continuations
from llamita.evaluation.writing import write_all
from llamita.inference.engine import Engine, Request
from llamita.model.decoder import Decoder

TRUNCATED = "truncated contexts"
_SLOTS_CPU, _SLOTS_GPU = 8, 32
_TAG = "[[the answer goes on here]] "


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A decoder with its tokenizer, for lm-eval's tasks.

    Args:
        model: on its device, `compute_dtype` set.
        name: what results call it.
        template: of conversations; None where there is none, and then none can be asked for.
        engine: writes texts. By default torch's, on `model`, which it takes over: parameters are
            in `compute_dtype` and learn no more from then on.
        max_length: tokens that the model reads at most; by default what it was made for.
        batch_tokens: tokens of a pass when likelihoods are computed.
        slots: texts that the engine made here writes at a time.
        generation: what generation_config.json says, for settings that a task leaves open.
        prefix_token_id: what stands before a text without context; by default BOS, else EOS.
        seed: of drawn texts. The same seed and the same requests give the same texts.
        progress: told how many requests of a call are done, and of how many.

    Attributes:
        counts: what happened that a reader of scores should know, by name.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        name: str,
        template: ChatTemplate | None = None,
        engine: Engine | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        slots: int | None = None,
        generation: Mapping[str, Any] | None = None,
        prefix_token_id: int | None = None,
        seed: int = 1234,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__()
        longest = model.config.max_position_embeddings
        if max_length is not None and not 1 <= max_length <= longest:
            raise UserError(
                f"max_length {max_length:,}: give 1 to {longest:,} tokens, which the model was "
                "made for"
            )
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.template, self.engine = template, engine
        self.max_length = max_length or longest
        self.batch_tokens = batch_tokens
        self.generation = dict(generation or {})
        self.counts: Counter[str] = Counter()
        self._device = model.model.norm.weight.device
        self._slots = slots or (_SLOTS_CPU if self._device.type == "cpu" else _SLOTS_GPU)
        self._prefix_token_id = prefix_token_id
        self._seed = seed
        self._progress = progress
        self._drawn = 0

    # -- what lm-eval asks about the model ------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        if self.tokenizer.eos_id is None:
            raise UserError(f"the tokenizer of {self.name} has no EOS token")
        return self.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        if self._prefix_token_id is not None:
            return self._prefix_token_id
        return self.eot_token_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id

    @property
    def tokenizer_name(self) -> str:
        return f"{self.name} {self.tokenizer.fingerprint[:16]}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of the template, None where none is to be used."""
        return self._template().source if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as a prompt. Without a generation prompt, its last message is one to be
        gone on with: nothing follows its content. A system message that the template refuses is
        left out and counted.

        Raises:
            UserError: there is no template, or it refuses the rest.
        """
        messages = [Message(each["role"], each["content"]) for each in chat_history]
        try:
            return self._rendered(messages, add_generation_prompt)
        except RowError as error:
            rest = [message for message in messages if message.role != "system"]
            if len(rest) == len(messages):
                raise UserError(str(error)) from error
        try:
            text = self._rendered(rest, add_generation_prompt)
        except RowError as error:
            raise UserError(str(error)) from error
        self.counts["system messages left out"] += 1
        return text

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Ids of a text, special strings read as such; with what the tokenizer's post-processor
        adds, unless the text begins with the prefix token or it is not wanted."""
        if add_special_tokens is None:
            return self._encoded([string])[0]
        if add_special_tokens:
            return self.tokenizer.encode_prompt(string)
        return self.tokenizer.encode_chat(string)

    # -- likelihoods ----------------------------------------------------------------------------

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether greedy) of each (context, continuation)."""
        pairs = [(str(each.args[0]), str(each.args[1])) for each in requests]
        found = self._scored(
            self._continuations(pairs),
            lambda number, said: self.cache_hook.add_partial(
                "loglikelihood", pairs[number], (said.log_prob, said.is_greedy)
            ),
        )
        return [(each.log_prob, each.is_greedy) for each in found]

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        asked = [Continuation(tuple(context), tuple(target)) for _, context, target in requests]
        return [(each.log_prob, each.is_greedy) for each in self._scored(asked)]

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-probability of each whole text, in windows that do not overlap but for the
        last, which is full; each token is scored once."""
        texts = [str(each.args[0]) for each in requests]
        asked, owners = self._windows(texts)
        totals = [0.0] * len(texts)
        for number, said in zip(owners, self._scored(asked), strict=True):
            totals[number] += said.log_prob
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def _windows(self, texts: Sequence[str]) -> tuple[list[Continuation], list[int]]:
        """The windows of texts, and the number of the text that each is of."""
        asked: list[Continuation] = []
        owners: list[int] = []
        for number, ids in enumerate(self._encoded(texts)):
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            for context, target in map(make_disjoint_window, windows):
                asked.append(Continuation(tuple(context), tuple(target)))
                owners.append(number)
        return asked, owners

    def continuations(self, requests: Sequence[Instance]) -> list[Continuation]:
        """What requests for likelihoods come to, in tokens."""
        rolling = [each for each in requests if each.request_type == "loglikelihood_rolling"]
        others = [each for each in requests if each.request_type == "loglikelihood"]
        pairs = [(str(each.args[0]), str(each.args[1])) for each in others]
        windows, _ = self._windows([str(each.args[0]) for each in rolling])
        return [*self._continuations(pairs), *windows]

    def _scored(
        self,
        asked: Sequence[Continuation],
        found: Callable[[int, Likelihood], None] | None = None,
    ) -> list[Likelihood]:
        done = 0

        def progress(more: int) -> None:
            nonlocal done
            done += more
            if self._progress is not None:
                self._progress(done, len(asked))

        said = score_continuations(
            self.model,
            asked,
            max_length=self.max_length,
            batch_tokens=self.batch_tokens,
            found=found,
            progress=progress,
        )
        truncated = sum(each.truncated for each in said)
        if truncated:
            self.counts[TRUNCATED] += truncated
        return said

    def _continuations(self, pairs: Sequence[tuple[str, str]]) -> list[Continuation]:
        """Pairs of texts as ids, each different text tokenised once.

        A context's last spaces go to the continuation, whose tokens are those that the whole has
        beyond the context's. Without a context, the prefix token stands for it, or the
        continuation's own first token where it is that.
        """
        moved = []
        for context, continuation in pairs:
            kept = context.rstrip()
            moved.append((kept, context[len(kept) :] + continuation))
        wholes = list(dict.fromkeys(context + rest for context, rest in moved if context))
        contexts = list(dict.fromkeys(context for context, _ in moved if context))
        ids = dict(zip(wholes, self._encoded(wholes), strict=True))
        before = {
            text: tuple(found)
            for text, found in zip(contexts, self._encoded(contexts), strict=True)
        }
        asked = []
        for context, rest in moved:
            if context:
                head = before[context]
                target = tuple(ids[context + rest][len(head) :])
            else:
                target = tuple(self.tokenizer.encode_chat(rest))
                head = (self.prefix_token_id,)
                if target[:1] == head:
                    target = target[1:]
            if not head or not target:
                raise UserError(
                    f"the continuation {rest!r} of {context[-80:]!r} adds no token to it: there is "
                    "nothing to score; correct the task's choices"
                )
            asked.append(Continuation(head, target))
        return asked

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts as prompts; one that begins with the prefix token gets no other."""
        mark = None
        if (self._prefix_token_id, self.tokenizer.bos_id, self.tokenizer.eos_id) != (None,) * 3:
            mark = self.tokenizer.decode([self.prefix_token_id])
        marked = [mark is not None and text.startswith(mark) for text in texts]
        plain = [text for text, is_marked in zip(texts, marked, strict=True) if not is_marked]
        ids = iter(self.tokenizer.encode_prompts(plain))
        return [
            self.tokenizer.encode_chat(text) if is_marked else next(ids)
            for text, is_marked in zip(texts, marked, strict=True)
        ]

    # -- texts ----------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context, up to a stop string, EOS or the tokens asked for.

        A context is cut from the left to leave room for them.

        Raises:
            UserError: settings that the engines do not have, or no room for a context.
        """
        if not requests:
            return []
        contexts = [str(each.args[0]) for each in requests]
        wanted = [wanted_of(each.args[1], self.generation) for each in requests]
        prompts = self._encoded(contexts)
        asked = [self._request(prompt, each) for prompt, each in zip(prompts, wanted, strict=True)]

        def written(number: int, ids: Sequence[int], done: int) -> None:
            texts[number] = self._cut(ids, wanted[number])
            self.cache_hook.add_partial("generate_until", requests[number].args, texts[number])
            if self._progress is not None:
                self._progress(done, len(requests))

        texts = [""] * len(requests)
        engine = self.engine or self._own_engine(asked)
        try:
            write_all(engine, asked, written)
        finally:
            if engine is not self.engine:
                engine.close()
        return texts

    def _request(self, prompt: Sequence[int], wanted: Wanted) -> Request:
        room = self.max_length - wanted.max_tokens
        if room < 1:
            raise UserError(
                f"{wanted.max_tokens:,} tokens are to be written, and the model reads "
                f"{self.max_length:,} with the prompt: lower max_gen_toks of the task"
            )
        if len(prompt) > room:
            self.counts[TRUNCATED] += 1
        sampling = wanted.sampling(self._seed + self._drawn)
        self._drawn += 1
        ends = set(wanted.end_ids or self.model.config.eos_token_ids)
        specials = {self.tokenizer.id_of(stop) for stop in wanted.until} - {None}
        ends |= {each for each in specials if each in self.tokenizer.special_ids}
        if self.tokenizer.eos_id is not None:
            ends.add(self.tokenizer.eos_id)
        return Request(
            prompt=tuple(prompt[-room:]),
            sampling=sampling,
            max_tokens=wanted.max_tokens,
            stop_ids=frozenset(ends),
            stop=wanted.until,
        )

    def _cut(self, ids: Sequence[int], wanted: Wanted) -> str:
        """The text of ids up to the first stop string."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        for stop in wanted.until:
            text = text.split(stop)[0]
        return text

    def _own_engine(self, asked: Sequence[Request]) -> Engine:
        """torch's, with room for what is asked and no more."""
        from llamita.inference.torch_engine import TorchEngine

        context = max(len(each.prompt) + (each.max_tokens or 0) for each in asked)
        return TorchEngine(
            self.model,
            self.tokenizer,
            self.template or chat_template(self.tokenizer),
            slots=min(self._slots, len(asked)),
            context=min(max(context, 2), self.model.config.max_position_embeddings),
        )

    # -- the template ---------------------------------------------------------------------------

    def _template(self) -> ChatTemplate:
        if self.template is None:
            raise UserError(
                f"{self.name} has no chat template: leave the chat template out of the "
                "evaluation, or name one, for example --template chatml"
            )
        return self.template

    def _rendered(self, messages: Sequence[Message], prompt: bool) -> str:
        template = self._template()
        if prompt or not messages:
            return template.render(messages, add_generation_prompt=prompt)
        last = Message(messages[-1].role, messages[-1].content + _TAG)
        text = template.render([*messages[:-1], last])
        said, found, _ = text.rpartition(_TAG)
        if not found:  # a template that strips what messages begin and end with
            said, found, _ = text.rpartition(_TAG.strip())
            said = said.rstrip()
        if not found:
            raise UserError(
                f"the chat template {template.name} does not show the last message as it is, so "
                "that no answer can go on from it"
            )
        return said
