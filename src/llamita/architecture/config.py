"""The numbers that define a decoder. Key names are Hugging Face's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llamita.errors import UserError, did_you_mean


def _plain(error: ValidationError, known: list[str], what: str) -> UserError:
    """The first few problems of a pydantic error as one readable message."""
    lines = []
    for problem in error.errors()[:8]:
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key {where!r}.{did_you_mean(where.split('.')[-1], known)}")
        else:
            text = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {text}" if where else text)
    return UserError(f"{what}: " + "; ".join(lines))


class RopeScaling(BaseModel):
    """How rotary frequencies are changed to reach beyond the context they were trained on.

    `linear` divides every frequency by `factor`; `dynamic` raises the base with the length of the
    sequence once it exceeds `max_position_embeddings`; `ntk` raises the base once and for all to
    base * factor^(d / (d - 2)); `llama3` divides low frequencies alone, with a smooth transition
    (Llama 3.1), and takes the three further keys.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rope_type: Literal["linear", "dynamic", "ntk", "llama3"]
    factor: float = Field(ge=1.0)
    low_freq_factor: float | None = Field(default=None, gt=0)
    high_freq_factor: float | None = Field(default=None, gt=0)
    original_max_position_embeddings: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _keys_belong_to_the_type(self) -> Self:
        extra = {
            "low_freq_factor": self.low_freq_factor,
            "high_freq_factor": self.high_freq_factor,
            "original_max_position_embeddings": self.original_max_position_embeddings,
        }
        missing = [key for key, value in extra.items() if value is None]
        if self.rope_type == "llama3":
            if missing:
                raise UserError(f"rope_scaling of type llama3 needs {', '.join(missing)} too")
            low, high = self.low_freq_factor, self.high_freq_factor
            if low is not None and high is not None and high <= low:
                raise UserError("rope_scaling: high_freq_factor must exceed low_freq_factor")
        elif len(missing) < len(extra):
            useless = [key for key in extra if key not in missing]
            raise UserError(
                f"rope_scaling of type {self.rope_type} takes only a factor; "
                f"remove {', '.join(useless)}"
            )
        return self


class ModelConfig(BaseModel):
    """Shape and constants of one decoder (Llama, MiniCPM, Granite and Qwen are all this).

    Sizes are in elements, `max_position_embeddings` in tokens. Logits are divided by
    `logits_scaling`; each block's output is multiplied by `residual_multiplier` before it is added;
    the embedding's output is multiplied by `embedding_multiplier`. `attention_multiplier` is the
    scale of q·k, `None` meaning 1/sqrt(head_dim). `attention_bias` is about q, k and v.

    Raises:
        UserError: an unknown key, a missing or impossible number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    max_position_embeddings: int = Field(default=2048, gt=0)
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    rope_theta: float = Field(default=10000.0, gt=0)
    rope_scaling: RopeScaling | None = None
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = False
    embedding_multiplier: float = Field(default=1.0, gt=0)
    residual_multiplier: float = Field(default=1.0, gt=0)
    attention_multiplier: float | None = Field(default=None, gt=0)
    logits_scaling: float = Field(default=1.0, gt=0)
    bos_token_id: int | None = Field(default=None, ge=0)
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            known = [*type(self).model_fields, *RopeScaling.model_fields]
            raise _plain(error, known, "model config") from None

    @model_validator(mode="before")
    @classmethod
    def _fill_from_heads(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        filled = dict(data)
        heads, hidden = filled.get("num_attention_heads"), filled.get("hidden_size")
        if heads is not None and filled.get("num_key_value_heads") is None:
            filled["num_key_value_heads"] = heads
        if filled.get("head_dim") is None:
            filled.pop("head_dim", None)
            if isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
                if hidden % heads:
                    raise UserError(
                        f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}; "
                        "change one of them or give head_dim"
                    )
                filled["head_dim"] = hidden // heads
        return filled

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim {self.head_dim} is odd; rotary embedding turns pairs")
        if self.rope_scaling and self.rope_scaling.rope_type == "ntk" and self.head_dim < 4:
            raise UserError("rope_scaling of type ntk needs a head_dim of 4 or more")
        return self

    @property
    def attention_scale(self) -> float:
        """What q·k is multiplied by."""
        if self.attention_multiplier is not None:
            return self.attention_multiplier
        return 1.0 / math.sqrt(self.head_dim)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a text, perhaps none."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else (*self.eos_token_id,)

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some keys changed, validated like a new one.

        `head_dim` stays unless named, so that a change of `hidden_size` or of
        `num_attention_heads` cannot silently change it.
        """
        return ModelConfig(**{**self.model_dump(), **changes})

    @classmethod
    def from_huggingface(cls, mapping: Mapping[str, Any]) -> ModelConfig:
        """The config in a Hugging Face `config.json`; see `huggingface_config.read`."""
        from llamita.architecture import huggingface_config

        return huggingface_config.read(mapping)

    def to_huggingface(self, dtype: str = "float32") -> dict[str, Any]:
        """The `config.json` that describes this model; see `huggingface_config.write`."""
        from llamita.architecture import huggingface_config

        return huggingface_config.write(self, dtype)


def minicpm_multipliers(
    hidden_size: int,
    num_hidden_layers: int,
    scale_emb: float = 12.0,
    scale_depth: float = 1.4,
    dim_model_base: float = 256.0,
) -> dict[str, float]:
    """MiniCPM's three multipliers as `ModelConfig` keys (arXiv 2404.06395, appendix A.1).

    The residual is scaled by scale_depth / sqrt(L) with L the number of layers, not of sub-layers,
    and the hidden state is divided by hidden_size / dim_model_base before the head.
    """
    return {
        "embedding_multiplier": float(scale_emb),
        "residual_multiplier": scale_depth / math.sqrt(num_hidden_layers),
        "logits_scaling": hidden_size / dim_model_base,
    }
