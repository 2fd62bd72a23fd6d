"""Prompts against Transformers' apply_chat_template, what a turn shares with the last one, and
what becomes of a conversation that is cut, undone or too long."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamita.data.chat_records import Message
from llamita.data.chat_template import ChatTemplate, chat_template, special_tokens
from llamita.data.tokenizer import Tokenizer, load_tokenizer
from llamita.errors import UserError
from llamita.inference.conversation import Answer, Conversation, prompt_of
from llamita.inference.sampling import Sampling
from tests.data.chats import MARKERS, byte_level, llama_like, theirs
from tests.terminal.scripted import ANSWERS, ScriptedEngine

PIRATE = "You are a friendly chatbot who always responds in the style of a pirate"
HELICOPTERS = "How many helicopters can a human eat in one sitting?"
# As TinyLlama's articles show it.
ZEPHYR = f"<|system|>\n{PIRATE}</s>\n<|user|>\n{HELICOPTERS}</s>\n<|assistant|>\n"
REFUSES_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ m.role ~ ': ' ~ m.content ~ eos_token }}{% endfor %}"
)
DROPS_SYSTEM = (
    "{% for m in messages if m.role != 'system' %}{{ m.role ~ ': ' ~ m.content ~ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
STRIPS = (
    "{% for m in messages %}{{ '<s>' ~ m.role ~ '\n' ~ m.content | trim ~ '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_level(*MARKERS)


def engine_of(tokenizer: Tokenizer, form: str, **settings: object) -> ScriptedEngine:
    """With a named template, or with the source of one."""
    template = (
        ChatTemplate("own", form, special_tokens(tokenizer))
        if "{" in form
        else chat_template(tokenizer, form)
    )
    return ScriptedEngine(tokenizer, template, **settings)  # type: ignore[arg-type]


def said(answer: Answer) -> str:
    return "".join(piece.text for piece in answer)


@pytest.mark.parametrize("kind", ["byte level", "llama"])
def test_the_articles_example_is_rendered_byte_for_byte(kind: str) -> None:
    vocabulary = byte_level() if kind == "byte level" else llama_like()
    template = chat_template(vocabulary, "zephyr")
    messages = [Message("system", PIRATE), Message("user", HELICOPTERS)]
    assert template.render(messages, add_generation_prompt=True).encode() == ZEPHYR.encode()
    ids = prompt_of(ScriptedEngine(vocabulary, template), messages)
    assert list(ids).count(vocabulary.eos_id) == 2


def test_the_articles_example_with_llama_2s_tokenizer(shared_dir: Path) -> None:
    vocabulary = load_tokenizer(shared_dir / "data/tokenizers/llama2")
    template = chat_template(vocabulary, "zephyr")
    messages = [Message("system", PIRATE), Message("user", HELICOPTERS)]
    assert template.render(messages, add_generation_prompt=True) == ZEPHYR
    ids = prompt_of(ScriptedEngine(vocabulary, template), messages)
    reference = theirs(vocabulary, template.source).apply_chat_template(
        [{"role": "system", "content": PIRATE}, {"role": "user", "content": HELICOPTERS}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert list(ids) == reference


@pytest.mark.parametrize("form", ["chatml", "zephyr", "llama-2", STRIPS])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_prompts_of_all_turns_are_those_of_transformers(
    tokenizer: Tokenizer, form: str, system: str | None
) -> None:
    engine = engine_of(tokenizer, form, answers=["A model.", " two\n", "naïve 漢字 😀"])
    conversation = Conversation(engine, system=system)
    reference = theirs(tokenizer, engine.template.source)
    told = [] if system is None else [{"role": "system", "content": system}]
    for question in ("What is it?", "And then?  ", "More"):
        told.append({"role": "user", "content": question})
        answer = conversation.ask(question)
        text = said(answer)
        expected = reference.apply_chat_template(
            told, add_generation_prompt=True, return_dict=False
        )
        assert list(engine.requests[-1].prompt) == expected
        assert answer.prompt_tokens == len(expected)
        told.append({"role": "assistant", "content": text})
    assert [(turn.role, turn.content) for turn in conversation.messages] == [
        (turn["role"], turn["content"]) for turn in told
    ]
    assert engine.requests[-1].stop_ids == engine.end_ids


@pytest.mark.parametrize("form", ["chatml", "zephyr"])
def test_a_turn_begins_with_the_last_prompt_and_its_answer(tokenizer: Tokenizer, form: str) -> None:
    engine = engine_of(tokenizer, form, answers=[" the text\n\nof 1,234 people ", "plain", "x"])
    conversation = Conversation(engine, system="Be brief.")
    before: list[int] = []
    for question in ("What now?", "the text", "and?"):
        answer = conversation.ask(question)
        text = said(answer)
        prompt = list(engine.requests[-1].prompt)
        assert prompt[: len(before)] == before
        assert answer.finish is not None
        assert answer.finish.cached_tokens == len(before)
        before = prompt + tokenizer.encode(text)


def test_what_a_template_strips_is_computed_again_and_no_more(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, STRIPS, answers=["plain text \n", "x"])
    conversation = Conversation(engine)
    said(conversation.ask("What?"))
    first = engine.requests[-1].prompt
    answer = conversation.ask("And?")
    said(answer)
    assert answer.finish is not None
    kept = len(first) + len(tokenizer.encode("plain text"))
    assert answer.finish.cached_tokens == kept


def test_a_full_context_loses_the_oldest_exchanges(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, "chatml", context=400, answers=["word " * 8] * 50)
    conversation = Conversation(engine, system="Be brief.")
    lost = []
    for number in range(20):
        answer = conversation.ask(f"question {number} please")
        said(answer)
        prompt = tokenizer.decode(engine.requests[-1].prompt)
        assert "system\nBe brief." in prompt
        assert answer.prompt_tokens <= 300  # a quarter is free for the answer
        oldest = conversation.left_out
        assert f"question {oldest} please" in prompt
        assert oldest == 0 or f"question {oldest - 1} please" not in prompt
        if answer.left_out:
            lost.append(answer.left_out)
            assert answer.prompt_tokens <= 200  # half is free again
            # and no more is lost than that takes
            assert len(prompt_with_one_more(conversation)) > 200
    # In a few big steps: every one costs a whole prompt.
    assert 1 < len(lost) < 7
    assert sum(lost) == conversation.left_out
    assert len(conversation.messages) == 41


def prompt_with_one_more(conversation: Conversation) -> tuple[int, ...]:
    """The prompt of the last question, had one exchange less been left out."""
    turns = conversation.messages[1:-1]
    kept = turns[2 * (conversation.left_out - 1) :]
    return prompt_of(conversation.engine, [conversation.messages[0], *kept])


def test_a_question_that_is_too_long_is_refused_with_numbers(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, "chatml", context=100)
    conversation = Conversation(engine, system="Be brief.")
    said(conversation.ask("first"))
    before = conversation.messages
    question = "text " * 200
    needed = len(prompt_of(engine, [Message("system", "Be brief."), Message("user", question)]))
    with pytest.raises(UserError, match=rf"comes to {needed} tokens .* context holds 100"):
        conversation.ask(question)
    assert conversation.messages == before
    assert conversation.left_out == 0
    assert conversation.unanswered is None
    said(conversation.ask("second"))
    assert len(conversation.messages) == 5


@pytest.mark.parametrize("form", [REFUSES_SYSTEM, DROPS_SYSTEM])
def test_a_template_without_a_system_role_says_what_to_do(tokenizer: Tokenizer, form: str) -> None:
    engine = engine_of(tokenizer, form)
    with pytest.raises(UserError, match=r"template own has no place .* system .*--template chatml"):
        Conversation(engine, system="Be brief.")
    conversation = Conversation(engine)
    with pytest.raises(UserError, match="first user's message"):
        conversation.system = "Be brief."
    assert conversation.system is None
    assert said(conversation.ask("hi"))


def test_other_refusals_are_errors_for_people(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, "llama-2")
    with pytest.raises(UserError, match="user and assistant must take turns"):
        prompt_of(engine, [Message("assistant", "hello")])
    with pytest.raises(UserError, match="role tool"):
        prompt_of(
            engine_of(tokenizer, DROPS_SYSTEM.replace("system", "tool")),
            [Message("user", "a"), Message("tool", "b")],
        )
    with pytest.raises(UserError, match="lone surrogate"):
        prompt_of(engine_of(tokenizer, "chatml"), [Message("user", "a\ud800")])
    with pytest.raises(UserError, match="blank"):
        Conversation(engine).ask(" \n")


@pytest.mark.parametrize("how", ["cancel", "leave", "close", "exception"])
def test_a_cut_answer_stays_as_far_as_it_came(tokenizer: Tokenizer, how: str) -> None:
    engine = engine_of(tokenizer, "chatml", answers=[ANSWERS["endless"], "fine"], pause=0.001)
    conversation = Conversation(engine)
    answer = conversation.ask("go on")
    pieces = []
    try:
        for piece in answer:
            pieces.append(piece.text)
            if len(pieces) == 5:
                if how == "cancel":
                    answer.cancel()
                elif how == "close":
                    answer.close()
                elif how == "leave":
                    break
                else:
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert how == "exception"
    # Leaving a loop frees its iterator, which ends the request.
    assert answer.finish is not None
    assert answer.finish.reason == "cancelled"
    assert conversation.messages[1] == Message("assistant", "".join(pieces))
    assert "".join(pieces).startswith("word")
    said(conversation.ask("and now?"))
    assert "".join(pieces) + "<|im_end|>" in tokenizer.decode(engine.requests[-1].prompt)


def test_an_answer_without_text_or_that_failed_is_no_exchange(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, "chatml", answers=["", ANSWERS["fail"], "fine"])
    conversation = Conversation(engine)
    assert said(conversation.ask("say nothing")) == ""
    assert conversation.messages == ()
    assert conversation.unanswered == "say nothing"
    with pytest.raises(UserError, match="broke down"):
        said(conversation.ask("fail"))
    assert conversation.messages == ()
    assert conversation.question_again() == "fail"
    assert said(conversation.ask(conversation.question_again())) == "fine"
    assert [turn.content for turn in conversation.messages] == ["fail", "fine"]
    assert conversation.unanswered is None


def test_undo_reset_and_restore(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, "chatml")
    conversation = Conversation(engine, system="Be brief.")
    for question in ("a", "b"):
        said(conversation.ask(question))
    two = conversation.messages
    taken = conversation.undo()
    assert taken == two[3:]
    assert conversation.messages == two[:3]
    conversation.reset()
    assert conversation.messages == two[:1]
    assert conversation.undo() == ()
    assert conversation.messages == two[:3]
    kept = [Message("user", "x"), Message("assistant", "y"), Message("user", "z")]
    conversation.restore(kept)
    assert conversation.system is None
    assert conversation.messages == tuple(kept[:2])
    assert conversation.unanswered == "z"
    with pytest.raises(UserError, match="no messages"):
        conversation.restore([])
    assert conversation.undo() == ()
    assert conversation.messages == two[:3]
    conversation.undo()
    assert conversation.undo() is None
    with pytest.raises(UserError, match="no question"):
        conversation.question_again()


def test_settings_reach_the_engine(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, "chatml")
    sampling = Sampling(temperature=0, seed=3)
    conversation = Conversation(engine, sampling=sampling, max_tokens=2, stop=["."])
    answer = conversation.ask("say a lot of words")
    said(answer)
    request = engine.requests[-1]
    assert (request.sampling, request.max_tokens, request.stop) == (sampling, 2, (".",))
    assert answer.finish is not None
    assert answer.finish.reason == "length"
    assert answer.first_seconds is not None
