"""Runs that learn an adapter: what it is put onto, and how it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from llamita.architecture.lora import Lora
from llamita.errors import UserError
from llamita.model.adapted import base_fingerprint, check_base
from llamita.model.adapter_directory import (
    Base,
    base_directory,
    base_path,
    is_adapter,
    read_adapter,
)
from llamita.model.adapters import add_adapters
from llamita.model.decoder import Decoder
from llamita.model.huggingface import load_frozen
from llamita.recipes.schema import Recipe


@dataclass(frozen=True)
class Adapted:
    """An adapter's shape, and its base.

    directory: the base's Hugging Face directory here. named: what the user called it, a hub id
    perhaps. adapter: the directory of an adapter that goes on learning.
    """

    lora: Lora
    directory: Path
    named: str
    adapter: Path | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Of the base's weights, which are read for it."""
        return base_fingerprint(self.directory)

    @property
    def is_recorded(self) -> bool:
        """Whether the adapter that goes on learning says which weights it belongs to."""
        assert self.adapter is not None
        return read_adapter(self.adapter)[1].fingerprint is not None

    def base(self, target: Path) -> Base:
        """The record of its base that an adapter at `target` keeps."""
        path = base_path(self.named, self.directory, target)
        return Base(path, self.fingerprint, self.lora.quantization)

    def build(
        self, padded_vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int
    ) -> Decoder:
        """The base on its device, as it is kept while an adapter learns, and a new adapter on it.

        Raises:
            UserError: the adapter that goes on learning belongs to other weights.
        """
        if self.adapter is not None:
            check_base(self.adapter, self.directory)
        model = load_frozen(
            self.directory,
            device,
            dtype,
            quantization=self.lora.quantization,
            padded_vocab_size=padded_vocab_size,
        )
        add_adapters(model, self.lora, seed=seed)
        return model.train()


def settle_adapted(recipe: Recipe, directory: Path) -> Adapted | None:
    """What a run that goes on from `directory`, or starts from it, adapts; None where every
    parameter learns.

    Raises:
        UserError: the recipe and the adapter that is there speak of different ones, or its base is
            gone.
    """
    there = is_adapter(directory)
    if recipe.adapter is None:
        if there:
            raise UserError(
                f"{directory} is an adapter, and the recipe names none. To go on with it, add "
                "adapter: to the recipe; to train every parameter, start from the folded model: "
                f"llamita export {directory} --to hf --out DIR"
            )
        return None
    lora = recipe.adapter.lora
    if not there:
        assert recipe.start_from is not None, "the recipe was checked"
        return Adapted(lora, directory, recipe.start_from)
    kept, base = read_adapter(directory)
    differences = [
        f"{name} {getattr(kept, name)} where the recipe has {getattr(lora, name)}"
        for name in ("rank", "alpha", "targets", "rslora", "quantization")
        if getattr(kept, name) != getattr(lora, name)
    ]
    if differences:
        raise UserError(
            f"the adapter {directory} has {'; '.join(differences)}. Write it into the recipe as it "
            "is, or begin a new adapter on the base"
        )
    # A path that counts from the adapter's directory is none that counts from here.
    found = base_directory(directory)
    inside = (directory / base.path).exists()
    return Adapted(lora, found, str(found) if inside else base.path, directory)
