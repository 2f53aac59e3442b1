"""What effects write to vars beside their result: see `models.Change`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .models import Change
from .vars import Vars, append_path, list_at, write_path


def changed(vars: Vars, changes: Iterable[Change]) -> Vars:
    """New vars with these changes; neither `vars` nor anything in it is changed.

    >>> changed({"n": [1]}, [Change(path="n", op="append", value=2), Change(path="a.b", value=3)])
    {'n': [1, 2], 'a': {'b': 3}}
    """
    for change in changes:
        vars = _changed(vars, change)
    return vars


def _changed(vars: Vars, change: Change) -> Vars:
    match change.op:
        case "set":
            return write_path(vars, change.path, change.value)
        case "append":
            return append_path(vars, change.path, change.value)
    items = list_at(vars, change.path)
    there = any(_matches(item, change) for item in items)
    if change.op == "append_once":
        return vars if there else append_path(vars, change.path, change.value)
    if not there:
        return vars
    merged = [_merged(item, change.value) if _matches(item, change) else item for item in items]
    return write_path(vars, change.path, merged)


def _merged(item: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """The item with these entries; a dict goes into the dict that is there, so two who write to it lose nothing."""
    both = {
        name for name in item.keys() & value.keys() if isinstance(item[name], dict) and isinstance(value[name], dict)
    }
    return item | value | {name: _merged(item[name], value[name]) for name in both}


def _matches(item: Any, change: Change) -> bool:
    assert change.match is not None
    name, value = change.match
    return isinstance(item, dict) and name in item and item[name] == value
