"""float8 products by emulation: which layers, which names, how near."""

from __future__ import annotations

import pytest
import torch

from llamita.architecture.config import ModelConfig
from llamita.errors import UserError
from llamita.model.decoder import Decoder
from llamita.model.float8 import float8_obstacle, use_float8
from llamita.model.initialization import initialize

pytest.importorskip("torchao", reason="needs torchao: pip install 'llamita[float8]'")


def _model(hidden: int = 64) -> Decoder:
    config = ModelConfig(
        vocab_size=96,
        hidden_size=hidden,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    model = Decoder(config)
    initialize(model, "llama")
    model.compute_dtype = torch.bfloat16
    return model


def test_gradients_are_near_bfloat16s_under_the_same_names() -> None:
    """e4m3 keeps 3 bits of fraction, an error of about 3% a factor; e5m2 gradients 2 bits."""
    plain, rounded = _model(), _model()
    assert use_float8(rounded, emulate=True) == 14
    tokens = torch.randint(0, 96, (2, 33), generator=torch.Generator().manual_seed(0))
    for model in (plain, rounded):
        model(tokens[:, :-1], tokens[:, 1:]).log_probs.mean().backward()
    assert list(plain.state_dict()) == list(rounded.state_dict())
    for (name, ours), (_, theirs) in zip(
        rounded.named_parameters(), plain.named_parameters(), strict=True
    ):
        assert ours.dtype == torch.float32
        assert ours.grad is not None
        assert theirs.grad is not None
        error = (ours.grad - theirs.grad).norm() / theirs.grad.norm()
        assert error < 0.2, name
        if "_proj" in name:
            assert error > 1e-3, f"{name} was not rounded"


def test_layers_that_the_hardware_cannot_take_are_refused() -> None:
    with pytest.raises(UserError, match="multiples of 16"):
        use_float8(_model(hidden=72), emulate=True)


def test_a_cpu_has_none() -> None:
    assert "NVIDIA" in str(float8_obstacle(torch.device("cpu"), compiled=True))


@pytest.mark.gpu
def test_compiled_on_a_gpu_it_is_near_bfloat16() -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no float8 products")
    from llamita.model.decoder import compile_model

    tokens = torch.randint(0, 96, (2, 33), device="cuda")
    losses = []
    for float8 in (False, True):
        model = _model().cuda()
        if float8:
            use_float8(model)
        compile_model(model)
        scores = model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        scores.log_probs.mean().backward()
        losses.append(float(scores.log_probs.mean()))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
