"""AdamW, and Muon for the blocks' matrices, with decay groups and per-tensor learning rates; their
state under the parameters' names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llamita.errors import UserError
from llamita.recipes import schema
from llamita.training.muon import Muon
from llamita.training.parallelism import like

ADAMW_STATE = ("exp_avg", "exp_avg_sq", "step")
MUON_STATE = ("momentum_buffer",)
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
"""Their rows past the vocabulary are padding of one device, and no part of saved state."""


def build_optimizer(
    model: nn.Module, settings: schema.Optimizer, multipliers: Mapping[str, float]
) -> torch.optim.Optimizer:
    """Groups by (whether Muon's, does it decay, learning-rate multiplier).

    Matrices decay; vectors (norms, biases) and the input embedding do not. TinyLlama decayed every
    parameter and names that among its mistakes. A group's decay per step is its rate ×
    weight_decay; `weight_decay_follows: base_learning_rate` divides the multiplier out again.
    Muon has the matrices of blocks, AdamW the rest.
    """
    groups: dict[tuple[bool, bool, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and "embed_tokens" not in name
            muons = settings.kind == "muon" and is_block_matrix(name, parameter)
            groups.setdefault((muons, decays, multipliers[name]), []).append((name, parameter))
    matrices = [_group(settings, *key, members) for key, members in groups.items() if key[0]]
    others = [_group(settings, *key, members) for key, members in groups.items() if not key[0]]
    adamw = torch.optim.AdamW(
        others, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=True
    )
    if settings.kind == "adamw":
        return adamw
    return Muon(
        matrices,
        adamw,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        ns_steps=settings.ns_steps,
        rule=settings.learning_rate_rule,
        dtype=getattr(model, "compute_dtype", torch.float32),
    )


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and name.startswith("model.layers.")


def _group(
    settings: schema.Optimizer,
    muons: bool,
    decays: bool,
    multiplier: float,
    members: list[tuple[str, nn.Parameter]],
) -> dict[str, Any]:
    by_base = settings.weight_decay_follows == "base_learning_rate"
    group = {
        "params": [parameter for _, parameter in members],
        "names": [name for name, _ in members],
        "state_names": MUON_STATE if muons else ADAMW_STATE,
        "multiplier": multiplier,
        "weight_decay": decays * settings.weight_decay / (multiplier if by_base else 1.0),
    }
    if muons and settings.kind == "muon" and settings.matrix_learning_rate is not None:
        group["multiplier"] = multiplier * settings.matrix_learning_rate / settings.learning_rate
    return group


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["multiplier"]


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`{moment}.{parameter name}` → tensor; empty before the first step."""
    return {
        f"{moment}.{name}": optimizer.state[parameter][moment]
        for name, parameter, moments in _named(optimizer)
        for moment in moments
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

    A tensor whose state is the other optimizer's (Muon's momentum where AdamW's moments are wanted,
    or the other way round) begins afresh.

    Raises:
        UserError: a parameter's state is missing or of another shape.
    """
    if not state:
        return
    for name, parameter, moments in _named(optimizer):
        others = ADAMW_STATE if moments == MUON_STATE else MUON_STATE
        if all(f"{moment}.{name}" in state for moment in others):
            continue
        for moment in moments:
            found = _found(state, moment, name, parameter.shape)
            # AdamW's step counts lie beside the parameters, unsharded.
            optimizer.state[parameter][moment] = (
                found.to(parameter.device, copy=True)
                if moment == "step"
                else like(found, parameter)
            )


def _found(state: Mapping[str, Tensor], moment: str, name: str, shape: torch.Size) -> Tensor:
    """A parameter's moment, padded as it is on this device."""
    found = state.get(f"{moment}.{name}")
    wanted = torch.Size([]) if moment == "step" else shape
    if found is not None and name in VOCABULARY and found.ndim and len(found) < wanted[0]:
        found = torch.cat([found, found.new_zeros(wanted[0] - len(found), wanted[1])])
    if found is None or found.shape != wanted:
        is_like = "missing" if found is None else f"of shape {tuple(found.shape)}"
        raise UserError(
            f"optimizer state {moment}.{name} is {is_like}, expected {tuple(wanted)}: the "
            "checkpoint belongs to another model; start from its weights alone with "
            "fresh_optimizer: true"
        )
    return found


def _named(optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor, tuple[str, ...]]]:
    """Every parameter's name, itself, and what its optimizer remembers of it."""
    return [
        (name, parameter, group["state_names"])
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    ]
