"""Reading a dataset: memory-mapped shards in datatrove's layout, vouched for by the manifest.

A shard is NAME.ds (tokens, little-endian u16 or u32), NAME.ds.index (u64 end of each document in
tokens), NAME.ds.metadata (tokenizer, count) and, of our own, NAME.ds.bytes (u64 UTF-8 bytes of
each document's text) and for chats and preferences NAME.ds.learns (u8 for each token, 1 where it
is learnt).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from llamita.data.manifest import Manifest, read_manifest
from llamita.data.packed_stream import PackedStream
from llamita.data.token_stream import TokenStream
from llamita.errors import UserError

__all__ = ["Dataset", "Stream", "TokenStream", "open_dataset"]

Stream = TokenStream | PackedStream


class Dataset:
    """A built dataset: `.train` and `.validation` are TokenStreams of text, PackedStreams of chats
    and preferences."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.fingerprint = manifest.fingerprint
        self.train = self._stream("train")
        self.validation = self._stream("validation")

    def _stream(self, split: str) -> Stream:
        if self.manifest.kind == "text":
            return TokenStream(self.path, self.manifest.splits[split], self.manifest.token_bytes)
        return PackedStream(self.path, self.manifest, split)


def open_dataset(path: str | Path, *, verify: bool = False) -> Dataset:
    """Open a dataset; nothing is read into memory.

    Sizes of all files are checked always; with `verify` their hashes too (reads everything).

    Raises:
        UserError: no dataset, an interrupted build, a truncated or (with `verify`) altered file.
    """
    directory = Path(path)
    manifest = read_manifest(directory)
    for split in manifest.splits.values():
        for shard in split.shards:
            for record in shard.files:
                _check_size(directory / record.name, record.size)
                if verify:
                    _check_hash(directory / record.name, record.blake2b)
    return Dataset(directory, manifest)


def _check_size(file: Path, size: int) -> None:
    try:
        found = file.stat().st_size
    except FileNotFoundError:
        raise UserError(
            f"{file} is missing; build the dataset again with `llamita data build`."
        ) from None
    if found != size:
        raise UserError(
            f"{file} has {found} bytes, its manifest says {size}: it was truncated or changed; "
            "build the dataset again with `llamita data build`."
        )


def _check_hash(file: Path, expected: str) -> None:
    digest = hashlib.blake2b(digest_size=32)
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise UserError(
            f"{file} was altered: its contents do not match the hash in the manifest; build the "
            "dataset again with `llamita data build`."
        )
