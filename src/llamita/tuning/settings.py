"""What `tune` and `align` choose where their caller says nothing, and why."""

from __future__ import annotations

from typing import Any

from llamita.errors import UserError
from llamita.recipes.loading import check_settings
from llamita.recipes.schema import Adapter

LEARNS: tuple[str, ...] = ("lora", "all")

LORA_LEARNING_RATE = 2e-4
"""QLoRA, arXiv 2305.14314, table 9: 2e-4 for models of 7 and 13 billion parameters."""
FULL_LEARNING_RATE = 2e-5
"""A tenth of LoRA's: what full tuning of Llama-shaped chat models is usually done at."""
ALIGN_LEARNING_RATE = 1e-5
"""MiniCPM's DPO, arXiv 2404.06395, section 6.4, cosine, one epoch."""
LONGEST_ROW = 2048
STEPS_AIMED_AT = 100
"""Of a run: batches shrink for small data until so many steps are taken, or the least is met."""
LEAST_BATCH_TOKENS = 2048
MOST_BATCH_TOKENS = 65536
WARMUP_SHARE = 0.03
"""Of the steps. QLoRA's appendix B.2."""


def settle_adapter(learn: str, given: dict[str, Any]) -> Adapter | None:
    """The adapter that the flags describe; None where every parameter learns.

    Args:
        given: `Adapter`'s keys that were named by the caller, without those left at None.

    Raises:
        UserError: flags of an adapter where there is none.
    """
    if learn not in LEARNS:
        raise UserError(f"--learn {learn}: write {' or '.join(LEARNS)}")
    if learn == "lora":
        rank = given.get("rank", Adapter.model_fields["rank"].default)
        return check_settings(Adapter, {"alpha": 2.0 * rank, **given}, "the adapter")
    if "quantize_base" in given:
        raise UserError(
            f"--quantize {given['quantize_base']}: weights in so few bits cannot learn, only an "
            "adapter beside them can; leave out --learn all, or --quantize"
        )
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"{flags}: of an adapter, and --learn all trains without one; leave it out")
    return None


def row_length(longest: int, context: int, *, group: int = 1) -> int:
    """Tokens of a row: the least power of two from 128 that holds the longest example (`group` of
    them, for pairs), up to LONGEST_ROW and the model's context."""
    wanted = 1 << (max(128, group * longest) - 1).bit_length()
    return min(wanted, LONGEST_ROW, context)


def batch_rows(num_rows: int, length: int, epochs: float) -> int:
    """Rows of a step: a power of two, so that passes divide it."""
    aim = num_rows * epochs / STEPS_AIMED_AT
    least, most = max(1, LEAST_BATCH_TOKENS // length), max(1, MOST_BATCH_TOKENS // length)
    rows = min(max(aim, least), most, max(1, num_rows))
    return 1 << (int(rows).bit_length() - 1)
