"""What a MODEL is, from its files alone."""

from __future__ import annotations

import json
from pathlib import Path

from llamita.architecture.config import ModelConfig
from llamita.architecture.counts import flops_per_token, num_parameters
from llamita.architecture.memory import inference_memory
from llamita.data.tokenizer import load_tokenizer
from llamita.errors import UserError
from llamita.model.locate import locate
from llamita.planning.quantities import gigabytes, tokens


def info(model: str | Path) -> list[str]:
    """Shape, parameters, arithmetic, memory, tokenizer, template and provenance, in lines.

    Raises:
        UserError: no such model, or one whose config.json cannot be read.
    """
    directory = locate(model)
    config_file = directory / "config.json"
    try:
        mapping = json.loads(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{config_file} cannot be read: {error}") from error
    config = ModelConfig.from_huggingface(mapping)
    length = config.max_position_embeddings
    memory = {
        name: inference_memory(config, 1, length, weight_bytes=size, cache_bytes=2)
        for name, size in (("float32", 4), ("bfloat16", 2))
    }
    lines = [
        (
            f"{directory}: {mapping.get('model_type', 'llama')}, stored in "
            f"{mapping.get('torch_dtype') or mapping.get('dtype') or 'an unstated type'}"
        ),
        (
            f"  parameters  {num_parameters(config):,} ({num_parameters(config, embedding=False):,}"
            " without embeddings)"
        ),
        (
            f"  shape       {config.num_hidden_layers} layers, hidden {config.hidden_size}, ffn "
            f"{config.intermediate_size}, {config.num_attention_heads} heads / "
            f"{config.num_key_value_heads} KV of {config.head_dim}, vocabulary "
            f"{config.vocab_size:,}, {'tied' if config.tie_word_embeddings else 'untied'} head, "
            f"context {length:,}"
        ),
        (
            f"  multipliers embedding {config.embedding_multiplier:g}, residual "
            f"{config.residual_multiplier:g}, logits ÷{config.logits_scaling:g}"
        ),
        (
            f"  arithmetic  {flops_per_token(config, length) / 1e9:.4g} GFLOP a token to train at"
            " its full context"
        ),
        "  memory      "
        + ", ".join(f"{gigabytes(item.total)} in {name}" for name, item in memory.items())
        + f" to write with a full context (cache {gigabytes(memory['bfloat16'].key_value_cache)})",
    ]
    return lines + _describe_tokenizer(directory) + _describe_provenance(directory)


def _describe_tokenizer(directory: Path) -> list[str]:
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return ["  tokenizer   none in this directory"]
    tokenizer = load_tokenizer(directory)
    specials = ", ".join(
        f"{kind} {tokenizer.token_of(number)!r} = {number}"
        for kind, number in (
            ("BOS", tokenizer.bos_id),
            ("EOS", tokenizer.eos_id),
            ("pad", tokenizer.pad_id),
        )
        if number is not None
    )
    template = "none" if tokenizer.chat_template is None else "yes"
    return [
        (
            f"  tokenizer   {tokenizer.vocab_size:,} tokens, {specials or 'no special tokens'}, "
            f"{tokenizer.fingerprint[:16]}"
        ),
        f"  template    {template}",
    ]


def _describe_provenance(directory: Path) -> list[str]:
    for name in ("provenance.json", "state.json"):
        path = directory / "training" / name
        if path.is_file():
            values = json.loads(path.read_text(encoding="utf-8"))
            lines = [f"  training    step {values['step']:,}, {tokens(values['tokens'])} tokens"]
            if values.get("validation"):
                bits = values["validation"]["bits_per_byte"]
                lines.append(f"  validation  {bits:.4f} bits per byte")
            lines += [
                f"  data        {name}: {fingerprint[:16]}"
                for name, fingerprint in values["datasets"].items()
            ]
            return lines
    return ["  training    no record in this directory"]
