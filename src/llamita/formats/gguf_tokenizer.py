"""From the tokenizer that a GGUF file carries to tokenizer.json.

Two kinds are read: "gpt2", byte-level BPE with a list of merges and a pre-tokenizer known by name,
and "llama", sentencepiece's BPE, whose merges follow from scores. Both give llama.cpp's ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llamita.data.pre_tokenizers import (
    ADDING_BOS,
    IGNORING_MERGES,
    READ_PRE_TOKENIZERS,
    make_pre_tokenizer,
)
from llamita.data.score_merges import merges_by_score
from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError, did_you_mean
from llamita.formats.gguf_file import GgufFile

_MODEL, _PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
_TOKENS, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_SCORES, _MERGES = "tokenizer.ggml.scores", "tokenizer.ggml.merges"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_SPACE = "▁"


@dataclass(frozen=True)
class ReadTokenizer:
    """A tokenizer, what it was (for people), and the ids at which generation ends: the end of a
    text, and those of a turn and of a message where the file names them."""

    tokenizer: Tokenizer
    kind: str
    end_ids: tuple[int, ...]


def read_tokenizer(file: GgufFile, *, say: Callable[[str], None]) -> ReadTokenizer:
    """The tokenizer in a file.

    Args:
        say: told of what in the file is odd and was left out.

    Raises:
        UserError: no tokenizer, one of another kind, or a pre-tokenizer not known.
    """
    vocabulary = _Vocabulary(file, say)
    model = file.required(_MODEL, str)
    if model == "gpt2":
        backend, kind = _byte_level(vocabulary)
    elif model == "llama":
        backend, kind = _sentencepiece(vocabulary), "sentencepiece"
    else:
        raise UserError(
            f"{file.path} has a tokenizer of kind {model!r}; llamita reads gpt2 (byte-level BPE) "
            "and llama (sentencepiece BPE)"
        )
    tokenizer = Tokenizer(
        backend.to_str(),
        bos_id=vocabulary.bos_id,
        eos_id=vocabulary.eos_id,
        pad_id=vocabulary.id_of("padding"),
        chat_template=file.value("tokenizer.chat_template", str),
    )
    named = (vocabulary.eos_id, vocabulary.id_of("eot"), vocabulary.id_of("eom"))
    ends = tuple(dict.fromkeys(number for number in named if number is not None))
    return ReadTokenizer(tokenizer, kind, ends)


class _Vocabulary:
    """The tokens of a file with what it says of each, and its special ids."""

    def __init__(self, file: GgufFile, say: Callable[[str], None]) -> None:
        self.file = file
        self.say = say
        self.tokens: list[str] = file.required(_TOKENS, list)
        types = self.numbers(_TYPES)
        self.types: list[int] = [_NORMAL] * len(self.tokens) if types is None else types
        kept = [
            (token, number)
            for number, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if token and not _is_filling(token, number, kind)
        ]
        self.ids = dict(kept)
        if len(self.ids) < len(kept):
            raise UserError(f"{file.path} is damaged: {_TOKENS} holds a token twice")
        is_sentencepiece = file.value(_MODEL, str) == "llama"
        # llama.cpp's defaults: sentencepiece's own for "llama", none for "gpt2".
        self.bos_id = self.id_of("bos", 1 if is_sentencepiece else None)
        self.eos_id = self.id_of("eos", 2 if is_sentencepiece else None)

    def numbers(self, key: str) -> list[Any] | None:
        """An array with a number for each token, `None` if there is none."""
        found = self.file.fields.get(key)
        if found is None:
            return None
        if not isinstance(found, np.ndarray) or len(found) != len(self.tokens):
            raise UserError(
                f"{self.file.path} is damaged: {key} is no array of {len(self.tokens)} numbers, "
                f"one for each of {_TOKENS}"
            )
        return list(found.tolist())

    def id_of(self, name: str, default: int | None = None) -> int | None:
        """A special token's id. One outside the vocabulary is left out, and that is said."""
        key = f"tokenizer.ggml.{name}_token_id"
        found = self.file.value(key, int, default)
        if found is None:
            return None
        if not 0 <= found < len(self.tokens) or self.tokens[found] not in self.ids:
            self.say(f"{key} {found} is outside the vocabulary, and was left out")
            return None
        return found

    def of_type(self, *kinds: int) -> list[str]:
        return [
            token
            for token, kind in zip(self.tokens, self.types, strict=True)
            if kind in kinds and token in self.ids
        ]

    def adds(self, name: str, default: bool, number: int | None) -> bool:
        """Whether `bos` or `eos` is put around every text."""
        key = f"tokenizer.ggml.add_{name}_token"
        asked = self.file.value(key, bool, default)
        if asked and number is None:
            self.say(f"{key} is true without a {name} token, and has no effect")
        return bool(asked) and number is not None


def _is_filling(token: str, number: int, kind: int) -> bool:
    """Converters fill the vocabulary up to the embedding's rows with these; the tokenizer that a
    file was made from has none of them."""
    return kind == _UNUSED and token == f"[PAD{number}]"


def _byte_level(vocabulary: _Vocabulary) -> tuple[Any, str]:
    import tokenizers
    from tokenizers import decoders, models

    file = vocabulary.file
    name = file.value(_PRE, str)
    if name is None:
        vocabulary.say(
            f"{file.path.name} does not say how text is cut before merging ({_PRE}); 'default' is "
            "taken, as llama.cpp does, which may differ from what the model was trained with"
        )
        name = "default"
    if name not in READ_PRE_TOKENIZERS:
        raise UserError(
            f"{file.path}: {_PRE} is {name!r}, which llamita does not know."
            f"{did_you_mean(name, READ_PRE_TOKENIZERS)} Known: {', '.join(READ_PRE_TOKENIZERS)}"
        )
    merges = []
    for line in file.required(_MERGES, list):
        # A token may begin with a space only where it is written as one: from the second character.
        place = line.find(" ", 1)
        merges.append((line[:place], line[place + 1 :]))
    try:
        model = models.BPE(
            vocab=vocabulary.ids, merges=merges, ignore_merges=name in IGNORING_MERGES
        )
    except Exception as error:  # `tokenizers` raises bare Exception
        raise UserError(f"{file.path}: its merges do not fit its tokens: {error}") from None
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = make_pre_tokenizer(name)
    backend.decoder = decoders.ByteLevel()
    _add_special(backend, vocabulary, vocabulary.of_type(_UNKNOWN, _CONTROL))
    _surround(backend, vocabulary, bos=name in ADDING_BOS)
    return backend, f"byte-level BPE, {name}"


def _sentencepiece(vocabulary: _Vocabulary) -> Any:
    import tokenizers
    from tokenizers import decoders, models

    file = vocabulary.file
    scores = vocabulary.numbers(_SCORES)
    if scores is None:
        raise UserError(f"{file.path} has no {_SCORES}, by which sentencepiece merges")
    unknown = vocabulary.id_of("unknown", 0)
    if unknown is None:
        raise UserError(f"{file.path} has no unknown token, which sentencepiece's BPE needs")
    scored = zip(vocabulary.tokens, scores, vocabulary.types, strict=True)
    pieces = {token: score for token, score, kind in scored if token and kind == _NORMAL}
    model = models.BPE(
        vocab=vocabulary.ids,
        merges=list(merges_by_score(pieces, vocabulary.ids)),
        unk_token=vocabulary.tokens[unknown],
        fuse_unk=True,
        byte_fallback=_BYTE in vocabulary.types,
    )
    backend = tokenizers.Tokenizer(model)
    prefix = bool(file.value("tokenizer.ggml.add_space_prefix", bool, True))
    backend.normalizer = _normalizer(file, prefix)
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    special = dict.fromkeys([vocabulary.tokens[unknown], *vocabulary.of_type(_UNKNOWN, _CONTROL)])
    _add_special(backend, vocabulary, list(special))
    _surround(backend, vocabulary, bos=True)
    return backend


def _normalizer(file: GgufFile, prefix: bool) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    charsmap = file.fields.get("tokenizer.ggml.precompiled_charsmap")
    if isinstance(charsmap, np.ndarray) and len(charsmap):
        steps.append(normalizers.Precompiled(charsmap.tobytes()))
    if file.value("tokenizer.ggml.remove_extra_whitespaces", bool, False):
        steps.append(normalizers.Strip(left=True, right=True))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if prefix:
        steps.append(normalizers.Prepend(_SPACE))
    steps.append(normalizers.Replace(" ", _SPACE))
    return normalizers.Sequence(steps)


def _add_special(backend: Any, vocabulary: _Vocabulary, special: Sequence[str]) -> None:
    import tokenizers

    backend.add_special_tokens(list(special))
    user = vocabulary.of_type(_USER_DEFINED)
    backend.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in user])


def _surround(backend: Any, vocabulary: _Vocabulary, *, bos: bool) -> None:
    """Has BOS and EOS put around a text, where the file or the kind of tokenizer asks for it."""
    from tokenizers import processors

    before = vocabulary.bos_id if vocabulary.adds("bos", bos, vocabulary.bos_id) else None
    after = vocabulary.eos_id if vocabulary.adds("eos", False, vocabulary.eos_id) else None
    if before is None and after is None:
        return
    ids = {vocabulary.tokens[number]: number for number in (before, after) if number is not None}
    first = [] if before is None else [vocabulary.tokens[before]]
    last = [] if after is None else [vocabulary.tokens[after]]
    backend.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *first, "$B", *last],
        special_tokens=list(ids.items()),
    )
