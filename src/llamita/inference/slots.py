"""Places in one cache that requests take in turn, and what each place still holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llamita.inference.decode_step import DecodeStep
from llamita.model.cache import CacheRows, KeyValueCache
from llamita.model.decoder import Decoder


@dataclass(eq=False)
class Slot:
    """A row of the cache. `ids` are the tokens whose keys and values it holds, also when free."""

    number: int
    ids: list[int] = field(default_factory=list)
    freed: int = 0  # when it was freed, counted in frees; 0 is never used


class Slots:
    """All slots of an engine, allocated once.

    Args:
        model: gives shape, type and device of the cache.
        count: slots.
        context: tokens that each has room for.
    """

    def __init__(self, model: Decoder, count: int, context: int) -> None:
        self.cache = KeyValueCache(
            model.config, count, context, dtype=model.compute_dtype, device=device_of(model)
        )
        self.free = [Slot(number) for number in range(count)]
        self._frees = 0

    def take(self, prompt: Sequence[int]) -> Slot:
        """The free slot that holds most of the prompt's beginning, cut to what can be kept of it.

        The prompt's last token is never kept: its logits must be computed. Where no slot holds
        anything of it, the one that was freed first goes, so that newer texts stay longest.
        """
        best = max(
            self.free, key=lambda slot: (common(slot.ids, prompt), -slot.freed, -slot.number)
        )
        self.free.remove(best)
        del best.ids[min(common(best.ids, prompt), len(prompt) - 1) :]
        return best

    def give_back(self, slot: Slot) -> None:
        self._frees += 1
        slot.freed = self._frees
        self.free.append(slot)

    def forget(self) -> None:
        for slot in self.free:
            slot.ids.clear()

    def read(self, model: Decoder, slot: Slot, ids: Sequence[int]) -> Tensor:
        """Reads ids into a slot; the logits (V,) behind the last of them, float32."""
        row = self.cache.row(slot.number, len(slot.ids))
        tokens = torch.tensor([list(ids)], device=self.cache.keys[0].device)
        logits = model(tokens, cache=row, logits_to_keep=1)
        assert isinstance(logits, Tensor)
        slot.ids += ids
        return logits[0, -1]

    def step(
        self, model: Decoder | DecodeStep, slots: Sequence[Slot], ids: Sequence[int]
    ) -> Tensor:
        """Reads one id into each of some slots; logits (R, V) behind them, float32."""
        # In the cache's order, so that they follow each other where they can.
        order = sorted(range(len(slots)), key=lambda place: slots[place].number)
        rows = CacheRows(
            self.cache,
            [slots[place].number for place in order],
            [len(slots[place].ids) for place in order],
        )
        tokens = torch.tensor([[ids[place]] for place in order], device=rows.positions.device)
        if isinstance(model, DecodeStep):
            logits = model(tokens, rows)
        else:
            found = model(tokens, positions=rows.positions, cache=rows, logits_to_keep=1)
            assert isinstance(found, Tensor)
            logits = found[:, -1]
        for slot, token in zip(slots, ids, strict=True):
            slot.ids.append(token)
        if order == list(range(len(slots))):
            return logits
        back = sorted(range(len(slots)), key=order.__getitem__)
        return logits[torch.tensor(back, device=logits.device)]


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


def device_of(model: Decoder) -> torch.device:
    return model.model.norm.weight.device
