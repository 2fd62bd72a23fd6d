"""Answers that are kept: asked for once, whatever stops in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'llamita[eval]'")

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from llamita.errors import UserError
from llamita.evaluation.item_cache import ItemCache, Remembering


class Counting(LM):
    """Answers by the length of the text, and remembers what it was asked."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.asked: list[Any] = []
        self._fails_at = fails_at

    def _each(self, method: str, requests: list[Instance], answer: Any) -> list[Any]:
        found = []
        for each in requests:
            if len(self.asked) == self._fails_at:
                raise KeyboardInterrupt
            self.asked.append(each.args)
            found.append(answer(each.args))
            self.cache_hook.add_partial(method, each.args, found[-1])
        return found

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return self._each("loglikelihood", requests, lambda args: (-len(args[1]) / 3, True))

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return self._each("loglikelihood_rolling", requests, lambda args: -len(args[0]) / 3)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return self._each("generate_until", requests, lambda args: args[0].upper())


def instances(method: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [
        Instance(request_type=method, doc={}, arguments=each, idx=number)
        for number, each in enumerate(arguments)
    ]


PAIRS = [("what is it", " a ship"), ("what is it", " é"), ("who", " nobody at all")]


def test_each_answer_once_and_to_the_bit(tmp_path: Path) -> None:
    for turn in range(2):
        model, cache = Counting(), ItemCache(tmp_path / "deep/items.sqlite")
        found = []
        lm = Remembering(model, cache, lambda number, of: found.append((number, of)))  # noqa: B023
        assert lm.loglikelihood(instances("loglikelihood", *PAIRS)) == [
            (-7 / 3, True),
            (-2 / 3, True),
            (-14 / 3, True),
        ]
        # The same arguments to another method are another question.
        texts = instances("loglikelihood_rolling", ("what is it",))
        assert lm.loglikelihood_rolling(texts) == [-10 / 3]
        prompts = instances("generate_until", ("who", {"until": ["\n"], "do_sample": False}))
        assert lm.generate_until(prompts) == ["WHO"]
        assert len(model.asked) == (5 if turn == 0 else 0)
        assert found == [(0, 3), (0, 1), (0, 1)] if turn == 0 else [(3, 3), (1, 1), (1, 1)]
        cache.close()


def test_an_interrupted_one_goes_on(tmp_path: Path) -> None:
    cache = ItemCache(tmp_path / "items.sqlite")
    with pytest.raises(KeyboardInterrupt):
        Remembering(Counting(fails_at=2), cache).loglikelihood(instances("loglikelihood", *PAIRS))
    cache.close()
    model, cache = Counting(), ItemCache(tmp_path / "items.sqlite")
    answers = Remembering(model, cache).loglikelihood(instances("loglikelihood", *PAIRS))
    assert answers == [(-7 / 3, True), (-2 / 3, True), (-14 / 3, True)]
    assert model.asked == [PAIRS[2]]
    cache.close()


def test_what_is_drawn_is_drawn_again(tmp_path: Path) -> None:
    model, cache = Counting(), ItemCache(tmp_path / "items.sqlite")
    lm = Remembering(model, cache)
    drawn = instances("generate_until", ("who", {"do_sample": True, "temperature": 0.7}))
    lm.generate_until(drawn)
    lm.generate_until(drawn)
    assert len(model.asked) == 2
    cache.close()


def test_a_file_that_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "items.sqlite").write_text(
        "not a database, but long enough to be taken for one" * 9
    )
    with pytest.raises(UserError, match=r"items\.sqlite cannot be used .*delete it"):
        ItemCache(tmp_path / "items.sqlite")
