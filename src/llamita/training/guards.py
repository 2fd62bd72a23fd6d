"""Steps that must not reach the weights: loss spikes and non-finite numbers.

Everything is decided on the device: the verdict is a tensor that fused AdamW reads as its
`found_inf`, so no step waits for the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llamita.errors import UserError
from llamita.recipes.schema import Guard

_MIN_HISTORY = 16  # fewer steps give no σ worth the name


class Diverged(UserError):
    """Loss or gradients stayed non-finite: what a learning rate beyond all reason does."""


@dataclass(frozen=True)
class Verdict:
    """0-d tensors: whether the step is skipped, and whether for a non-finite number."""

    skip: Tensor
    non_finite: Tensor


class StepGuard:
    """Compares each step's loss and gradient norm with a window of the stage's steps so far.

    A skipped spike enters the window, so a lasting change of level is accepted in time; after
    `max_consecutive_skips` in a row it is accepted at once. Non-finite values never enter the
    window and never reach the optimizer.
    """

    def __init__(self, settings: Guard, device: torch.device) -> None:
        self.settings = settings
        # Rows: loss, gradient norm. Columns: a ring of the last steps.
        self.history = torch.zeros(2, settings.window, dtype=torch.float32, device=device)
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.consecutive = torch.zeros((), dtype=torch.int64, device=device)
        self.consecutive_non_finite = torch.zeros((), dtype=torch.int64, device=device)

    def reset(self) -> None:
        """Forget the past: a new stage has another data mix and another learning rate."""
        for tensor in self.state().values():
            tensor.zero_()

    def judge(self, loss: Tensor, grad_norm: Tensor) -> Verdict:
        """Decide on a step and remember it. Both arguments are 0-d tensors on the device."""
        values = torch.stack([loss.float(), grad_norm.float()])
        finite = torch.isfinite(values).all()
        spike = torch.zeros_like(finite)
        if self.settings.spike_sigmas is not None:
            window = self.settings.window
            held = torch.clamp(self.count, max=window)
            valid = torch.arange(window, device=values.device) < held
            divisor = torch.clamp(held, min=1)
            mean = self.history.sum(1) / divisor
            deviation = (self.history - mean[:, None]) * valid
            sigma = (deviation.square().sum(1) / divisor).sqrt()
            over = (values > mean + self.settings.spike_sigmas * sigma).any()
            patient = self.consecutive < self.settings.max_consecutive_skips
            spike = over & (held >= _MIN_HISTORY) & patient & finite
        slot = torch.remainder(self.count, self.settings.window)
        here = (torch.arange(self.settings.window, device=values.device) == slot) & finite
        self.history.copy_(torch.where(here, values[:, None].nan_to_num(), self.history))
        self.count.add_(finite)
        self.consecutive.copy_(torch.where(spike, self.consecutive + 1, 0))
        self.consecutive_non_finite.copy_(torch.where(finite, 0, self.consecutive_non_finite + 1))
        return Verdict(skip=spike | ~finite, non_finite=~finite)

    def state(self) -> dict[str, Tensor]:
        return {
            "history": self.history,
            "count": self.count,
            "consecutive": self.consecutive,
            "consecutive_non_finite": self.consecutive_non_finite,
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave; if the window's length was changed, history starts anew."""
        if state["history"].shape != self.history.shape:
            self.reset()
            return
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
