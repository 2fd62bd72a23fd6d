"""What a model has answered to each item, on disk, so that an evaluation that was stopped goes on.

Imports lm_eval: import this module where it is used.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from llamita.errors import UserError

_SAVE_SECONDS = 2.0


class ItemCache:
    """Answers by method and arguments, in one SQLite file a model and its settings.

    Raises:
        UserError: the file cannot be opened, or is none of these.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=30.0)
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS items (key TEXT PRIMARY KEY, value TEXT)"
            )
            self._file.commit()
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"the cache of answers {path} cannot be used ({error}): delete it, or set "
                "XDG_CACHE_HOME to a directory that can be written"
            ) from None
        self._saved = time.monotonic()

    def get(self, method: str, arguments: Iterable[Any]) -> Any:
        """What was answered, or None."""
        row = self._file.execute(
            "SELECT value FROM items WHERE key = ?", (_key(method, arguments),)
        ).fetchone()
        if row is None:
            return None
        value = json.loads(row[0])
        return tuple(value) if isinstance(value, list) else value

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
        """Keeps one answer; the name and its arguments are those of lm-eval's `CacheHook`."""
        self._file.execute(
            "INSERT OR REPLACE INTO items VALUES (?, ?)", (_key(attr, req), json.dumps(res))
        )
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        try:
            self._file.commit()
        except sqlite3.Error as error:
            raise UserError(f"the cache of answers {self._path} was not written: {error}") from None
        self._saved = time.monotonic()

    def close(self) -> None:
        self.save()
        self._file.close()


class Remembering(LM):  # type: ignore[misc]
    """A model whose answers are kept, and asked for only once.

    Args:
        model: calls its `cache_hook` with each answer as it comes, as lm-eval's own models do.
        found: told how many answers of a call were there, and how many it had.
    """

    def __init__(
        self, model: LM, cache: ItemCache, found: Callable[[int, int], None] = lambda n, of: None
    ) -> None:
        super().__init__()
        self._model, self._cache, self._found = model, cache, found
        model.set_cache_hook(cache)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return self._answers("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return self._answers("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return self._answers("generate_until", requests)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        rendered: str = self._model.apply_chat_template(chat_history, add_generation_prompt)
        return rendered

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        template: str | None = self._model.chat_template(chat_template)
        return template

    @property
    def tokenizer_name(self) -> str:
        name: str = self._model.tokenizer_name
        return name

    def _answers(self, method: str, requests: list[Instance]) -> list[Any]:
        answers: list[Any] = [
            None if _is_drawn(each.args) else self._cache.get(method, each.args)
            for each in requests
        ]
        new = [each for each, answer in zip(requests, answers, strict=True) if answer is None]
        self._found(len(requests) - len(new), len(requests))
        if new:
            rest = iter(getattr(self._model, method)(new))
            for number, answer in enumerate(answers):
                if answer is None:
                    answers[number] = next(rest)
                    if not _is_drawn(requests[number].args):
                        self._cache.add_partial(method, requests[number].args, answers[number])
        self._cache.save()
        return answers


def _is_drawn(arguments: tuple[Any, ...]) -> bool:
    """Whether it may come out otherwise next time."""
    return (
        len(arguments) > 1
        and isinstance(arguments[1], Mapping)
        and bool(arguments[1].get("do_sample"))
    )


def _key(method: str, arguments: Iterable[Any]) -> str:
    told = json.dumps([method, *arguments], sort_keys=True, default=list)
    return hashlib.sha256(told.encode()).hexdigest()
