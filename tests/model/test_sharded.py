"""FSDP2 on two CPU processes against one process on the whole batch."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import fully_shard

from llamita.architecture.config import ModelConfig
from llamita.model.decoder import Decoder
from llamita.model.initialization import initialize

CONFIG = ModelConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def _build(tied: bool) -> Decoder:
    model = Decoder(CONFIG.replace(tie_word_embeddings=tied), padded_vocab_size=104)
    initialize(model, "llama", seed=0, std=0.2)
    model.head_chunk_size = 5
    return model


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens, targets = torch.randint(0, 97, (2, 4, 12), generator=generator)
    return tokens, targets


def _loss(model: Decoder, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    scores = model(tokens, targets)
    return -scores.log_probs.mean() + 1e-2 * scores.log_normalizers.square().mean()


def _rank(rank: int, port: int, tied: bool, out: Path) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = _build(tied)
    for block in model.model.layers:
        fully_shard(block)
    fully_shard(model)
    tokens, targets = _batch()
    loss = _loss(model, tokens[2 * rank : 2 * rank + 2], targets[2 * rank : 2 * rank + 2])
    loss.backward()
    grads = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
    dist.all_reduce(loss.detach_())
    if rank == 0:
        torch.save({"loss": loss / 2, "grads": grads}, out)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_two_ranks_are_one_process(tmp_path: Path, tied: bool) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, (port, tied, tmp_path / "sharded.pt"), nprocs=2)
    sharded = torch.load(tmp_path / "sharded.pt", weights_only=True)
    model = _build(tied)
    loss = _loss(model, *_batch())
    loss.backward()
    torch.testing.assert_close(sharded["loss"], loss.detach())
    assert sharded["grads"].keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(sharded["grads"][name], parameter.grad, msg=name)
