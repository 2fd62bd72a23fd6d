"""Model cards: read by the hub's own library, by a Markdown parser, and run as they say."""

from __future__ import annotations

import contextlib
import html
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_utils import PreTrainedModel

from llamita.architecture.config import ModelConfig
from llamita.errors import UserError
from llamita.formats.card_facts import CardFacts, Origin, Source, hub_dataset, hub_model, plain_name
from llamita.formats.card_text import block, plain
from llamita.formats.exporting import export_model
from llamita.formats.importing import import_model
from llamita.formats.model_card import Model, render_card
from llamita.model.adapter_directory import is_adapter
from llamita.recipes.loading import check_recipe, load_recipe
from llamita.training import devices
from llamita.training.checkpoint import verify_checkpoint
from tests.data.corpus import small_tokenizer
from tests.formats.gguf_files import write_gguf
from tests.training.helpers import (
    STABLE,
    cheap_matmul_rate,
    quiet,
    snapshot,
    stage,
    tiny_recipe,
    tiny_values,
    trained,
    weights,
)
from tests.training.tuned import build_tiny_chats, tuning_recipe, write_base

MARKDOWN = MarkdownIt("commonmark").enable("table")
CARD = {
    "license": "other",
    "license_name": "The [Tiny] Licence",
    "license_link": "https://example.org/a_licence",
    "language": ["en", "no"],
    "title": "A *tiny* | model",
    "about": "Made to be **measured**.",
}


@pytest.fixture(scope="module", autouse=True)
def _cheap_and_alone() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "matmul_rate", cheap_matmul_rate)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages over two sources, in bfloat16 at the end, with a card."""
    out = tmp_path_factory.mktemp("card") / "run"
    values = tiny_values(tiny_data, card=CARD)
    values["checkpoints"] = {"every_steps": 6, "final_dtype": "bfloat16"}
    return trained(check_recipe(values, "r"), out).run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("model") / "a-base")


@pytest.fixture(scope="module")
def chats(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_chats(tmp_path_factory.mktemp("chats"), base)


@pytest.fixture(scope="module")
def tuned(base: Path, chats: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "run"
    return trained(tuning_recipe(chats, base), out).run


def card_of(directory: Path) -> ModelCard:
    return ModelCard.load(directory / "README.md")


def tables(text: str) -> list[list[list[str]]]:
    """Every table of a Markdown text as a reader sees it: rows of cells of plain text."""
    found: list[list[list[str]]] = []
    for token in MARKDOWN.parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and found and token.level >= 4:
            shown = "".join(child.content for child in token.children or ())
            found[-1][-1].append(shown)
    return found


def told(run: Path, kind: str) -> list[dict[str, Any]]:
    """Events of a kind, by json alone."""
    lines = (run / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def number(text: str) -> float:
    return float(text.replace(",", ""))


def fenced(text: str, language: str) -> str:
    tokens = MARKDOWN.parse(text)
    (found,) = [
        token.content for token in tokens if token.type == "fence" and token.info == language
    ]
    return found


def subset(text: str, name: str) -> list[list[str]]:
    """The rows of the table whose first heading is `name`."""
    (found,) = [table for table in tables(text) if table[0][0] == name]
    return found[1:]


# -- a run ----------------------------------------------------------------------------------------


def test_the_hub_reads_its_metadata(run: Path) -> None:
    data = card_of(run / "final").data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-generation"
    assert (data.license, data.license_name) == ("other", CARD["license_name"])
    assert data.license_link == CARD["license_link"]
    assert data.language == ["en", "no"]
    assert data.tags == ["llamita"]
    assert data.base_model is None
    assert data.datasets is None
    last = told(run, "validation")[-1]
    assert data.eval_results is not None
    scores = {(r.dataset_name, r.metric_type): r.metric_value for r in data.eval_results}
    assert scores == {
        ("all together (held out)", "bits_per_byte"): last["bits_per_byte"],
        **{(f"{n} (held out)", "bits_per_byte"): value for n, value in last["datasets"].items()},
        **{(f"{name} (held out)", "loss"): value for name, value in last["loss"].items()},
    }
    assert data.model_name == "tiny"
    whole = next(r for r in data.eval_results if r.dataset_name.startswith("all"))
    assert whole.dataset_args == {
        "measured_on": f"{last['tokens']:,} tokens, {last['bytes']:,} bytes"
    }


def test_its_yaml_survives_the_hubs_own_writing(run: Path) -> None:
    card = card_of(run / "final")
    (written,) = re.findall(r"\A---\n(.*?)\n---\n", str(card), re.DOTALL)
    again = yaml.safe_load(card.data.to_yaml())
    assert yaml.safe_load(written) == again
    assert "'no'" in written  # bare, it would be false


def test_the_text_tells_what_the_files_hold(run: Path, tiny_data: Path) -> None:
    text = card_of(run / "final").text
    facts = dict(next(table for table in tables(text) if len(table[0]) == 2)[1:])
    model = AutoModelForCausalLM.from_pretrained(run / "final")
    whole = model.num_parameters()
    assert facts["parameters"].startswith(f"{whole:,} (")
    assert facts["stored in"] == "bfloat16" == str(model.dtype).removeprefix("torch.")
    assert facts["context"] == f"{model.config.max_position_embeddings} tokens"
    assert facts["vocabulary"] == "300; untied head"
    assert "EOS </s> = 1" in facts["tokenizer"]
    mixtures = told(run, "mixture")
    rows = {row[0]: row for row in subset(text, "data")}
    for name in ("prose", "code"):
        manifest = json.loads((tiny_data / name / "manifest.json").read_text())
        assert number(rows[name][2]) == manifest["splits"]["train"]["tokens"]
        assert number(rows[name][3]) == manifest["splits"]["train"]["documents"]
        sizes = zip(mixtures, (1024, 512), strict=True)
        read = sum(mixture["realised"][name] * tokens for mixture, tokens in sizes)
        assert number(rows[name][4]) == pytest.approx(read)
        assert number(rows[name][5]) == pytest.approx(mixtures[-1]["epochs"][name], rel=1e-3)
        assert manifest["fingerprint"] in text
    shares = {(row[0], row[1]): (row[2], row[3]) for row in tables_of_shares(text)}
    for mixture in mixtures:
        for name, asked in mixture["asked"].items():
            share = f"{mixture['realised'][name]:.4f}"
            assert shares[mixture["stage"], name] == (f"{asked:g}", share)
    start = told(run, "start")[0]
    settings = dict(subset(text, "setting"))
    for name, version in start["versions"].items():
        assert f"{name} {version}" in settings["versions"]
    assert settings["hardware"] == f"1 × cpu, {start['environment']['machine']}"
    stages = stage_rows(text)
    assert [number(row[3]) for row in stages] == [1024, 512]
    assert number(stages[0][6].split(",")[0]) == 0.01
    scores = {(row[0], row[1]): row[2] for row in subset(text, "held out of")}
    last = told(run, "validation")[-1]
    assert scores["prose", "bits per byte"] == f"{last['datasets']['prose']:.4f}"


def tables_of_shares(text: str) -> list[list[str]]:
    return next(table[1:] for table in tables(text) if "share asked" in table[0])


def stage_rows(text: str) -> list[list[str]]:
    return next(table[1:] for table in tables(text) if "objective" in table[0])


def test_what_is_written_by_people_is_shown_as_written(run: Path) -> None:
    shown = MARKDOWN.render(card_of(run / "final").text)
    assert "<h1>A *tiny* | model</h1>" in shown
    assert "<p>Made to be <strong>measured</strong>.</p>" in shown
    link = f'<a href="{CARD["license_link"]}">The [Tiny] Licence</a>'
    assert link in shown


def test_its_recipe_is_the_runs(run: Path) -> None:
    recipe = run.parent / "again.yaml"
    recipe.write_text(fenced(card_of(run / "final").text, "yaml"))
    again, own = load_recipe(recipe).model_dump(), load_recipe(run).model_dump()
    assert [source.pop("path") for source in again["datasets"].values()] == ["prose", "code"]
    for source in own["datasets"].values():
        source.pop("path")
    assert again == own


def test_nothing_of_the_machine_is_told(run: Path, tuned: Path, tiny_data: Path) -> None:
    for final in (run / "final", tuned / "final"):
        text = (final / "README.md").read_text() + (final / "training/provenance.json").read_text()
        assert str(tiny_data.parent) not in text
        assert str(final.parent.parent) not in text
        assert os.uname().nodename not in text


def python_of(directory: Path, base: str = "") -> str:
    """The card's Python, run in the directory; what it printed."""
    code = fenced(card_of(directory).text, "python").replace('"BASE"', json.dumps(base))
    printed = io.StringIO()
    with contextlib.chdir(directory), contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    return printed.getvalue()


def test_its_python_runs(run: Path) -> None:
    assert python_of(run / "final").strip()


# -- going on -------------------------------------------------------------------------------------


def test_a_changed_card_is_written_and_nothing_else_changes(
    tiny_data: Path, tmp_path: Path
) -> None:
    stages = [stage("s", 4, STABLE)]
    final = trained(tiny_recipe(tiny_data, stages=stages), tmp_path / "run").final
    before, first = snapshot(final), weights(final)
    assert "none was given" in (final / "README.md").read_text()
    trained(tiny_recipe(tiny_data, stages=stages), tmp_path / "run")
    assert snapshot(final) == before
    trained(tiny_recipe(tiny_data, stages=stages, card={"license": "MIT"}), tmp_path / "run")
    verify_checkpoint(final)
    assert card_of(final).data.license == "mit"
    assert "none was given" not in (final / "README.md").read_text()
    assert all(torch.equal(first[name], tensor) for name, tensor in weights(final).items())
    # A run that goes on may have another card too.
    longer = [stage("s", 6, STABLE)]
    trained(tiny_recipe(tiny_data, stages=longer, card={"language": "de"}), tmp_path / "run")
    assert card_of(final).data.language == ["de"]
    assert told(tmp_path / "run", "resume")[-1]["changed"] == ["card.language", "stages.0.tokens"]


def test_a_checkpoint_from_the_middle_tells_what_was_told_by_then(
    tiny_data: Path, tmp_path: Path
) -> None:
    stages = [stage("s", 6, STABLE)]
    checkpoints = {"every_steps": 2, "final": "step-4", "keep_last": 5}
    validation = {"tokens": 300, "every_steps": 4}
    recipe = tiny_recipe(tiny_data, stages=stages, checkpoints=checkpoints, validation=validation)
    result = trained(recipe, tmp_path / "run")
    text = card_of(result.final).text
    assert [row[2] for row in stage_rows(text)] == ["4"]
    assert {row[3] for row in tables_of_shares(text)} == {"not told"}
    measured = {event["step"]: event["bits_per_byte"] for event in told(result.run, "validation")}
    values = [row[2] for row in subset(text, "held out of") if row[0] == "all together"]
    assert values == [f"{measured[4]:.4f}"]


# -- adapters, exports, imports -------------------------------------------------------------------


def test_an_adapters_card(tuned: Path, base: Path) -> None:
    final = tuned / "final"
    verify_checkpoint(final)
    card = card_of(final)
    assert card.data.library_name == "peft"
    assert card.data.tags == ["llamita", "lora", "conversational"]
    assert card.data.base_model is None  # a directory here is no model of the hub
    record = json.loads((final / "base.json").read_text())
    assert f"`{record['fingerprint']}`" in card.text
    assert "to the model a-base" in MARKDOWN.render(card.text).replace("\\", "")
    learnt = load_file(final / "adapter_model.safetensors").values()
    learns = sum(tensor.numel() for tensor in learnt)
    assert f"A LoRA adapter of {learns:,} parameters" in card.text
    question = [{"role": "user", "content": "What is a llama?"}]
    tokenizer = AutoTokenizer.from_pretrained(final)
    shown = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert shown.rstrip() in fenced(card.text, "")
    (row,) = subset(card.text, "held out of")[:1]
    last = told(tuned, "validation")[-1]
    assert row[2] == f"{last['bits_per_byte']:.4f}"
    assert row[4] == f"{last['tokens']:,} tokens, {last['bytes']:,} bytes"
    assert python_of(final, str(base))


def test_a_folded_adapter_keeps_what_the_run_knew(tuned: Path, chats: Path, tmp_path: Path) -> None:
    out = export_model(tuned, tmp_path / "whole", dtype="bfloat16", say=quiet)
    card = card_of(out)
    assert card.data.library_name == "transformers"
    assert "folded into the model a-base" in card.text
    manifest = json.loads((chats / "chats" / "manifest.json").read_text())
    assert manifest["fingerprint"] in card.text
    assert card.data.eval_results == card_of(tuned / "final").data.eval_results
    assert ["stored in", "bfloat16"] in tables(card.text)[0]
    assert python_of(out)
    again = export_model(out, tmp_path / "again", say=quiet)
    assert manifest["fingerprint"] in card_of(again).text
    assert ["stored in", "float32"] in tables(card_of(again).text)[0]
    assert not is_adapter(again)


def test_pairs_are_told_with_their_interval(base: Path, chats: Path, tmp_path: Path) -> None:
    result = trained(tuning_recipe(chats, base, "pairs", steps=2), tmp_path / "run")
    figures = told(result.run, "preference")[-1]["datasets"]["pairs"]
    rows = {row[1]: row for row in subset(card_of(result.final).text, "held out of")}
    accuracy = rows["pairs whose chosen answer gained more"]
    low, high = figures["accuracy"]["low"], figures["accuracy"]["high"]
    assert accuracy[3] == f"{low:.4f} to {high:.4f}"
    assert accuracy[4] == f"{figures['pairs']} pairs"


def test_an_import_says_where_it_is_from(small: PreTrainedModel, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "small.gguf", small, "llama")
    out = import_model(file, tmp_path / "out", say=quiet)
    card = card_of(out)
    assert card.data.license is None
    assert card.data.eval_results is None
    assert "Read from the GGUF file small.gguf (llama; tensors:" in card.text.replace("\\", "")
    assert "no record of any measurement" in card.text
    assert str(tmp_path) not in str(card)
    exported = export_model(out, tmp_path / "exported", say=quiet)
    assert "Read from the GGUF file small.gguf" in card_of(exported).text.replace("\\", "")


def test_a_copy_keeps_the_licence_that_its_source_states(base: Path, tmp_path: Path) -> None:
    (base / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: fr\n---\n# Theirs\n")
    try:
        data = card_of(export_model(base, tmp_path / "out", say=quiet)).data
    finally:
        (base / "README.md").unlink()
    assert (data.license, data.language) == ("apache-2.0", ["fr"])


# -- whatever is written --------------------------------------------------------------------------


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_plain_text_stays_plain(text: str) -> None:
    shown = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    rendered = MARKDOWN.render(
        f"# {plain(text)}\n\n{plain(text)}\n\n| a |\n|---|\n| {plain(text)} |"
    )
    expected = html.escape(shown).replace("&#x27;", "'")
    assert f"<h1>{expected}</h1>" in rendered
    assert f"<td>{expected}</td>" in rendered
    if shown:
        assert f"<p>{expected}</p>" in rendered


@given(st.text(alphabet="`~ab\n", max_size=30))
@example("a\n```\nb")
def test_a_block_holds_whatever_it_is_given(text: str) -> None:
    (token,) = MARKDOWN.parse(block(text))
    assert token.type == "fence"
    assert token.content == (text.rstrip() + "\n")


def test_names_of_every_kind_in_a_card() -> None:
    wild = 'a: [b] {c} "d" | <e>\n---\n# f `g` \x07'
    source = Source(
        name=wild,
        kind="text",
        tokens=1,
        documents=1,
        fingerprint="00",
        origins=(
            Origin(name="hf:some/data@main:train", hub=hub_dataset("hf:some/data@main:train")),
            Origin(name="hf:folder:train", hub=hub_dataset("hf:folder:train")),
        ),
    )
    facts = CardFacts(name=wild, license="no", languages=("no", "en"), sources=(source,))
    config = ModelConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    text = render_card(facts, Model(config, small_tokenizer(), "float32"))
    card = ModelCard(text)
    assert card.data.datasets == ["some/data"]
    assert card.data.license == "no"
    assert card.data.language == ["no", "en"]
    seen = 'a: [b] {c} "d" | <e> --- # f `g`'
    assert f"<h1>{html.escape(seen)}</h1>" in MARKDOWN.render(card.text)
    assert subset(card.text, "data")[0][0] == seen


def test_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert hub_model("HuggingFaceTB/SmolLM2-135M") == "HuggingFaceTB/SmolLM2-135M"
    assert [hub_model(name) for name in ("runs/x", "/a/b", "x", "../a", "a/b/c")] == [None] * 5
    assert hub_dataset("hf+stream:owner/set/config@abc:train[:10%]") == "owner/set"
    assert [hub_dataset(name) for name in ("prose.jsonl", "hf:squad", "other:a/b")] == [None] * 3
    assert [plain_name(name) for name in ("runs/x/final", "runs/x/step-9", "a/m.gguf", "o/n")] == [
        "x",
        "x",
        "m",
        "n",
    ]


# -- the recipe's section -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"license": "my own words"}, "card.license: 'my own words' is no licence's identifier"),
        ({"license": "other"}, "card: license: other needs license_name and license_link"),
        ({"license_name": "x"}, "card: license_name: only with license: other"),
        ({"language": ["English"]}, "card.language: 'English' is no language's code"),
        ({"language": [False]}, "card.language: YAML reads yes and no as true and false"),
        ({"language": ["en", "en"]}, "card.language: en, en: each can be named once"),
        ({"title": "two\nlines"}, "card.title: .* write one line"),
        ({"licence": "mit"}, "card.licence: there is no such key. Did you mean 'license'"),
        (
            {"license": "other", "license_name": "x", "license_link": "not a link"},
            "card: license_link: 'not a link' is neither an address",
        ),
    ],
)
def test_a_wrong_card_is_refused(card: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        check_recipe(tiny_values(tmp_path, card=card), "recipe")


def test_cards_are_made_without_torch() -> None:
    code = (
        "import sys, llamita.formats.exported_card, llamita.formats.model_card; "
        "assert not {'torch', 'jinja2', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
