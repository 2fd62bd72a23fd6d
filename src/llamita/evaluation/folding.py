"""Text as its letters and digits alone, so that case, spacing and punctuation make no difference.

A *letter* below is one byte of UTF-8 of a letter or digit. Folding works character by character,
so that the letters of two texts joined are the letters of both.
"""

from __future__ import annotations

import re
import unicodedata

SEPARATORS = bytes(byte for byte in range(128) if not chr(byte).isalnum())
"""The ASCII that is neither letter nor digit: what stands between words once text is folded."""
_LOWER = bytes(ord(chr(byte).lower()) if byte < 128 else byte for byte in range(256))
_BEYOND_ASCII = re.compile("[^\x00-\x7f]+")
# Scripts written without spaces, of which each character counts as a word: Thai and Lao, Burmese,
# Khmer, kana, Han.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
)
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


def fold(text: str) -> bytes:
    """UTF-8 of `text` with everything beyond ASCII that is no letter or digit made a space.

    Letters beyond ASCII lose case, accents and width (Unicode's NFKD and case folding, without
    marks); invisible characters and soft hyphens vanish. ASCII stays as it is.
    """
    if text.isascii():
        return text.encode()
    return _BEYOND_ASCII.sub(_fold_run, text).encode()


def letters_of(folded: bytes) -> bytes:
    """The letters of a folded text, in lower case."""
    return folded.translate(_LOWER, SEPARATORS)


def words_of(text: str) -> list[str]:
    """The words of a text: runs of letters and digits; where a script has no spaces, characters."""
    found: list[str] = _WORD.findall(fold(text).decode().lower())
    return found


def is_unspaced(character: str) -> bool:
    """Whether a folded character is a word by itself."""
    return _UNSPACED_CHARACTER.fullmatch(character) is not None


def _fold_run(match: re.Match[str]) -> str:
    return match[0].translate(_TABLE)


def _fold_character(character: str) -> str:
    if _is_invisible(character):
        return ""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
    return "".join(part for part in folded if part.isalnum() and not _is_invisible(part)) or " "


def _is_invisible(character: str) -> bool:
    """Marks (M) and format characters such as a zero-width space (Cf)."""
    category = unicodedata.category(character)
    return category.startswith("M") or category == "Cf"


class _Table(dict[int, str]):
    """What `str.translate` asks; each character is folded once."""

    def __missing__(self, code: int) -> str:
        self[code] = _fold_character(chr(code))
        return self[code]


_TABLE = _Table()
