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

# The expressions are applied in turn, each to the pieces that the one before left.
PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    "llama-bpe": (_LLAMA_3,),
    "gpt-2": (_GPT_2,),
    "qwen2": (_QWEN_2,),
    "smollm": (_DIGIT, _GPT_2),
}

# The same splits as other tokenizer.json files spell them: Llama 3 and Qwen 2 write the
# contractions with (?i:...); GPT-2's expression has a last alternative that changes no split.
_CONTRACTIONS_FOLDED = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"


def make_pre_tokenizer(name: str) -> tokenizers.pre_tokenizers.PreTokenizer:
    """The `tokenizers` object for one of `PRE_TOKENIZERS`."""
    from tokenizers import Regex, pre_tokenizers

    splits = [
        pre_tokenizers.Split(Regex(expression), behavior="isolated")
        for expression in PRE_TOKENIZERS[name]
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


def _canonical(expression: str) -> str:
    spelled = expression.replace(_CONTRACTIONS_FOLDED, _CONTRACTIONS)
    return _GPT_2 if spelled == _GPT_2 + r"|\s+" else spelled
