"""In which type each tensor of a GGUF is stored: what `--quantize` means. No torch.

f32, f16, bf16 and the blocks of 32 (q8_0, q4_0, q4_1, q5_0, q5_1) are taken for every matrix, as
llama.cpp's converter does. The names of the K-quants are recipes: `llama-quantize` gives some
matrices more bits than the name says, and the choice here is its own, tensor by tensor
(`llama_tensor_get_type_impl` and `tensor_type_fallback` in src/llama-quant.cpp, without an
importance matrix). Vectors stay in float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from llamita.architecture.config import ModelConfig
from llamita.errors import UserError, did_you_mean

_PLAIN = {name: name.upper() for name in ("f32", "f16", "bf16")}
_BLOCKS = {name: name.upper() for name in ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")}
# Recipe -> the type of whatever the recipe does not name; the names without a letter for the size
# are llama-quantize's own for the middle one.
_RECIPES = {
    "q2_k": "Q2_K",
    "q3_k_s": "Q3_K", "q3_k_m": "Q3_K", "q3_k_l": "Q3_K",
    "q4_k_s": "Q4_K", "q4_k_m": "Q4_K",
    "q5_k_s": "Q5_K", "q5_k_m": "Q5_K",
    "q6_k": "Q6_K",
}  # fmt: skip
_MIDDLE = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
GGUF_TYPES = (*_PLAIN, *_BLOCKS, *_RECIPES, *_MIDDLE)
K_QUANTS = frozenset(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"))  # blocks of 256 values
_BLOCK, _SUPER_BLOCK = 32, 256
# Instead of a block of 256, one of 32 with as many bits or more.
_SMALLER_BLOCK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


@dataclass(frozen=True)
class Stored:
    """The type of one tensor, and the one that it would have had if its rows divided by the
    block."""

    kind: str
    meant: str


def quantization_named(name: str) -> str:
    """One of `GGUF_TYPES`, in any case of letters, with q4_k spelt out as q4_k_m.

    Raises:
        UserError: another name.
    """
    asked = name.lower()
    if asked not in GGUF_TYPES:
        raise UserError(
            f"--quantize {name}: there is no such type.{did_you_mean(asked, GGUF_TYPES)} Types: "
            f"{', '.join(GGUF_TYPES)}"
        )
    return _MIDDLE.get(asked, asked)


def file_type_name(quantize: str) -> str:
    """The name in `gguf.LlamaFileType`, by which llama.cpp shows what a file mostly is."""
    return "ALL_F32" if quantize == "f32" else f"MOSTLY_{quantize.upper()}"


def stored_type(name: str, shape: tuple[int, ...], quantize: str, config: ModelConfig) -> Stored:
    """How a tensor is stored.

    Args:
        name: GGUF's, "blk.3.ffn_down.weight".
        shape: outermost first; the last is the length of a row.
        quantize: as `quantization_named` gives it.
    """
    if len(shape) == 1 or quantize == "f32":
        return Stored("F32", "F32")
    if quantize in _PLAIN:
        return Stored(_PLAIN[quantize], _PLAIN[quantize])
    columns = shape[-1]
    if quantize in _BLOCKS:
        kind = _BLOCKS[quantize]
        return Stored(kind if columns % _BLOCK == 0 else "F16", kind)
    head = "token_embd.weight" if config.tie_word_embeddings else "output.weight"
    if name == head:
        # The numbers behind the logits; nothing that needs 256 is tried for them.
        kind = "Q6_K" if columns % _SUPER_BLOCK == 0 else "Q8_0"
        return Stored(kind if columns % _BLOCK == 0 else "F16", "Q6_K")
    meant = _of_recipe(name, quantize, config)
    if columns % _SUPER_BLOCK == 0:
        return Stored(meant, meant)
    return Stored(_SMALLER_BLOCK[meant] if columns % _BLOCK == 0 else "F16", meant)


def _of_recipe(name: str, quantize: str, config: ModelConfig) -> str:
    default = _RECIPES[quantize]
    parts = name.split(".")
    if parts[0] != "blk":
        return default
    layer, layers, tensor = int(parts[1]), config.num_hidden_layers, parts[2]
    shared = config.num_attention_heads // config.num_key_value_heads >= 4
    more = _has_more_bits(layer, layers)
    first = layer < layers // 8
    if tensor == "attn_v":
        found = {
            "q2_k": "Q4_K" if shared else "Q3_K",
            "q3_k_m": "Q5_K" if layer < 2 else "Q4_K",
            "q3_k_l": "Q5_K",
            "q4_k_s": "Q5_K" if layer < 4 else default,
            "q4_k_m": "Q6_K" if more else default,
            "q5_k_m": "Q6_K" if more else default,
        }
    elif tensor == "ffn_down":
        found = {
            "q2_k": "Q3_K",
            "q3_k_m": "Q5_K" if layer < layers // 16 else "Q4_K",
            "q3_k_l": "Q5_K",
            "q4_k_s": "Q5_K" if first else default,
            "q4_k_m": "Q6_K" if more else default,
            "q5_k_m": "Q6_K" if more else default,
        }
    elif tensor == "attn_output":
        found = {"q2_k": "Q3_K", "q3_k_m": "Q4_K", "q3_k_l": "Q5_K"}
    else:
        found = {}
    return found.get(quantize, default)


def _has_more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def told_types(stored: Iterable[Stored]) -> list[str]:
    """What people should know: how many tensors are of which type, and which fell back."""
    stored = list(stored)
    counts = Counter(tensor.kind for tensor in stored)
    lines = ["tensors: " + ", ".join(f"{count} {kind}" for kind, count in counts.most_common())]
    fallen = Counter((entry.meant, entry.kind) for entry in stored if entry.kind != entry.meant)
    if fallen:
        listed = ", ".join(f"{n} {kind} for {meant}" for (meant, kind), n in fallen.items())
        lines.append(
            f"{fallen.total()} tensors have rows that do not divide by a block of 32 or 256, and "
            f"are stored in a larger type, as llama.cpp does: {listed}"
        )
    return lines
