"""Several processes as one run: torchrun starts them, FSDP2 shards parameters, gradients and
moments.

One process is the special case with nothing to do. Nothing else in training asks how many there
are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llamita.data.batch import Batch
from llamita.errors import UserError
from llamita.model.decoder import Decoder

_T = TypeVar("_T")


@dataclass(frozen=True)
class World:
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @classmethod
    def join(cls, device: torch.device) -> World:
        """The processes that torchrun started, by its environment; alone without it."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not dist.is_initialized():
            if device.type == "cuda":
                torch.cuda.set_device(device)
            # The CPU's own group lets processes agree on things without waiting for their GPUs.
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    def leave(self) -> None:
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def shard(self, model: Decoder) -> None:
        """FSDP2 over blocks and root; the head's weight is unsharded within the root's forward."""
        if self.size == 1:
            return
        from torch.distributed.fsdp import fully_shard

        for block in model.model.layers:
            fully_shard(block)
        fully_shard(model)

    def rows(self, batch: Batch) -> Batch:
        """This process's rows of a global batch, contiguous and in order."""
        if self.size == 1:
            return batch
        total = len(batch.tokens)
        if total % self.size:
            raise UserError(
                f"batch_tokens makes {total} sequences a step, which {self.size} processes cannot "
                f"share evenly; use a multiple of {self.size}"
            )
        share = total // self.size
        return batch.rows(self.rank * share, (self.rank + 1) * share)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether any process says so: they must stop, save and validate at the same step."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag))) > 0)

    def agree(self, value: _T) -> _T:
        """The first process's value, everywhere."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors on the CPU, from shards. Every process must call it."""
        return {name: whole(tensor).detach().cpu() for name, tensor in tensors.items()}


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered; any other as it is."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a sharded tensor, sharing its memory; any other as it is."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, parameter: nn.Parameter | Tensor) -> Tensor:
    """A whole tensor placed as `parameter` is: sharded alike, on its device. Always a copy."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    moved = tensor.to(parameter.device, copy=True)
    if isinstance(parameter, DTensor):
        return distribute_tensor(moved, parameter.device_mesh, parameter.placements)
    return moved
