"""Memory against the allocator's own record, published numbers and arithmetic by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from llamita.architecture import moments
from llamita.architecture.adapter_moments import (
    AdapterMoments,
    adapter_activation_bytes_per_token,
    base_bytes,
    quantized_bytes,
)
from llamita.architecture.config import ModelConfig
from llamita.architecture.counts import flops_per_token, num_parameters
from llamita.architecture.lora import Lora, lora_parameters
from llamita.architecture.memory import (
    SCORED_MULTIPLE,
    WEIGHT_BITS,
    TrainingMemory,
    activation_bytes_per_token,
    head_chunk_tokens,
    inference_memory,
    serving_memory,
    training_memory,
)
from llamita.architecture.moments import StepMoments
from llamita.architecture.presets import preset
from llamita.data.batch import Batch
from llamita.inference.scoring import score_batch
from llamita.model import decoder as decoders
from llamita.model import head
from llamita.model.adapters import adapters_off, add_adapters, freeze_to
from llamita.model.decoder import IGNORE, Decoder, compile_model
from llamita.model.initialization import initialize, learning_rate_multipliers
from llamita.model.quantized import QuantizedWeight, quantize_base
from llamita.recipes.schema import AdamW, ExponentialAverage, Guard, LanguageModelling, Muon
from llamita.training.averaging import RunningAverage
from llamita.training.guards import StepGuard
from llamita.training.objective import build_objective
from llamita.training.optimizer import build_optimizer
from llamita.training.step import TrainingStep

# Sizes that no two tensors share by chance.
SMALL = ModelConfig(
    vocab_size=1000,
    hidden_size=96,
    intermediate_size=280,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=128,
)
ROWS, LENGTH = 8, 128
ALL = Lora(rank=4, alpha=8.0)
QUERIES_AND_VALUES = Lora(rank=8, alpha=8.0, targets=("q_proj", "v_proj"))


def batch(
    config: ModelConfig,
    rows: int = ROWS,
    length: int = LENGTH,
    learning_share: float = 1.0,
    documents: bool = False,
) -> Batch:
    """Of text; or, where not all of it learns, of packed rows, whose targets learn from a place
    on; with `documents` in rows of two."""
    tokens = torch.randint(0, config.vocab_size, (rows, length + 1))
    targets, examples, numbers = tokens[:, 1:].contiguous(), None, None
    if learning_share < 1.0:
        targets[:, : length - round(learning_share * length)] = IGNORE
        examples = torch.zeros(rows, 1, dtype=torch.int64)
    if documents:
        numbers = (torch.arange(length) >= length // 3).int().expand(rows, length).contiguous()
    sources = np.zeros(rows, np.int64)
    return Batch(tokens[:, :-1].contiguous(), targets, numbers, sources, examples=examples)


def decoder(
    config: ModelConfig, dtype: torch.dtype = torch.float32, lora: Lora | None = None
) -> Decoder:
    model = Decoder(config)
    initialize(model, "llama")
    if lora is not None:
        if lora.quantization is not None:
            quantize_base(model, lora.quantization)
        add_adapters(model, lora, seed=0)
        freeze_to(model, dtype)
    model.compute_dtype = dtype
    return model


def a_step(
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    rows: int = ROWS,
    length: int = LENGTH,
    micro_batches: int = 1,
    checkpointing: bool = False,
    muon: bool = False,
    average: bool = False,
    compiled: bool = False,
    lora: Lora | None = None,
    learning_share: float = 1.0,
    documents: bool = False,
) -> tuple[Callable[[], None], int]:
    """A training step that has been taken once, and the bytes of what lasts between steps."""
    model = decoder(config, dtype, lora)
    model.checkpoint_blocks = checkpointing
    if compiled:
        compile_model(model)
    settings = Muon(learning_rate=1e-3) if muon else AdamW(learning_rate=1e-3)
    optimizer = build_optimizer(model, settings, learning_rate_multipliers(model, "llama"))
    device = torch.device("cpu")
    take = TrainingStep(
        model, optimizer, StepGuard(Guard(), device), device=device, clip_grad_norm=1.0
    )
    kept = RunningAverage(model, ExponentialAverage(half_life_tokens=1000)) if average else None
    objective = build_objective(LanguageModelling())
    whole = batch(config, rows * micro_batches, length, learning_share, documents)

    def step() -> None:
        result = take(objective, whole, rows, 1e-3)
        if kept is not None:
            kept.update(result.verdict.skip, whole.tokens.numel())

    step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    lasting: list[Tensor] = [*model.parameters(), *model.buffers(), *states]
    if kept is not None:
        lasting += kept.averages.values()
    return step, sum(tensor.untyped_storage().nbytes() for tensor in lasting)


def allocated_at_most(work: Callable[[], None]) -> int:
    """Bytes that PyTorch's allocator has given out at a time, above what stood before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return int(np.cumsum([size for _, size in changes]).max())


def tensors(memory: TrainingMemory) -> int:
    return memory.total - memory.overhead


SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "several passes": {"dtype": torch.bfloat16, "micro_batches": 2},
    "tied": {"config": {"tie_word_embeddings": True}, "micro_batches": 2},
    "every head its own keys": {"config": {"num_key_value_heads": 4}},
    "query and key norms": {"config": {"qk_norm": True}, "dtype": torch.bfloat16},
    "checkpointed": {"checkpointing": True},
    "checkpointed bfloat16": {"checkpointing": True, "dtype": torch.bfloat16, "micro_batches": 2},
    "large vocabulary": {"config": {"vocab_size": 6_000}, "dtype": torch.bfloat16},
    "muon and average": {"muon": True, "average": True, "dtype": torch.bfloat16},
    "small vocabulary": {"config": {"vocab_size": 100}, "dtype": torch.bfloat16},
    "few tokens": {"config": {"vocab_size": 6_000}, "rows": 1, "length": 8},
    "few tokens, tied": {
        "config": {"vocab_size": 6_000, "tie_word_embeddings": True},
        "rows": 1,
        "length": 8,
        "micro_batches": 2,
    },
    "wide": {"config": {"intermediate_size": 2000, "vocab_size": 100}},
    "a quarter learns": {"learning_share": 0.25},
    "documents": {"documents": True, "config": {"vocab_size": 100}},
    "documents, checkpointed": {
        "documents": True,
        "config": {"vocab_size": 100},
        "dtype": torch.bfloat16,
        "checkpointing": True,
    },
    "adapters": {"lora": ALL},
    "adapters of two kinds": {"lora": QUERIES_AND_VALUES, "dtype": torch.bfloat16},
    "adapters, several passes": {"lora": ALL, "dtype": torch.bfloat16, "micro_batches": 2},
    "adapters, checkpointed": {"lora": ALL, "dtype": torch.bfloat16, "checkpointing": True},
    "adapters with dropout": {"lora": ALL.replace(dropout=0.1), "config": {"vocab_size": 100}},
    "adapters, wide": {
        "lora": ALL,
        "config": {"intermediate_size": 2000, "vocab_size": 100},
        "dtype": torch.bfloat16,
    },
    "adapters, wide, gate alone": {
        "lora": ALL.replace(targets=("gate_proj",)),
        "config": {"intermediate_size": 2000, "vocab_size": 100},
    },
    "adapters to a tied and multiplied embedding": {
        "lora": ALL,
        "config": {"tie_word_embeddings": True, "embedding_multiplier": 12.0},
        "dtype": torch.bfloat16,
    },
    "adapters, a quarter learns": {
        "lora": ALL,
        "dtype": torch.bfloat16,
        "learning_share": 0.25,
        "average": True,
    },
    "adapters, documents": {
        "lora": ALL,
        "config": {"vocab_size": 100},
        "dtype": torch.bfloat16,
        "learning_share": 0.5,
        "documents": True,
    },
    "adapters to nf4": {
        "lora": ALL.replace(quantization="nf4"),
        "config": {"intermediate_size": 2000, "vocab_size": 100},
        "rows": 2,
    },
    "adapters to int8": {
        "lora": ALL.replace(quantization="int8"),
        "config": {"num_hidden_layers": 12, "vocab_size": 100},
        "checkpointing": True,
        "dtype": torch.bfloat16,
    },
}


@contextmanager
def logits_kept_up_to(size: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "KEPT_LOGITS_BYTES", size)
        patch.setattr(moments, "KEPT_LOGITS_BYTES", size)
        yield


def planned_and_allocated(
    config: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    rows: int = ROWS,
    length: int = LENGTH,
    micro_batches: int = 1,
    compiled: bool = False,
    learning_share: float = 1.0,
    lora: Lora | None = None,
    documents: bool = False,
    **arguments: Any,
) -> tuple[int, int]:
    """Bytes of tensors at the fullest moment, as planned and as PyTorch gave them out."""
    shape = SMALL.replace(**(config or {}))
    step, lasting = a_step(
        shape,
        dtype=dtype,
        rows=rows,
        length=length,
        micro_batches=micro_batches,
        compiled=compiled,
        learning_share=learning_share,
        lora=lora,
        documents=documents,
        **arguments,
    )
    scored = round(learning_share * rows * length)
    step_moments = StepMoments(
        shape,
        rows * length,
        min(head_chunk_tokens("cpu"), scored),
        compute_bytes=dtype.itemsize,
        compiled=compiled,
        accumulates=micro_batches > 1,
        scored=scored,
        documents=documents,
        **arguments,
    )
    if lora is not None:
        step_moments = AdapterMoments(**vars(step_moments), lora=lora)
    planned = max(map(tensors, step_moments.all().values()))
    return planned, lasting + allocated_at_most(step)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_fullest_moment_is_what_the_allocator_gave_out(name: str) -> None:
    planned, allocated = planned_and_allocated(**SETTINGS[name])
    assert planned == pytest.approx(allocated, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_muon_makes(dtype: torch.dtype) -> None:
    model = decoder(SMALL, dtype)
    multipliers = learning_rate_multipliers(model, "llama")
    optimizer = build_optimizer(model, Muon(learning_rate=1e-3), multipliers)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    step = StepMoments(SMALL, 32, 32, compute_bytes=dtype.itemsize, muon=True)
    made = step.update().optimizer - step.head().optimizer
    assert made == pytest.approx(allocated_at_most(optimizer.step), rel=0.1)


def test_logits_that_are_computed_again() -> None:
    with logits_kept_up_to(0):
        planned, allocated = planned_and_allocated(dtype=torch.bfloat16)
    assert planned == pytest.approx(allocated, rel=0.02)
    assert planned < planned_and_allocated(dtype=torch.bfloat16)[0]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_fullest_moment_compiled(dtype: torch.dtype, checkpointing: bool) -> None:
    planned, allocated = planned_and_allocated(
        dtype=dtype, checkpointing=checkpointing, compiled=True
    )
    assert planned == pytest.approx(allocated, rel=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}, {"num_key_value_heads": 4}])
def test_activations_are_what_autograd_saves(
    dtype: torch.dtype, changes: dict[str, Any], documents: bool
) -> None:
    config = SMALL.replace(**changes)
    per_token = activation_bytes_per_token(
        config, dtype.itemsize, compiled=False, documents=documents
    )
    last_norm = config.hidden_size * (4 + dtype.itemsize) + 4  # its output is the head's to keep
    token_ids = 8
    starts = 4 * documents  # of all layers together
    found = saved_per_token(decoder(config, dtype), documents)
    assert found == per_token + last_norm + token_ids + starts


TARGETS = [
    ALL.targets,
    ("q_proj", "v_proj"),
    ("k_proj", "down_proj"),
    ("o_proj",),
    ("gate_proj",),
    ("up_proj",),
    ("down_proj",),
]


def saved_per_token(model: Decoder, documents: bool) -> int:
    """Bytes that autograd keeps of a forward pass up to the head."""
    data, tokens = batch(model.config, documents=documents), ROWS * LENGTH
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model._hidden(data.tokens, None, data.documents, None)
    assert hidden.requires_grad
    # Those of every token: no weights, no rotary tables.
    saved = sum(
        tensor.untyped_storage().nbytes()
        for tensor in kept.values()
        if tensor.shape[0] in (ROWS, tokens)
    )
    assert saved % tokens == 0
    return saved // tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("targets", TARGETS, ids="+".join)
def test_activations_are_what_adapters_make_autograd_save(
    targets: tuple[str, ...], documents: bool, dtype: torch.dtype
) -> None:
    config, lora = SMALL.replace(qk_norm=True), ALL.replace(targets=targets)
    first, other = (
        adapter_activation_bytes_per_token(
            config, lora, dtype.itemsize, compiled=False, documents=documents, first=is_first
        )
        for is_first in (True, False)
    )
    last_norm = config.hidden_size * 4 + 4
    expected = first + (config.num_hidden_layers - 1) * other + last_norm + 4 * documents
    assert saved_per_token(decoder(config, dtype, lora), documents) == expected


@pytest.mark.parametrize("targets", TARGETS, ids="+".join)
def test_flops_of_adapters_are_those_that_torch_counts(targets: tuple[str, ...]) -> None:
    lora = ALL.replace(targets=targets)
    model, data = decoder(SMALL, lora=lora), batch(SMALL)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        model(data.tokens, data.targets).log_probs.sum().backward()
    assert counter.get_total_flops() == ROWS * LENGTH * flops_per_token(SMALL, LENGTH, lora)


@pytest.mark.parametrize("lora", [None, ALL, QUERIES_AND_VALUES])
def test_flops_of_tuning_are_those_that_torch_counts(lora: Lora | None) -> None:
    """Three eighths of the targets learn, and the base scores them too."""
    model, data = decoder(SMALL, lora=lora), batch(SMALL, learning_share=0.375)
    data = data.to(torch.device("cpu"))  # where it is counted which targets learn
    counter = FlopCounterMode(display=False)
    found = []
    with sdpa_kernel(SDPBackend.MATH), counter:
        score_batch(model, data).log_probs.sum().backward()
        found.append(counter.get_total_flops())
        with torch.no_grad(), adapters_off(model):
            score_batch(model, data)
        found.append(counter.get_total_flops())
    assert found == [
        ROWS
        * LENGTH
        * flops_per_token(SMALL, LENGTH, lora, learning_share=0.375, live_reference=live)
        for live in (False, True)
    ]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_matrix_is_as_large_as_bitsandbytes_makes_it(kind: Any) -> None:
    for inputs, outputs in ((96, 280), (2048, 256), (100, 36)):
        stored = QuantizedWeight(torch.randn(outputs, inputs), kind).nbytes
        assert quantized_bytes(inputs, outputs, kind) == stored
    # QLoRA, section 3: double quantisation takes a scale's share from 0.5 bits to 0.127.
    bits = 8 * quantized_bytes(4096, 11008, kind) / (4096 * 11008)
    assert bits == pytest.approx({"nf4": 4.127, "int8": 8.008}[kind], abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantization", [None, "nf4", "int8"])
def test_a_frozen_base_stands_as_planned(dtype: torch.dtype, quantization: Any) -> None:
    config = SMALL.replace(embedding_multiplier=12.0, attention_bias=True)
    lora = ALL.replace(quantization=quantization)
    model = decoder(config, dtype, lora)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    learns = sum(p.numel() for p in model.parameters() if p.requires_grad)
    stands = sum(tensor.nbytes for tensor in (*frozen, *model.buffers()))
    assert base_bytes(config, lora, dtype.itemsize) == stands
    assert lora_parameters(config, lora) == learns


def test_the_head_is_filled_up_as_planned() -> None:
    config = preset("llamita-30m").config
    few = training_memory(config, 8, 512, learning_share=1 / 4096)
    assert few == training_memory(config, 8, 512, learning_share=SCORED_MULTIPLE / 4096)
    assert few.logits < training_memory(config, 8, 512).logits
    hidden, targets = torch.zeros(200, 3), torch.zeros(200, dtype=torch.int64)
    for places, filled in ((1, SCORED_MULTIPLE), (SCORED_MULTIPLE + 1, 2 * SCORED_MULTIPLE)):
        picked, _ = decoders._picked(hidden, targets, torch.arange(places))
        assert len(picked) == filled


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_key_value_heads": 4}, {"tie_word_embeddings": True}, {"head_dim": 32}],
)
def test_flops_are_those_that_torch_counts(changes: dict[str, Any]) -> None:
    """Attention by its mathematics: two products forward and four backward, each a whole square.

    (Of a GPU's flash attention torch counts a fifth product backward, scores computed again; of a
    CPU's it counts none.)
    """
    config = SMALL.replace(**changes)
    model, data = decoder(config), batch(config)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        model(data.tokens, data.targets).log_probs.sum().backward()
    assert counter.get_total_flops() == ROWS * LENGTH * flops_per_token(config, LENGTH)


def test_tinyllama_on_a_40_gb_card() -> None:
    # Its authors train at 8 × 2048 on an A100 with 40 GB, 16k tokens a pass.
    config = preset("tinyllama-1.1b").config
    one = training_memory(config, 8, 2048, device_type="cuda")
    assert one.weights + one.optimizer == 12 * 1_100_048_384
    assert 30e9 < one.total < 40e9
    assert training_memory(config, 16, 2048, device_type="cuda").total > 40e9


def test_items() -> None:
    config = preset("llamita-30m").config
    plan = training_memory(config, 8, 512)
    assert plan.total == sum(vars(plan).values())
    assert plan.weights == 4 * 30_941_696
    assert plan.optimizer == 8 * 30_941_696
    assert plan.weight_casts == 2 * (30_941_696 - 2 * 8192 * 512 - 17 * 512)
    assert training_memory(config, 8, 512, compute_bytes=4).weight_casts == 0
    accumulating = training_memory(config, 8, 512, accumulates=True)
    assert accumulating.gradients >= 4 * 30_941_696 > plan.gradients
    averaged = training_memory(config, 8, 512, average=True)
    assert averaged.total - plan.total == averaged.average == 4 * 30_941_696
    spared = training_memory(config, 8, 512, activation_checkpointing=True)
    assert spared.activations < plan.activations / 3
    large = config.replace(vocab_size=32_000)
    many, few = (training_memory(large, rows, 512).logits for rows in (16, 8))
    assert many == few, "of large logits a chunk stands, whatever the batch"


def test_devices_differ() -> None:
    config = preset("llamita-30m").config
    cpu, gpu = (training_memory(config, 8, 512, device_type=kind) for kind in ("cpu", "cuda"))
    # A CPU's plan is of the resident set: the heap's holes and the compiler's code are in it.
    assert gpu.overhead == 32 * 2**20 < cpu.overhead
    # Its attention keeps its output a second time.
    queries = 8 * 512 * 8 * 512 * 2
    assert cpu.activations - gpu.activations == 8 * queries / 8
    assert training_memory(config, 8, 512, compiled=False).total > cpu.total


def test_shards() -> None:
    config = preset("llamita-30m").config
    alone, shared = (
        training_memory(config, 8, 512, device_type="cuda", ranks=ranks) for ranks in (1, 4)
    )
    assert shared.weights == alone.weights / 4
    assert shared.optimizer == alone.optimizer / 4
    assert shared.activations == alone.activations
    # Embedding and head stay whole from forward to backward, and two blocks beside them.
    assert alone.gathered == 0
    block = (30_941_696 - 2 * 8192 * 512 - 17 * 512) // 8
    assert shared.gathered == 4 * (2 * 8192 * 512 + 2 * block)


def test_shards_of_an_adapter_and_its_base() -> None:
    """What is quantised is no parameter of FSDP's, and stands whole on each device."""
    config = preset("llamita-30m").config
    block = (30_941_696 - 2 * 8192 * 512 - 17 * 512) // 8
    alone, shared = (
        training_memory(
            config, 8, 512, device_type="cuda", ranks=ranks, lora=ALL.replace(quantization="int8")
        )
        for ranks in (1, 4)
    )
    rows = 2 * (512 + 128) + 2 * 1408 + 512  # outputs, of which each has a scale
    codes = 8 * (block + 4 * rows)
    frozen = 2 * (2 * 8192 * 512 + 17 * 512)
    assert alone.base == codes + frozen
    assert shared.base == codes + frozen / 4
    assert shared.weights == alone.weights / 4
    learns = lora_parameters(config, ALL) // 8
    # Gathered are parameters: the vocabulary, and of blocks norms and adapters.
    root, each = 2 * 2 * 8192 * 512, 2 * 2 * 512 + 2 * 64 + 4 * learns
    assert root < shared.gathered <= root + 3 * each


def test_serving_tinyllama() -> None:
    config = preset("tinyllama-1.1b").config
    cache = 2 * 22 * 256 * 2  # keys and values, layers, 4 KV heads of 64, float16
    half = serving_memory(config, 2048, weight_bits=16)
    assert half.weights == 2 * 1_100_048_384
    assert half.key_value_cache == 2048 * cache == 46_137_344
    assert half.total == half.weights + half.key_value_cache + half.runtime
    assert half.runtime == 2**29
    four = serving_memory(
        config, 2048, batch_size=4, weight_bits=4.5, cache_bits=8.5, runtime_bytes=0
    )
    assert four.weights == 1_100_048_384 * 18 / 32
    assert four.key_value_cache == 4 * 2048 * cache * 8.5 / 16
    assert four.runtime == 0
    plain = inference_memory(config, 3, 100, weight_bytes=2, cache_bytes=2)
    assert plain.key_value_cache == 3 * 100 * cache
    assert plain.total == 2 * 1_100_048_384 + 3 * 100 * cache


def test_bits_of_formats_are_gguf_s() -> None:
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
    for name, bits in WEIGHT_BITS.items():
        kind = gguf.GGMLQuantizationType[names.get(name, name.upper())]
        weights, size = gguf.GGML_QUANT_SIZES[kind]
        assert bits == 8 * size / weights, name


def test_planning_memory_needs_no_torch() -> None:
    code = (
        "import sys; from llamita.architecture.memory import training_memory;"
        "from llamita.architecture.presets import preset;"
        "training_memory(preset('minicpm-9m').config, 1, 512);"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_parameters_are_counted_in_full() -> None:
    config = SMALL.replace(qk_norm=True)
    assert 4 * num_parameters(config) == training_memory(config, 1, 32).weights


def test_bitsandbytes_loads_the_compiler() -> None:
    code = (
        "import sys; import bitsandbytes.functional;"
        "assert 'torch._inductor' in sys.modules and 'torch._dynamo' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    plain, quantised = (
        AdapterMoments(SMALL, 64, 64, compiled=False, lora=ALL.replace(quantization=kind))
        for kind in (None, "nf4")
    )
    nothing = replace(plain.standing, **dict.fromkeys(vars(plain.standing), 0))
    more = quantised.overhead(nothing) - plain.overhead(nothing)
    assert more == moments.COMPILED_CODE_BYTES - moments.CODE_BYTES
