"""Hugging Face directories that imports and exports write: whole or not at all.

Beside the model lies `origin.json`, which says what it was made from. Only a directory that has
one is ever replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamita.data.atomic import exclusive, fresh_directory, publish, sync_files
from llamita.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import torch

ORIGIN = "origin.json"
DTYPES = ("float32", "bfloat16", "float16")
WRITTEN_BY = "llamita.written_by"  # the key of a GGUF file that says that it may be replaced
# What GGUF says of a model beside its numbers; kept in `origin.json` on the way in and out.
GENERAL_FACTS = ("general.name", "general.license", "general.basename", "general.finetune")


def torch_dtype(name: str) -> torch.dtype:
    """One of `DTYPES`.

    Raises:
        UserError: another name.
    """
    import torch

    if name not in DTYPES:
        raise UserError(
            f"dtype {name!r} is none of {', '.join(DTYPES)}.{did_you_mean(name, DTYPES)}"
        )
    found: torch.dtype = getattr(torch, name)
    return found


def in_dtype(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor` in the type it is written in.

    Raises:
        UserError: a value that the type cannot hold: float16 ends at 65,504.
    """
    import torch

    written = tensor.to(dtype)
    if dtype == torch.float16 and not torch.isfinite(written).all():
        raise UserError(
            f"{name} has values beyond what float16 can hold (65,504); write bfloat16 or float32"
        )
    return written


def read_origin(directory: Path) -> Mapping[str, Any] | None:
    """What a directory says it was made from, `None` where it says nothing."""
    try:
        found = json.loads((directory / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def refuse_foreign(out: Path, *, force: bool) -> None:
    """Raises where `out` may not be written.

    Raises:
        UserError: something is there that no import or export wrote, or that one did, without
            `force`.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or read_origin(out) is None:
        raise UserError(
            f"{out} exists and was not written by `llamita import` or `llamita export`; "
            "name another --out"
        )
    if not force:
        raise UserError(f"{out} exists; add --force to replace it, or name another --out")


def refuse_foreign_file(out: Path, *, force: bool) -> None:
    """Raises where the GGUF file `out` may not be written.

    Raises:
        UserError: something is there that no export wrote, or that one did, without `force`.
    """
    if not out.exists():
        return
    if out.is_dir():
        raise UserError(f"{out} is a directory; of a GGUF --out names the file")
    if not _is_own_file(out):
        raise UserError(f"{out} exists and was not written by `llamita export`; name another --out")
    if not force:
        raise UserError(f"{out} exists; add --force to replace it, or name another --out")


def _is_own_file(path: Path) -> bool:
    from llamita.formats.gguf_file import GgufFile

    try:
        return WRITTEN_BY in GgufFile(path).fields
    except UserError:
        return False


@contextmanager
def new_directory(out: Path, origin: Mapping[str, Any], *, force: bool) -> Iterator[Path]:
    """A directory beside `out` to write into, which becomes `out` at the end, or is removed.

    Raises:
        UserError: `out` may not be written, another process writes it, or the disk is full.
    """
    from safetensors import SafetensorError

    out = out.resolve()
    with exclusive(out, "model"):
        refuse_foreign(out, force=force)
        with fresh_directory(out.with_name(f".{out.name}.building")) as building:
            try:
                yield building
            except SafetensorError as error:  # it tells a full disk in its own way
                raise UserError(
                    f"the weights could not be written into {out.parent} ({error}); the unfinished "
                    "files were removed. Free some space, or name an --out on another disk."
                ) from None
            text = json.dumps(origin, indent=2, ensure_ascii=False) + "\n"
            (building / ORIGIN).write_text(text, encoding="utf-8")
            sync_files(building)
            publish(building, out)
