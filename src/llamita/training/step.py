"""One update of the weights from one batch: forward, backward, judge, update.

Nothing here waits for the device, except where its fused optimizer cannot be told to leave a bad
step alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from llamita.data.batch import Batch
from llamita.model.decoder import Decoder
from llamita.training.guards import StepGuard, Verdict
from llamita.training.objective import Objective
from llamita.training.optimizer import set_learning_rate
from llamita.training.parallelism import World, whole
from llamita.training.profiling import phase


@dataclass(frozen=True)
class StepResult:
    """0-d tensors on the device: mean loss in nats (a token, or whatever the objective counts),
    gradient norm before clipping, the guard's verdict, and the means of the objective's metrics."""

    loss: Tensor
    grad_norm: Tensor
    verdict: Verdict
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Means:
    """Of a batch, over all processes: loss and metrics, 0-d tensors on the device."""

    loss: Tensor
    metrics: Mapping[str, Tensor]


class TrainingStep:
    """What a batch does to a model; shared by the loop and the benchmarks.

    Args:
        clip_grad_norm: global norm that gradients are scaled down to, or None.
    """

    def __init__(
        self,
        model: Decoder,
        optimizer: torch.optim.Optimizer,
        guard: StepGuard,
        *,
        device: torch.device,
        clip_grad_norm: float | None,
        world: World | None = None,
    ) -> None:
        self.model, self.optimizer, self.guard = model, optimizer, guard
        self.device, self.clip_grad_norm = device, clip_grad_norm
        self.world = world or World()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.on_device = fused_optimizer_takes_orders(device)

    def __call__(
        self, objective: Objective, batch: Batch, micro_batch_size: int, learning_rate: float
    ) -> StepResult:
        """Update the weights by a global batch, of which this process computes its own rows."""
        means = self.gradients(
            objective,
            self.world.rows(batch).split(micro_batch_size),
            count=objective.count(batch),
        )
        with phase("norm and guard"):
            norm = whole(
                nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
            )
            verdict = self.guard.judge(means.loss, norm)
        with phase("update"):
            set_learning_rate(self.optimizer, learning_rate)
            self._update(norm, verdict)
            self.optimizer.zero_grad()
        return StepResult(means.loss, norm, verdict, means.metrics)

    def gradients(self, objective: Objective, micros: Sequence[Batch], count: int) -> Means:
        """Add up the gradients of micro-batches.

        Args:
            count: what the loss is a mean over, in the whole batch, of all processes. A batch
                that holds nothing to learn (0) has loss and gradients of 0.
        """
        count = max(count, 1)
        total = torch.zeros((), device=self.device)
        metrics: dict[str, Tensor] = {}
        for micro in micros:
            with phase("forward"):
                found = objective.loss_sum(self.model, micro.to(self.device))
            with phase("backward"):
                # FSDP averages gradients over processes; the loss is a mean over all their rows.
                torch.autograd.backward(found.loss * (self.world.size / count))
            total += found.reported
            for name, value in found.metrics.items():
                metrics[name] = metrics[name] + value if name in metrics else value
        if not metrics:
            return Means(self.world.sum(total) / count, {})
        sums = self.world.sum(torch.stack([total, *metrics.values()])) / count
        return Means(sums[0], dict(zip(metrics, sums[1:].unbind(), strict=True)))

    def _update(self, norm: Tensor, verdict: Verdict) -> None:
        if not self.on_device:
            if bool(verdict.skip):
                return
            if self.clip_grad_norm is not None:
                nn.utils.clip_grads_with_norm_(self.parameters, self.clip_grad_norm, norm)
            self.optimizer.step()
            return
        # Fused AdamW leaves everything as it was where found_inf is 1, and divides gradients by
        # grad_scale in the pass it makes anyway: clipping costs nothing, and nobody asks the host.
        scale = None
        if self.clip_grad_norm is not None:
            scale = ((norm + 1e-6) / self.clip_grad_norm).clamp(min=1.0).float()
        self.optimizer.found_inf = verdict.skip.float()  # type: ignore[attr-defined]
        self.optimizer.grad_scale = scale  # type: ignore[attr-defined]
        self.optimizer.step()


def fused_optimizer_takes_orders(device: torch.device) -> bool:
    """Whether fused AdamW heeds `found_inf` and `grad_scale` on this device, by trying.

    CPU and CUDA do. A backend that ignored them would let a spike through in silence.
    """
    parameter = nn.Parameter(torch.ones(2, device=device))
    parameter.grad = torch.full_like(parameter, 8.0)
    # With betas of 0 and a huge eps the update is lr · grad / eps, so its size tells the scale.
    optimizer = torch.optim.AdamW(
        [parameter], lr=1.0, betas=(0.0, 0.0), eps=1024.0, weight_decay=0.0, fused=True
    )
    moved = []
    for skip, scale in ((1.0, 1.0), (0.0, 4.0)):
        before = parameter.detach().clone()
        optimizer.found_inf = torch.tensor(skip, device=device)  # type: ignore[attr-defined]
        optimizer.grad_scale = torch.tensor(scale, device=device)  # type: ignore[attr-defined]
        optimizer.step()
        moved.append(float((before - parameter.detach()).max()))
    return moved[0] == 0.0 and abs(moved[1] - 2.0 / 1026.0) < 1e-4
