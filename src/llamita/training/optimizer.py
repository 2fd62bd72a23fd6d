"""AdamW with decay groups and per-tensor learning rates; its state under the parameters' names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llamita.errors import UserError
from llamita.recipes.schema import AdamW
from llamita.training.parallelism import like

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
"""Their rows past the vocabulary are padding of one device, and no part of saved state."""


def build_optimizer(
    model: nn.Module, settings: AdamW, multipliers: Mapping[str, float]
) -> torch.optim.AdamW:
    """Groups by (does it decay, learning-rate multiplier).

    Matrices decay; vectors (norms, biases) and the input embedding do not. TinyLlama decayed every
    parameter and names that among its mistakes. A group's decay per step is its rate ×
    weight_decay; `weight_decay_follows: base_learning_rate` divides the multiplier out again.
    """
    groups: dict[tuple[bool, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and "embed_tokens" not in name
            groups.setdefault((decays, multipliers[name]), []).append((name, parameter))
    by_base = settings.weight_decay_follows == "base_learning_rate"
    return torch.optim.AdamW(
        [
            {
                "params": [parameter for _, parameter in members],
                "names": [name for name, _ in members],
                "multiplier": multiplier,
                "weight_decay": decays * settings.weight_decay / (multiplier if by_base else 1.0),
            }
            for (decays, multiplier), members in groups.items()
        ],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["multiplier"]


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`{moment}.{parameter name}` → tensor; empty before the first step."""
    return {
        f"{moment}.{name}": optimizer.state[parameter][moment]
        for name, parameter in _named(optimizer)
        for moment in MOMENTS
        if parameter in optimizer.state
    }


def without_padding(state: Mapping[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """Whole (gathered) moments without the vocabulary's padding rows."""
    return {
        key: tensor[:vocab_size] if tensor.ndim and key.endswith(VOCABULARY) else tensor
        for key, tensor in state.items()
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_state` gave.

    Raises:
        UserError: a parameter's state is missing or of another shape.
    """
    if not state:
        return
    for name, parameter in _named(optimizer):
        for moment in MOMENTS:
            found = state.get(f"{moment}.{name}")
            wanted = torch.Size([]) if moment == "step" else parameter.shape
            if (
                found is not None
                and name in VOCABULARY
                and moment != "step"
                and len(found) < wanted[0]
            ):
                found = torch.cat([found, found.new_zeros(wanted[0] - len(found), wanted[1])])
            if found is None or found.shape != wanted:
                shape = "missing" if found is None else f"of shape {tuple(found.shape)}"
                raise UserError(
                    f"optimizer state {moment}.{name} is {shape}, expected {tuple(wanted)}: the "
                    "checkpoint belongs to another model; start from its weights alone with "
                    "fresh_optimizer: true"
                )
            # AdamW's step counts lie beside the parameters, unsharded.
            optimizer.state[parameter][moment] = (
                found.to(parameter.device, copy=True)
                if moment == "step"
                else like(found, parameter)
            )


def _named(optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    return [
        pair
        for group in optimizer.param_groups
        for pair in zip(group["names"], group["params"], strict=True)
    ]
