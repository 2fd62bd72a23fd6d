"""More models in one process than torch.compile keeps graphs of."""

from __future__ import annotations

import pytest
import torch

from llamita.architecture.config import ModelConfig
from llamita.model.decoder import Decoder, compile_model
from llamita.training import compilation
from llamita.training.compilation import make_room_for_graphs


def compiled(hidden_size: int) -> Decoder:
    config = ModelConfig(
        vocab_size=32,
        hidden_size=hidden_size,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    make_room_for_graphs(str(config))
    model = Decoder(config)
    compile_model(model, backend="eager")
    return model


def test_many_shapes_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty graphs: eight are torch's limit."""
    monkeypatch.setattr(compilation, "_held", set())
    resets = []
    reset = torch.compiler.reset
    monkeypatch.setattr(torch.compiler, "reset", lambda: (resets.append(1), reset()))
    tokens = torch.arange(8)[None] % 32
    for width in range(8, 8 + 15 * 8, 8):
        model = compiled(width)
        model(tokens).sum().backward()
        with torch.no_grad():
            model(tokens)
    assert len(resets) == 1
    first = compiled(8)
    assert len(resets) == 1, "there is room for it"
    assert first(tokens).shape == (1, 8, 32)
