"""What a MODEL is, from its files alone."""

from __future__ import annotations

import json
from pathlib import Path

from llamita.architecture.config import ModelConfig
from llamita.architecture.counts import flops_per_token, num_parameters
from llamita.architecture.lora import ALL_LINEAR, lora_parameters, lora_targets
from llamita.architecture.memory import inference_memory
from llamita.data.chat_template import chat_template, end_of_turn_ids
from llamita.data.tokenizer import Tokenizer, load_tokenizer
from llamita.errors import UserError
from llamita.model.adapter_directory import base_directory, is_adapter, read_adapter
from llamita.model.locate import locate
from llamita.model.records import read_config, read_json
from llamita.planning.quantities import gigabytes, tokens

_SHOWN = 60
_TEMPLATES = ("chatml", "zephyr", "llama-2")


def info(model: str | Path) -> list[str]:
    """Shape, parameters, arithmetic, memory, tokenizer, template and provenance, in lines; of an
    adapter what learned first, and then its base's.

    Raises:
        UserError: no such model, one whose config.json cannot be read, or an adapter whose base is
            not there.
    """
    directory = locate(model)
    adapted = is_adapter(directory)
    config = read_config(directory)
    length = config.max_position_embeddings
    memory = {
        name: inference_memory(config, 1, length, weight_bytes=size, cache_bytes=2)
        for name, size in (("float32", 4), ("bfloat16", 2))
    }
    lines = [
        *(_describe_adapter(directory, config) if adapted else [_describe_files(directory)]),
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


def _describe_files(directory: Path) -> str:
    mapping = read_json(directory / "config.json")
    stored = mapping.get("torch_dtype") or mapping.get("dtype") or "an unstated type"
    return f"{directory}: {mapping.get('model_type', 'llama')}, stored in {stored}"


def _describe_adapter(directory: Path, config: ModelConfig) -> list[str]:
    """What learned and what it belongs to; the lines that follow are of the base."""
    lora, base = read_adapter(directory)
    learn, whole = lora_parameters(config, lora), num_parameters(config)
    every = lora.targets == lora_targets(ALL_LINEAR)
    rules = "alpha/√r" if lora.rslora else "alpha/r"
    dropout = f", dropout {lora.dropout:g}" if lora.dropout else ""
    found = base_directory(directory)
    kept = f", kept in {lora.quantization} while it learned" if lora.quantization else ""
    mark = base.fingerprint[:16] if base.fingerprint else "not recorded"
    return [
        f"{directory}: an adapter of {base.path}",
        (
            f"  adapter     LoRA r={lora.rank} on "
            f"{'all linear layers' if every else ', '.join(lora.targets)}, alpha {lora.alpha:g} "
            f"(scale {lora.scaling:g} = {rules}){dropout}"
        ),
        f"  learned     {learn:,} of {whole:,} parameters ({learn / whole:.2%})",
        f"  base        {found.resolve()}{kept}, fingerprint {mark}",
    ]


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
    return [
        (
            f"  tokenizer   {tokenizer.vocab_size:,} tokens, {specials or 'no special tokens'}, "
            f"{tokenizer.fingerprint[:16]}"
        ),
        *_describe_template(tokenizer),
    ]


def _describe_template(tokenizer: Tokenizer) -> list[str]:
    if tokenizer.chat_template is None:
        return ["  template    none"]
    first = next((line for line in tokenizer.chat_template.splitlines() if line.strip()), "")
    shown = first if len(first) <= _SHOWN else first[: _SHOWN - 1] + "…"
    shown = _template_name(tokenizer) or f"its own: {shown}"
    try:
        ends = end_of_turn_ids(tokenizer, chat_template(tokenizer))
    except UserError as error:
        return [f"  template    {shown}", f"  turn ends   not known: {error}"]
    turn = " or ".join(f"{tokenizer.token_of(number)!r} = {number}" for number in ends)
    return [f"  template    {shown}", f"  turn ends   with {turn or 'no special token'}"]


def _template_name(tokenizer: Tokenizer) -> str | None:
    """The name of the template that is kept under one, and that this tokenizer's is."""
    for name in _TEMPLATES:
        try:
            if chat_template(tokenizer, name).source == tokenizer.chat_template:
                return name
        except UserError:  # it needs special tokens that are not there, so that it is another
            continue
    return None


def _describe_provenance(directory: Path) -> list[str]:
    for name in ("provenance.json", "state.json"):
        path = directory / "training" / name
        if path.is_file():
            values = json.loads(path.read_text(encoding="utf-8"))
            lines = [f"  training    step {values['step']:,}, {tokens(values['tokens'])} tokens"]
            validation = values.get("validation") or {}
            told = []
            if "bits_per_byte" in validation:
                told.append(f"{validation['bits_per_byte']:.4f} bits per byte")
            if "preference_accuracy" in validation:
                right, loss = (validation[f"preference_{key}"] for key in ("accuracy", "loss"))
                told.append(f"{right:.1%} of held-out pairs told right, loss {loss:.4f}")
            lines += [f"  validation  {'; '.join(told)}"] if told else []
            lines += [
                f"  data        {name}: {fingerprint[:16]}"
                for name, fingerprint in values["datasets"].items()
            ]
            return lines
    return ["  training    no record in this directory"]
