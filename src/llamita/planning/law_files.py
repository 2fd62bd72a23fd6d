"""Writing a law as a file that `find_law` reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from llamita.durable import replace_synced
from llamita.errors import UserError
from llamita.planning.laws import CONSTANTS, Law, find_law, shipped_laws

_HEAD = """\
# A scaling law: L(N, D) = E + A/(N/parameters_unit)^alpha + B/(D/tokens_unit)^beta.
# Wherever llamita takes a law's name it takes this file. Keys are those of the shipped laws;
# samples are the fits of the bootstrap, E A alpha B beta a line.
"""


def check_destination(path: Path, name: str) -> None:
    """
    Raises:
        UserError: the file could not be found again as a law, or would hide behind a shipped one.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {path}: a law's file ends in .yaml; write {path.stem}.yaml")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no directory {path.parent}; make it first")
    if name in shipped_laws():
        raise UserError(f"--name {name}: a law of that name comes with llamita; choose another")
    if not re.fullmatch(r"\S(.*\S)?", name):
        raise UserError(f"--name {name!r}: write a name without space at its ends")


def write_law(law: Law, path: str | Path) -> None:
    """Write a law; `find_law(path)` returns it again, its samples to nine digits.

    Raises:
        UserError: the file cannot be written, or could not be found again.
    """
    path = Path(path)
    check_destination(path, law.name)
    replace_synced(path, law_text(law))
    find_law(path)


def law_text(law: Law) -> str:
    """The file's text."""
    lines = [f"name: {_text(law.name)}"]
    lines += [f"{key}: {_number(getattr(law, key))}" for key in CONSTANTS]
    lines += [f"loss: {law.loss}", f"counts: {law.counts}"]
    for unit in ("parameters_unit", "tokens_unit"):
        lines += [f"{unit}: {_number(getattr(law, unit))}"]
    if law.repetition is not None:
        values = {"data": law.repetition.data}
        if law.repetition.parameters is not None:
            values["parameters"] = law.repetition.parameters
        lines += [f"repetition: {_mapping(values)}"]
    lines += [f"source: {_text(law.source)}"]
    lines += [f"{key}: {_text(getattr(law, key))}" for key in ("note", "data") if getattr(law, key)]
    for key in ("fitted_parameters", "fitted_tokens", "fitted_ratio"):
        if getattr(law, key) is not None:
            lines += [f"{key}: {_pair(getattr(law, key))}"]
    if law.errors:
        lines += [f"errors: {_mapping(law.errors)}"]
    if law.intervals:
        lines += ["intervals: # 95%"]
        lines += [f"  {key}: {_pair(value)}" for key, value in law.intervals.items()]
    if law.samples:
        lines += ["samples: |"]
        lines += ["  " + " ".join(f"{value:.9g}" for value in sample) for sample in law.samples]
    return _HEAD + "\n".join(lines) + "\n"


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _pair(values: tuple[float, float]) -> str:
    return "[" + ", ".join(_number(value) for value in values) + "]"


def _mapping(values: Mapping[str, float]) -> str:
    return "{" + ", ".join(f"{key}: {_number(value)}" for key, value in values.items()) + "}"
