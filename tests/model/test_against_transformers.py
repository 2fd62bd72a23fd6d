"""Logits, scores and greedy text against Transformers, both directions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llamita.model.cache import KeyValueCache
from llamita.model.huggingface import load_model, save_model
from tests.model.shapes import SHAPES, random_tokens, transformers_model

TOLERANCE = 5e-5


def _greedy(model: torch.nn.Module, prompt: torch.Tensor, count: int, *, cached: bool) -> list[int]:
    cache = KeyValueCache(model.config, 1, prompt.shape[1] + count) if cached else None
    tokens, fed, chosen = prompt, prompt, []
    for _ in range(count):
        logits = model(fed, cache=cache, logits_to_keep=1)
        chosen.append(int(logits[0, -1].argmax()))
        tokens = torch.cat([tokens, torch.tensor([[chosen[-1]]])], dim=1)
        fed = tokens[:, -1:] if cached else tokens
    return chosen


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_reads_what_transformers_writes(shape: str, tmp_path: Path) -> None:
    theirs = transformers_model(shape)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    tokens = random_tokens()
    expected = theirs(tokens).logits
    assert expected.abs().max() > 1  # the comparison is about something
    assert (ours(tokens) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_transformers_reads_what_we_write(shape: str, tmp_path: Path) -> None:
    transformers_model(shape).save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs", padded_vocab_size=128)
    save_model(tmp_path / "ours", ours)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert again.config.model_type == SHAPES[shape][0]
    assert again.dtype == torch.float32
    tokens = random_tokens()
    assert (ours(tokens) - again(tokens).logits).abs().max() <= TOLERANCE
    assert load_model(tmp_path / "ours").config == ours.config


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_scores_are_log_softmax_of_their_logits(shape: str, tmp_path: Path) -> None:
    theirs = transformers_model(shape)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    ours.head_chunk_size = 7
    tokens, targets = random_tokens(), random_tokens(seed=2)
    logits = theirs(tokens).logits
    expected = logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    scores = ours(tokens, targets)
    assert (scores.log_probs - expected).abs().max() <= TOLERANCE
    assert (scores.log_normalizers - logits.logsumexp(-1)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_greedy_text_with_and_without_cache(shape: str, tmp_path: Path) -> None:
    theirs = transformers_model(shape)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    prompt = random_tokens(1, 11)
    expected = theirs.generate(
        prompt, max_new_tokens=24, do_sample=False, use_cache=shape != "llama-dynamic"
    )
    uncached = _greedy(ours, prompt, 24, cached=False)
    assert uncached == expected[0, 11:].tolist()
    if shape != "llama-dynamic":  # keys keep the frequencies of their own step there
        assert _greedy(ours, prompt, 24, cached=True) == uncached


@torch.no_grad()
def test_prompt_in_pieces_through_the_cache(tmp_path: Path) -> None:
    transformers_model("qwen3").save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    tokens = random_tokens()
    cache = KeyValueCache(ours.config, 2, 40)
    pieces = [ours(piece, cache=cache) for piece in tokens.split([13, 1, 9, 17], dim=1)]
    assert cache.length == 40
    assert (torch.cat(pieces, dim=1) - ours(tokens)).abs().max() <= TOLERANCE


@torch.no_grad()
def test_dynamic_rope_with_a_cache_like_transformers(tmp_path: Path) -> None:
    theirs = transformers_model("llama-dynamic")
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    prompt = random_tokens(1, 11)
    expected = theirs.generate(prompt, max_new_tokens=24, do_sample=False)[0, 11:].tolist()
    assert _greedy(ours, prompt, 24, cached=True) == expected


@torch.no_grad()
def test_bfloat16_is_near(tmp_path: Path) -> None:
    theirs = transformers_model("minicpm-shaped")
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    ours.compute_dtype = torch.bfloat16
    tokens = random_tokens()
    expected = theirs(tokens).logits
    theirs_error = (theirs.bfloat16()(tokens).logits.float() - expected).abs().mean()
    ours_error = (ours(tokens) - expected).abs().mean()
    assert ours_error <= 1.2 * theirs_error


@pytest.mark.parametrize("kind", ["safetensors-shards", "bin", "bin-shards"])
@torch.no_grad()
def test_other_weight_files(kind: str, tmp_path: Path) -> None:
    theirs = transformers_model("llama-untied")
    theirs.save_pretrained(tmp_path, max_shard_size="100KB" if "shards" in kind else "5GB")
    if kind.startswith("bin"):
        _as_pickles(tmp_path)
    expected_files = {"safetensors-shards": "*.index.json", "bin": "*.bin", "bin-shards": "*-of-*"}
    assert list(tmp_path.glob(expected_files[kind]))
    tokens = random_tokens()
    assert (load_model(tmp_path)(tokens) - theirs(tokens).logits).abs().max() <= TOLERANCE


def _as_pickles(directory: Path) -> None:
    """Rewrites safetensors as Transformers 4 wrote .bin files, index included."""
    from safetensors.torch import load_file

    for path in directory.glob("*.safetensors"):
        name = path.name.replace("model", "pytorch_model").replace(".safetensors", ".bin")
        torch.save(load_file(path), directory / name)
        path.unlink()
    for index in directory.glob("*.index.json"):
        text = index.read_text().replace('"model-', '"pytorch_model-')
        (directory / "pytorch_model.bin.index.json").write_text(
            text.replace(".safetensors", ".bin")
        )
        index.unlink()


@torch.no_grad()
def test_our_shards_in_transformers(tmp_path: Path) -> None:
    transformers_model("llama-untied").save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    save_model(tmp_path / "ours", ours, max_shard_bytes=100_000)
    assert len(list((tmp_path / "ours").glob("model-*-of-*.safetensors"))) > 3
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    tokens = random_tokens()
    assert (ours(tokens) - again(tokens).logits).abs().max() <= TOLERANCE


@torch.no_grad()
def test_ntk_scaling_is_written_as_a_folded_base(tmp_path: Path) -> None:
    transformers_model("llama-untied").save_pretrained(tmp_path / "theirs")
    plain = load_model(tmp_path / "theirs")
    config = plain.config.replace(rope_scaling={"rope_type": "ntk", "factor": 4.0})
    save_model(tmp_path / "ours", plain.state_dict(), config)
    read = AutoConfig.from_pretrained(tmp_path / "ours")
    # MiniCPM's 128K recipe: base * factor^(d / (d - 2)), d = 16 here.
    assert read.rope_parameters["rope_theta"] == pytest.approx(10000 * 4 ** (16 / 14))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    plain.config = config
    tokens = random_tokens()
    assert (plain(tokens) - again(tokens).logits).abs().max() <= TOLERANCE
