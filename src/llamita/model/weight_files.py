"""The weight files of a Hugging Face directory, read a tensor at a time.

Nothing that a checkpoint contains is ever executed: pickles are read as weights only.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llamita.architecture.config import ModelConfig
from llamita.errors import UserError
from llamita.model.records import read_json

SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"
WEIGHT_FILES = (SAFETENSORS, f"{SAFETENSORS}.index.json", PICKLE, f"{PICKLE}.index.json")
_LISTED = 8


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights; safetensors are preferred to pickles.

    Raises:
        UserError: there are none, or a shard is missing.
    """
    for name in (SAFETENSORS, PICKLE):
        if (directory / name).is_file():
            return [directory / name]
        index = directory / f"{name}.index.json"
        if not index.is_file():
            continue
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise UserError(f"{index} has no weight_map")
        files = sorted(set(places.values()))
        outside = [name for name in files if Path(name).name != name]
        if outside:
            raise UserError(f"{index} points outside its directory: {outside[0]!r}")
        absent = [name for name in files if not (directory / name).is_file()]
        if absent:
            raise UserError(f"{directory}: {', '.join(absent[:_LISTED])} missing, named in {index}")
        return [directory / name for name in files]
    raise UserError(
        f"{directory} holds no weights: expected {SAFETENSORS} or {PICKLE}, whole or in shards"
    )


def read_safetensors(path: Path, only: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file by name, or one of them; memory-mapped.

    Raises:
        UserError: a damaged file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys() if only is None else [only]
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged or cut short ({error}); fetch it again or use an older checkpoint"
        ) from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} is damaged, or holds more than tensors, which is not executed ({reason})"
        ) from None
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path} is not a dictionary of tensors")
    return {str(name): tensor for name, tensor in content.items()}


def _read_one(path: Path, name: str) -> Tensor:
    return read_safetensors(path, name)[name]


class StoredWeights(Mapping[str, Tensor]):
    """Weights as their files hold them, by name, each read when it is asked for.

    A tensor of safetensors is mapped anew each time, so that its pages go when it goes. Those of a
    pickle stay mapped as long as this object.

    Attributes:
        described: shapes and types, as tensors on the meta device.

    Raises:
        UserError: a damaged file.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.described: dict[str, Tensor] = {}
        self._readers: dict[str, Callable[[], Tensor]] = {}
        for path in paths:
            whole = path.suffix == ".safetensors"
            tensors = read_safetensors(path) if whole else _read_pickle(path)
            for name, tensor in tensors.items():
                self.described[name] = torch.empty_like(tensor, device="meta")
                self._readers[name] = (
                    partial(_read_one, path, name) if whole else partial(tensors.__getitem__, name)
                )

    def drop_derived(self, config: ModelConfig) -> StoredWeights:
        """Leaves out what follows from the rest: rotary buffers, and the head where it is tied."""
        for name in list(self._readers):
            tied = config.tie_word_embeddings and name == "lm_head.weight"
            if tied or name.endswith("rotary_emb.inv_freq"):
                del self._readers[name], self.described[name]
        return self

    def __getitem__(self, name: str) -> Tensor:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)
