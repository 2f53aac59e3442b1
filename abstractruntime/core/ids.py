"""Ids: what may be one, and where fresh ones come from."""

from __future__ import annotations

import itertools
import os
from typing import Any

from .errors import InvalidId

_MAX = 200


def new_id() -> str:
    """A fresh id of 16 random bytes in hex."""
    return os.urandom(16).hex()


class Ids:
    """Fresh ids of one owner: its own random id and a counter. Unique, and cheap on the hot path."""

    def __init__(self) -> None:
        self.owner = os.urandom(9).hex()
        self._count = itertools.count(1)

    def next(self) -> str:
        """The next id."""
        return f"{self.owner}.{next(self._count):x}"


def check_id(value: Any, what: str) -> str:
    """`value` if it can be an id: text of 1 to 200 printable characters, never a path. Raises `InvalidId`."""
    if not isinstance(value, str) or not value or len(value) > _MAX:
        raise InvalidId(f"{what} must be a text of 1 to {_MAX} characters, found {str(value)[:40]!r}.")
    if not value.isprintable() or "/" in value or "\\" in value or value in (".", ".."):
        raise InvalidId(f"{what} must be printable and no path, found {value!r}.")
    return value


def is_storable(text: str) -> bool:
    """Whether UTF-8 can carry the text: it has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_text(value: Any, what: str) -> str:
    """`value` if it is a text that can be stored. Raises `InvalidId` naming what it was meant to be."""
    if not isinstance(value, str):
        raise InvalidId(f"{what} must be a text, found a {type(value).__name__}.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidId(f"{what} has a lone surrogate at position {error.start}.") from error
    return value


def check_optional(value: Any, what: str) -> str | None:
    """`value` if it is None or a text that can be stored."""
    return None if value is None else check_text(value, what)


def check_run_id(value: Any) -> str:
    """A `run_id` that a caller chose: letters, digits, `_`, `-`, `.` and `:` only. Raises `InvalidId`."""
    text = check_id(value, "run_id")
    if not all(c.isascii() and (c.isalnum() or c in "_-.:") for c in text):
        raise InvalidId(f"run_id may hold letters, digits and _ - . : only, found {text!r}.")
    return text
