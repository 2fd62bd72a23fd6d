"""A tokenizer read from and written to a Hugging Face directory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamita.errors import UserError

if TYPE_CHECKING:
    import tokenizers

_BOS_NAMES = ("<s>", "<|begin_of_text|>", "<|startoftext|>", "<bos>", "[BOS]", "[CLS]")
_EOS_NAMES = ("</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>", "[EOS]", "[SEP]")
_PAD_NAMES = ("<pad>", "<|pad|>", "<|finetune_right_pad_id|>", "[PAD]")


class Tokenizer:
    """Text to token ids and back.

    Args:
        text: the contents of a tokenizer.json.
        bos_id, eos_id, pad_id: ids of the special tokens, `None` where the vocabulary has none.
        chat_template: a Jinja chat template, `None` if there is none.

    Text is encoded as text: a document that mentions `</s>` yields the tokens of those four
    characters, never the special token. Only `encode_prompt` reads special strings as such.
    """

    def __init__(
        self,
        text: str,
        *,
        bos_id: int | None = None,
        eos_id: int | None = None,
        pad_id: int | None = None,
        chat_template: str | None = None,
    ) -> None:
        parsed = json.loads(text)
        parsed["truncation"] = parsed["padding"] = None
        self._json: dict[str, Any] = parsed
        self._text = _backend(parsed)
        self._text.encode_special_tokens = True
        # The largest id plus one, added tokens included.
        self.vocab_size = max(self._text.get_vocab().values(), default=-1) + 1
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.chat_template = chat_template
        for name, token in (("bos", bos_id), ("eos", eos_id), ("pad", pad_id)):
            if token is not None and not 0 <= token < self.vocab_size:
                raise UserError(
                    f"the tokenizer's {name} id {token} is outside its vocabulary of "
                    f"{self.vocab_size}; correct it in tokenizer_config.json or config.json."
                )

    def to_json(self) -> str:
        """The contents of tokenizer.json."""
        return json.dumps(self._json, ensure_ascii=False, indent=2) + "\n"

    @property
    def specification(self) -> Mapping[str, Any]:
        """tokenizer.json as a mapping; to be read, not changed."""
        return self._json

    @cached_property
    def _prompt(self) -> tokenizers.Tokenizer:
        return _backend(self._json)

    @cached_property
    def _placing(self) -> tokenizers.Tokenizer:
        """Without a post-processor of GPT-2's kind, which cuts spaces off the places of tokens."""
        if "trim_offsets" not in json.dumps(self._json.get("post_processor")):
            return self._prompt
        return _backend({**self._json, "post_processor": None})

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of tokenizer.json's meaning: layout and key order do not change it."""
        canonical = json.dumps(self._json, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of `text`: nothing is added, special strings in it are text."""
        return list(self._text.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        found = self._text.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of `text` with special strings read as special tokens, and with those that the
        tokenizer's own post-processor adds (usually a leading BOS)."""
        return list(self._prompt.encode(text, add_special_tokens=True).ids)

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_prompt` of each text, on all cores."""
        found = self._prompt.encode_batch_fast(list(texts), add_special_tokens=True)
        return [encoding.ids for encoding in found]

    def encode_chat(self, text: str) -> list[int]:
        """Ids of a rendered chat template: special strings are special, nothing is added."""
        return list(self._prompt.encode(text, add_special_tokens=False).ids)

    def encode_chats(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """`encode_chat` of each text, on all cores, and where in the text each token lies.

        Places are (start, stop) in characters, spaces that belong to a token included. Tokens of
        parts of one character all have that character's place.
        """
        found = self._placing.encode_batch(list(texts), add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in found]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of `ids`."""
        return self._text.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def id_of(self, token: str) -> int | None:
        """The id of a token's string, or `None`."""
        found: int | None = self._text.token_to_id(token)
        return found

    def token_of(self, token_id: int) -> str | None:
        """The string of an id as the vocabulary spells it, or `None`."""
        found: str | None = self._text.id_to_token(token_id)
        return found

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the added tokens that are marked special."""
        added = self._json.get("added_tokens") or ()
        return frozenset(int(token["id"]) for token in added if token.get("special"))

    def token_bytes(self) -> list[bytes]:
        """The UTF-8 bytes that each id stands for, by id (`b""` for holes in the vocabulary).

        Joining them gives the text except for what the decoder strips at the start (the space
        that Llama-2-like tokenizers put in front).
        """
        table = [b""] * self.vocab_size
        byte_level = _uses_byte_level(self._json)
        characters = {char: byte for byte, char in _byte_characters().items()}
        for token, number in self._text.get_vocab(with_added_tokens=False).items():
            if byte_level and all(char in characters for char in token):
                table[number] = bytes(characters[char] for char in token)
            elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                table[number] = bytes([int(token[3:5], 16)])
            else:
                table[number] = token.replace("▁", " ").encode("utf-8", "replace")
        for added in self._json.get("added_tokens") or ():
            table[int(added["id"])] = str(added["content"]).encode()
        return table

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and, where there is a chat template,
        chat_template.jinja, as Transformers' AutoTokenizer reads them."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self.to_json(), encoding="utf-8")
        config: dict[str, Any] = {
            # Any narrower class would rebuild its own pre- and post-processors on loading.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        }
        for key, number in (("bos", self.bos_id), ("eos", self.eos_id), ("pad", self.pad_id)):
            if number is not None:
                config[f"{key}_token"] = self.token_of(number)
        unknown = self._json["model"].get("unk_token")
        if unknown is not None:
            config["unk_token"] = unknown
        text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
        template = folder / "chat_template.jinja"
        if self.chat_template is not None:
            template.write_text(self.chat_template, encoding="utf-8")
        else:
            template.unlink(missing_ok=True)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer.

    Args:
        path: a directory with tokenizer.json (or a sentencepiece tokenizer.model), or such a file.

    Raises:
        UserError: nothing there, unreadable, or of a kind that is not known.
    """
    place = Path(path)
    if place.is_dir():
        if (place / "tokenizer.json").is_file():
            return _from_json_file(place / "tokenizer.json", place)
        if (place / "tokenizer.model").is_file():
            return _from_sentencepiece(place / "tokenizer.model", place)
        raise UserError(
            f"{place} has neither tokenizer.json nor tokenizer.model; name a directory that has "
            "one, or make one with `llamita tokenizer train`."
        )
    if not place.is_file():
        raise UserError(f"there is no tokenizer at {place}; name a directory or a tokenizer.json.")
    if place.suffix == ".model":
        return _from_sentencepiece(place, place.parent)
    return _from_json_file(place, place.parent if place.name == "tokenizer.json" else None)


def _from_sentencepiece(path: Path, folder: Path) -> Tokenizer:
    from llamita.data.sentencepiece_model import convert_sentencepiece

    text = convert_sentencepiece(path)
    return _with_specials(text, _read_settings(folder))


def _from_json_file(path: Path, folder: Path | None) -> Tokenizer:
    try:
        text = path.read_text(encoding="utf-8")
        parsed = json.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable tokenizer.json: {error}") from error
    if not isinstance(parsed, dict) or "model" not in parsed:
        raise UserError(
            f"{path} has no 'model': it is not a tokenizer.json as the `tokenizers` library "
            "writes it."
        )
    try:
        return _with_specials(text, {} if folder is None else _read_settings(folder))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _backend(parsed: Mapping[str, Any]) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(json.dumps(parsed))
    except Exception as error:  # `tokenizers` raises bare Exception on what it cannot read
        raise UserError(f"the `tokenizers` library cannot read tokenizer.json: {error}") from error


def _read_settings(folder: Path) -> dict[str, Any]:
    """What the files beside tokenizer.json say of special tokens and the chat template."""
    settings: dict[str, Any] = {}
    names = ("config.json", "generation_config.json", "special_tokens_map.json")
    for name in (*names, "tokenizer_config.json"):
        file = folder / name
        if not file.is_file():
            continue
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{file} is not readable JSON: {error}") from error
        if isinstance(found, dict):
            settings.update({key: value for key, value in found.items() if value is not None})
    template = folder / "chat_template.jinja"
    if template.is_file():
        settings["chat_template"] = template.read_text(encoding="utf-8")
    return settings


def _with_specials(text: str, settings: Mapping[str, Any]) -> Tokenizer:
    parsed = json.loads(text)
    added = {str(token["content"]): int(token["id"]) for token in parsed.get("added_tokens") or ()}
    vocabulary = parsed["model"].get("vocab")
    if isinstance(vocabulary, dict):
        added = {**vocabulary, **added}
    ids = {
        "bos": _special_id("bos", settings, added, _BOS_NAMES),
        "eos": _special_id("eos", settings, added, _EOS_NAMES),
        "pad": _special_id("pad", settings, added, _PAD_NAMES),
    }
    return Tokenizer(
        text,
        bos_id=ids["bos"],
        eos_id=ids["eos"],
        pad_id=ids["pad"],
        chat_template=_chat_template(settings.get("chat_template")),
    )


def _special_id(
    kind: str, settings: Mapping[str, Any], added: Mapping[str, int], usual: Sequence[str]
) -> int | None:
    """tokenizer_config's token, else config.json's id, else a usual name in the vocabulary.

    The usual names serve a lone tokenizer.json only: beside a tokenizer_config.json that leaves
    the token out, leaving it out is what its author meant.
    """
    token = settings.get(f"{kind}_token")
    if isinstance(token, dict):
        token = token.get("content")
    if isinstance(token, str) and token:
        if token not in added:
            raise UserError(
                f"tokenizer_config.json names {kind}_token {token!r}, which is not in the "
                "vocabulary; correct the name or add the token."
            )
        return added[token]
    number = settings.get(f"{kind}_token_id")
    if isinstance(number, list) and number:
        number = number[0]
    if isinstance(number, int) and number >= 0:
        return number
    if "tokenizer_class" in settings:
        return None
    return next((added[name] for name in usual if name in added), None)


def _chat_template(found: object) -> str | None:
    """One template: a list of named ones has its "default" taken."""
    if isinstance(found, str):
        return found
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found}
        template = named.get("default")
        return template if isinstance(template, str) else None
    return None


def _uses_byte_level(parsed: Mapping[str, Any]) -> bool:
    decoder = parsed.get("decoder") or {}
    parts = decoder.get("decoders") or [decoder]
    return any(part.get("type") == "ByteLevel" for part in parts)


def _byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: printable Latin-1 stands for itself, the other
    68 bytes are moved up from U+0100 in order."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in kept}
    moved = (byte for byte in range(256) if byte not in table)
    table.update({byte: chr(0x100 + place) for place, byte in enumerate(moved)})
    return table
