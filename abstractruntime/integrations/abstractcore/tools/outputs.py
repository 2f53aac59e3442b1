"""What a tool gave, as JSON that says the same, and whether the tool itself says that it failed."""

from __future__ import annotations

import dataclasses
import math
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import msgspec

from ....core.codec import REFUSALS, encode, json_safe
from ....core.errors import UnsafeValue

#: how many lists and dicts of an output may be inside one another
_DEEPEST = 150
_ADDRESS = re.compile(r"( at)? 0x[0-9a-fA-F]{6,}")
_WRITTEN = (date, time, timedelta, Decimal, UUID, PurePath, complex)
_MARKS = "❌🚫⏰"


def plain(value: Any) -> Any:
    """`value` as JSON: NaN as text, bytes as text or base64, sets as sorted lists, objects by what they hold.

    It never raises and never shows a memory address.

    >>> plain({"a": (1, float("nan")), "b": {3, 1}})
    {'a': [1, 'NaN'], 'b': [1, 3]}
    """
    try:
        return json_safe(value, "output", deepest=_DEEPEST)
    except (UnsafeValue, *REFUSALS):
        return _walked(value, ())
    except Exception as error:  # a boundary: a value of the tool's own class raised while it was looked at
        return f"<{type(value).__name__}: {type(error).__name__}>"


def failure_in(output: Any) -> str | None:
    """What went wrong, when the output itself says that something did; a `message` alone is none.

    >>> failure_in("Error: no such file"), failure_in({"success": True, "message": "3 rows"})
    ('no such file', None)
    """
    if isinstance(output, str):
        text = output.strip()
        if text.startswith(("Error:", *_MARKS)):
            return text.lstrip(_MARKS + " \ufe0f").removeprefix("Error:").strip() or text
        return None
    if not isinstance(output, dict):
        return None
    failed = output.get("success") is False or output.get("ok") is False
    succeeded = output.get("success") is True or output.get("ok") is True
    said = output.get("error")
    if failed:
        return _sentence(said or output.get("message") or output.get("reason")) or "The tool reported a failure"
    return _sentence(said) if said and not succeeded else None


def error_text(error: BaseException) -> str:
    """An exception as a result tells it: `KeyError: 'k'`."""
    said = _described(error)
    name = type(error).__name__
    return f"{name}: {said}" if said else name


def _sentence(said: Any) -> str:
    if isinstance(said, dict) and isinstance(said.get("message"), str):
        said = said["message"]
    if not said:
        return ""
    return said.strip() if isinstance(said, str) else encode(said).decode()


def _walked(value: Any, parents: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return _walked(value.value, parents)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return _integer(int(value))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _special(float(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return _bytes(bytes(value))
    if isinstance(value, _WRITTEN):
        return _text(str(value))
    if id(value) in parents:
        return "<contains itself>"
    if len(parents) >= _DEEPEST:
        return "<nested too deeply>"
    try:
        return _parts(value, (*parents, id(value)))
    except Exception as error:  # a boundary: a value of the tool's own class raised while it was looked at
        return f"<{type(value).__name__}: {type(error).__name__}>"


def _parts(value: Any, parents: tuple[int, ...]) -> Any:
    if isinstance(value, Mapping):
        return _mapping(value.items(), parents)
    if isinstance(value, set | frozenset):
        items = [_walked(item, parents) for item in value]
        return sorted(items, key=lambda item: (type(item).__name__, item if isinstance(item, int) else 0, encode(item)))
    if isinstance(value, tuple) and callable(as_dict := getattr(value, "_asdict", None)):
        return _mapping(as_dict().items(), parents)
    if isinstance(value, list | tuple) or type(value).__name__ in ("deque", "dict_keys", "dict_values", "dict_items"):
        return [_walked(item, parents) for item in value]
    if isinstance(value, type):
        return f"<class {value.__qualname__}>"
    if dataclasses.is_dataclass(value):
        return _mapping(((field.name, getattr(value, field.name)) for field in dataclasses.fields(value)), parents)
    if isinstance(value, msgspec.Struct):
        return _mapping(msgspec.structs.asdict(value).items(), parents)
    if isinstance(value, SimpleNamespace):
        return _mapping(vars(value).items(), parents)
    for method in ("model_dump", "tolist"):  # pydantic, arrays
        convert = getattr(value, method, None)
        if callable(convert):
            return _walked(convert(), parents)
    return _described(value) or f"<{type(value).__name__}>"


def _mapping(items: Iterable[tuple[Any, Any]], parents: tuple[int, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in items:
        name = own = key if isinstance(key, str) else _key(key, parents)
        name = own = _text(own)
        count = 2
        while name in found:
            name, count = f"{own} ({count})", count + 1
        found[name] = _walked(item, parents)
    return found


def _key(key: Any, parents: tuple[int, ...]) -> str:
    walked = _walked(key, parents)
    return walked if isinstance(walked, str) else encode(walked).decode()


def _described(value: Any) -> str:
    """The text of an object of any class, without addresses; empty when it has none."""
    try:
        text = str(value)
    except Exception as error:  # a boundary: an object that cannot even be described
        return f"<{type(value).__name__}: {type(error).__name__}>"
    return _text(_ADDRESS.sub("", text)).strip()


def _text(text: str) -> str:
    return str.__str__(text).encode("utf-8", "replace").decode()


def _integer(number: int) -> Any:
    if -(2**63) <= number < 2**64:
        return number
    return hex(number) if number.bit_length() > 4000 else str(number)


def _special(number: float) -> str:
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _bytes(data: bytes) -> Any:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": b64encode(data).decode()}
