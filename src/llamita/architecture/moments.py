"""What stands in memory at each moment of a training step that could be its fullest.

Counted from the tensors that autograd keeps and those that the passes make (tests/architecture/
test_memory.py compares with the allocator's own record). N tokens of a pass, C of a chunk of the
head, V vocabulary, H hidden size, F intermediate size.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

from llamita.architecture.config import ModelConfig
from llamita.architecture.counts import block_matmul_parameters, num_parameters

KEPT_LOGITS_BYTES = 96_000_000
"""Logits up to this size are kept for the backward pass, which saves one of the head's four
products. Larger ones are computed again, a chunk at a time."""
FLOAT32 = 4
BFLOAT16 = 2

HEAP_SHARE = 0.2
"""Of what a step allocates and frees, the share that a CPU's heap takes besides, in holes between
blocks of other sizes: glibc serves blocks of up to 32 MB from the heap, and Linux counts the holes
as resident. 0.10 to 0.37 over the ten shapes of benchmarks/plan_memory.py. With
MALLOC_MMAP_THRESHOLD_=131072, which leaves no holes and costs time, only the next three remain."""
CODE_BYTES = 30_000_000
"""What a first step loads and prepares on a CPU beside tensors: parts of PyTorch that are imported
late, and oneDNN's kernels. 26 and 30 MB without holes."""
COMPILED_CODE_BYTES = 130_000_000
"""The same where blocks are compiled: torch.compile's modules, and what it made. 126 and 131 MB
without holes."""
DISTRIBUTED_CODE_BYTES = 25_000_000
"""What FSDP2, DTensor and gloo take besides. 24 MB without holes."""
CUBLAS_WORKSPACE_BYTES = 32 * 2**20
"""cuBLAS's workspace, which PyTorch takes from its allocator for each thread that multiplies:
32 MiB on Hopper (PyTorch, CUDA semantics). It is that of the backward pass's thread; the main
thread's stands before the model is made."""

MUON_STACK_ELEMENTS = 1 << 25
"""Muon orthogonalises matrices of one shape together up to this size: 64 MB in bfloat16. Beyond it
a device has enough to do with each."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one device at the fullest moment of a training step, by what holds them.

    weights: float32 masters of what learns, this device's share of them. gradients: float32, those
    that exist at that moment. optimizer: moments. weight_casts: copies of the weights in the
    compute type. activations: what is kept for the backward pass and what it works with. logits:
    the head's chunks. average: a running average of the weights. gathered: whole weights and
    gradients of sharded blocks. overhead: what no tensor holds. base: weights that stand still, as
    they are stored. dequantized: a matrix of a quantised base while it is multiplied.
    """

    weights: int
    gradients: int
    optimizer: int
    weight_casts: int
    activations: int
    logits: int
    average: int = 0
    gathered: int = 0
    overhead: int = 0
    base: int = 0
    dequantized: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def activation_bytes_per_token(
    config: ModelConfig,
    compute_bytes: int = BFLOAT16,
    *,
    compiled: bool = True,
    device_type: str = "cpu",
    documents: bool = False,
) -> int:
    """What one block keeps for its backward pass, times the layers, in bytes a token.

    Each norm keeps its input and what it puts out, and uncompiled the float32 input and the normed
    values before the weight besides; attention keeps q, k and v after rotation, its output, its
    float32 log-sum-exp (a flash attention's scores never stand) and, on a CPU, the output once more
    with the heads side by side, unless attention inside `documents` made it so
    (model/document_attention.py); the MLP keeps gate, up and their product, uncompiled silu(gate)
    too. torch.compile could compute the product again and does not, because a matrix product of the
    backward pass reads it.
    """
    b = compute_bytes
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    norm = 2 * b if compiled else FLOAT32 + 2 * b
    per_block = 2 * (norm * config.hidden_size + FLOAT32)
    copies = 3 if device_type == "cpu" and not documents else 2
    per_block += (copies * queries + 2 * keys) * b + config.num_attention_heads * FLOAT32
    per_block += (3 if compiled else 4) * config.intermediate_size * b
    if config.qk_norm:
        per_block += (queries + keys) * (b if compiled else FLOAT32 + b)
        per_block += (config.num_attention_heads + config.num_key_value_heads) * FLOAT32
    return config.num_hidden_layers * per_block


@dataclass(frozen=True)
class StepMoments:
    """A step's setting, by whose moments its memory is counted.

    `tokens` are those of a pass on this device, `scored` those of them that the head works on
    (None: all), `chunk` those whose logits stand at a time; see
    `architecture.memory.training_memory` for the rest.
    """

    config: ModelConfig
    tokens: int
    chunk: int
    compute_bytes: int = BFLOAT16
    ranks: int = 1
    muon: bool = False
    average: bool = False
    checkpointing: bool = False
    device_type: str = "cpu"
    compiled: bool = True
    accumulates: bool = False
    scored: int | None = None
    documents: bool = False

    def all(self) -> dict[str, TrainingMemory]:
        """Every moment by name, in their order."""
        moments = {
            "head": self.head(),
            "last norm": self.last_norm(),
            "last block": self.last_block(),
            "first block": self.first_block(),
            "embedding": self.embedding(),
            "update": self.update(),
            "saving": self.saving(),
        }
        return {
            name: replace(memory, overhead=self.overhead(memory))
            for name, memory in moments.items()
        }

    # -- what stands all the time -----------------------------------------------------------

    @cached_property
    def standing(self) -> TrainingMemory:
        parameters = num_parameters(self.config)
        share = self.share(parameters)
        moments = 2 * parameters
        if self.muon:
            moments -= self.config.num_hidden_layers * block_matmul_parameters(self.config)
        return TrainingMemory(
            weights=share,
            gradients=share if self.accumulates else 0,
            optimizer=self.share(moments),
            weight_casts=0,
            activations=0,
            logits=0,
            average=share if self.average else 0,
        )

    def share(self, parameters: int) -> int:
        """Bytes of a device's share of float32 numbers, one for each parameter."""
        return -(-parameters // self.ranks) * FLOAT32

    @cached_property
    def vocabulary(self) -> int:
        """float32 bytes of the embedding, or of the head."""
        return self.config.vocab_size * self.config.hidden_size * FLOAT32

    @cached_property
    def block(self) -> int:
        """Parameters of a block's matrices."""
        return block_matmul_parameters(self.config)

    @cached_property
    def hidden(self) -> int:
        """Tokens × hidden size."""
        return self.tokens * self.config.hidden_size

    @cached_property
    def casts(self) -> int:
        """Of one block. autograd keeps the cast copy of each weight from forward to backward."""
        return self.block * self.compute_bytes if self.compute_bytes < FLOAT32 else 0

    @cached_property
    def layer(self) -> int:
        """Activations of one block."""
        per_token = activation_bytes_per_token(
            self.config,
            self.compute_bytes,
            compiled=self.compiled,
            device_type=self.device_type,
            documents=self.documents,
        )
        return self.tokens * per_token // self.config.num_hidden_layers

    @cached_property
    def kept(self) -> tuple[int, int]:
        """Activations of all blocks, and their weights' casts, when the forward pass is over."""
        layers = self.config.num_hidden_layers
        if self.checkpointing:
            return layers * self.hidden * self.compute_bytes, 0
        return layers * self.layer, layers * self.casts

    @cached_property
    def again(self) -> tuple[int, int]:
        """What the backward pass of a checkpointed block makes first: its activations and casts.

        Its input is kept already, and is one of them where it is not kept in float32 instead.
        """
        if not self.checkpointing:
            return 0, 0
        shared = self.compiled or self.compute_bytes == FLOAT32
        return self.layer - (self.hidden * self.compute_bytes if shared else 0), self.casts

    @cached_property
    def working(self) -> int:
        """While a block's MLP is differentiated: gradients of gate and up, one of which fits in the
        place of their product where the passes are fused."""
        wide = self.tokens * self.config.intermediate_size * self.compute_bytes
        return wide if self.compiled else 2 * wide

    @cached_property
    def matrix(self) -> int:
        """float32 bytes of the MLP's matrix whose gradient is made at that moment."""
        return self.config.hidden_size * self.config.intermediate_size * FLOAT32

    @cached_property
    def head_gradient(self) -> int:
        """The head's gradient after the head: added to what was there, unless it waits for that of
        the embedding, which is the same matrix or is scattered with it."""
        waits = self.config.tie_word_embeddings or self.ranks > 1
        return self.vocabulary if waits or not self.accumulates else 0

    @cached_property
    def scored_hidden(self) -> int:
        """Tokens that the head works on × hidden size."""
        scored = self.tokens if self.scored is None else self.scored
        return scored * self.config.hidden_size

    @cached_property
    def last_norm_keeps(self) -> int:
        """It is not compiled: its input in float32, and normed values for its weight's gradient."""
        return self.hidden * (FLOAT32 + self.compute_bytes)

    @cached_property
    def chunks(self) -> int:
        """Of the tokens that the head works on."""
        return -(-self.scored_hidden // (self.chunk * self.config.hidden_size))

    @cached_property
    def logits(self) -> tuple[int, int, int, int]:
        """Bytes of logits that are kept from the forward pass, and, while a chunk is
        differentiated, of its logits where they are computed again and of what its gradient is made
        with; and the number of its elements."""
        b = self.compute_bytes
        elements = self.chunk * self.config.vocab_size
        everything = self.scored_hidden // self.config.hidden_size * self.config.vocab_size * b
        keeps = everything <= KEPT_LOGITS_BYTES
        # A chunk's gradient. Uncompiled its float32 parts stand too: logits (in float32 the product
        # itself), probabilities, both terms and their sum, and which column is the target.
        made = elements * b
        if not self.compiled:
            made = elements * ((5 if b < FLOAT32 else 4) * FLOAT32 + 1)
        return (everything, 0, made, elements) if keeps else (0, elements * b, made, elements)

    # -- moments of a step, in their order ---------------------------------------------------

    def head(self) -> TrainingMemory:
        """The head's backward pass, some chunks in (model/head.py)."""
        b = self.compute_bytes
        activations, casts = self.kept
        # What the norm put out, as far as it is scored, and the gradient of that.
        activations += self.last_norm_keeps + 2 * self.scored_hidden * b
        logits = self.vocabulary * b // FLOAT32 if b < FLOAT32 else 0
        kept, product, made, elements = self.logits
        logits += kept
        wide = b == FLOAT32 or self.device_type == "cuda"
        share = self.vocabulary if wide else self.vocabulary * b // FLOAT32
        if self.chunks == 1:  # the weight's gradient is its only share, and comes after the chunk's
            narrow = 0 if wide else share
            logits += max(product + made - self.vocabulary, elements * b + narrow)
        else:
            # The chunk before has left its gradient, and its share where that is not the sum.
            left = 0 if wide and self.chunks == 2 else share
            logits += max(product + made + elements * b + left, elements * b + share + left)
        memory = self._at(self.vocabulary, casts, activations, logits)
        return self._gathering(memory, self.root + 2 * self.whole_block)

    def last_norm(self) -> TrainingMemory:
        """Its backward pass, uncompiled: four float32 tensors, and one in the compute type."""
        b = self.compute_bytes
        activations, casts = self.kept
        activations += self.last_norm_keeps + self.hidden * b
        activations += self.hidden * (4 * FLOAT32 + (b if b < FLOAT32 else 0))
        memory = self._at(self.head_gradient, casts, activations)
        return self._gathering(memory, self.root + 2 * self.whole_block)

    def last_block(self) -> TrainingMemory:
        """The first block to be differentiated: all others' activations stand."""
        activations, casts = self.kept
        again, cast_again = self.again
        activations += again + self.hidden * self.compute_bytes + self.working
        memory = self._at(self.head_gradient + self.matrix, casts + cast_again, activations)
        return self._gathering(memory, self.root + 3 * self.whole_block)

    def first_block(self) -> TrainingMemory:
        """The last block to be differentiated: all others' gradients stand."""
        activations, casts = (each // self.config.num_hidden_layers for each in self.kept)
        again, cast_again = self.again
        activations += again + self.hidden * self.compute_bytes + self.working
        blocks = 0
        if not self.accumulates:
            blocks = self.share((self.config.num_hidden_layers - 1) * self.block)
        made = self.head_gradient + self.matrix + blocks
        memory = self._at(made, casts + cast_again, activations)
        return self._gathering(memory, self.root + 3 * self.whole_block)

    def embedding(self) -> TrainingMemory:
        """The embedding's gradient is made last, beside the head's where it waits for this one."""
        made = self.vocabulary
        if not self.accumulates:
            made = self.share(num_parameters(self.config))
        if self.config.tie_word_embeddings:
            made += self.vocabulary
        if self.ranks == 1:
            return self._at(made, 0, self.hidden * FLOAT32)
        # Whole gradients of the root, laid out for the reduce-scatter, which gloo copies.
        blocks = 0 if self.accumulates else self.share(self.config.num_hidden_layers * self.block)
        memory = self._at(blocks + self.root, 0, self.hidden * FLOAT32)
        copies = self.root if self.device_type == "cpu" else self.root // self.ranks
        return self._gathering(memory, self.root + copies)

    def update(self) -> TrainingMemory:
        """AdamW is fused and makes nothing. Muon has five copies of the matrices that it
        orthogonalises at once, two of them one in float32 where it computes in bfloat16; Gram
        matrices included."""
        made = 0 if self.accumulates else self.share(num_parameters(self.config))
        memory = self._at(made, 0, 0)
        if self.muon:
            shape = self.config.hidden_size * self.config.intermediate_size
            together = min(2 * self.config.num_hidden_layers, MUON_STACK_ELEMENTS // shape)
            stack = max(1, together) * shape
            copies = 5 if self.compute_bytes < FLOAT32 else 4
            made = copies * stack * self.compute_bytes
            memory = replace(memory, optimizer=memory.optimizer + made)
        return memory

    def saving(self) -> TrainingMemory:
        """On a CPU every process gathers whole weights and moments for a checkpoint. (A GPU's are
        gathered one by one into the host's memory.)"""
        memory = self._at(0, 0, 0)
        if self.device_type != "cpu":
            return memory
        return self._gathering(
            memory, (memory.weights + memory.optimizer + memory.average) * self.ranks
        )

    # -- FSDP2 -------------------------------------------------------------------------------

    @cached_property
    def root(self) -> int:
        """float32 bytes of embedding and head, which stay whole from forward to backward."""
        return self.vocabulary * (1 if self.config.tie_word_embeddings else 2)

    @cached_property
    def whole_block(self) -> int:
        """float32 bytes of a block. Up to three stand: the block's weights, those of the next, and
        either the buffer that these arrive in, or the block's gradients; two before the first."""
        return self.block * FLOAT32

    def _gathering(self, memory: TrainingMemory, gathered: int) -> TrainingMemory:
        return memory if self.ranks == 1 else replace(memory, gathered=gathered)

    def _at(self, gradients: int, casts: int, activations: int, logits: int = 0) -> TrainingMemory:
        standing = self.standing
        return replace(
            standing,
            gradients=standing.gradients + gradients,
            weight_casts=casts,
            activations=activations,
            logits=logits,
        )

    @property
    def loads_compiler(self) -> bool:
        return self.compiled

    @property
    def heap_share(self) -> float:
        """Of what a step allocates and frees, what holes in a CPU's heap take besides."""
        return HEAP_SHARE

    def overhead(self, memory: TrainingMemory) -> int:
        """What no tensor holds. Weights, moments and the average are allocated once and leave no
        holes; a GPU's allocator is asked for the peak of its blocks, where holes do not count."""
        if self.device_type != "cpu":
            return CUBLAS_WORKSPACE_BYTES if self.device_type == "cuda" else 0
        lasting = memory.weights + memory.optimizer + memory.average
        code = COMPILED_CODE_BYTES if self.loads_compiler else CODE_BYTES
        code += DISTRIBUTED_CODE_BYTES if self.ranks > 1 else 0
        return code + round(self.heap_share * (memory.total - lasting))
