"""What stands in memory at each moment of a step in which adapters alone learn.

The frozen base stands once, in the compute type or quantised: it has no gradients, no moments and
no casts. A frozen product needs its weight alone to pass the gradient on; what a block keeps for
the backward pass is what the adapters' own products, attention, norms and the MLP's gate read.
Counted, as in moments.py, from the tensors that autograd keeps and those that the passes make.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from llamita.architecture.config import ModelConfig
from llamita.architecture.counts import (
    block_matmul_parameters,
    num_parameters,
    projections,
    without_input_gradient,
)
from llamita.architecture.lora import Lora, Quantization, lora_parameters
from llamita.architecture.moments import BFLOAT16, FLOAT32, StepMoments, TrainingMemory

NF4_BLOCK = 64
NF4_SCALES_BLOCK = 256
"""QLoRA (arXiv 2305.14314, section 3): a scale of 8 bits for 64 weights, and one of 32 bits for 256
such scales: 4 + 8 / 64 + 32 / (64 · 256) = 4.127 bits a weight."""
NF4_TABLE_BYTES = 257 * FLOAT32
"""What the 8 bits of a matrix's scales stand for, and the scales' mean."""
ADAPTERS_HEAP_SHARE = 0.05
"""In place of `moments.HEAP_SHARE`, where blocks of a mebibyte or more are mapped one by one."""


def quantized_bytes(inputs: int, outputs: int, quantization: Quantization) -> int:
    """Of one matrix with its scales: `nf4` with double quantisation; `int8` with a float32 scale
    for each output."""
    weights = inputs * outputs
    if quantization == "int8":
        return weights + outputs * FLOAT32
    scales = -(-weights // NF4_BLOCK)
    return -(-weights // 2) + scales + -(-scales // NF4_SCALES_BLOCK) * FLOAT32 + NF4_TABLE_BYTES


def embedding_bytes(config: ModelConfig, compute_bytes: int) -> int:
    """Of a frozen embedding: in the compute type, but where its output is multiplied, which comes
    before the cast (model/adapters.py: `freeze_to`)."""
    each = compute_bytes if config.embedding_multiplier == 1.0 else FLOAT32
    return config.vocab_size * config.hidden_size * each


def quantized_base_bytes(config: ModelConfig, lora: Lora) -> int:
    """Of the blocks' matrices, 0 where they are not quantised. They are no parameters, and stand
    whole on each device."""
    if lora.quantization is None:
        return 0
    shapes = projections(config).values()
    block = sum(quantized_bytes(*shape, lora.quantization) for shape in shapes)
    return config.num_hidden_layers * block


def frozen_bytes(config: ModelConfig, lora: Lora, compute_bytes: int = BFLOAT16) -> int:
    """Of the frozen parameters, which FSDP shards: everything that is not quantised in the compute
    type, but for an embedding that is multiplied."""
    others = num_parameters(config) - config.vocab_size * config.hidden_size
    if lora.quantization is not None:
        others -= config.num_hidden_layers * block_matmul_parameters(config)
    return embedding_bytes(config, compute_bytes) + others * compute_bytes


def base_bytes(config: ModelConfig, lora: Lora, compute_bytes: int = BFLOAT16) -> int:
    """Of the frozen base on one device."""
    return frozen_bytes(config, lora, compute_bytes) + quantized_base_bytes(config, lora)


def adapter_activation_bytes_per_token(
    config: ModelConfig,
    lora: Lora,
    compute_bytes: int = BFLOAT16,
    *,
    compiled: bool = True,
    device_type: str = "cpu",
    documents: bool = False,
    first: bool = False,
) -> int:
    """What one block keeps for its backward pass, in bytes a token.

    Item by item beside `activation_bytes_per_token`: a norm keeps its input and not its normed
    values, which its weight's gradient alone would read; what it puts out, attention's output and
    the product of gate and up are kept where an adapter's A reads them, of which with dropout each
    keeps a copy and its mask; each adapter keeps A's output, `rank` numbers. Attention and the gate
    keep what they always do.

    Args:
        first: of the first block, whose input carries no gradient: up to its first adapter nothing
            is kept.
    """
    b, learns = compute_bytes, set(lora.targets)
    shapes = projections(config)
    still = set(without_input_gradient(lora)) if first else set()

    def follows(name: str) -> bool:
        """Whether what a matrix puts out depends on an adapter."""
        return name in learns or name not in still

    norm = (b if compiled else FLOAT32) * config.hidden_size + FLOAT32
    kept = norm * (not first) + norm * ("gate_proj" not in still)
    if follows("q_proj") or follows("k_proj") or follows("v_proj"):
        kept += (2 * shapes["q_proj"][1] + 2 * shapes["k_proj"][1]) * b
        kept += config.num_attention_heads * FLOAT32
    for name in ("q_proj", "k_proj") if config.qk_norm else ():
        outputs = shapes[name][1]
        each = (b if compiled else FLOAT32) * outputs + outputs // config.head_dim * FLOAT32
        kept += each * follows(name)
    gate, up = follows("gate_proj"), follows("up_proj")
    # silu(gate) · up: the gradient of gate reads both, that of up silu(gate), which is computed
    # again where the passes are fused.
    wide = (gate or up) + gate if compiled else 2 * gate + up
    kept += wide * config.intermediate_size * b
    # Uncompiled on a CPU a mask of dropout is of the input's type; elsewhere it is a byte.
    mask = b if device_type == "cpu" and not compiled else 1
    side_by_side = device_type != "cpu" or documents
    return kept + _read_by_adapters(config, lora, still, b, mask, side_by_side)


def _read_by_adapters(
    config: ModelConfig, lora: Lora, still: set[str], b: int, mask: int, side_by_side: bool
) -> int:
    """The inputs of every A, and of every B. A mask passes on the gradient of an input that has
    one, which those of `still` have not. `side_by_side`: attention's output is laid out as o_proj
    reads it, and is kept already where attention is differentiated."""
    shapes, learns = projections(config), lora.targets
    kept = len(learns) * lora.rank * b
    if lora.dropout:
        return kept + sum(shapes[name][0] * (b + (0 if name in still else mask)) for name in learns)
    readers = (
        ("q_proj", "k_proj", "v_proj"),
        ("o_proj",),
        ("gate_proj", "up_proj"),
        ("down_proj",),
    )
    for names in readers:
        there = names == ("o_proj",) and side_by_side and "o_proj" not in still
        if set(learns).intersection(names) and not there:
            kept += shapes[names[0]][0] * b
    return kept


@dataclass(frozen=True, kw_only=True)
class AdapterMoments(StepMoments):
    """`StepMoments` of a step in which the adapters `lora` learn and nothing else."""

    lora: Lora

    def all(self) -> dict[str, TrainingMemory]:
        """As the base's, without the embedding's gradient, which is not made."""
        return {name: memory for name, memory in super().all().items() if name != "embedding"}

    # -- what stands all the time -----------------------------------------------------------

    @cached_property
    def parameters(self) -> int:
        """Those that learn."""
        return lora_parameters(self.config, self.lora)

    @cached_property
    def standing(self) -> TrainingMemory:
        share = self.share(self.parameters)
        frozen = frozen_bytes(self.config, self.lora, self.compute_bytes)
        return TrainingMemory(
            weights=share,
            gradients=share if self.accumulates else 0,
            optimizer=share if self.muon else 2 * share,
            weight_casts=0,
            activations=0,
            logits=0,
            average=share if self.average else 0,
            base=-(-frozen // self.ranks) + quantized_base_bytes(self.config, self.lora),
        )

    @cached_property
    def casts(self) -> int:
        """Of one block's adapters, which alone are cast."""
        if self.compute_bytes == FLOAT32:
            return 0
        return self.parameters // self.config.num_hidden_layers * self.compute_bytes

    @cached_property
    def dequantized(self) -> int:
        """Of the largest matrices, the MLP's: the weights, and of nf4 twice the scales."""
        if self.lora.quantization is None:
            return 0
        weights = self.config.hidden_size * self.config.intermediate_size
        scales = 2 * weights // NF4_BLOCK if self.lora.quantization == "nf4" else 0
        matrix = weights * self.compute_bytes + scales * FLOAT32
        # It is gone before the last of `working` is made.
        return max(0, matrix - self.tokens * self.config.intermediate_size * self.compute_bytes)

    def _layer(self, *, first: bool) -> int:
        return self.tokens * adapter_activation_bytes_per_token(
            self.config,
            self.lora,
            self.compute_bytes,
            compiled=self.compiled,
            device_type=self.device_type,
            documents=self.documents,
            first=first,
        )

    @cached_property
    def layer(self) -> int:
        """Activations of one block, of all but the first."""
        return self._layer(first=False)

    @cached_property
    def kept(self) -> tuple[int, int]:
        layers = self.config.num_hidden_layers
        if self.checkpointing:
            return layers * self.hidden * self.compute_bytes, 0
        return self._layer(first=True) + (layers - 1) * self.layer, layers * self.casts

    @cached_property
    def working(self) -> int:
        """While a block's MLP is differentiated: the gradients of gate and up beside that of their
        product, or, fused, that of the product in two parts, by the frozen matrix and by the
        adapter; what down_proj's adapter kept of the product makes room."""
        wide = self.tokens * self.config.intermediate_size * self.compute_bytes
        adapts = "down_proj" in self.lora.targets
        return (3 - adapts - (adapts and self.lora.dropout > 0)) * wide

    @cached_property
    def last_norm_keeps(self) -> int:
        return self.hidden * FLOAT32

    @property
    def loads_compiler(self) -> bool:
        """bitsandbytes imports torch.compile's modules: 115 MB."""
        return self.compiled or self.lora.quantization is not None

    @property
    def heap_share(self) -> float:
        """Large blocks are mapped one by one (`training.devices.map_large_blocks`)."""
        return ADAPTERS_HEAP_SHARE

    # -- moments of a step, in their order ---------------------------------------------------

    def head(self) -> TrainingMemory:
        """Some chunks in. The head's weight has no gradient, and is stored as it is multiplied but
        where it is an embedding that is multiplied too."""
        activations, casts = self.kept
        activations += self.last_norm_keeps + 2 * self.scored_hidden * self.compute_bytes
        kept, product, made, elements = self.logits
        before = elements * self.compute_bytes if self.chunks > 1 else 0
        cast = 0
        if self.config.tie_word_embeddings and self.compute_bytes < FLOAT32:
            matrix = self.config.vocab_size * self.config.hidden_size * self.compute_bytes
            cast = matrix if embedding_bytes(self.config, self.compute_bytes) > matrix else 0
        memory = self._at(0, casts, activations, cast + kept + product + made + before)
        return self._gathering(memory, self.root + 2 * self.whole_block)

    def last_norm(self) -> TrainingMemory:
        b = self.compute_bytes
        activations, casts = self.kept
        activations += self.last_norm_keeps + self.hidden * b
        activations += self.hidden * (4 * FLOAT32 + (b if b < FLOAT32 else 0))
        memory = self._at(0, casts, activations)
        return self._gathering(memory, self.root + 2 * self.whole_block)

    def last_block(self) -> TrainingMemory:
        activations, casts = self.kept
        again, cast_again = self.again
        activations += again + self.hidden * self.compute_bytes + self.working
        memory = self._at(0, casts + cast_again, activations)
        memory = replace(memory, dequantized=self.dequantized)
        return self._gathering(memory, self.root + 3 * self.whole_block)

    def first_block(self) -> TrainingMemory:
        """The last block to be differentiated: all others' gradients stand."""
        again, _ = self.again
        activations = self.hidden * self.compute_bytes + again
        if not self.checkpointing:
            activations += self._layer(first=True)
        activations += self.hidden * self.compute_bytes + self.working
        made = 0 if self.accumulates else self.share(self.parameters)
        memory = self._at(made, self.casts, activations)
        memory = replace(memory, dequantized=self.dequantized)
        return self._gathering(memory, self.root + 3 * self.whole_block)

    def update(self) -> TrainingMemory:
        """AdamW is fused and makes nothing; what Muon makes of matrices this thin is left out."""
        return self._at(0 if self.accumulates else self.share(self.parameters), 0, 0)

    # -- FSDP2 -------------------------------------------------------------------------------

    @cached_property
    def root(self) -> int:
        """Bytes of embedding and head as they are stored."""
        head = self.config.vocab_size * self.config.hidden_size * self.compute_bytes
        untied = 0 if self.config.tie_word_embeddings else head
        return embedding_bytes(self.config, self.compute_bytes) + untied

    @cached_property
    def whole_block(self) -> int:
        """Bytes of a block's parameters as they are stored, with its adapters'."""
        blocks = frozen_bytes(self.config, self.lora, self.compute_bytes) - self.root
        return (blocks + self.parameters * FLOAT32) // self.config.num_hidden_layers
