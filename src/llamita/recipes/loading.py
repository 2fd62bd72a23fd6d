"""Recipes from YAML: read, override, check, explain, write."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from llamita.errors import UserError, did_you_mean
from llamita.recipes.schema import Recipe, Settings
from llamita.recipes.yaml_reading import Loader, parse_yaml

_S = TypeVar("_S", bound=Settings)


def shipped_recipes() -> dict[str, Path]:
    """Names of the recipes that come with llamita, with their files."""
    folder = Path(str(resources.files("llamita.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(recipe: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file, or a shipped recipe by name, with `key.path=value` overrides.

    Raises:
        UserError: unreadable, not YAML, an unknown or contradictory key, a value of the wrong kind.
    """
    path = Path(recipe)
    if path.is_dir() and (path / "recipe.yaml").is_file():
        path = path / "recipe.yaml"
    if not path.is_file():
        shipped = shipped_recipes()
        if str(recipe) not in shipped:
            raise UserError(
                f"recipe {str(recipe)!r}: no such file, and no shipped recipe of that name "
                f"(there are {', '.join(shipped)}).{did_you_mean(str(recipe), shipped)}"
            )
        path = shipped[str(recipe)]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} cannot be read: {error}") from error
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys, not {type(data).__name__}")
    for override in overrides:
        apply_override(data, override)
    return check_recipe(data, str(path))


def override_recipe(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """A recipe with `key.path=value` overrides.

    Raises:
        UserError: as `load_recipe`.
    """
    data = recipe.model_dump()
    for override in overrides:
        apply_override(data, override)
    return check_recipe(data, f"recipe {recipe.name}")


def check_recipe(data: Mapping[str, Any], where: str) -> Recipe:
    """Type a mapping as a recipe; every fault is named with its path and, if a key, its nearest."""
    return check_settings(Recipe, data, where)


def check_settings(kind: type[_S], data: Mapping[str, Any], where: str) -> _S:
    """The same for a part of a recipe."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        lines = [_explain(fault, kind) for fault in error.errors()]
        raise UserError(f"{where}:\n" + "\n".join(f"  {line}" for line in lines)) from error


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set `a.b.0.c=value` in place; the value is read as YAML."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override!r}: write KEY=VALUE, as in --set stages.0.tokens=2e9")
    target: Any = data
    parts = key.split(".")
    _spell_out(data, parts)
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        slot: int | str = part
        if isinstance(target, list):
            if not part.isdigit() or int(part) >= len(target):
                raise UserError(
                    f"--set {override!r}: {'.'.join(parts[:depth])} has {len(target)} entries, "
                    f"numbered from 0; there is no {part!r}"
                )
            slot = int(part)
        elif not isinstance(target, dict):
            raise UserError(f"--set {override!r}: {'.'.join(parts[:depth])} has no keys below it")
        if last:
            target[slot] = parse_yaml(value, f"--set {key}")
        elif isinstance(target, dict):
            below = target.get(part)
            if below is None:
                below = target[part] = {}
            target = below
        else:
            target = target[int(part)]


def _spell_out(data: dict[str, Any], parts: Sequence[str]) -> None:
    """Where a recipe wrote a preset or a dataset by its mere name and a key below is set."""
    if len(parts) > 1 and parts[0] == "model" and isinstance(data.get("model"), str):
        data["model"] = {"preset": data["model"]}
    datasets = data.get("datasets")
    if len(parts) < 3 or parts[0] != "datasets" or not isinstance(datasets, dict):
        return
    if isinstance(datasets.get(parts[1]), str):
        datasets[parts[1]] = {"path": datasets[parts[1]]}


def dump_recipe(recipe: Recipe, *, defaults: bool = True) -> str:
    """The recipe as YAML, every default written out, or only what was given."""

    class Dumper(yaml.SafeDumper):
        # Quotes what our loader, and not YAML 1.1, would take for a number.
        yaml_implicit_resolvers = Loader.yaml_implicit_resolvers

    Dumper.add_representer(tuple, lambda d, v: d.represent_sequence("tag:yaml.org,2002:seq", v))
    data = recipe.model_dump(mode="python", exclude_unset=not defaults)
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


_UNIONS = ("schedule", "optimizer", "averaging", "objective")


def _explain(fault: Any, kind: type[Settings]) -> str:
    # After these, pydantic's path names the member of the union it tried: nobody wrote that.
    location = [
        part
        for index, part in enumerate(fault["loc"])
        if not (index and fault["loc"][index - 1] in _UNIONS)
    ]
    where = ".".join(str(part) for part in location) or kind.__name__.lower()
    if fault["type"] == "extra_forbidden":
        known = sorted(_keys_at(kind, fault["loc"][:-1]))
        hint = did_you_mean(str(location[-1]), known)
        return f"{where}: there is no such key.{hint} Keys here: {', '.join(known)}."
    if fault["type"] == "missing":
        return f"{where}: is missing."
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{where}: {message}"
    return f"{where}: {message} (got {fault['input']!r})"


def _keys_at(annotation: Any, location: Sequence[int | str]) -> set[str]:
    """The keys that a recipe knows at `location`, found by walking its types."""
    if get_origin(annotation) is Annotated:
        return _keys_at(get_args(annotation)[0], location)
    if get_origin(annotation) in (Union, types.UnionType):
        members = get_args(annotation)
        if location:
            chosen = [m for m in members if _kind(m) == location[0]]
            if chosen:
                return _keys_at(chosen[0], location[1:])
        return set().union(*(_keys_at(member, location) for member in members))
    if get_origin(annotation) in (list, dict) and location:
        return _keys_at(get_args(annotation)[-1], location[1:])
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return set()
    if not location:
        return set(annotation.model_fields)
    field = annotation.model_fields.get(str(location[0]))
    return _keys_at(field.annotation, location[1:]) if field else set()


def _kind(model: Any) -> Any:
    tagged = getattr(model, "model_fields", {}).get("kind")
    return tagged.default if tagged else None
