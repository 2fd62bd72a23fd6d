"""Conversations in files: one JSON object a line, which `llamita tune --data` reads too."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamita.data.chat_records import Conversation as Rows
from llamita.data.chat_records import Message, RowError, parse_row, recognise
from llamita.durable import replace_synced
from llamita.errors import UserError

if TYPE_CHECKING:
    from llamita.inference.conversation import Conversation


def save_conversation(path: Path, conversation: Conversation, model: str) -> None:
    """Write messages, model and sampling, whole or not at all.

    Raises:
        UserError: there is nothing to save, or the place cannot be written.
    """
    if not conversation.num_exchanges:
        raise UserError("there is nothing to save yet")
    messages = [
        {"role": message.role, "content": message.content} for message in conversation.messages
    ]
    settings = dataclasses.asdict(conversation.sampling)
    record = {
        "messages": messages,
        "model": model,
        "sampling": {
            **settings,
            "max_tokens": conversation.max_tokens,
            "stop": list(conversation.stop),
        },
    }
    if not path.parent.is_dir():
        raise UserError(f"there is no directory {path.parent}: make it, or name another")
    replace_synced(path, json.dumps(record, ensure_ascii=False) + "\n")


def load_messages(path: Path) -> tuple[Message, ...]:
    """The messages of a file that holds one conversation, of any form that tuning reads.

    Raises:
        UserError: no such file, no JSON, no conversation, or more than one.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UserError(f"{path} cannot be read: {reason}") from error
    rows = _rows(path, text)
    if len(rows) != 1:
        raise UserError(f"{path} holds {len(rows):,} conversations; a chat goes on with one")
    try:
        found = [row for row in rows if isinstance(row, Mapping)]
        example = parse_row(rows[0], recognise(found))
    except RowError as error:
        raise UserError(f"{path} is no conversation: {error}") from error
    if not isinstance(example, Rows):
        raise UserError(f"{path} holds a text that is rendered already; messages are needed")
    return example.messages


def _rows(path: Path, text: str) -> list[Any]:
    """A JSON array's rows, an object in any layout, or objects one a line."""
    try:
        try:
            whole = json.loads(text)
        except json.JSONDecodeError:
            lines = [line for line in text.split("\n") if line.strip()]
            if len(lines) < 2:
                raise
            return [json.loads(line) for line in lines]
    except RecursionError:
        raise UserError(f"{path} is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if isinstance(whole, list) and whole and all(_is_message(row) for row in whole):
        return [{"messages": whole}]
    return whole if isinstance(whole, list) else [whole]


def _is_message(row: Any) -> bool:
    return isinstance(row, Mapping) and "role" in row and "content" in row
