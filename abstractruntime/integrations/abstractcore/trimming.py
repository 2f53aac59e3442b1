"""Keeping the messages of a call within a number of tokens: the oldest go first, the last and the system's never.

Tokens are estimated, four bytes each: exact counting needs the model's own tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]

_BYTES_PER_TOKEN = 4
_PER_MESSAGE = 4


def estimated_tokens(*values: Any) -> int:
    """About how many tokens these texts and messages are.

    >>> estimated_tokens("one two three")
    4
    """
    return sum(_size(value) for value in values)


def trimmed(messages: Sequence[Message], limit: int, *, beside: int = 0) -> list[Message]:
    """The messages without the oldest ones that do not fit into `limit` tokens together with `beside` others.

    A message that calls tools goes together with their answers, because servers refuse one without the other.

    >>> long, short = {"role": "user", "content": "x" * 400}, {"role": "user", "content": "hi"}
    >>> [message["content"] for message in trimmed([long, short], 50)]
    ['hi']
    """
    used = beside + sum(map(_size, messages))
    blocks = _blocks(messages)
    dropped: set[int] = set()
    for block in blocks[:-1]:
        if used <= limit:
            break
        dropped.update(block)
        used -= sum(_size(messages[index]) for index in block)
    return [message for index, message in enumerate(messages) if index not in dropped]


def _blocks(messages: Sequence[Message]) -> list[list[int]]:
    """The places of messages that stay or go together; those of the system are in none."""
    blocks: list[list[int]] = []
    for index, message in enumerate(messages):
        role = message.get("role")
        if role == "tool" and blocks:
            blocks[-1].append(index)
        elif role != "system":
            blocks.append([index])
    return blocks


def _size(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, dict):
        calls = value.get("tool_calls")
        content = value.get("content")
        return _PER_MESSAGE + _size(content) + (_size(json.dumps(calls, default=str)) if calls else 0)
    if isinstance(value, list):
        return sum(_size(item.get("text") if isinstance(item, dict) else item) for item in value)
    return -(-len(str(value).encode("utf-8", "replace")) // _BYTES_PER_TOKEN)
