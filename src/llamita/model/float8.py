"""Products of the blocks in float8, through torchao.

Weights stay float32 under their names; inputs, weights and output gradients are cast to float8 at
each product, with one scale a tensor computed on the spot (arXiv 2209.05433; torchao's
"tensorwise" recipe, the fastest of its kinds for dense layers). Embedding and head stay as they
are: the head's precision decides the loss.
"""

from __future__ import annotations

import torch
from torch import nn

from llamita.errors import UserError
from llamita.model.decoder import Decoder


def float8_obstacle(device: torch.device, compiled: bool) -> str | None:
    """Why float8 products cannot work here, or None."""
    if device.type != "cuda":
        return f"{device.type} has no float8 products; it needs an NVIDIA GPU"
    if torch.cuda.get_device_capability(device) < (8, 9):
        name = torch.cuda.get_device_name(device)
        return f"{name} has no float8 products; they begin with compute capability 8.9"
    if not compiled:
        return "without torch.compile its casts cost more than its products gain"
    return None


def use_float8(model: Decoder, *, emulate: bool = False) -> int:
    """Replace the blocks' linear layers in place; names and values of weights stay.

    Args:
        emulate: round to float8 but multiply in the input's type, on any device. Slow: for tests.

    Returns:
        The number of layers replaced: those whose sides are multiples of 16, as the hardware wants.

    Raises:
        UserError: torchao is not installed, or no layer qualifies.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise UserError(
            "runtime.float8 needs torchao: pip install 'llamita[float8]', or leave it out"
        ) from error

    replaced = 0

    def qualifies(module: nn.Module, name: str) -> bool:
        nonlocal replaced
        assert isinstance(module, nn.Linear)
        fits = module.in_features % 16 == 0 and module.out_features % 16 == 0
        replaced += fits
        return fits

    for block in model.model.layers:
        convert_to_float8_training(
            block, config=Float8LinearConfig(emulate=emulate), module_filter_fn=qualifies
        )
    if not replaced:
        raise UserError(
            "runtime.float8: no layer of this model has sides that are multiples of 16; leave it "
            "out"
        )
    return replaced
