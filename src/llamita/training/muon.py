"""Muon: momentum, orthogonalised by Newton–Schulz, for matrices; AdamW beside it for all else.

Keller Jordan et al., https://kellerjordan.github.io/posts/muon/; for the learning-rate rule
Moonlight, arXiv 2502.16982, section 2.2. `torch.optim.Muon` does the same arithmetic; it reads no
`found_inf`, so that a step could be skipped only by asking the device, and takes matrices one by
one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llamita.architecture.memory import MUON_STACK_ELEMENTS
from llamita.training.parallelism import local

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's: steepest at zero, singular values near 1
_EPS = 1e-7


class Muon(torch.optim.Optimizer):
    """Muon for some groups of matrices and a fused AdamW for the rest, as one optimizer.

    The AdamW's groups and state are shown as this optimizer's own, so that whoever sets rates or
    saves state sees every parameter. `found_inf` (1: the step leaves weights and state bitwise as
    they were, whatever is in the gradients) and `grad_scale` (gradients are divided by it) are
    0-d tensors on the device, as fused AdamW reads them.

    A matrix's rate is its group's `lr` times `rate_factor`; it decays by `lr` · `weight_decay`.
    Sharded matrices (DTensor) are gathered, shared out among the processes, and orthogonalised
    whole.

    Args:
        groups: parameter groups of matrices (rows, cols), with whatever further keys.
        adamw: owns all other parameters.
        rule: `match_rms_adamw` or `original`, see `rate_factor`.
        dtype: in which Newton–Schulz computes; everything else is in the weights' type.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        adamw: torch.optim.AdamW,
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        rule: str = "match_rms_adamw",
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.nesterov, self.ns_steps, self.rule, self.dtype = nesterov, ns_steps, rule, dtype
        self.found_inf: Tensor | None = None
        self.grad_scale: Tensor | None = None
        self.adamw = adamw
        self.matrix_groups = list(self.param_groups)
        self.param_groups.extend(adamw.param_groups)
        adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the loop computes gradients itself"
        for group in self.matrix_groups:
            for matrices in _stacks([p for p in group["params"] if p.grad is not None]):
                self._update(matrices, group)
        self.adamw.found_inf = self.found_inf  # type: ignore[attr-defined]
        self.adamw.grad_scale = self.grad_scale  # type: ignore[attr-defined]
        self.adamw.step()

    def _update(self, matrices: Sequence[nn.Parameter], group: dict[str, Any]) -> None:
        """Move matrices of one shape. Each is small enough to stay in a CPU's cache meanwhile."""
        momentum, lr = group["momentum"], group["lr"]
        skip = None if self.found_inf is None else self.found_inf > 0
        updates = torch.stack([self._momentum(p, momentum, skip) for p in matrices])
        updates = _whole_orthogonal(updates, matrices[0], self.ns_steps)
        rows, columns = matrices[0].shape
        rate = lr * rate_factor(rows, columns, self.rule)
        for parameter, update in zip(matrices, updates, strict=True):
            weight = local(parameter)
            moved = weight * (1 - lr * group["weight_decay"])
            _keep(weight, moved.add_(update, alpha=-rate), skip)

    def _momentum(self, parameter: nn.Parameter, momentum: float, skip: Tensor | None) -> Tensor:
        """Remember a gradient; returns what is to be orthogonalised, this process's rows of it."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        buffer, grad = local(state["momentum_buffer"]), local(parameter.grad)
        if self.grad_scale is not None:
            grad = grad / self.grad_scale
        following = buffer.lerp(grad, 1 - momentum)
        update = grad.lerp(following, momentum) if self.nesterov else following
        _keep(buffer, following, skip)
        return update.to(self.dtype)


def rate_factor(rows: int, columns: int, rule: str) -> float:
    """What the learning rate of a rows × columns matrix is multiplied by.

    - `match_rms_adamw`: 0.2 · √max(rows, columns). An orthogonal update of that shape has RMS
      1/√max(rows, columns), so that the weights move by 0.2 · rate RMS, as AdamW's do
      (arXiv 2502.16982, section 2.2).
    - `original`: √max(1, rows / columns), for one spectral norm of change at any shape.
    """
    if rule == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    assert rule == "original"
    return math.sqrt(max(1.0, rows / columns))


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearly the nearest orthogonal matrices: singular values between about 0.7 and 1.2.

    The quintic Newton–Schulz iteration on X / ‖X‖, X ← aX + (bA + cA²)X with A = XXᵀ, in the type
    that X has; a zero matrix stays zero.

    Args:
        matrices: (batch, rows, columns); the smaller side comes first in the products.
    """
    rows, columns = matrices.shape[-2:]
    x = matrices.mT if rows > columns else matrices
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=wide)
    x = (x / norm.clamp(min=_EPS)).to(matrices.dtype)
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if rows > columns else x


def _whole_orthogonal(updates: Tensor, like: nn.Parameter, steps: int) -> Tensor:
    """Orthogonalise whole matrices of which this process has some rows; returns its rows again."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return orthogonalize(updates, steps)
    mesh, placements = like.device_mesh, like.placements
    whole = [
        DTensor.from_local(
            update, mesh, placements, run_check=False, shape=like.shape, stride=like.stride()
        ).full_tensor()
        for update in updates
    ]
    rank, size = mesh.get_local_rank(), mesh.size()
    share = -(-len(whole) // size)
    mine = whole[rank * share : (rank + 1) * share]
    found = updates.new_zeros(share, *like.shape)
    if mine:
        found[: len(mine)] = orthogonalize(torch.stack(mine), steps)
    everyones = updates.new_empty(size * share, *like.shape)
    dist.all_gather_into_tensor(everyones, found, group=mesh.get_group())
    return torch.stack(
        [
            distribute_tensor(update, mesh, placements, src_data_rank=None).to_local()
            for update in everyones[: len(whole)]
        ]
    )


def _stacks(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one shape together, as many as a stack may hold."""
    by_shape: dict[torch.Size, list[nn.Parameter]] = {}
    for parameter in parameters:
        by_shape.setdefault(parameter.shape, []).append(parameter)
    for shape, members in by_shape.items():
        most = max(1, MUON_STACK_ELEMENTS // shape.numel())
        for start in range(0, len(members), most):
            yield members[start : start + most]


def _keep(old: Tensor, new: Tensor, skip: Tensor | None) -> None:
    """old ← new, but where `skip` is true nothing, to the bit, whatever `new` holds."""
    if skip is None:
        old.copy_(new)
    else:
        torch.where(skip, old, new, out=old)
