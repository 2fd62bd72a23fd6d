"""Many texts by an engine, as many at a time as it takes."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence

from llamita.inference.engine import Engine, Finish, Handle, Piece, Request

# Requests in the engine's hands, for each that it works on: the next is there when one ends.
_AHEAD = 2


def write_all(
    engine: Engine, asked: Sequence[Request], written: Callable[[int, list[int], int], None]
) -> None:
    """Has all requests written. Those that begin alike follow each other, so that an engine that
    keeps what it has read need not read it again.

    Args:
        written: told, as soon as a text is there, the number of its request, the ids of its
            tokens, and how many are there now.

    Raises:
        UserError: a request that the engine refuses. What else fails in the engine is raised as
            it is. In either case the rest is cancelled.
    """
    arrived: queue.SimpleQueue[tuple[int, Piece | Finish | Exception]] = queue.SimpleQueue()
    ids: list[list[int]] = [[] for _ in asked]
    waiting = sorted(range(len(asked)), key=lambda number: asked[number].prompt, reverse=True)
    handles: dict[int, Handle] = {}

    def submit() -> None:
        if waiting:
            number = waiting.pop()

            def deliver(event: Piece | Finish | Exception) -> None:
                arrived.put((number, event))

            handles[number] = engine.submit(asked[number], deliver)

    done = 0
    try:
        for _ in range(_AHEAD * engine.slots):
            submit()
        while handles:
            number, event = arrived.get()
            if isinstance(event, Piece):
                ids[number] += [token.id for token in event.tokens]
                continue
            del handles[number]
            if isinstance(event, Exception):
                raise event
            done += 1
            submit()
            written(number, ids[number], done)
    finally:
        for handle in handles.values():
            handle.cancel()
