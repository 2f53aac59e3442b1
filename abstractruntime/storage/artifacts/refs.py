"""Ids of artifacts, and the refs that stand for them in JSON: `{"$artifact": id}`."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from ...core.errors import InvalidId

REF_KEY = "$artifact"

_ID = re.compile(r"[A-Za-z0-9_-]{1,200}", re.ASCII)
_ID_DIGITS = 32


class ContentDigest:
    """The ids of a content and of an artifact made of it, computed while the content goes by."""

    def __init__(self, run_id: str | None) -> None:
        self._blob = hashlib.sha256()
        self._own = None if run_id is None else hashlib.sha256(run_id.encode() + b"\0")
        self.size = 0

    def update(self, chunk: bytes) -> None:
        """Take the next bytes of the content."""
        self._blob.update(chunk)
        if self._own is not None:
            self._own.update(chunk)
        self.size += len(chunk)

    @property
    def blob_id(self) -> str:
        """SHA-256 of the content alone, in hex."""
        return self._blob.hexdigest()

    @property
    def artifact_id(self) -> str:
        """What `compute_artifact_id` gives for the content and the run."""
        return (self._blob if self._own is None else self._own).hexdigest()[:_ID_DIGITS]


def compute_artifact_id(content: bytes, *, run_id: str | None = None) -> str:
    """The id of a content in a run, or in no run: 32 hex digits. The same content in the same run is one artifact.

    >>> compute_artifact_id(b"hello")
    '2cf24dba5fb0a30e26e83b2ac5b9e29e'
    """
    digest = ContentDigest(run_id)
    digest.update(content)
    return digest.artifact_id


def check_artifact_id(value: Any) -> str:
    """`value` if it can be an artifact id: 1 to 200 letters, digits, `_` and `-`. Raises `InvalidId`."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise InvalidId(
            f"artifact_id must be a text of 1 to 200 letters, digits, _ and -, found {value!r:.80}. "
            "Leave it out to have one computed from the content."
        )
    return value


def artifact_ref(artifact_id: str) -> dict[str, str]:
    """The ref that stands for an artifact in vars, payloads and results. Raises `InvalidId`.

    >>> artifact_ref("report-1")
    {'$artifact': 'report-1'}
    """
    return {REF_KEY: check_artifact_id(artifact_id)}


def is_artifact_ref(value: Any) -> bool:
    """Whether a value is a ref: a dict with the key `$artifact`, and perhaps others."""
    return isinstance(value, dict) and REF_KEY in value


def get_artifact_id(ref: Any) -> str:
    """The id in a ref. Raises `InvalidId` for what is no ref, or one of no possible id."""
    if not is_artifact_ref(ref):
        raise InvalidId(f'An artifact ref is a dict like {{"{REF_KEY}": "<id>"}}, found {ref!r:.80}.')
    return check_artifact_id(ref[REF_KEY])


def resolve_artifact(ref: Any, store: Any) -> Any:
    """What `store.load` gives for the artifact of a ref: an Artifact or None; of an async store, an awaitable of it.

    Raises `InvalidId` for what is no ref.
    """
    return store.load(get_artifact_id(ref))
