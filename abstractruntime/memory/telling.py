"""Spans as text, for a model or a person to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .messages import Message
from .spans import NOTE, Span, clean_tags

NOTHING = "No matching memory spans."

_SHOWN = (
    "kind",
    "created_at",
    "from_timestamp",
    "to_timestamp",
    "created_by",
    "location",
    "note_preview",
    "message_count",
    "summary_message_id",
)


def match_of(span: Span) -> dict[str, Any]:
    """A span as an entry of `meta.matches`."""
    shown = {name: span[name] for name in _SHOWN if span.get(name) is not None}
    return {"span_id": span["artifact_id"], **shown, "tags": clean_tags(span.get("tags"))}


def told(spans: Sequence[Span], contents: Mapping[str, Any], max_messages: int) -> str:
    """The spans with what their artifacts hold, at most so many messages of all (below 0: all)."""
    if not spans:
        return NOTHING
    left = max_messages if max_messages >= 0 else None
    parts = []
    for span in spans:
        lines = [_heading(span)]
        content = contents.get(span["artifact_id"])
        if not isinstance(content, dict):
            lines.append("(its content is not there)")
        elif span.get("kind") == NOTE or "note" in content:
            lines.append(str(content.get("note", "")))
        else:
            messages = _messages(content)
            shown = messages if left is None else messages[:left]
            lines += [f"{one.get('role')}: {one.get('content')}" for one in shown]
            if len(shown) < len(messages):
                lines.append(f"({len(messages) - len(shown)} more messages)")
            left = None if left is None else left - len(shown)
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def note_message(artifact_id: str, note: str, at: str) -> Message:
    """A note as a message of the conversation."""
    metadata = {
        "message_id": f"memory_note:{artifact_id}",
        "kind": "memory_note",
        "rehydrated": True,
        "source_artifact_id": artifact_id,
    }
    return {"role": "system", "content": f"[MEMORY NOTE]\n{note}", "timestamp": at, "metadata": metadata}


def archived_messages(artifact_id: str, content: Any, at: str) -> list[Message]:
    """What an artifact of a span puts back into a conversation. Raises ValueError where it holds no messages."""
    if isinstance(content, dict) and isinstance(content.get("note"), str):
        return [note_message(artifact_id, content["note"], str(content.get("created_at") or at))]
    messages = content.get("messages") if isinstance(content, dict) else None
    if not isinstance(messages, list):
        raise ValueError("missing_messages")
    marked = []
    for message in messages:
        if isinstance(message, dict):
            metadata = message["metadata"] if isinstance(message.get("metadata"), dict) else {}
            metadata = {**metadata, "rehydrated": True, "source_artifact_id": artifact_id}
            marked.append({**message, "metadata": metadata})
    return marked


def text_of(content: Any, most: int) -> str:
    """All text of an artifact's first so many messages, or of its note, in lower case."""
    if not isinstance(content, dict):
        return ""
    messages = _messages(content)[:most]
    return "\n".join([str(content.get("note") or ""), *(str(one.get("content") or "") for one in messages)]).lower()


def _messages(content: dict[str, Any]) -> list[Message]:
    found = content.get("messages")
    return [message for message in found if isinstance(message, dict)] if isinstance(found, list) else []


def _heading(span: Span) -> str:  # without a number: that of a match is not the one that names a span
    told = [f"{span.get('kind', 'span')} span_id={span['artifact_id']}"]
    first, last = span.get("from_timestamp"), span.get("to_timestamp")
    if first or last:
        told.append(f"from {first} to {last}" if first != last else f"at {first}")
    told += [f"{name}: {span[name]}" for name in ("created_by", "location") if span.get(name)]
    tags = clean_tags(span.get("tags"))
    if tags:
        told.append("tags: " + ", ".join(f"{key}={value}" for key, value in sorted(tags.items())))
    return " | ".join(told)
