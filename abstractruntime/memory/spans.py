"""Spans: what a run remembers, as a list of dicts in `vars["_runtime"]["memory_spans"]`, and how one is named.

There is one order for numbers everywhere: the newest `created_at` first, then by id. Number 1 is the newest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SPANS = "_runtime.memory_spans"

#: workflows of the runs that only keep the memory of a session, or of all
OWNERS = frozenset({"__session_memory__", "__global_memory__"})

#: kinds that are part of a conversation; others (evidence) are listed with them and are no memories
CONVERSATION, NOTE = "conversation_span", "memory_note"
MEMORIES = frozenset({CONVERSATION, NOTE})

Span = dict[str, Any]


def spans_of(vars: dict[str, Any]) -> list[Span]:
    """The spans that are listed there, as they are; anything that is none is passed over."""
    runtime = vars.get("_runtime")
    found = runtime.get("memory_spans") if isinstance(runtime, dict) else None
    if not isinstance(found, list):
        return []
    return [span for span in found if isinstance(span, dict) and isinstance(span.get("artifact_id"), str)]


def newest_first(spans: Iterable[Span]) -> list[Span]:
    """The order that numbers go by: see the module."""
    by_id = sorted(spans, key=lambda span: str(span["artifact_id"]))
    return sorted(by_id, key=lambda span: str(span.get("created_at") or ""), reverse=True)


def memories(spans: Iterable[Span]) -> list[Span]:
    """Those that are memories: evidence of tools is listed beside them."""
    return [span for span in spans if span.get("kind") != "evidence"]


def is_number(value: Any) -> bool:
    """Whether a span is named by its number: an int, or a text of digits."""
    return (type(value) is int) or (isinstance(value, str) and value.strip().isdecimal())


def resolve(names: Any, spans: Iterable[Span]) -> list[str]:
    """The artifact ids that these name: numbers count from 1 in `newest_first`, other texts are ids. Each once.

    Raises ValueError for a number that no span has, and for what is no name.
    """
    wanted = names if isinstance(names, list | tuple) else [names]
    listed = newest_first(memories(spans))
    found: list[str] = []
    for name in wanted:
        if is_number(name):
            number = int(name)
            if not 1 <= number <= len(listed):
                raise ValueError(f"no span has number {number}; there are {len(listed)}")
            found.append(str(listed[number - 1]["artifact_id"]))
        elif isinstance(name, str) and name.strip():
            found.append(name.strip())
        else:
            raise ValueError(f"a span is named by its id or its number from 1, found {name!r:.80}")
    return list(dict.fromkeys(found))


def clean_tags(tags: Any) -> dict[str, str]:
    """The pairs of texts among `tags`, without `kind`, which is the runtime's own."""
    if not isinstance(tags, dict):
        return {}
    pairs = ((key, value) for key, value in tags.items() if isinstance(key, str) and isinstance(value, str))
    return {key: value for key, value in pairs if key.strip() and value.strip() and key != "kind"}


def preview(text: str, limit: int = 160) -> str:
    """The text in one line of at most so many characters, with a mark where it was cut."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3].rstrip() + "..."
