"""From tokenizer.json to the keys of a GGUF file, such that llama.cpp gives the same ids.

The counterpart of gguf_tokenizer.py: byte-level BPE is written as "gpt2", sentencepiece's BPE as
"llama". What llama.cpp would read otherwise is refused, or said where it touches few texts.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamita.architecture.config import ModelConfig
from llamita.data.chat_template import chat_template, end_of_turn_ids
from llamita.data.pre_tokenizers import READ_PRE_TOKENIZERS, expressions_of, llama_cpp_name
from llamita.data.score_merges import merges_by_score
from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_SPACE = "▁"
_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
_PREFIX = "tokenizer.ggml."
_LONGEST_RUN = 200
# Where llama.cpp approximates the model's own expression: see pre_tokenizers.py.
_APPROXIMATED = ("tekken", "gpt-4o", "llama4")


def tokenizer_fields(
    tokenizer: Tokenizer, config: ModelConfig, *, say: Callable[[str], None]
) -> dict[str, Any]:
    """The `tokenizer.*` keys of a GGUF file: strings, numbers, and lists with a value a token.

    The vocabulary is filled up to the embedding's rows with tokens [PADn], as converters do.

    Args:
        say: told of what llama.cpp will do otherwise than this tokenizer, in rare texts.

    Raises:
        UserError: llama.cpp has no form for this tokenizer; the message says which part of it.
    """
    specification = tokenizer.specification
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model only "
            f"{config.vocab_size} rows for them: they do not belong together"
        )
    _refuse_other_models(specification)
    added = {int(token["id"]): token for token in specification.get("added_tokens") or ()}
    tokens = _tokens(specification, added, config.vocab_size)
    if expressions_of(specification) is not None:
        fields = _byte_level(specification, say)
        types = _types(tokens, added)
    elif (spaces := _spaces(specification)) is not None:
        fields = _sentencepiece(specification, tokens, spaces, say)
        types = _types(tokens, added, specification["model"])
    else:
        raise UserError(_no_name(specification))
    for token in added.values():
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
            say(
                f"the token {token['content']!r} takes spaces beside it, or whole words alone, "
                "which llama.cpp does not"
            )
    named = {f"{_PREFIX}tokens": tokens, f"{_PREFIX}token_type": types}
    ends = _special_ids(tokenizer, config, say)
    template = tokenizer.chat_template
    last = {} if template is None else {"tokenizer.chat_template": template}
    return fields | named | ends | last


def _refuse_other_models(specification: Mapping[str, Any]) -> None:
    model = specification["model"]
    kind = model.get("type", "BPE")
    if kind != "BPE":
        raise UserError(
            f"the tokenizer is a {kind} model; GGUF is written of BPE alone, byte-level or "
            "sentencepiece's. Use `--to hf`"
        )
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise UserError(
                f"the tokenizer's BPE has {key} = {model[key]!r}, which llama.cpp does not know; "
                "use `--to hf`"
            )


def _tokens(
    specification: Mapping[str, Any], added: Mapping[int, Mapping[str, Any]], rows: int
) -> list[str]:
    tokens = [f"[PAD{number}]" for number in range(rows)]
    for token, number in specification["model"]["vocab"].items():
        tokens[number] = token
    for number, entry in added.items():
        tokens[number] = str(entry["content"])
    if len(set(tokens)) < rows:
        raise UserError(
            "the tokenizer has two ids for one token, or one called [PADn], as GGUF calls ids "
            "without a token; use `--to hf`"
        )
    return tokens


def _types(
    tokens: list[str],
    added: Mapping[int, Mapping[str, Any]],
    sentencepiece: Mapping[str, Any] | None = None,
) -> list[int]:
    """A number a token: what it is to llama.cpp."""
    unknown = None if sentencepiece is None else sentencepiece.get("unk_token")
    falls_back = sentencepiece is not None and sentencepiece.get("byte_fallback")
    found = []
    for number, token in enumerate(tokens):
        if token == unknown:
            found.append(UNKNOWN)
        elif number in added:
            found.append(CONTROL if added[number].get("special") else USER_DEFINED)
        elif falls_back and token in _BYTES:
            found.append(BYTE)
        else:
            found.append(UNUSED if token == f"[PAD{number}]" else NORMAL)
    return found


def _merges(specification: Mapping[str, Any]) -> list[tuple[str, str]]:
    """`tokenizers` has written pairs as "a b", and now writes ["a", "b"]."""
    found = []
    for merge in specification["model"]["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        found.append((str(left), str(right)))
    return found


def _byte_level(specification: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    name = llama_cpp_name(specification)
    if name is None:
        raise UserError(_no_name(specification))
    normalizer = specification.get("normalizer")
    if normalizer is not None and not _is_empty(normalizer):
        if normalizer.get("type") != "NFC":
            raise UserError(
                f"the tokenizer changes text before it splits it ({normalizer.get('type')}), "
                "which llama.cpp does not; use `--to hf`"
            )
        say("the tokenizer puts text into Unicode's form NFC first; llama.cpp takes it as it comes")
    if name in _APPROXIMATED:
        say(f"llama.cpp's splitting for {name} differs from the tokenizer's in words outside ASCII")
    merges = [f"{left} {right}" for left, right in _merges(specification)]
    fields = {f"{_PREFIX}model": "gpt2", f"{_PREFIX}pre": name}
    return fields | ({f"{_PREFIX}merges": merges} if merges else {})


def _no_name(specification: Mapping[str, Any]) -> str:
    """Why a tokenizer cannot be written: what of its splitting llama.cpp has no name for."""
    found = expressions_of(specification)
    if found is None:
        pre = specification.get("pre_tokenizer") or {}
        steps = pre.get("pretokenizers") if pre.get("type") == "Sequence" else [pre]
        listed = " and ".join(str(step.get("type", "nothing")) for step in steps or ())
        what = f"by {listed}, with settings of its own"
    elif any(found == known for known in READ_PRE_TOKENIZERS.values()):
        whole = specification["model"].get("ignore_merges")
        what = (
            f"by {' and then by '.join(map(repr, found))} and takes words that are tokens "
            f"{'whole' if whole else 'by their merges'} (ignore_merges)"
        )
    else:
        what = f"by {' and then by '.join(map(repr, found))}"
    return (
        f"the tokenizer splits text {what}, for which llama.cpp has no name; it would give other "
        "ids. Use `--to hf`, or train with a tokenizer that splits by one of the names of "
        "`llamita tokenizer train`"
    )


@dataclass(frozen=True)
class _Spaces:
    """What is done to text before sentencepiece's BPE. `prefix`: a space is put in front."""

    prefix: bool
    everywhere: bool = True  # after each special token too, as llama.cpp does
    removes_extra: bool = False
    charsmap: bytes = b""


def _spaces(specification: Mapping[str, Any]) -> _Spaces | None:
    """`None` where something else is done than making spaces visible, as sentencepiece does."""
    pre = specification.get("pre_tokenizer")
    normalizer = specification.get("normalizer")
    if pre is not None:
        if pre.get("type") != "Metaspace" or pre.get("split", True) or not _is_empty(normalizer):
            return None
        scheme = pre.get("prepend_scheme", "always")
        return _Spaces(scheme != "never", everywhere=scheme != "first")
    if normalizer is None:
        return None
    steps = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
    prefix = removes = visible = False
    charsmap = b""
    for step in steps:
        kind, pattern = step.get("type"), step.get("pattern") or {}
        if kind == "Precompiled":
            charsmap = base64.b64decode(step["precompiled_charsmap"])
        elif kind == "Prepend" and step.get("prepend") == _SPACE:
            prefix = True
        elif kind == "Replace" and (pattern.get("String"), step.get("content")) == (" ", _SPACE):
            visible = True
        elif kind == "Strip" or (kind == "Replace" and pattern.get("Regex") == " {2,}"):
            removes = True
        else:
            return None
    return _Spaces(prefix, True, removes, charsmap) if visible else None


def _is_empty(normalizer: Mapping[str, Any] | None) -> bool:
    return normalizer is None or normalizer.get("normalizers") == []


def _sentencepiece(
    specification: Mapping[str, Any],
    tokens: list[str],
    spaces: _Spaces,
    say: Callable[[str], None],
) -> dict[str, Any]:
    if spaces.charsmap or spaces.removes_extra:
        say(
            "the tokenizer normalises text first (as sentencepiece's NFKC or its removal of extra "
            "spaces); llama.cpp takes text as it comes"
        )
    if spaces.prefix and not spaces.everywhere:
        say(
            "the tokenizer puts a space before the first word alone; llama.cpp does so after each "
            "special token too"
        )
    if not specification["model"].get("byte_fallback"):
        say("the tokenizer has no tokens for single bytes; llama.cpp fails at characters it lacks")
    fields: dict[str, Any] = {
        f"{_PREFIX}model": "llama",
        f"{_PREFIX}pre": "default",
        f"{_PREFIX}scores": _scores(specification, tokens),
        f"{_PREFIX}add_space_prefix": spaces.prefix,
    }
    if spaces.removes_extra:
        fields[f"{_PREFIX}remove_extra_whitespaces"] = True
    if spaces.charsmap:
        fields[f"{_PREFIX}precompiled_charsmap"] = spaces.charsmap
    return fields


def _scores(specification: Mapping[str, Any], tokens: list[str]) -> list[float]:
    """Minus a piece's place among the merges, which is what sentencepiece's trainer writes too.

    Raises:
        UserError: no scores give these merges: sentencepiece, and llama.cpp, join neighbours by
            what comes of them, so that every way to make a piece must have the same rank.
    """
    merges = _merges(specification)
    vocabulary: Mapping[str, int] = specification["model"]["vocab"]
    ranks: dict[str, list[int]] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, []).append(rank)
    places = {piece: number for number, piece in enumerate(ranks)}
    grouped = merges_by_score({piece: -float(n) for piece, n in places.items()}, vocabulary)
    missing = {*grouped} - {*merges}
    if missing:
        raise UserError(_NO_SCORES.format(piece="".join(min(missing))))
    apart = {piece: found for piece, found in ranks.items() if found[-1] - found[0] >= len(found)}
    if apart and not _only_runs(merges, grouped, apart, vocabulary):
        raise UserError(_NO_SCORES.format(piece=next(iter(apart))))
    return [-float(places.get(token, len(places) + n)) for n, token in enumerate(tokens)]


def _only_runs(
    merges: Sequence[tuple[str, str]],
    grouped: Sequence[tuple[str, str]],
    apart: Mapping[str, list[int]],
    vocabulary: Mapping[str, int],
) -> bool:
    """Whether bringing the merges of each piece together changes no ids.

    So it is in Llama 2's tokenizer.json: among the merges from the first to the last of those
    `apart` there are only pieces of one character, spaces, repeated. Whatever is moved within such
    a stretch can then change runs of that character alone, and those are tried.
    """
    from tokenizers import models

    first = min(found[0] for found in apart.values())
    last = max(found[-1] for found in apart.values())
    characters = {character for pair in merges[first : last + 1] for character in "".join(pair)}
    if len(characters) > 1:
        return False
    (character,) = characters
    before = models.BPE(vocab=dict(vocabulary), merges=list(merges))
    after = models.BPE(vocab=dict(vocabulary), merges=list(grouped))
    return all(
        [token.id for token in before.tokenize(character * length)]
        == [token.id for token in after.tokenize(character * length)]
        for length in range(1, _LONGEST_RUN)
    )


_NO_SCORES = (
    "the tokenizer's merges have an order that no scores of pieces give (at {piece!r}), and "
    "llama.cpp merges by scores; use `--to hf`"
)


def _special_ids(
    tokenizer: Tokenizer, config: ModelConfig, say: Callable[[str], None]
) -> dict[str, Any]:
    before, after = _surroundings(tokenizer)
    bos = before if before is not None else tokenizer.bos_id
    ends = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    ends += config.eos_token_ids
    if tokenizer.chat_template is not None:
        try:  # the end of a turn before whatever else the config may list
            ends[1:1] = end_of_turn_ids(tokenizer, chat_template(tokenizer))
        except UserError as error:
            say(f"which token ends a turn is not told: {error}")
    ends = [number for number in dict.fromkeys(ends) if number < tokenizer.vocab_size]
    eos = after if after is not None else next(iter(ends), None)
    others = [number for number in ends if number != eos]
    if eos is None:
        say("the tokenizer has no token that ends a text; llama.cpp then takes one of its own")
    if len(others) > 2:
        say(f"GGUF has room for three tokens that end a text; left out: {others[2:]}")
    named = {
        "bos": bos,
        "eos": eos,
        "eot": others[0] if others else None,
        "eom": others[1] if len(others) > 1 else None,
        "unknown": tokenizer.id_of(tokenizer.specification["model"].get("unk_token") or ""),
        "padding": tokenizer.pad_id,
    }
    found: dict[str, Any] = {
        f"{_PREFIX}{name}_token_id": number for name, number in named.items() if number is not None
    }
    found[f"{_PREFIX}add_bos_token"] = before is not None
    found[f"{_PREFIX}add_eos_token"] = after is not None
    return found


def _surroundings(tokenizer: Tokenizer) -> tuple[int | None, int | None]:
    """The tokens that the post-processor puts before and after a text.

    Raises:
        UserError: more than one on a side, for which GGUF has no key.
    """
    written = (tokenizer.decode([number]) for number in range(tokenizer.vocab_size))
    texts = itertools.chain(["a"], written)  # any that gives an id; a vocabulary may lack "a"
    text = next((text for text in texts if tokenizer.encode_chat(text)), "")
    plain, whole = tokenizer.encode_chat(text), tokenizer.encode_prompt(text)
    room = len(whole) - len(plain)
    place = next((n for n in range(room + 1) if whole[n : n + len(plain)] == plain), None)
    if place is None or place > 1 or room - place > 1:
        raise UserError(
            f"the tokenizer's post-processor makes {whole} of the ids {plain}; GGUF can say one "
            "token before a text and one after it"
        )
    return (whole[0] if place else None), (whole[-1] if room - place else None)
