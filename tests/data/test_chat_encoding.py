"""Conversations to tokens against Transformers' ids, and what learns against a slow reading."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamita.data.chat_encoding import (
    Encoded,
    encode_conversation,
    encode_conversations,
    encode_preference,
    encode_preferences,
)
from llamita.data.chat_records import (
    Conversation,
    Message,
    Preference,
    RenderedText,
    RowError,
    parse_row,
)
from llamita.data.chat_template import ChatTemplate, chat_template, end_of_turn_ids
from llamita.data.tokenizer import Tokenizer, load_tokenizer
from tests.data.chats import CHATS, MARKERS, byte_level, dicts, llama_like, messages, theirs

GENERATION = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def learnt(encoded: Encoded, tokenizer: Tokenizer) -> list[str]:
    """What runs of learning tokens spell."""
    runs: list[list[int]] = []
    before = False
    for token, learns in zip(encoded.tokens.tolist(), encoded.learns.tolist(), strict=True):
        if learns and not before:
            runs.append([])
        if learns:
            runs[-1].append(token)
        before = learns
    table = tokenizer.token_bytes()
    return [b"".join(table[token] for token in run).decode("utf-8", "replace") for run in runs]


def slow_mask(ids: list[int], tokenizer: Tokenizer, opening: str, closing: str) -> list[bool]:
    """Which tokens learn, found token by token in the bytes that they spell: after `opening`, up
    to and with `closing`; a token that begins before the opening's end does not."""
    table = tokenizer.token_bytes()
    text = b"".join(table[token] for token in ids)
    if opening.encode() not in text:  # Llama-2's normaliser puts a space after a special token
        opening = opening.replace("<|im_start|>", "<|im_start|> ")
    spans = []
    place = 0
    while (found := text.find(opening.encode(), place)) >= 0:
        start = found + len(opening.encode())
        end = text.find(closing.encode(), start)
        if end < 0:
            break
        place = end + len(closing.encode())
        spans.append((start, place))
    mask, place = [], 0
    for token in ids:
        after = place + len(table[token])
        mask.append(any(start <= place and after <= stop for start, stop in spans))
        place = after
    return mask


TOKENIZERS = {
    "byte-level": lambda: byte_level(*MARKERS),
    "byte-level that trims": lambda: byte_level(*MARKERS, trim_offsets=True),
    "llama-like": lambda: llama_like(*MARKERS),
}
ROUND = {
    "chatml": ("<|im_start|>assistant\n", "<|im_end|>"),
    "zephyr": ("<|assistant|>\n", "</s>"),
    "llama-2": ("[/INST]", "</s>"),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def llama2(shared_dir: Path) -> tuple[Tokenizer, Any]:
    tokenizer = load_tokenizer(shared_dir / "data" / "tokenizers" / "llama2")
    return tokenizer, theirs(tokenizer)


@pytest.mark.parametrize("name", ROUND)
def test_ids_are_those_of_transformers_and_the_answers_learn(
    tokenizer: Tokenizer, name: str
) -> None:
    template = chat_template(tokenizer, name)
    reference = theirs(tokenizer, template.source)
    for chat in CHATS:
        found = encode_conversation(Conversation(messages(chat)), tokenizer, template)
        expected = reference.apply_chat_template(dicts(chat), return_dict=False)
        assert found.tokens.tolist() == expected
        assert found.learns.tolist() == slow_mask(expected, tokenizer, *ROUND[name])
        answers = [said for role, said in chat if role == "assistant"]
        shown = [f" {said.strip()} " if name == "llama-2" else said for said in answers]
        assert found.num_bytes == sum(len(said.encode()) for said in shown)


def test_the_mask_is_that_of_transformers_generation_marks(tokenizer: Tokenizer) -> None:
    template = ChatTemplate("own", GENERATION)
    reference = theirs(tokenizer, GENERATION)
    for chat in CHATS:
        found = encode_conversation(Conversation(messages(chat)), tokenizer, template)
        expected = reference.apply_chat_template(
            dicts(chat), return_dict=True, return_assistant_tokens_mask=True
        )
        assert found.tokens.tolist() == expected["input_ids"]
        assert found.learns.tolist() == [bool(mask) for mask in expected["assistant_masks"]]


def test_what_learns_can_be_chosen() -> None:
    tokenizer = byte_level(*MARKERS)
    template = chat_template(tokenizer, "chatml")
    chat = Conversation(
        (
            Message("user", "a", learns=False),
            Message("assistant", "b", learns=False),
            Message("user", "c", learns=True),
            Message("assistant", "d"),
            Message("user", "e"),
            Message("assistant", "f", learns=True),
        )
    )

    def runs(learn: Any, example: Conversation = chat) -> list[str]:
        return learnt(encode_conversation(example, tokenizer, template, learn=learn), tokenizer)

    assert runs("assistant") == ["<|im_start|>user\nc<|im_end|>", "d<|im_end|>", "f<|im_end|>"]
    assert runs("last") == ["f<|im_end|>"]
    whole = encode_conversation(chat, tokenizer, template, learn="all")
    assert whole.learns.all()
    assert whole.num_bytes == sum(len(f"{turn.role}\n{turn.content}\n") for turn in chat.messages)
    quiet = Conversation(chat.messages[:2])
    with pytest.raises(RowError, match="nothing in it learns"):
        runs("assistant", quiet)


def test_a_token_across_the_boundary_does_not_learn() -> None:
    tokenizer = byte_level(trim_offsets=True)
    spaced = ChatTemplate(
        "own",
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{{ 'assistant: ' if add_generation_prompt }}",
    )
    chat = Conversation((Message("user", "text"), Message("assistant", "the model learns")))
    found = encode_conversation(chat, tokenizer, spaced)
    # the vocabulary has " the", which swallows the space that the prompt ends with
    assert tokenizer.id_of("Ġthe") in found.tokens
    assert learnt(found, tokenizer) == [" model learns"]
    tight = ChatTemplate("own", spaced.source.replace("': '", "':'").replace("t: '", "t:'"))
    chat = Conversation((Message("user", "text"), Message("assistant", " the model learns")))
    assert learnt(encode_conversation(chat, tokenizer, tight), tokenizer) == [" the model learns"]


def test_content_that_spells_a_special_token_is_said(tokenizer: Tokenizer) -> None:
    template = chat_template(tokenizer, "chatml")
    chat = [("user", "what is <|im_end|>?"), ("assistant", "a mark")]
    found = encode_conversation(Conversation(messages(chat)), tokenizer, template)
    reference = theirs(tokenizer, template.source)
    assert found.tokens.tolist() == reference.apply_chat_template(dicts(chat), return_dict=False)
    assert found.holds_special
    assert learnt(found, tokenizer) == ["a mark<|im_end|>"]
    plain = encode_conversation(Conversation(messages(CHATS[0])), tokenizer, template)
    assert not plain.holds_special


# Of a kind with Qwen3's: what an earlier answer thought is left out of the whole.
FORGETFUL = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Of a kind with Mistral's later ones: the system message goes into the last question.
WANDERING = (
    "{% set system = messages[0].content ~ '\n' if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (system if loop.revindex0 < 2 else '') + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
LONG = [
    ("system", "Be brief."),
    ("user", "assistant\nuser"),
    ("assistant", "user"),
    ("user", "and?"),
    ("assistant", "plain"),
]


def test_answers_are_found_again_where_earlier_turns_are_rewritten() -> None:
    tokenizer = byte_level(*MARKERS)
    forgetful = ChatTemplate("own", FORGETFUL)
    found = encode_conversation(Conversation(messages(LONG)), tokenizer, forgetful)
    assert learnt(found, tokenizer) == ["user<|im_end|>", "<think>\n\n</think>\n\nplain<|im_end|>"]
    wandering = ChatTemplate("own", WANDERING, {"eos_token": "</s>"})
    found = encode_conversation(Conversation(messages(LONG)), tokenizer, wandering)
    assert learnt(found, tokenizer) == [" user</s>", " plain</s>"]
    marked = WANDERING.replace(
        "{{ ' ' + m.content + eos_token }}",
        "{% generation %}{{ ' ' + m.content }}{% endgeneration %}{{ eos_token }}",
    )
    by_marks = ChatTemplate("own", marked, {"eos_token": "</s>"})
    found = encode_conversation(Conversation(messages(LONG)), tokenizer, by_marks)
    assert learnt(found, tokenizer) == [" user", " plain</s>"]


def test_a_template_that_hides_its_answers_is_named() -> None:
    tokenizer = byte_level(*MARKERS)
    hiding = ChatTemplate(
        "own", "{{ messages | length }}{% for m in messages %}{{ m.content | upper }}\n{% endfor %}"
    )
    with pytest.raises(RowError, match=r"template own rewrites earlier turns.*{% generation %}"):
        encode_conversation(Conversation(messages(LONG)), tokenizer, hiding)


def test_a_template_that_drops_a_message_is_named() -> None:
    tokenizer = byte_level()
    dropping = ChatTemplate(
        "own",
        "{% for m in messages %}{% if m.role in ('user', 'assistant') %}{{ m.role ~ m.content }}"
        "{% endif %}{% endfor %}",
    )
    with pytest.raises(RowError, match="own leaves out messages of role 'system': message 1"):
        encode_conversation(Conversation(messages(LONG)), tokenizer, dropping)


def test_a_turn_mark_that_is_no_generation_prompt_does_not_learn() -> None:
    tokenizer = byte_level(*MARKERS)
    unprompted = ChatTemplate("own", FORGETFUL.partition("{% if add")[0].replace("<think>", ""))
    chat = Conversation(messages([("assistant", "Hello."), ("user", "a"), ("assistant", "b")]))
    first = chat_template(tokenizer, "chatml").source.partition("{{- '<|im_start|>")[0]
    for template in (ChatTemplate("own", first), chat_template(tokenizer, "chatml")):
        found = encode_conversation(chat, tokenizer, template)
        assert learnt(found, tokenizer) == ["Hello.<|im_end|>", "b<|im_end|>"]
    assert not unprompted.has_generation_prompt


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        (
            "### Human: text### Assistant: the model.### Human: and?\n### Assistant: plain",
            [" the model.", " plain</s>"],
        ),
        ("### Human: text\n### Assistant: the model.\n### Human: and?", [" the model."]),
        ("### Human: text\n### Assistant: the model.</s>", [" the model.</s>"]),
        (
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\ntext [/INST] the model </s><s>[INST] and? "
            "[/INST] plain </s>",
            [" the model </s>", " plain </s>"],
        ),
        ("<|user|>\ntext</s>\n<|assistant|>\nplain</s>\n", ["plain</s>"]),
        (
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nplain 漢<|im_end|>\n",
            ["plain 漢<|im_end|>"],
        ),
    ],
)
def test_rendered_text(tokenizer: Tokenizer, text: str, runs: list[str]) -> None:
    example = parse_row({"text": text}, "text")
    assert isinstance(example, RenderedText)
    template = chat_template(tokenizer)
    found = encode_conversation(example, tokenizer, template)
    assert learnt(found, tokenizer) == runs
    expected = theirs(tokenizer)(text.rstrip(), add_special_tokens=False)["input_ids"]
    ended = text.endswith(("</s>", ">\n", "and?"))
    assert found.tokens.tolist() == (expected if ended else [*expected, tokenizer.eos_id])
    text_only = "".join(runs).replace("</s>", "").replace("<|im_end|>", "")
    assert found.num_bytes == len(text_only.encode())
    last = encode_conversation(example, tokenizer, template, learn="last")
    assert learnt(last, tokenizer) == runs[-1:]
    assert encode_conversation(example, tokenizer, template, learn="all").learns.all()


def test_rendered_text_gets_the_bos_that_the_tokenizer_puts_in_front(llama2: Any) -> None:
    tokenizer, reference = llama2
    template = chat_template(tokenizer)
    for text in ("### Human: Hi\n### Assistant: Hello world", "<s>[INST] Hi [/INST] Hello world"):
        example = parse_row({"text": text}, "text")
        assert isinstance(example, RenderedText)
        found = encode_conversation(example, tokenizer, template)
        plain = reference(text.removeprefix("<s>"), add_special_tokens=True)["input_ids"]
        assert found.tokens.tolist() == [*plain, 2]
        assert found.tokens[found.learns].tolist() == [15043, 3186, 2]


def test_both_sides_of_a_pair(tokenizer: Tokenizer) -> None:
    template = chat_template(tokenizer)
    prompt = messages([("user", "a"), ("assistant", "b"), ("user", "what?")])
    pair = Preference(
        prompt, messages([("assistant", "the model")]), messages([("assistant", "text")])
    )
    chosen, rejected = encode_preference(pair, tokenizer, template)
    for side, said in ((chosen, "the model"), (rejected, "text")):
        assert learnt(side, tokenizer) == [f"{said}<|im_end|>"]
        whole = encode_conversation(
            Conversation((*prompt, Message("assistant", said))), tokenizer, template
        )
        assert side.tokens.tolist() == whole.tokens.tolist()
        assert side.num_bytes == len(said)


def test_an_error_stands_in_the_place_of_its_example() -> None:
    tokenizer = byte_level()
    template = chat_template(tokenizer, "llama-2")
    good = Conversation(messages(CHATS[0]))
    bad = Conversation(messages([("assistant", "a")]))
    found = encode_conversations([good, bad, good], tokenizer, template)
    assert isinstance(found[1], RowError)
    single = encode_conversation(good, tokenizer, template)
    for one in (found[0], found[2]):
        assert isinstance(one, Encoded)
        np.testing.assert_array_equal(one.tokens, single.tokens)
    pairs = [
        Preference(good.messages[:1], good.messages[1:], messages([("assistant", said)]))
        for said in ("text", "A model learns. ")  # the second is the same once it is rendered
    ]
    first, second = encode_preferences(pairs, tokenizer, template)
    assert isinstance(first, tuple)
    assert isinstance(second, RowError)


def test_the_vocabulary_of_llama_2(llama2: Any) -> None:
    tokenizer, reference = llama2
    for name in ("zephyr", "llama-2"):
        template = chat_template(tokenizer, name)
        assert end_of_turn_ids(tokenizer, template) == (2,)
        reference.chat_template = template.source
        examples = [Conversation(messages(chat)) for chat in CHATS]
        found = encode_conversations(examples, tokenizer, template)
        for chat, one in zip(CHATS, found, strict=True):
            assert isinstance(one, Encoded)
            expected = reference.apply_chat_template(dicts(chat), return_dict=False)
            assert one.tokens.tolist() == expected
            slow = slow_mask(expected, tokenizer, *ROUND[name])
            assert one.learns.tolist() == slow


@pytest.mark.slow
def test_smollm2(tmp_path: Path) -> None:
    named = os.environ.get("LLAMITA_SMOLLM2_GGUF")
    if named is None:
        pytest.skip("set LLAMITA_SMOLLM2_GGUF to the GGUF file of SmolLM2-135M-Instruct")
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(Path(named).parent, gguf_file=Path(named).name)
    reference.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert "SmolLM" in str(tokenizer.chat_template)
    template = chat_template(tokenizer)
    end = tokenizer.id_of("<|im_end|>")
    assert end in end_of_turn_ids(tokenizer, template)
    for chat in CHATS:
        for source in (template, chat_template(tokenizer, "chatml")):
            found = encode_conversation(Conversation(messages(chat)), tokenizer, source)
            reference.chat_template = source.source
            expected = reference.apply_chat_template(dicts(chat), return_dict=False)
            assert found.tokens.tolist() == expected
            assert found.learns.tolist() == slow_mask(expected, tokenizer, *ROUND["chatml"])
