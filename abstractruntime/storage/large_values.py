"""Large values out of JSON and back: a value moved to an artifact leaves `{"$artifact": id}` in its place.

An author may keep references of his own in the same places. What was moved out is told apart by the id of its
artifact, which begins with `offloaded_`, so only that is put back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..core.codec import REFUSALS, decode, encode
from ..core.errors import StoreCorrupt

#: what the ids of artifacts begin with that hold offloaded values
PREFIX = "offloaded_"

#: bytes of JSON that a value may have in its place
DEFAULT_MAX_INLINE_BYTES = 256 * 1024

_MARK = f'"{PREFIX}'.encode()

#: decides by the path of a value whether it may be moved out
AllowOffload = Callable[[str], bool]


def offload_large_values(
    value: Any,
    *,
    artifact_store: Any,
    run_id: str | None,
    max_inline_bytes: int,
    base_tags: Mapping[str, str] | None = None,
    root_path: str = "",
    allow_offload: AllowOffload | None = None,
    allow_root_replace: bool = False,
) -> Any:
    """`value` with everything large replaced by `{"$artifact": id}`; what is replaced is stored when this returns.

    Large are texts of more than `max_inline_bytes` bytes of UTF-8, dicts and lists whose compact JSON still is after
    what they hold was replaced, and bytes of any length. With a limit of 0 or less nothing is. References stay as they
    are. The root is replaced only with `allow_root_replace`. `allow_offload(path)` may refuse a value by its path
    (dotted, lists by index, beginning with `root_path`). Artifacts belong to `run_id` and are tagged with `base_tags`,
    `path` and `kind` (`text`, `json` or `bytes`). The same value in the same run is one artifact.

    `value` is not changed; what stays is shared with it. Raises ValueError for a value that contains itself, and what
    the store raises.
    """
    if max_inline_bytes <= 0:
        return value
    mover = _Mover(artifact_store, run_id, max_inline_bytes, base_tags or {}, allow_offload)
    return mover.moved(value, root_path, allow_root_replace, ())


def has_moved_values(data: bytes) -> bool:
    """Whether JSON may hold references to values that were moved out: a quick look at its bytes."""
    return _MARK in data


def put_back(value: Any, load: Callable[[str], Any]) -> Any:
    """`value` with everything in its place again that was moved out; `load(artifact_id)` gives it."""
    if isinstance(value, dict):
        moved = value.get("$artifact")
        if isinstance(moved, str) and moved.startswith(PREFIX) and len(value) == 1:
            return put_back(load(moved), load)
        return {key: put_back(item, load) for key, item in value.items()}
    if isinstance(value, list):
        return [put_back(item, load) for item in value]
    return value


def loaded_value(artifact_id: str, artifact_stores: Iterable[Any]) -> Any:
    """The value that an artifact holds, from the first store that has it. Raises StoreCorrupt if none does."""
    for store in artifact_stores:
        artifact = store.load(artifact_id)
        if artifact is None:
            continue
        content: bytes = artifact.content
        try:
            return content.decode() if artifact.content_type.startswith("text/") else decode(content)
        except REFUSALS as error:
            raise StoreCorrupt(f"Artifact {artifact_id!r} holds no value of a run: {error}.") from error
    raise StoreCorrupt(
        f"Artifact {artifact_id!r} holds a value that was moved out of a run or its ledger, and no store has it. "
        "Give the decorator the artifact store it was written with, or restore that from a backup."
    )


class _Mover:
    def __init__(
        self,
        store: Any,
        run_id: str | None,
        limit: int,
        base_tags: Mapping[str, str],
        allow: AllowOffload | None,
    ) -> None:
        self._store, self._run_id, self._limit = store, run_id, limit
        self._base_tags, self._allow = base_tags, allow

    def moved(self, value: Any, path: str, replace: bool, inside: tuple[int, ...]) -> Any:
        if isinstance(value, bytes | bytearray | memoryview):
            return self._out(bytes(value), path, "bytes", "application/octet-stream") if self._may(path) else value
        if isinstance(value, str):
            if not replace or len(value) * 4 <= self._limit or not self._may(path):
                return value
            content = value.encode()
            return self._out(content, path, "text", "text/plain") if len(content) > self._limit else value
        if not isinstance(value, dict | list | tuple) or (isinstance(value, dict) and "$artifact" in value):
            return value
        if id(value) in inside:
            raise ValueError(f"{path or 'value'}: the value contains itself")
        return self._container(value, path, replace, (*inside, id(value)))

    def _container(self, value: Any, path: str, replace: bool, inside: tuple[int, ...]) -> Any:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        items = {key: self.moved(item, f"{path}.{key}" if path else str(key), True, inside) for key, item in pairs}
        small = items if isinstance(value, dict) else list(items.values())
        if not replace or not self._may(path):
            return small
        data = encode(small)
        return self._out(data, path, "json", "application/json") if len(data) > self._limit else small

    def _may(self, path: str) -> bool:
        return self._allow is None or self._allow(path)

    def _out(self, content: bytes, path: str, kind: str, content_type: str) -> dict[str, str]:
        name = hashlib.sha256((self._run_id or "").encode() + b"\0" + kind.encode() + b"\0" + content).hexdigest()
        stored = self._store.store(
            content,
            content_type=content_type,
            run_id=self._run_id,
            tags={**self._base_tags, "path": path, "kind": kind},
            artifact_id=PREFIX + name[:32],
        )
        return {"$artifact": stored.artifact_id}
