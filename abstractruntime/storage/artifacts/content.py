"""Contents piece by piece: taken from whatever gives bytes, and checked against their id on the way out."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator
from typing import Any, BinaryIO, cast

from ...core.errors import UnsafeValue
from .models import damaged

#: bytes read or handed out at once
CHUNK = 1 << 20


def chunks_of(source: BinaryIO | Iterable[bytes]) -> Iterator[bytes]:
    """The pieces of a source: of a file what its reads give, else what it iterates over. Raises `UnsafeValue`."""
    if isinstance(source, str | bytes | bytearray | memoryview):
        raise UnsafeValue("source", "an open binary file or pieces of bytes are expected; for one value call store()")
    pieces: Iterable[Any] = _reads(cast(BinaryIO, source)) if hasattr(source, "read") else source
    for number, piece in enumerate(pieces):
        yield check_bytes(piece, f"source[{number}]")


def check_bytes(value: Any, what: str) -> bytes:
    """`value` as bytes. Raises `UnsafeValue` for what is none."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise UnsafeValue(what, f"bytes are expected, found a {type(value).__name__}; for a text call store_text()")
    return value if isinstance(value, bytes) else bytes(value)


def checked_chunks(
    file: BinaryIO, artifact_id: str, blob_id: str | None, chunk_size: int = CHUNK
) -> Generator[bytes, None, None]:
    """The rest of a file in pieces. The last one is held back until the whole is known to be what was stored."""
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be 1 byte or more, found {chunk_size!r}.")
    digest, held = hashlib.sha256(), b""
    while chunk := file.read(chunk_size):
        if held:
            yield held
        digest.update(chunk)
        held = chunk
    if digest.hexdigest() != blob_id:
        raise damaged(artifact_id, f"its SHA-256 is {digest.hexdigest()}, not {blob_id}")
    if held:
        yield held


def is_sound(file: BinaryIO, blob_id: str) -> bool:
    """Whether the rest of a file has the content of this id."""
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest() == blob_id


def _reads(file: BinaryIO) -> Iterator[Any]:
    while piece := file.read(CHUNK):
        yield piece
