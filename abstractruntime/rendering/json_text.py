"""Any value as JSON text for people to read.

Showing never fails: what JSON cannot carry is shown as the nearest text. It is for eyes; what is to be stored goes
through `core.codec`, which refuses such values.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any

import msgspec

from ..core.codec import REFUSALS, canonical, encode, json_safe
from ..core.errors import UnsafeValue

#: how deep a value is shown that JSON cannot carry as it is
MAX_DEPTH = 100

_MAX_INDENT = 32


class JsonStringifyMode(StrEnum):
    """How JSON text is laid out: over indented lines, without any blanks, or in one line."""

    BEAUTIFY = "beautify"
    MINIFIED = "minified"
    NONE = "none"


def stringify_json(
    value: Any,
    *,
    mode: JsonStringifyMode | str = JsonStringifyMode.BEAUTIFY,
    beautify_indent: int = 2,
    sort_keys: bool = False,
    parse_strings: bool = True,
) -> str:
    """A value as JSON text, with characters beyond ASCII as they are.

    A text that holds a JSON object or list is laid out as such, its numbers and order kept to the letter; any other
    text is returned as it is. With `parse_strings=False` a text becomes a JSON string. With mode `none` texts are
    returned as they are, always.

    What JSON cannot carry is shown as text: NaN as `"nan"`, dates as ISO 8601, other objects as `str()` has them.
    Raises ValueError for an unknown mode or an indent that is no number from 0 (one line) to 32.

    >>> stringify_json('{"a": [1, 2.50]}', mode="minified")
    '{"a":[1,2.50]}'
    """
    indent = _indent_of(mode, beautify_indent)
    if isinstance(value, str):
        if mode == JsonStringifyMode.NONE:
            return value
        if parse_strings:
            return _laid_out_text(value, indent, sort_keys)
    return _laid_out(as_json_bytes(value, sort_keys=sort_keys), indent)


def holds_json(text: str) -> bool:
    """Whether a text is a JSON object or list."""
    return _formatted(text, 0) is not None


def as_json_bytes(value: Any, *, sort_keys: bool = False) -> bytes:
    """A value as compact JSON; what JSON cannot carry is replaced by text."""
    try:
        safe = json_safe(value, "value")
    except UnsafeValue:
        safe = plain(value)
    return canonical(safe) if sort_keys else encode(safe)


def plain(value: Any, inside: tuple[int, ...] = ()) -> Any:
    """The value in types of JSON; see `stringify_json` for what becomes of others."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if id(value) in inside:
        return "<the value contains itself>"
    if len(inside) >= MAX_DEPTH:
        return "<nested too deeply>"
    within = (*inside, id(value))
    if isinstance(value, dict):
        return _plain_dict(value, within)
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, within) for item in value]
    try:
        return plain(msgspec.to_builtins(value), within)  # models, dates, enums, bytes
    except REFUSALS:
        return _text(str(value))


def _plain_dict(value: dict[Any, Any], within: tuple[int, ...]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for key, item in value.items():
        name = _text(str(key))
        while name in shown:  # another key with the same text
            name += "'"
        shown[name] = plain(item, within)
    return shown


def _text(text: str) -> str:
    """The text as it can be written to a file: lone surrogates as escapes."""
    return str.__str__(text).encode("utf-8", "backslashreplace").decode()


def _laid_out_text(text: str, indent: int, sort_keys: bool) -> str:
    formatted = _formatted(text, indent)
    if formatted is None or not sort_keys:
        return text if formatted is None else formatted
    try:
        return _laid_out(as_json_bytes(msgspec.json.decode(formatted), sort_keys=True), indent)
    except REFUSALS:  # a number that is none in Python: to sort the keys would change it
        return formatted


def _formatted(text: str, indent: int) -> str | None:
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return msgspec.json.format(text, indent=indent)
    except REFUSALS:
        return None


def _laid_out(data: bytes, indent: int) -> str:
    return msgspec.json.format(data, indent=indent).decode()


def _indent_of(mode: JsonStringifyMode | str, indent: int) -> int:
    """In the terms of msgspec: 0 is one line, -1 is without blanks."""
    if mode not in tuple(JsonStringifyMode):
        raise ValueError(f"mode must be one of {', '.join(JsonStringifyMode)}; found {mode!r:.80}")
    if isinstance(indent, bool) or not isinstance(indent, int) or not 0 <= indent <= _MAX_INDENT:
        raise ValueError(f"beautify_indent must be a number from 0 to {_MAX_INDENT}, found {indent!r:.80}")
    return {JsonStringifyMode.BEAUTIFY: indent, JsonStringifyMode.MINIFIED: -1}.get(JsonStringifyMode(mode), 0)
