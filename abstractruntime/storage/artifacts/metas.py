"""The metadata files of a store: JSON with a checksum of its own, and one look at all of them.

They are the truth about what a store holds. What is derived from them, as the catalog is, is checked against their
stamps and made anew where those differ.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ...core.codec import REFUSALS, decode, digest, encode
from ...core.errors import StoreCorrupt
from ..drafts import os_errors
from .describing import instant
from .disk import META
from .models import ArtifactMetadata

_BLOB_ID = re.compile(r"[0-9a-f]{64}", re.ASCII)
_CHECKSUM = "checksum"

#: a file may change twice within one tick of the file system's clock; one this young is read again every time
_TICK_NS = 50_000_000


class Seen(NamedTuple):
    """One metadata file as it was read: when it changes, so does its stamp. An empty stamp says nothing."""

    stamp: str
    meta: ArtifactMetadata


class Look(NamedTuple):
    """All metadata files at one time, by artifact id: those that could be read, and why the others could not."""

    seen: dict[str, Seen]
    damaged: dict[str, StoreCorrupt]


def encode_meta(meta: ArtifactMetadata) -> bytes:
    """The content of a metadata file: the fields as documented, and SHA-256 of their canonical form."""
    plain = meta.to_dict()
    return encode({**plain, _CHECKSUM: digest(plain)})


def decode_meta(data: bytes, path: Path) -> ArtifactMetadata:
    """The metadata in a file. Raises StoreCorrupt naming the file.

    One without a checksum is not this package's, but of the documented form; it may say None where nothing is known.
    """
    try:
        plain = decode(data)
        if not isinstance(plain, dict):
            raise ValueError("it holds no JSON object")
        checksum = plain.pop(_CHECKSUM, None)
        if checksum is None:
            plain = _without_none(plain)
        elif checksum != digest(plain):
            raise ValueError("its checksum does not fit")
        meta = msgspec.convert(plain, ArtifactMetadata)
        meta.created_at = instant(meta.created_at)
        if meta.artifact_id != path.name.removesuffix(META):
            raise ValueError(f"it is of artifact {meta.artifact_id!r:.80}")
        if not _BLOB_ID.fullmatch(meta.blob_id or ""):
            raise ValueError("it names no content")
    except REFUSALS as error:
        raise StoreCorrupt(
            f"{path}: the metadata of this artifact is damaged ({error}). Restore the file from a backup; or delete "
            "the artifact and store its content again."
        ) from error
    return meta


def read_meta(path: Path) -> ArtifactMetadata | None:
    """The metadata in a file, or None where there is none. Raises StoreCorrupt."""
    with os_errors(path):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
    return decode_meta(data, path)


def look(refs: Path, known: Mapping[str, Seen]) -> Look:
    """Look at every metadata file, and read those that changed since they became known."""
    seen, damaged = dict[str, Seen](), dict[str, StoreCorrupt]()
    stamps = _stamps(refs)
    for name in stamps.keys() | known.keys():  # while files are replaced, a listing of the folder may pass over one
        stamp = stamps.get(name, "")
        if stamp and name in known and known[name].stamp == stamp:
            seen[name] = known[name]
            continue
        try:
            meta = read_meta(refs / f"{name}{META}")
        except StoreCorrupt as error:
            damaged[name] = error
        else:
            if meta is not None:
                seen[name] = Seen(stamp, meta)
    return Look(seen, damaged)


def _without_none(plain: dict[str, Any]) -> dict[str, Any]:
    """Without what says None, at the top and in the parts, so that the defaults take its place."""
    return {
        key: _without_none(value) if key in ("descriptor", "access") and isinstance(value, dict) else value
        for key, value in plain.items()
        if value is not None
    }


def _stamps(refs: Path) -> dict[str, str]:
    """The stamp of each metadata file, by artifact id."""
    stamps: dict[str, str] = {}
    with os_errors(refs), suppress(FileNotFoundError):  # nothing was stored yet
        young = refs.stat().st_mtime_ns - _TICK_NS  # by the same clock as the times of the files
        with os.scandir(refs) as entries:
            for entry in entries:
                if entry.name.endswith(META):
                    with suppress(FileNotFoundError):  # deleted meanwhile
                        stamps[entry.name.removesuffix(META)] = _stamp(entry.stat(), young)
    return stamps


def _stamp(found: os.stat_result, young: int) -> str:
    if found.st_mtime_ns >= young:
        return ""
    return f"{found.st_ino}.{found.st_mtime_ns}.{found.st_ctime_ns}.{found.st_size}"
