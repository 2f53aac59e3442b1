"""Markdown that holds foreign text: whatever is in a value, it cannot end its block or begin another.

Values stand in code spans and fences longer than any run of backticks in them. There are no tables, so pipes are text.
"""

from __future__ import annotations

import re
from typing import Any

from .json_text import holds_json, stringify_json

_TICKS = re.compile("`+")
_MAX_NAME = 200


def code(value: Any) -> str:
    """A short value as a code span in one line.

    >>> code("a ` b")
    '``a ` b``'
    """
    text = " ".join(_written(stringify_json(value, mode="none")).split())
    if len(text) > _MAX_NAME:
        text = text[:_MAX_NAME] + "..."
    if not text:
        return "(empty)"
    ticks = "`" * (_longest_run(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def fenced(value: Any, max_chars: int | None) -> str:
    """A value in a fence of its own, JSON over several lines; a line below it tells how much `max_chars` left out."""
    is_json = not isinstance(value, str) or holds_json(value)
    text = _written(stringify_json(value))
    left_out = 0 if max_chars is None else max(0, len(text) - max_chars)
    if left_out:
        text = text[:max_chars]
    ticks = "`" * max(3, _longest_run(text) + 1)
    block = f"{ticks}{'json' if is_json else 'text'}\n{text}\n{ticks}"
    return block if not left_out else f"{block}\n\n*{left_out:,} more characters are left out.*"


def _longest_run(text: str) -> int:
    return max(map(len, _TICKS.findall(text)), default=0)


def _written(text: str) -> str:
    """The text as a file can hold it, with one kind of line end."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\r\n", "\n").replace("\r", "\n")
