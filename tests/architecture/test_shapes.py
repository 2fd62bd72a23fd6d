"""Shapes near a number of parameters: presets as oracles, and what is built is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llamita.architecture.config import ModelConfig
from llamita.architecture.counts import mixture_parameters, num_parameters
from llamita.architecture.memory import inference_memory
from llamita.architecture.presets import PRESETS, preset
from llamita.architecture.shapes import (
    FAMILIES,
    HEAD_DIM,
    Counts,
    Family,
    Shape,
    find_family,
    largest_shape,
    shapes_near,
)
from llamita.errors import UserError
from llamita.model.decoder import Decoder
from llamita.model.huggingface import read_config

MEMBERS = [(family.name, name) for family in FAMILIES.values() for name in family.members]


def every_shape(family: Family, up_to: int, vocab_size: int) -> list[ModelConfig]:
    """All shapes of a family up to a width, listed by its description and not by division."""
    least, _, largest = family.aspects
    return [
        family.build(width, layers, heads, vocab_size)
        for width in range(HEAD_DIM, up_to + 1, HEAD_DIM)
        for layers in range(2, width)
        if least <= width / layers <= largest
        for heads, _ in family.key_value_heads(width // HEAD_DIM)
    ]


@pytest.mark.parametrize("counts", ["total", "non-embedding"])
@pytest.mark.parametrize(("family", "name"), MEMBERS)
def test_each_preset_is_the_first_candidate_at_its_own_size(
    family: str, name: str, counts: Counts
) -> None:
    wanted = preset(name)
    size = num_parameters(wanted.config, embedding=counts == "total")
    vocabulary = wanted.config.vocab_size
    first, *_ = shapes_near(size, find_family(family), counts=counts, vocab_size=vocabulary)
    # llamita-5m's ids of special tokens are llamita-15m's, MiniCPM's presets' are alike too.
    assert first.config == wanted.config
    assert (first.parameters, first.relative_error, first.preset) == (size, 0, name)
    assert first.parametrization == wanted.parametrization


def test_all_presets_but_foreign_ones_are_of_a_family() -> None:
    assert set(PRESETS) - {name for _, name in MEMBERS} == {"smollm2-135m", "llama2-7b"}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("counts", ["total", "non-embedding"])
@pytest.mark.parametrize("wanted", [5.5e6, 31e6, 130e6])
def test_nothing_nearer_is_missed(name: str, counts: Counts, wanted: float) -> None:
    family = FAMILIES[name]
    within = [
        config
        for config in every_shape(family, 2048, 1000)
        if abs(num_parameters(config, embedding=counts == "total") / wanted - 1) <= 0.07
    ]
    found = shapes_near(wanted, family, counts=counts, vocab_size=1000, tolerance=0.07, num=10**6)
    assert len(found) == len(within) > 0
    assert {shape.config.model_dump_json() for shape in found} == {
        config.model_dump_json() for config in within
    }
    errors = [round(abs(shape.relative_error), 2) for shape in found]
    assert errors == sorted(errors)
    for shape in found:
        size = num_parameters(shape.config, embedding=counts == "total")
        assert shape.parameters == size
        assert shape.relative_error == pytest.approx(size / wanted - 1)
    two = shapes_near(wanted, family, counts=counts, vocab_size=1000, tolerance=0.07, num=2)
    assert two == found[:2]


def test_of_equally_near_shapes_the_usual_proportions_come_first() -> None:
    family = FAMILIES["minicpm"]
    assert shapes_near(500e6, family, counts="non-embedding")[0].preset == "minicpm-0.5b"  # 0.499B
    found = shapes_near(3e9, family, counts="non-embedding", num=50)
    equal = [shape.config for shape in found if abs(shape.relative_error) < 0.005]
    grouped = [c.num_key_value_heads < c.num_attention_heads for c in equal]
    assert grouped == sorted(grouped)
    assert grouped.count(False) > 2
    ratios = [c.hidden_size / c.num_hidden_layers / 50 for c in equal]
    for kind in (False, True):
        away = [max(r, 1 / r) for r, other in zip(ratios, grouped, strict=True) if other == kind]
        assert away == sorted(away)


@pytest.mark.parametrize(
    ("name", "width", "wanted"),
    [
        ("tinyllama", 2048, (5632, 32, (4,))),  # eight queries a KV head
        ("tinyllama", 128, (320, 2, (1,))),
        ("tinyllama", 64 * 12, (2112, 12, (2,))),  # 6 is nearer to 8 than 4 and 12
        ("tinyllama", 64 * 31, (5440, 31, ())),  # a prime: 31 queries or one
        ("minicpm", 320, (800, 5, (5,))),
        ("minicpm", 1536, (3840, 24, (24, 8))),
        ("llamita", 384, (1024, 6, (2,))),
        ("llamita", 320, (896, 5, ())),
    ],
)
def test_proportions(name: str, width: int, wanted: tuple[int, int, tuple[int, ...]]) -> None:
    family = FAMILIES[name]
    config = family.build(width, 4, 1, 256)
    heads = tuple(count for count, _ in family.key_value_heads(config.num_attention_heads))
    assert (config.intermediate_size, config.num_attention_heads, heads) == wanted
    assert config.head_dim == 64


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_built_runs_here_and_in_transformers(name: str, tmp_path: Path) -> None:
    """Every kind of shape: its count is that of tensors that exist, and its logits are finite."""
    family = FAMILIES[name]
    tokens = torch.tensor([[1, 5, 7, 2]])
    for shape in shapes_near(3e6, family, counts="total", vocab_size=512, tolerance=0.3, num=4):
        assert max(shape.config.num_hidden_layers, shape.config.num_attention_heads) < 20
        (tmp_path / "config.json").write_text(json.dumps(shape.config.to_huggingface()))
        assert read_config(tmp_path) == shape.config
        model = Decoder(shape.config)
        assert sum(p.numel() for p in model.parameters()) == shape.parameters
        with torch.no_grad():
            scores = model(tokens, tokens)
        assert scores.log_probs.shape == (1, 4)
        with torch.device("meta"):
            theirs = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
        assert theirs.num_parameters() == shape.parameters


def test_a_size_below_the_vocabulary_s() -> None:
    family = FAMILIES["minicpm"]
    with pytest.raises(
        UserError, match="smallest has 4,794,688; --vocab-size 4096 would do"
    ) as caught:
        shapes_near(1e6, family, counts="total")
    assert "vocabulary of 73,440" in str(caught.value)
    # 64 · 73,440 for the embedding and two layers of 64: nothing is smaller.
    sizes = {num_parameters(c) for c in every_shape(family, 256, 73440)}
    assert min(sizes) == 4_794_688
    assert shapes_near(1e6, family, counts="total", vocab_size=4096)
    with pytest.raises(UserError, match="nearest have"):
        shapes_near(1e6, family, counts="total", vocab_size=8192)
    with pytest.raises(UserError, match="ask for that, or for more"):
        shapes_near(50e3, family, counts="total")
    with pytest.raises(UserError, match="smallest has 94,528; ask for that, or for more"):
        shapes_near(50e3, family, counts="non-embedding")


def test_sizes_beyond_and_between() -> None:
    family = FAMILIES["llamita"]
    with pytest.raises(UserError, match="the largest has"):
        shapes_near(5e9, family, counts="total")
    with pytest.raises(UserError, match="within 1%: the nearest have") as caught:
        shapes_near(1.5e6, family, counts="non-embedding", tolerance=0.01)
    sizes = {num_parameters(c, embedding=False) for c in every_shape(family, 512, 8192)}
    below = max(size for size in sizes if size < 1.5e6)
    above = min(size for size in sizes if size > 1.5e6)
    assert f"{below:,} and {above:,}" in str(caught.value)
    with pytest.raises(UserError, match="Did you mean 'minicpm'"):
        find_family("minicmp")
    assert find_family("minicpm-0.5b") is FAMILIES["minicpm"]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("room", [20e6, 300e6])
def test_the_largest_that_fits(name: str, room: float) -> None:
    family = FAMILIES[name]

    def fits(config: ModelConfig) -> bool:
        memory = inference_memory(config, 1, 2048, weight_bytes=2, cache_bytes=2)
        return memory.total <= room

    found: Shape = largest_shape(family, fits, vocab_size=2000)
    wanted = max(num_parameters(c) for c in every_shape(family, 2048, 2000) if fits(c))
    assert found.parameters == num_parameters(found.config) == wanted
    assert fits(found.config)


def test_nothing_fits() -> None:
    with pytest.raises(UserError, match="no model of the tinyllama family fits: the smallest"):
        largest_shape(FAMILIES["tinyllama"], lambda config: False)


def test_of_a_mixture_what_a_token_passes_through_is_counted() -> None:
    family = FAMILIES["minicpm"]
    # MiniCPM-MoE is the 2.4B's shape with eight experts, two a token: 4,035,320,064 active.
    first, *_ = shapes_near(
        4_035_320_064, family, counts="non-embedding", vocab_size=122_753, experts=(8, 2)
    )
    assert (first.preset, first.parameters) == ("minicpm-2.4b", 4_035_320_064)
    assert first.config == preset("minicpm-2.4b").config

    def active(config: ModelConfig) -> int:
        dense = num_parameters(config, embedding=False)
        return num_parameters(config) - dense + mixture_parameters(config, 8, 2).active

    def fits(config: ModelConfig) -> bool:
        return mixture_parameters(config, 8, 2).total <= 300e6

    found = largest_shape(family, fits, vocab_size=2000, experts=(8, 2))
    assert found.parameters == active(found.config)
    assert found.parameters == max(map(active, filter(fits, every_shape(family, 1024, 2000))))
