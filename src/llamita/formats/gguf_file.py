"""GGUF files: what they say and the tensors in them.

The header is read here rather than with `gguf.GGUFReader`, which makes a numpy view of every string
(a vocabulary of 49,152 tokens takes it 13 s, and this 0.2 s) and does not tell a cut file from a
defect. Dequantisation is `gguf.quants`'.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from llamita.errors import UserError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # they differ in what a big-endian file may be, which is refused anyway
_ALIGNMENT = 32
_FLOAT32, _BOOL, _STRING, _ARRAY = 6, 7, 8, 9
_NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "|b1",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_SPLIT_NAME = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
# Values dequantised at once: gguf takes 16 rows, which for narrow tensors is mostly overhead.
_PIECE = 1 << 17
_MAX_DIMENSIONS = 4
_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class GgufTensor:
    """One tensor as the file lists it.

    Shapes are row-major (outermost first), as numpy and torch have them; the file says them the
    other way round. `offset` counts bytes from the beginning of the file.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    num_bytes: int


class GgufFile:
    """An open GGUF file: `fields` by key, `tensors` by name.

    Strings are `str`, arrays lists of strings or numpy arrays, numbers Python's. A float32 is
    taken as the shortest decimal that is it, since a converter wrote down 1e-05 and not
    9.999999747378752e-06.

    Raises:
        UserError: no GGUF file, one that is cut short, of another version or byte order, a part of
            a split one, or one with tensors that the package `gguf` (extra `gguf`) cannot read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        _import_gguf()
        try:
            with self.path.open("rb") as file:
                start = file.read(24)
                _check_start(self.path, start)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror or error}") from None
        self.num_bytes = len(self._map)
        try:
            self.fields, listed, data = _read_header(_Reader(self._map))
            self._refuse_split()
            self.tensors = {entry[0]: self._placed(*entry, data) for entry in listed}
        except (struct.error, IndexError):
            raise UserError(_cut_short(self.path)) from None
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path} is damaged: a text in it is no UTF-8 ({error})") from None
        except _DamagedError as error:
            raise UserError(f"{self.path} is damaged: {error}") from None
        if len(self.tensors) < len(listed):
            raise UserError(f"{self.path} is damaged: it lists a tensor twice")
        self._check_types()

    def value(self, key: str, kind: type[_Kind], default: _Kind | None = None) -> _Kind | None:
        """The value of a key, which must be of `kind` (int, float, bool, str or list).

        Raises:
            UserError: the key holds something else.
        """
        found = self.fields.get(key)
        if found is None:
            return default
        if kind is float and isinstance(found, int) and not isinstance(found, bool):
            found = float(found)
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            raise UserError(f"{self.path}: {key} is {found!r:.60}, not of type {kind.__name__}")
        return found

    def required(self, key: str, kind: type[_Kind]) -> _Kind:
        """`value` of a key that must be there.

        Raises:
            UserError: it is not; a file without it cannot be a whole model.
        """
        found = self.value(key, kind)
        if found is None:
            raise UserError(
                f"{self.path} has no {key}, which every model of its kind needs: it was written by "
                "a very old or a broken converter; convert the model again"
            )
        return found

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor's values, dequantised, in float32.

        Raises:
            UserError: values that are no finite numbers.
        """
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        kind = GGMLQuantizationType[tensor.type_name]
        values, size = GGML_QUANT_SIZES[kind]
        raw = np.frombuffer(self._map, np.uint8, tensor.num_bytes, tensor.offset)
        found = np.empty(tensor.num_bytes // size * values, np.float32)
        step = _PIECE // values
        for first in range(0, tensor.num_bytes // size, step):
            # One row of many blocks: where rows end makes no difference to a block.
            blocks = raw[first * size : (first + step) * size].reshape(1, -1)
            found[first * values : (first + step) * values] = dequantize(blocks, kind).reshape(-1)
        if not np.isfinite(found).all():
            raise UserError(f"{self.path} is damaged: {name} holds values that are no numbers")
        return found.reshape(tensor.shape)

    def type_counts(self) -> dict[str, int]:
        """How many tensors there are of each type, most frequent first."""
        return dict(Counter(tensor.type_name for tensor in self.tensors.values()).most_common())

    def _refuse_split(self) -> None:
        count = self.value("split.count", int, 0) or 0
        if count > 1 or (count == 0 and _SPLIT_NAME.search(self.path.name)):
            raise UserError(
                f"{self.path} is one part of a split GGUF; join the parts first with llama.cpp's "
                f"`llama-gguf-split --merge {self.path.name} whole.gguf`"
            )

    def _placed(
        self, name: str, shape: tuple[int, ...], number: int, offset: int, data: int
    ) -> GgufTensor:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise UserError(
                f"{self.path}: {name} is of type number {number}, which the installed gguf does "
                "not know; update it (pip install -U gguf), or quantise the model to another type"
            ) from None
        values, size = GGML_QUANT_SIZES[kind]
        if not shape or shape[-1] % values or 0 in shape:
            raise _DamagedError(f"{name} of type {kind.name} cannot have the shape {shape}")
        num_bytes = math.prod(shape) // values * size
        if data + offset + num_bytes > self.num_bytes:
            raise UserError(_cut_short(self.path))
        return GgufTensor(name, shape, kind.name, data + offset, num_bytes)

    def _check_types(self) -> None:
        """Finds out on the first block of each type whether gguf can read it: before anything is
        written, not in the middle."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        first = {tensor.type_name: tensor for tensor in reversed(self.tensors.values())}
        for type_name, tensor in first.items():
            kind = GGMLQuantizationType[type_name]
            size = GGML_QUANT_SIZES[kind][1]
            block = np.frombuffer(self._map, np.uint8, size, tensor.offset).reshape(1, -1)
            try:
                dequantize(block, kind)
            except NotImplementedError:
                raise UserError(
                    f"{self.path}: {tensor.name} is of type {type_name}, which the package gguf "
                    "cannot turn into numbers; quantise the model to another type, such as Q8_0"
                ) from None


class _DamagedError(Exception):
    """What is wrong with a file; its name is put in front further up."""


def _import_gguf() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError(
            "reading GGUF files needs the package gguf: pip install 'llamita[gguf]'"
        ) from None


def _check_start(path: Path, start: bytes) -> None:
    if start[:4] != MAGIC:
        raise UserError(f"{path} is not a GGUF file: it does not begin with the letters GGUF")
    if len(start) < 24:
        raise UserError(_cut_short(path))
    (version,) = struct.unpack_from("<I", start, 4)
    if version & 0xFFFF == 0:
        raise UserError(
            f"{path} is a big-endian GGUF; convert it first with "
            f"`python -m gguf.scripts.gguf_convert_endian {path.name} little`"
        )
    if version not in _VERSIONS:
        known = " and ".join(map(str, _VERSIONS))
        raise UserError(
            f"{path} is of GGUF version {version}; {known} are read. "
            "Convert the model again with today's llama.cpp"
        )


def _cut_short(path: Path) -> str:
    return f"{path} is cut short: it ends before what it says it holds; fetch it again"


class _Reader:
    """Reads little-endian values one after the other."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._end = len(content)
        self.place = 0

    def number(self, kind: str) -> Any:
        found = np.frombuffer(self._take(np.dtype(kind).itemsize), kind)[0]
        # The shortest decimal that is this float32: see GgufFile.
        return float(str(found)) if kind == _NUMBERS[_FLOAT32] else found.item()

    def string(self) -> str:
        return str(self._take(self.number("<u8")), "utf-8")

    def value(self) -> Any:
        kind = self.number("<u4")
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _NUMBERS:
            raise _DamagedError(f"it has a value of the unknown type {kind}")
        return self.number(_NUMBERS[kind])

    def _array(self) -> Any:
        kind, length = self.number("<u4"), self.number("<u8")
        if kind == _STRING:
            return self._strings(length)
        if kind not in _NUMBERS:
            raise _DamagedError(f"it has an array of the unknown type {kind}")
        dtype = np.dtype(_NUMBERS[kind])
        return np.frombuffer(self._take(length * dtype.itemsize), dtype)

    def _strings(self, length: int) -> list[str]:
        unpack, content, place = struct.Struct("<Q").unpack_from, self._content, self.place
        found = []
        for _ in range(length):
            (size,) = unpack(content, place)
            place += 8 + size
            if place > self._end:
                raise IndexError
            found.append(str(content[place - size : place], "utf-8"))
        self.place = place
        return found

    def _take(self, size: int) -> bytes:
        first, self.place = self.place, self.place + size
        if self.place > self._end:
            raise IndexError
        return self._content[first : self.place]


_Listed = tuple[str, tuple[int, ...], int, int]


def _read_header(reader: _Reader) -> tuple[Mapping[str, Any], list[_Listed], int]:
    """Fields, the list of tensors (name, shape, type, offset), and where their data begin."""
    reader.place = 8
    num_tensors, num_fields = reader.number("<u8"), reader.number("<u8")
    fields: dict[str, Any] = {}
    for _ in range(num_fields):
        key = reader.string()
        if key in fields:
            raise _DamagedError(f"it has the key {key} twice")
        fields[key] = reader.value()
    listed: list[_Listed] = []
    for _ in range(num_tensors):
        name, num_dimensions = reader.string(), reader.number("<u4")
        if num_dimensions > _MAX_DIMENSIONS:
            raise _DamagedError(f"{name} has {num_dimensions} dimensions")
        sizes = [reader.number("<u8") for _ in range(num_dimensions)]
        listed.append((name, tuple(reversed(sizes)), reader.number("<u4"), reader.number("<u8")))
    alignment = fields.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise _DamagedError(f"general.alignment is {alignment!r}, not a power of two")
    return fields, listed, -(-reader.place // alignment) * alignment
