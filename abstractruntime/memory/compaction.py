"""Compaction: older messages become a summary, and the span that keeps them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from .messages import Message, message_id
from .spans import CONVERSATION, Span

MODES = ("light", "standard", "heavy")
DEFAULT_RECENT = 6
_MOST_KEY_POINTS = 20

_FENCED = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
_LENGTHS = {"light": "in detail", "standard": "concisely", "heavy": "in very few sentences"}


class Summary(Struct, frozen=True, kw_only=True):
    """What a summarizer made of messages."""

    text: str
    key_points: list[str] = []
    confidence: float | None = None


def mode_of(payload: Mapping[str, Any]) -> str:
    """The compression mode of a payload; any other text means standard."""
    given = str(payload.get("compression_mode") or "").strip().lower()
    return given if given in MODES else "standard"


def prompt_for(messages: Sequence[Message], focus: str | None, mode: str) -> str:
    """What a model is asked when the host gave no summarizer."""
    lines = "\n".join(f"{message['role']}: {message['content']}" for message in messages)
    about = f" Keep above all what concerns: {focus}." if focus else ""
    return (
        f"Summarise this conversation {_LENGTHS[mode]}.{about} Answer with JSON only: "
        '{"summary": text, "key_points": [texts], "confidence": number from 0 to 1}.\n\n' + lines
    )


def summary_of(found: Any) -> Summary:
    """A summarizer's answer, as the documented dict or as a model's text. Raises ValueError without a summary."""
    data = _parsed(found) if isinstance(found, str) else found
    if isinstance(data, str):
        data = {"summary": data}
    if not isinstance(data, Mapping):
        data = {name: getattr(data, name, None) for name in ("summary", "key_points", "confidence")}
    text = data.get("summary")
    if not isinstance(text, str) or not text.strip():
        raise ValueError("the summarizer gave no summary")
    points = data.get("key_points")
    confidence = data.get("confidence")
    return Summary(
        text=text.strip(),
        key_points=[str(point) for point in points][:_MOST_KEY_POINTS] if isinstance(points, list | tuple) else [],
        confidence=float(confidence) if type(confidence) in (int, float) and 0 <= confidence <= 1 else None,
    )


def summary_message(summary: Summary, span: Span, mode: str, older: Sequence[Message], at: str) -> Message:
    """The message that stands for the older ones."""
    metadata = {
        "message_id": span["summary_message_id"],
        "kind": "memory_summary",
        "compression_mode": mode,
        "preserve_recent": span["preserve_recent"],
        "source_artifact_id": span["artifact_id"],
        "source_message_count": len(older),
        "source_from_timestamp": span["from_timestamp"],
        "source_to_timestamp": span["to_timestamp"],
        "source_from_message_id": span["from_message_id"],
        "source_to_message_id": span["to_message_id"],
    }
    if span.get("focus"):
        metadata["focus"] = span["focus"]
    points = "".join(f"\n- {point}" for point in summary.key_points)
    content = f"[CONVERSATION HISTORY SUMMARY span_id={span['artifact_id']}]: {summary.text}{points}"
    return {"role": "system", "content": content, "timestamp": at, "metadata": metadata}


def span_of(
    artifact_id: str,
    older: Sequence[Message],
    *,
    at: str,
    mode: str,
    focus: str | None,
    preserve_recent: int,
    summary_message_id: str,
    created_by: str | None,
) -> Span:
    """The span of these messages."""
    span: Span = {
        "kind": CONVERSATION,
        "artifact_id": artifact_id,
        "created_at": at,
        "summary_message_id": summary_message_id,
        "from_timestamp": older[0].get("timestamp"),
        "to_timestamp": older[-1].get("timestamp"),
        "from_message_id": message_id(older[0]),
        "to_message_id": message_id(older[-1]),
        "message_count": len(older),
        "compression_mode": mode,
        "preserve_recent": preserve_recent,
        "focus": focus,
    }
    return span if created_by is None else {**span, "created_by": created_by}


def _parsed(text: str) -> Any:
    for candidate in (text, *_FENCED.findall(text)):
        try:
            found = json.loads(candidate)
        except (ValueError, RecursionError):  # no JSON, or nested too deep to be any
            continue
        if isinstance(found, dict):
            return found
    return text
