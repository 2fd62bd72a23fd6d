"""The text of tokens as they come: no character broken, no stop string begun."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError

_tables: WeakKeyDictionary[Tokenizer, list[bytes]] = WeakKeyDictionary()


def _text_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """What each id adds to a text, by id; made once for a tokenizer (40 ms for 49,152 tokens)."""
    table = _tables.get(tokenizer)
    if table is None:
        table = tokenizer.token_bytes()
        for token in tokenizer.special_ids:
            table[token] = b""
        _tables[tokenizer] = table
    return table


class TextStream:
    """One text, token by token.

    A text ends at the stop string that is complete first; of two that are complete at once, at
    the one that began first. So where tokens are cut changes nothing.

    Args:
        tokenizer: special tokens give no text, nor do ids beyond its vocabulary (a model may have
            more rows than its tokenizer has tokens).
        stop: strings that end the text and are no part of it.

    Attributes:
        stopped: the stop string that was met, None so far.

    Raises:
        UserError: an empty stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        if "" in stop:
            raise UserError("a stop string is empty: give at least one character, or leave it out")
        self.stopped: str | None = None
        self._table = _text_bytes(tokenizer)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = tuple(dict.fromkeys(stop))
        # Longest first, so that the first that fits is the longest that may yet become a stop.
        beginnings = {each[:length] for each in self._stop for length in range(1, len(each))}
        self._beginnings = tuple(sorted(beginnings, key=len, reverse=True))
        self._held = ""

    def bytes_of(self, token_id: int) -> bytes:
        """What a token adds to a text, perhaps a part of a character; nothing if it is special."""
        return self._table[token_id] if 0 <= token_id < len(self._table) else b""

    def push(self, token_id: int) -> str:
        """The text that has become safe to show with this token; empty once a stop was met."""
        return self._take(self._decoder.decode(self.bytes_of(token_id)))

    def finish(self) -> str:
        """What was held back, when no more tokens come; half a character is U+FFFD."""
        rest = self._take(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return rest + held

    def _take(self, text: str) -> str:
        if self.stopped is not None:
            return ""
        if not self._stop:
            return text
        text = self._held + text
        found = [stop for stop in self._stop if stop in text]
        met = [(text.find(stop) + len(stop), -len(stop), stop) for stop in found]
        if met:
            end, _, self.stopped = min(met)
            self._held = ""
            return text[: end - len(self.stopped)]
        self._held = ""
        if text.endswith(self._beginnings):
            self._held = next(each for each in self._beginnings if text.endswith(each))
        return text[: len(text) - len(self._held)]
