"""Pre-tokenizers of byte-level BPE by the names that llama.cpp gives them (`tokenizer.ggml.pre`).

llama.cpp splits text with these expressions before it merges; a tokenizer trained with the same
expression can be written as GGUF and gives the same ids there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

_CONTRACTIONS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # signs, line ends, other white space
_LLAMA_3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN_2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_DIGIT = r"\p{N}"
_QWEN_35 = _QWEN_2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(
    r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"
)
_MINICPM_5 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}+")
# Words of capitals and small letters (GPT-4o, Mistral's Tekken) as their own tokenizer.json has
# them. llama.cpp's engine has no classes of case and approximates them, in ASCII.
_WORD = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+{end}"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*{end}"
)
_REST_SLASH = _REST.replace(r"[\r\n]*|", r"[\r\n/]*|", 1)
_TEKKEN = _WORD.replace("{end}", "") + rf"|\p{{N}}|{_REST_SLASH}"
_GPT_4O = _WORD.replace("{end}", f"{_CONTRACTIONS}?") + rf"|\p{{N}}{{1,3}}|{_REST_SLASH}"
_POINTS = r" ?[^(\s|.,!?…。，、।۔،)]+"
_THREE_DIGITS = "[0-9][0-9][0-9]"

# The expressions are applied in turn, each to the pieces that the one before left. These are the
# ones to train with: `fast_encode` knows each.
PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    "llama-bpe": (_LLAMA_3,),
    "gpt-2": (_GPT_2,),
    "qwen2": (_QWEN_2,),
    "smollm": (_DIGIT, _GPT_2),
}

# The others that models of the architectures read from GGUF name, by llama.cpp's source
# (src/llama-vocab.cpp, `llm_tokenizer_bpe` and `llama_vocab::impl::load`).
_SAME = {
    "llama-bpe": (
        "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "lfm2", "dbrx", "smaug-bpe", "glm4",
        "chatglm-bpe",
    ),
    "gpt-2": ("phi-2", "mpt", "olmo", "jais", "gigachat", "a.x-4.0", "mellum", "exaone4",
              "trillion", "granite-docling"),
    "qwen2": ("deepseek-r1-qwen", "kormo", "stablelm2", "megrez", "hunyuan"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
}  # fmt: skip
READ_PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    **PRE_TOKENIZERS,
    **{name: PRE_TOKENIZERS[known] for known, names in _SAME.items() for name in names},
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT_2, r"\p{N}+", _THREE_DIGITS),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT_2, _THREE_DIGITS),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", _DIGIT),
    "poro-chat": (_POINTS,),
    "viking": (_POINTS, _DIGIT),
    "tekken": (_TEKKEN,),
    "gpt-4o": (_GPT_4O,),
    "llama4": (_GPT_4O,),
    "qwen35": (_QWEN_35,),
    "minicpm5": (r"\p{N}{1,3}", _MINICPM_5),
}
# Those whose tokenizers take a word that is a token whole, whatever its merges say.
IGNORING_MERGES = frozenset(
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "lfm2", "tekken",
     "minicpm5")
)  # fmt: skip
# Those that begin a text with BOS unless the file says otherwise.
ADDING_BOS = IGNORING_MERGES - {"minicpm5"}

# The same splits as other tokenizer.json files spell them: Llama 3 and Qwen 2 write the
# contractions with (?i:...); GPT-2's expression has a last alternative that changes no split.
_CONTRACTIONS_FOLDED = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"


def make_pre_tokenizer(name: str) -> tokenizers.pre_tokenizers.PreTokenizer:
    """The `tokenizers` object for one of `READ_PRE_TOKENIZERS`."""
    from tokenizers import Regex, pre_tokenizers

    splits = [
        pre_tokenizers.Split(Regex(expression), behavior="isolated")
        for expression in READ_PRE_TOKENIZERS[name]
    ]
    return pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def expressions_of(specification: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The expressions that a tokenizer.json splits by, in llama.cpp's spelling.

    `None` if it is not a byte-level one, or splits by something else than expressions.
    """
    pre = specification.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers") if pre.get("type") == "Sequence" else [pre]
    found: list[str] = []
    byte_level = False
    for step in steps or ():
        kind = step.get("type")
        if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            expression = (step.get("pattern") or {}).get("Regex")
            if expression is None:
                return None
            found.append(_canonical(expression))
        elif kind == "Digits" and step.get("individual_digits"):
            found.append(_DIGIT)
        elif kind == "ByteLevel" and not step.get("add_prefix_space"):
            byte_level = True
            if step.get("use_regex", True):
                found.append(_GPT_2)
        else:
            return None
    return tuple(found) if byte_level else None


def pre_tokenizer_name(specification: Mapping[str, Any]) -> str | None:
    """llama.cpp's name of a tokenizer.json's pre-tokenizer, `None` if it is none of the table."""
    found = expressions_of(specification)
    return next((name for name, known in PRE_TOKENIZERS.items() if known == found), None)


def llama_cpp_name(specification: Mapping[str, Any]) -> str | None:
    """A name by which llama.cpp splits and merges as this tokenizer.json does, or `None`.

    Unlike `pre_tokenizer_name` it looks at every name that is read, and at whether a word that is
    a token is taken whole, which llama.cpp settles by the name too.
    """
    found = expressions_of(specification)
    whole = bool(specification["model"].get("ignore_merges"))
    return next(
        (
            name
            for name, known in READ_PRE_TOKENIZERS.items()
            if known == found and (name in IGNORING_MERGES) == whole
        ),
        None,
    )


def _canonical(expression: str) -> str:
    spelled = expression.replace(_CONTRACTIONS_FOLDED, _CONTRACTIONS)
    return _GPT_2 if spelled == _GPT_2 + r"|\s+" else spelled
