"""README.md beside a model: the Hugging Face hub's metadata, and what is known of the model.

Everything in it comes from `CardFacts` and from the model's own files; what is not known is left
out. Nothing here depends on the time or the machine, so that equal models have equal cards.
Metadata: https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from llamita.architecture.config import ModelConfig
from llamita.architecture.counts import num_parameters
from llamita.errors import UserError
from llamita.formats.card_facts import CardFacts, Score
from llamita.formats.card_run import data_section, scores_section, training_section
from llamita.formats.card_text import block, code, front_matter, name_of, plain, table

if TYPE_CHECKING:
    from llamita.data.tokenizer import Tokenizer

README = "README.md"
_TASK = "text-generation"


@dataclass(frozen=True)
class Model:
    """What a directory holds.

    dtype: what the weights are stored in.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    dtype: str


def render_card(facts: CardFacts, model: Model) -> str:
    """The text of README.md."""
    sections = [
        f"# {plain(facts.title or facts.name)}",
        facts.about.strip() if facts.about else "",
        _what_it_is(facts, model),
        "\n\n".join(plain(note) for note in facts.notes),
        _licence(facts),
        "## Model",
        _shape(facts, model),
        _prompting(model),
        data_section(facts),
        training_section(facts),
        scores_section(facts),
        _limits(facts, model),
        _use(facts, model),
        _again(facts),
    ]
    body = "\n\n".join(section for section in sections if section)
    return f"{_metadata(facts, model)}\n{body}\n"


def is_adapter_alone(facts: CardFacts) -> bool:
    """Whether the directory holds an adapter and not the whole model."""
    return facts.adapter is not None and not facts.folded


# -- metadata -----------------------------------------------------------------------------------


def _metadata(facts: CardFacts, model: Model) -> str:
    alone = is_adapter_alone(facts)
    tags = ["llamita"]
    tags += ["lora"] if facts.adapter is not None else []
    tags += ["conversational"] if model.tokenizer.chat_template else []
    base = facts.base if facts.base is not None and facts.base.hub else None
    relation = None
    if base is not None:
        relation = "finetune" if facts.folded else base.relation
    hubs = [origin.hub for source in facts.sources for origin in source.origins if origin.hub]
    return front_matter(
        {
            "library_name": "peft" if alone else "transformers",
            "pipeline_tag": _TASK,
            "language": list(facts.languages),
            "license": facts.license,
            "license_name": facts.license_name,
            "license_link": facts.license_link,
            "base_model": base.hub if base is not None else None,
            "base_model_relation": relation,
            "datasets": list(dict.fromkeys(hubs)),
            "tags": tags,
            "model-index": _model_index(facts),
        }
    )


def _model_index(facts: CardFacts) -> list[dict[str, Any]]:
    """Scores in the form that the hub reads, a result for each dataset."""
    by_data: dict[tuple[str | None, bool], list[Score]] = {}
    for score in facts.scores:
        by_data.setdefault((score.data, score.benchmark), []).append(score)
    results = []
    for (data, benchmark), scores in by_data.items():
        name = "all together" if data is None else name_of(data)
        kind = re.sub(r"[^\w.-]+", "-", name).strip("-") or "data"
        measured = next((score.of for score in scores if score.of), None)
        dataset = {"name": f"{name} (held out)", "type": kind, "split": "validation"}
        if benchmark:
            dataset = {"name": name, "type": kind}
        results.append(
            {
                "task": {"type": _TASK, "name": "Text generation"},
                "dataset": dataset
                | ({} if measured is None else {"args": {"measured_on": measured}}),
                "metrics": [
                    {"type": score.type, "value": score.value, "name": score.name}
                    for score in scores
                ],
            }
        )
    return [{"name": name_of(facts.name), "results": results}] if results else []


# -- what it is ---------------------------------------------------------------------------------


def _what_it_is(facts: CardFacts, model: Model) -> str:
    size = f"{num_parameters(model.config):,}"
    run, base, adapter = facts.run, facts.base, facts.adapter
    named = "another model" if base is None else f"the model {plain(base.hub or base.name)}"
    learnt = "" if run is None else f", trained on {run.tokens:,} tokens"
    if adapter is not None and not facts.folded:
        text = (
            f"A LoRA adapter of {adapter.learns:,} parameters to {named} ({size} parameters)"
            f"{learnt}. It holds no weights of its base, and works with that base alone."
        )
    elif adapter is not None:
        text = (
            f"A language model of {size} parameters: a LoRA adapter of {adapter.learns:,} "
            f"parameters{learnt}, folded into {named}."
        )
    elif base is not None:
        text = f"A language model of {size} parameters, made from {named}{learnt}."
    elif run is not None:
        text = (
            f"A language model of {size} parameters, trained from scratch on {run.tokens:,} tokens."
        )
    else:
        text = f"A language model of {size} parameters."
    kept = " Made with llamita."
    if base is not None and base.fingerprint is not None:
        kept += f" Fingerprint of the base's weights: {code(base.fingerprint)}."
    return text + kept


def _licence(facts: CardFacts) -> str:
    if facts.license is None:
        text = "**Licence:** none was given for this model, and nobody may assume one."
    elif facts.license == "other":
        assert facts.license_name is not None
        assert facts.license_link is not None
        text = f"**Licence:** [{plain(facts.license_name)}](<{_address(facts.license_link)}>)"
    else:
        text = f"**Licence:** {plain(facts.license)}"
    return text


def _address(link: str) -> str:
    """A link as it may stand between angle brackets."""
    return quote(link, safe="/:?#[]@!$&'()*+,;=%~")


def _shape(facts: CardFacts, model: Model) -> str:
    config, tokenizer = model.config, model.tokenizer
    specials = (("BOS", tokenizer.bos_id), ("EOS", tokenizer.eos_id), ("pad", tokenizer.pad_id))
    named = ", ".join(
        f"{kind} {plain(tokenizer.token_of(number) or '')} = {number}"
        for kind, number in specials
        if number is not None
    )
    whole, blocks = num_parameters(config), num_parameters(config, embedding=False)
    rows = [
        ["architecture", code(config.to_huggingface(model.dtype)["architectures"][0])],
        ["parameters", f"{whole:,} ({blocks:,} without embeddings)"],
        ["layers", f"{config.num_hidden_layers}"],
        ["hidden size, MLP", f"{config.hidden_size:,}, {config.intermediate_size:,}"],
        [
            "attention heads",
            f"{config.num_attention_heads}, {config.num_key_value_heads} for keys and values, of "
            f"{config.head_dim}",
        ],
        ["context", f"{config.max_position_embeddings:,} tokens"],
        [
            "vocabulary",
            f"{config.vocab_size:,}; {'tied' if config.tie_word_embeddings else 'untied'} head",
        ],
        ["tokenizer", f"{tokenizer.vocab_size:,} tokens" + (f"; {named}" if named else "")],
        ["stored in", model.dtype],
    ]
    if facts.adapter is not None:
        lora = facts.adapter
        kept = f"; the base in {lora.quantization} while it learnt" if lora.quantization else ""
        rows.append(
            [
                "adapter",
                f"LoRA, rank {lora.rank}, alpha {lora.alpha:g}, on "
                f"{plain(', '.join(lora.targets))}{kept}",
            ]
        )
    return table(["", ""], rows)


def _prompting(model: Model) -> str:
    if model.tokenizer.chat_template is None:
        return (
            "There is no chat template: the model goes on with a text that it is given, and was "
            "not made to answer."
        )
    from llamita.data.chat_records import Message
    from llamita.data.chat_template import chat_template

    text = "The model takes conversations, by the chat template that lies beside it"
    question = Message("user", "What is a llama?")
    try:
        shown = chat_template(model.tokenizer).render([question], add_generation_prompt=True)
    except UserError:  # a template of elsewhere, beyond what llamita's sandbox renders
        return f"{text}."
    return f"{text}. One question is put as\n\n{block(shown)}"


# -- limits and use -----------------------------------------------------------------------------


def _limits(facts: CardFacts, model: Model) -> str:
    size, run = num_parameters(model.config), facts.run
    said = [f"This is a small model, of {size:,} parameters."]
    if run is not None and facts.base is None:
        said.append(f"It has read {run.tokens / size:.3g} tokens for each of them.")
    if run is not None:
        longest = max(stage.sequence_length for stage in run.stages)
        if longest < model.config.max_position_embeddings:
            said.append(
                f"It was trained on sequences of up to {longest:,} tokens; longer ones, up to its "
                f"context of {model.config.max_position_embeddings:,}, were not tried."
                if facts.base is None
                else f"It was tuned on sequences of up to {longest:,} tokens."
            )
    if facts.languages:
        said.append(f"Its language is said to be {plain(', '.join(facts.languages))}.")
    else:
        said.append("Which languages it knows was not recorded.")
    if facts.scores:
        said.append("It was measured on text or answers held out of its own training data alone.")
    else:
        said.append("There is no record of any measurement of it.")
    said.append(
        "No benchmark, and no test of what it says for truth, safety or bias, is recorded here."
    )
    return "## Limits\n\n" + " ".join(said)


def _use(facts: CardFacts, model: Model) -> str:
    chats = model.tokenizer.chat_template is not None
    shell = ["llamita chat ."] if chats else ['llamita generate . "Once upon a time"']
    shell.append("llamita serve .")
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    if is_adapter_alone(facts):
        lines[0] = "from peft import PeftModel\n" + lines[0]
        hub = None if facts.base is None else facts.base.hub
        where = json.dumps(hub or "BASE") + (")" if hub else ")  # the directory of its base")
        lines += [
            f"base = AutoModelForCausalLM.from_pretrained({where}",
            'model = PeftModel.from_pretrained(base, ".")',
        ]
    else:
        lines += ['model = AutoModelForCausalLM.from_pretrained(".")']
    lines += ['tokenizer = AutoTokenizer.from_pretrained(".")']
    if chats:
        lines += [
            'question = [{"role": "user", "content": "What is a llama?"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    question, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
    else:
        lines += ['inputs = tokenizer("Once upon a time", return_tensors="pt")']
    lines += [
        "written = model.generate(**inputs, max_new_tokens=40)",
        "print(tokenizer.decode(written[0]))",
    ]
    python = block("\n".join(lines), "python")
    return f"## Use\n\nIn this directory:\n\n{block(chr(10).join(shell), 'sh')}\n\n{python}"


def _again(facts: CardFacts) -> str:
    if facts.run is None:
        return ""
    return (
        "## Making it again\n\n"
        "The recipe, with every default written out. Of paths that only one machine has, the last "
        "part stands. With the data named above built under those paths, this trains it again:\n\n"
        f"{block('llamita train recipe.yaml', 'sh')}\n\n{block(facts.run.recipe, 'yaml')}"
    )
