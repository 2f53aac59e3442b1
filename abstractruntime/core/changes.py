"""What effects write to vars beside their result: see `models.Change`.

A `revise` is an edit of a list as it was read. It carries the digests of the items that were read, and the new list as
pairs of a number among those (None: a new item) and the item. Where it lands it touches only what it was made from:
items that were not read stay before the item that follows them, and items that are gone by then do not come back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from .codec import canonical
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


def revision(path: str, read: Sequence[Any], new: Sequence[Any], known: Sequence[Any] | None = None) -> Change:
    """The change that makes `new` of the items `read` at `path`, whatever others do to the list until it lands.

    Items are known by identity: those of `new` that are in `read` (or, place by place, in `known`) stand for them.

    >>> first, second = ["a"], ["b"]
    >>> edit = revision("list", [first, second], [["new"], second])
    >>> changed({"list": [["a"], ["b"], ["of others"]]}, [edit])
    {'list': [['new'], ['b'], ['of others']]}
    """
    numbers = {id(item): number for number, item in enumerate(read if known is None else known)}
    pairs = [[numbers.get(id(item)), item] for item in new]
    return Change(path=path, op="revise", match=("read", [_digest(item) for item in read]), value=pairs)


def _changed(vars: Vars, change: Change) -> Vars:
    match change.op:
        case "set":
            return write_path(vars, change.path, change.value)
        case "append":
            return append_path(vars, change.path, change.value)
    items = list_at(vars, change.path)
    if change.op == "revise":
        return write_path(vars, change.path, _revised(items, change))
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


def _revised(items: list[Any], change: Change) -> list[Any]:
    assert change.match is not None
    numbers: dict[str, list[int]] = {}
    for number, digest in enumerate(change.match[1]):
        numbers.setdefault(digest, []).append(number)
    for equal in numbers.values():
        equal.reverse()  # equal items stand for those that were read in their order
    kept = {number for number, _ in change.value if number is not None}
    there: set[int] = set()
    before: dict[int | None, list[Any]] = {}  # items of others, by the kept item that they stand before
    waiting: list[Any] = []
    for item in items:
        same = numbers.get(_digest(item))
        if not same:
            waiting.append(item)
            continue
        number = same.pop()
        there.add(number)
        if number in kept:
            before[number], waiting = waiting, []
    new: list[Any] = []
    for place, item in change.value:
        new += before.pop(place, [])
        if place is None or place in there:
            new.append(item)
    return [*new, *waiting]


def _digest(item: Any) -> str:
    return hashlib.sha256(canonical(item)).hexdigest()[:32]


def _matches(item: Any, change: Change) -> bool:
    assert change.match is not None
    name, value = change.match
    return isinstance(item, dict) and name in item and item[name] == value
