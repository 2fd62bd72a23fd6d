"""ggml's own quantiser, where it can be reached: inside the extension module of xllamacpp.

The package `gguf` reads every type and writes the simpler ones; K-quants, whose scales are found
by searching, are written by ggml alone.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamita.cores import num_threads
from llamita.errors import UserError

_PIECE = 1 << 20  # values a call; a call holds no lock of Python's, so that pieces run side by side


def quantize_with_ggml(values: NDArray[np.float32], kind: str) -> NDArray[np.uint8]:
    """Rows of numbers as blocks of `kind`.

    Args:
        values: finite, (rows, columns), columns a multiple of the block.
        kind: a name of `gguf.GGMLQuantizationType`, such as "Q4_K".

    Returns:
        (rows, bytes of a row).

    Raises:
        UserError: see `check_ggml`.
    """
    library, number = _library(), check_ggml(kind)
    values = np.ascontiguousarray(values, np.float32)
    rows, columns = values.shape
    found = np.empty((rows, library.ggml_row_size(number, columns)), np.uint8)
    step = max(1, _PIECE // columns)

    def quantize(first: int) -> None:
        piece = values[first : first + step]
        library.ggml_quantize_chunk(
            number, piece.ctypes.data, found[first:].ctypes.data, 0, len(piece), columns, None
        )

    with ThreadPoolExecutor(max_workers=num_threads()) as pool:
        list(pool.map(quantize, range(0, rows, step)))
    return found


def check_ggml(kind: str) -> int:
    """ggml's number of a type that its quantiser here can write.

    Raises:
        UserError: xllamacpp is not installed, is built otherwise, or the type needs an importance
            matrix.
    """
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    library, number = _library(), GGMLQuantizationType[kind]
    values, size = GGML_QUANT_SIZES[number]
    if library.ggml_row_size(number, values) != size:
        raise UserError(
            f"the ggml in the installed xllamacpp stores {kind} in other blocks than the package "
            "gguf reads; install releases of the same time, or take q8_0"
        )
    if library.ggml_quantize_requires_imatrix(number):
        raise UserError(f"{kind} needs an importance matrix, which llamita does not make")
    return int(number)


@cache
def _library() -> Any:
    missing = (
        "K-quants are written by ggml's own quantiser, which is in the package xllamacpp: "
        "pip install 'llamita[cpu]'. Without it take q8_0, q5_1, q5_0, q4_1 or q4_0"
    )
    try:
        from xllamacpp import xllamacpp
    except ImportError:
        raise UserError(missing) from None
    library = ctypes.CDLL(xllamacpp.__file__)
    try:
        chunk, row_size = library.ggml_quantize_chunk, library.ggml_row_size
        needs = library.ggml_quantize_requires_imatrix
    except AttributeError:
        raise UserError(
            "the installed xllamacpp hides ggml's quantiser (ggml_quantize_chunk), which K-quants "
            "need; install another release of it, or take q8_0, q5_1, q5_0, q4_1 or q4_0"
        ) from None
    whole, place = ctypes.c_int64, ctypes.c_void_p
    chunk.argtypes = [ctypes.c_int, place, place, whole, whole, whole, place]
    chunk.restype = ctypes.c_size_t
    row_size.argtypes, row_size.restype = [ctypes.c_int, whole], ctypes.c_size_t
    needs.argtypes, needs.restype = [ctypes.c_int], ctypes.c_bool
    return library
