"""Rows of every form, and rows that are none."""

from __future__ import annotations

from typing import Any

import pytest

from llamita.data.chat_records import (
    Conversation,
    Message,
    Preference,
    RenderedText,
    RowError,
    parse_row,
    recognise,
)

USER, ANSWER = Message("user", "Hi"), Message("assistant", "Hello.")
PLAIN = Conversation((USER, ANSWER))


def parsed(row: dict[str, Any], kind: Any = "chats") -> Any:
    return parse_row(row, recognise([row], kind))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "gpt", "content": "Hello."}]},
            PLAIN,
        ),
        (
            {
                "prompt": "Hi",
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "H"}, *2 * [None]][:1]},
                    {"role": "assistant", "content": [{"type": "text", "value": "Hello."}]},
                ],
            },
            Conversation((Message("user", "H"), ANSWER)),
        ),
        (
            {
                "system": "Be brief.",
                "conversations": [
                    {"from": "human", "value": "Hi", "weight": 0},
                    {"from": "gpt", "value": "Hello.", "weight": 1},
                ],
            },
            Conversation(
                (
                    Message("system", "Be brief."),
                    Message("user", "Hi", learns=False),
                    Message("assistant", "Hello.", learns=True),
                )
            ),
        ),
        (
            {"instruction": "Add.", "input": "1, 2", "output": "3", "system": ""},
            Conversation((Message("user", "Add.\n1, 2"), Message("assistant", "3"))),
        ),
        (
            {"instruction": "Hi", "input": "", "output": "Hello.", "history": [["A", "B"]]},
            Conversation((Message("user", "A"), Message("assistant", "B"), USER, ANSWER)),
        ),
        (
            {"prompt": "Hi", "completion": "Hello."},
            Conversation((Message("user", "Hi", learns=False), ANSWER)),
        ),
        (
            {
                "prompt": [
                    {"role": "user", "content": "A"},
                    {"role": "assistant", "content": "B"},
                    {"role": "user", "content": "Hi"},
                ],
                "completion": [{"role": "assistant", "content": "Hello."}],
            },
            Conversation(
                (
                    Message("user", "A", learns=False),
                    Message("assistant", "B", learns=False),
                    Message("user", "Hi", learns=False),
                    ANSWER,
                )
            ),
        ),
    ],
)
def test_chats_of_every_form(row: dict[str, Any], expected: Conversation) -> None:
    assert parsed(row) == expected


ONE_PAIR = Preference((USER,), (ANSWER,), (Message("assistant", "Go."),))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go."},
        {"question": "Hi", "chosen": "Hello.", "rejected": "Go.", "system": ""},
        {"instruction": "Hi", "input": "", "chosen": "Hello.", "rejected": "Go."},
        {
            "prompt": [{"role": "user", "content": "Hi"}],
            "chosen": [{"role": "assistant", "content": "Hello."}],
            "rejected": [{"role": "assistant", "content": "Go."}],
        },
        {  # implicit: the two sides share their beginning
            "chosen": [{"role": "user", "content": "Hi"}, {"role": "bot", "content": "Hello."}],
            "rejected": [{"role": "user", "content": "Hi"}, {"role": "bot", "content": "Go."}],
        },
        {  # UltraFeedback: the prompt is in both places
            "prompt": "Hi",
            "chosen": [{"role": "user", "content": "Hi"}, {"role": "bot", "content": "Hello."}],
            "rejected": [{"role": "user", "content": "Hi"}, {"role": "bot", "content": "Go."}],
            "messages": [{"role": "user", "content": "Hi"}, {"role": "bot", "content": "Hello."}],
        },
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello."},
            "rejected": {"from": "gpt", "value": "Go."},
        },
        {  # Anthropic's HH-RLHF
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Go.",
        },
    ],
)
def test_pairs_of_every_form(row: dict[str, Any]) -> None:
    assert parsed(row, "preferences") == ONE_PAIR


def test_a_system_message_and_earlier_turns_are_prompt() -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "Hi"},
    ]
    row = {
        "chosen": [*turns, {"role": "assistant", "content": "Hello."}],
        "rejected": [*turns, {"role": "assistant", "content": "Go."}],
    }
    pair = parsed(row, "preferences")
    assert [turn.role for turn in pair.prompt] == ["system", "user", "assistant", "user"]
    assert (pair.chosen, pair.rejected) == (ONE_PAIR.chosen, ONE_PAIR.rejected)


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        (
            "### Human: Hi### Assistant: Hello.### Human: What?### Assistant: Nothing.",
            [" Hello.", " Nothing."],
        ),
        (
            "### Human: What is ### Assistant?\n### Assistant: A mark.\n\n### Human: Oh",
            [" A mark.\n\n"],
        ),
        (
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] What? "
            "[/INST] Nothing. </s>",
            [" Hello. </s>", " Nothing. </s>"],
        ),
        ("[INST] Hi [/INST] Hello.", [" Hello."]),
        (
            "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello.</s>\n<|user|>\nOh",
            ["Hello.</s>"],
        ),
        (
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
            "<|im_start|>user\nOh<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n",
            ["Hello.<|im_end|>", "So.<|im_end|>"],
        ),
        ("Below is a task.\n\n### Instruction:\nHi\n\n### Response:\nHello.", ["Hello."]),
    ],
)
def test_answers_are_found_again_in_rendered_text(text: str, answers: list[str]) -> None:
    found = parsed({"text": text})
    assert isinstance(found, RenderedText)
    assert [found.text[start:stop] for start, stop in found.answers] == answers


def turns(*said: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in said]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "empty conversation: messages has no messages"),
        ({"messages": '[{"role": "user"}]'}, "messages is a string that holds JSON"),
        ({"messages": {"role": "user"}}, "no list of messages: messages is dict"),
        ({"messages": ["Hi"]}, r"messages\[0\] must be an object, it is str"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\] needs role and content.*has 'role'"),
        (turns(("user", "a"), ("narrator", "b")), r"unknown role 'narrator': messages\[1\]; roles"),
        (turns(("user", "a"), (3, "b")), "unknown role 3"),
        (turns(("user", "a"), ("user", "b"), ("bot", "c")), "two turns of the user running: .* 2"),
        (turns(("user", "a"), ("bot", "b"), ("gpt", "c")), "two turns of the assistant running"),
        (turns(("system", "a"), ("user", "b")), "no answer: no message is the assistant's"),
        (turns(("user", "a"), ("bot", " \n")), "empty answer: message 2 is blank"),
        (turns(("user", ""), ("bot", "b")), "empty question: message 1"),
        (turns(("user", 7), ("bot", "b")), r"content is no string: messages\[0\].*int"),
        (turns(("user", None), ("bot", "b")), "content of type NoneType"),
        (turns(("user", [{"type": "image_url"}]), ("bot", "b")), "part 0 .* type 'image_url'"),
        (turns(("user", "a\ud800"), ("bot", "b")), "broken Unicode"),
        (
            {"messages": [{"role": "user", "content": "a", "weight": 0.5}]},
            "weight is neither 0 nor 1: .*0.5",
        ),
        (
            {"messages": [{"role": "bot", "content": "a", "tool_calls": [{"name": "f"}]}]},
            "calls of tools",
        ),
        ({"instruction": "a", "input": 3, "output": "b"}, "no string: input must be .* int"),
        ({"instruction": "a", "output": ""}, "empty answer"),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, r"history\[0\] must be"),
        ({"text": "Once upon a time."}, "no answer in the text: none of the marks .*### Assistant"),
        ({"text": "### Human: Hi\n### Assistant:"}, "empty answer"),
        ({"text": ["a"]}, "text must be a string"),
    ],
)
def test_wrong_chats(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        parsed(row)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "empty answer"),
        ({"chosen": "b", "rejected": "c"}, "no prompt: 'chosen' is a string, and the row has no"),
        (
            {"chosen": turns(("bot", "a"))["messages"], "rejected": "b", "prompt": None},
            "no prompt",
        ),
        (
            {
                "chosen": turns(("user", "a"), ("bot", "b"))["messages"],
                "rejected": turns(("user", "a"))["messages"],
            },
            "no answer: 'rejected' has no assistant's turn",
        ),
        ({"prompt": "a", "chosen": 3, "rejected": "b"}, "no list of messages: chosen is int"),
    ],
)
def test_wrong_pairs(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        parsed(row, "preferences")


def test_rows_of_no_known_form_name_their_fields_and_the_nearest() -> None:
    with pytest.raises(RowError, match=r"'mesages', 'id'.*Did you mean 'messages'"):
        recognise([{"mesages": [], "id": 3}])
    with pytest.raises(RowError, match="llamita align and data build --preferences read them"):
        recognise([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(RowError, match=r"a pair has 'chosen' and 'rejected'.*fields here: 'text'"):
        recognise([{"text": "a"}], "preferences")


def test_the_first_row_of_a_known_form_decides() -> None:
    rows = [{"id": 1}, {"instruction": "a", "output": "b"}, {"text": "c"}]
    assert recognise(rows) == "alpaca"
    with pytest.raises(RowError, match=r"no field 'instruction'|no field 'output'"):
        parse_row({"text": "c"}, "alpaca")
    with pytest.raises(RowError, match="must be a JSON object, this is list"):
        parse_row([1], "alpaca")
