"""The step that joins weights says what Transformers says, row by row, and takes no memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llamita.inference import decode_step
from llamita.inference.decode_step import DecodeStep, is_plain
from llamita.inference.slots import Slots
from llamita.model.decoder import Decoder
from llamita.model.huggingface import load_model
from llamita.model.quantized import projections
from tests.model.shapes import SHAPES, transformers_model

# Rows of one slot, of slots that follow each other, and of slots with a hole between them.
ROWS = ((2,), (0, 1, 2), (3, 0), (0, 1, 2, 3))


@pytest.mark.parametrize("weight_first", [True, False])  # as on a CPU, and as on a GPU
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_logits_behind_rows_of_any_length(
    shape: str, weight_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_step, "_turned", lambda x: weight_first)
    theirs = transformers_model(shape)
    theirs.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    model.requires_grad_(False)
    context = model.config.max_position_embeddings
    step = DecodeStep(model, context)
    for way in (step, model):
        slots = Slots(model, 4, context)
        texts = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]
        for slot, text in zip(slots.free, texts, strict=True):
            slots.read(model, slot, text)
        for number, rows in enumerate(ROWS):
            chosen = [slots.free[row] for row in rows]
            logits = slots.step(way, chosen, [20 + number + row for row in rows])
            for row, slot, found in zip(rows, chosen, logits, strict=True):
                assert slot.ids[-1] == 20 + number + row
                expected = theirs(torch.tensor([slot.ids])).logits[0, -1]
                assert (found - expected).abs().max() <= 5e-5


@torch.no_grad()
def test_parameters_become_views_and_stay_what_they_were(tmp_path: Path) -> None:
    transformers_model("llama-untied").save_pretrained(tmp_path)
    before, model = load_model(tmp_path), load_model(tmp_path)
    model.requires_grad_(False)
    DecodeStep(model, 64)
    for name, parameter in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], parameter), name
    storages = {
        parameter.untyped_storage().data_ptr(): parameter.untyped_storage().nbytes()
        for parameter in model.parameters()
    }
    assert sum(storages.values()) == sum(parameter.nbytes for parameter in before.parameters())
    _, layer = next(projections(model))
    assert is_plain(model)
    assert layer.weight.untyped_storage().nbytes() > layer.weight.nbytes


@torch.no_grad()
def test_bfloat16_is_as_near_as_the_decoder(tmp_path: Path) -> None:
    theirs = transformers_model("minicpm-shaped")
    theirs.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    model.requires_grad_(False)
    model.compute_dtype = torch.bfloat16
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    errors = []
    expected = theirs(torch.tensor([[5, 6, 7, 20]])).logits[0, -1]
    for way in (model, DecodeStep(model, 64)):
        slots = Slots(model, 1, 64)
        slots.read(model, slots.free[0], [5, 6, 7])
        logits = slots.step(way, slots.free, [20])
        assert logits.dtype == torch.float32
        errors.append(float((logits[0] - expected).abs().mean()))
    assert errors[1] <= 1.3 * errors[0]


@torch.no_grad()
def test_a_row_alone_is_multiplied_in_another_type(tmp_path: Path) -> None:
    theirs = transformers_model("minicpm-shaped")
    theirs.save_pretrained(tmp_path)
    expected = theirs(torch.tensor([[5, 6, 7, 20], [5, 6, 7, 21]])).logits[:, -1]
    model = load_model(tmp_path)
    model.requires_grad_(False)

    def error(way: Decoder | DecodeStep, rows: int) -> float:
        slots = Slots(model, 2, 64)
        for slot in slots.free:
            slots.read(model, slot, [5, 6, 7])
        logits = slots.step(way, slots.free[:rows], [20, 21][:rows])
        assert logits.dtype == torch.float32
        return float((logits - expected[:rows]).abs().mean())

    step = DecodeStep(model, 64, torch.bfloat16)
    assert error(step, 2) < 1e-5
    alone = error(step, 1)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    model.compute_dtype = torch.bfloat16
    assert 1e-5 < alone <= error(model, 1)
