"""What is different between two snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .model import Snapshot

_MISSING: Any = object()


def diff_snapshots(a: Snapshot, b: Snapshot) -> list[dict[str, Any]]:
    """What changed in `run_state` from `a` to `b`, as dicts with `path`, `op`, `before` and `after`.

    `path` is a JSON pointer (RFC 6901), `op` is `added` (`before` is None), `removed` (`after` is None) or `changed`.
    Dicts are compared by key and lists by index; what is new or gone whole is one entry. The order is that of the keys,
    sorted. Fields of the engine (`revision`, `commit_id`, ...) and `updated_at` are compared like all others.

    >>> before = Snapshot("s1", "r", run_state={"vars": {"n": [1, 2], "old": True}})
    >>> after = Snapshot("s2", "r", run_state={"vars": {"n": [1, 3]}})
    >>> [(entry["op"], entry["path"]) for entry in diff_snapshots(before, after)]
    [('changed', '/vars/n/1'), ('removed', '/vars/old')]
    """
    return list(_differences(a.run_state, b.run_state, ""))


def _differences(before: Any, after: Any, path: str) -> Iterator[dict[str, Any]]:
    if before is _MISSING:
        yield {"path": path, "op": "added", "before": None, "after": after}
    elif after is _MISSING:
        yield {"path": path, "op": "removed", "before": before, "after": None}
    elif isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from _differences(before.get(key, _MISSING), after.get(key, _MISSING), f"{path}/{_escaped(key)}")
    elif isinstance(before, list) and isinstance(after, list):
        for index in range(max(len(before), len(after))):
            yield from _differences(_item(before, index), _item(after, index), f"{path}/{index}")
    elif before != after or isinstance(before, bool) != isinstance(after, bool):  # True == 1, but not in JSON
        yield {"path": path, "op": "changed", "before": before, "after": after}


def _item(items: list[Any], index: int) -> Any:
    return items[index] if index < len(items) else _MISSING


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
