"""The command that gives an answer again."""

from __future__ import annotations

from pathlib import Path

from llamita.planning.command import command_of


def test_what_was_given_and_nothing_else() -> None:
    given = {
        "recipe": None,
        "overrides": (),
        "quality": "13B",
        "max_epochs": 4.0,
        "price": ["a100-80=1.40usd/h", "a100-40=0.60usd/h"],
        "hardware_file": (Path("my nodes.yaml"),),
        "serve_tokens": None,
        "html": "plan.html",
        "figures": "figures",
        "write_recipe": "found.yaml",
        "as_json": True,
    }
    assert command_of(given) == [
        "llamita", "plan", "--quality", "13B", "--max-epochs", "4.0",
        "--price", "a100-80=1.40usd/h", "--price", "a100-40=0.60usd/h",
        "--hardware-file", "my nodes.yaml",
    ]  # fmt: skip


def test_a_recipe_comes_first_and_overrides_are_set() -> None:
    given = {"overrides": ["batch_tokens=4096"], "recipe": Path("runs/a"), "as_json": False}
    wanted = ["llamita", "plan", "runs/a", "--set", "batch_tokens=4096"]
    assert command_of(given) == wanted
