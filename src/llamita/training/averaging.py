"""Averages of weights: a running one beside the run, or the mean of its last checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from llamita.errors import UserError
from llamita.recipes.schema import ExponentialAverage
from llamita.training.parallelism import like, local

PREFIX = "average."
_MASS = "average_mass"


class RunningAverage:
    """An exponential mean of a model's weights after each step, in float32 on their device.

    After n steps that were taken it is Σ dᵢ wᵢ / Σ dᵢ over their weights wᵢ, where dᵢ halves with
    every `half_life_tokens` trained on since: exactly that from the first step on, so that neither
    the initial weights nor a warm-up of the decay are in it. A skipped step adds nothing.
    """

    def __init__(self, model: nn.Module, settings: ExponentialAverage) -> None:
        self.half_life = settings.half_life_tokens
        self.weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: torch.zeros_like(p.data) for name, p in self.weights.items()}
        device = next(iter(self.weights.values())).device
        self.mass = torch.zeros((), device=device)
        """Σ dᵢ · (1 − decay): what the average would be short of without its division."""

    @torch.no_grad()
    def update(self, skip: Tensor, num_tokens: int) -> None:
        """Take in the weights after a step of `num_tokens`, unless `skip` (0-d, on the device)."""
        decay = 0.5 ** (num_tokens / self.half_life)
        own = torch.full_like(self.mass, 1 - decay)
        mass = decay * self.mass + own
        # The first share is exactly 1. Weights are finite, skipped or not, so that a share of zero
        # changes nothing.
        share = torch.where(skip, 0.0, own / mass)
        self.mass.copy_(torch.where(skip, self.mass, mass))
        for name, weight in self.weights.items():
            local(self.averages[name]).lerp_(local(weight.data), share)

    @property
    def is_empty(self) -> bool:
        """Whether no step has been taken in. Asks the device."""
        return float(self.mass) == 0.0

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average as its weights meanwhile. Costs one tensor's memory."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self.weights.items():
            mine, theirs = local(self.averages[name]), local(weight.data)
            kept = theirs.clone()
            theirs.copy_(mine)
            mine.copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """`average.{parameter name}` and the mass, sharded as the parameters are."""
        named = {f"{PREFIX}{name}": tensor for name, tensor in self.averages.items()}
        return {**named, _MASS: self.mass}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave; an average that was not kept so far begins now."""
        if _MASS not in state:
            return
        self.mass.copy_(state[_MASS])
        for name, weight in self.weights.items():
            found = state[f"{PREFIX}{name}"]
            if len(found) < len(weight):  # the vocabulary's padding is no part of saved state
                rows = len(weight) - len(found)
                found = torch.cat([found, found.new_zeros(rows, *found.shape[1:])])
            self.averages[name] = like(found, weight.data)


def running_average(directory: Path) -> dict[str, Tensor]:
    """A checkpoint's running average as weights by name.

    Raises:
        UserError: the checkpoint has none.
    """
    from safetensors import safe_open

    with safe_open(directory / "training" / "optimizer.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(PREFIX)]  # noqa: SIM118
        if not names:
            raise UserError(
                f"checkpoints.final: average, but {directory} holds no running average: averaging "
                "was not asked for while it was trained; write last, or best"
            )
        return {name.removeprefix(PREFIX): file.get_tensor(name) for name in names}


def mean_of_checkpoints(directories: Sequence[Path]) -> dict[str, Tensor]:
    """Mean of several checkpoints' weights by name, in float32. Holds two models at most."""
    from llamita.model.huggingface import load_state

    mean: dict[str, Tensor] = {}
    for count, directory in enumerate(directories, start=1):
        for name, tensor in load_state(directory).items():
            if count == 1:
                mean[name] = tensor.float().clone()
            else:
                mean[name] += (tensor.float() - mean[name]) / count
    return mean
