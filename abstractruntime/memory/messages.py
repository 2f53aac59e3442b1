"""Messages of a conversation: how they are named, cut in old and recent, and put back.

A message is `{"role", "content", "timestamp", "metadata": {"message_id", ...}}`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from ..core.changes import revision
from ..core.codec import canonical
from ..core.models import Change

MESSAGES = "context.messages"

Message = dict[str, Any]

_PLACEMENTS = ("after_summary", "after_system", "end")


def messages_of(vars: dict[str, Any]) -> list[Message]:
    """The active messages of a run, as they are; what is none is passed over."""
    context = vars.get("context")
    found = context.get("messages") if isinstance(context, dict) else None
    return [message for message in found if isinstance(message, dict)] if isinstance(found, list) else []


def message_id(message: Message) -> str | None:
    """The id of a message, or None."""
    metadata = message.get("metadata")
    found = metadata.get("message_id") if isinstance(metadata, dict) else None
    return found if isinstance(found, str) and found else None


def rewritten(vars: dict[str, Any], new: Sequence[Message], known: Sequence[Message] | None = None) -> Change:
    """The change that makes `new` of the messages in `vars`; what others add meanwhile stays. See `revision`."""
    return revision(MESSAGES, messages_of(vars), new, known)


def normalised(messages: Iterable[Message], at: str, seed: str) -> list[Message]:
    """Copies with text as content, an id and a timestamp each; the same `seed` gives the same ids every time.

    The same words said elsewhere are another message, so the seed must be that of one compaction.
    """
    made: list[Message] = []
    known: set[str] = set()
    for place, message in enumerate(messages):
        content = message.get("content")
        text = content if isinstance(content, str) else "" if content is None else canonical(content).decode()
        metadata = dict(message["metadata"]) if isinstance(message.get("metadata"), dict) else {}
        new = {**message, "role": str(message.get("role") or "user"), "content": text, "metadata": metadata}
        if message_id(new) is None or message_id(new) in known:
            metadata["message_id"] = f"msg_{hashlib.sha256(canonical([seed, place])).hexdigest()[:32]}"
        known.add(str(metadata["message_id"]))
        new.setdefault("timestamp", at)
        made.append(new)
    return made


def is_system(message: Message) -> bool:
    """Whether the message is a system message."""
    return message.get("role") == "system"


def is_summary(message: Message) -> bool:
    """Whether the message stands for older ones that were compacted."""
    metadata = message.get("metadata")
    return isinstance(metadata, dict) and metadata.get("kind") == "memory_summary"


def split(messages: Sequence[Message], preserve_recent: int) -> tuple[list[Message], list[Message], list[Message]]:
    """System messages, the older ones of the rest, and its last so many."""
    system = [message for message in messages if is_system(message)]
    rest = [message for message in messages if not is_system(message)]
    cut = len(rest) - preserve_recent if preserve_recent > 0 else len(rest)
    return system, rest[: max(0, cut)], rest[max(0, cut) :]


def newest(messages: Sequence[Message], limit: int | None) -> list[Message]:
    """All system messages and the newest so many of the others, in their order; None means all."""
    if limit is None or limit < 0:
        return list(messages)
    others = [place for place, message in enumerate(messages) if not is_system(message)]
    kept = set(others[len(others) - limit :] if limit else ())
    return [message for place, message in enumerate(messages) if is_system(message) or place in kept]


def put_back(
    active: Sequence[Message], archived: Sequence[Message], *, placement: str, dedup: bool, most: int | None = None
) -> tuple[list[Message], int, int]:
    """The active messages with archived ones among them; how many were put in, and how many were there already.

    At most `most` are put in; None means all. `placement` is after_summary (behind the summary of their span, or like
    after_system), after_system or end. They follow what was put back there before. Raises ValueError for another.
    """
    if placement not in _PLACEMENTS:
        raise ValueError(f"placement must be one of {', '.join(_PLACEMENTS)}, found {placement!r:.80}")
    there = {message_id(message) for message in active} - {None}
    fresh = [message for message in archived if not (dedup and message_id(message) in there)]
    put = fresh if most is None else fresh[: max(0, most)]
    place = _place(active, put, placement)
    return [*active[:place], *put, *active[place:]], len(put), len(archived) - len(fresh)


def _place(active: Sequence[Message], fresh: Sequence[Message], placement: str) -> int:
    if placement == "end":
        return len(active)
    system = next((place for place, message in enumerate(active) if not is_system(message)), len(active))
    if placement == "after_system":
        return _behind(active, system, None)
    sources = {_source(message) for message in fresh} - {None}
    summaries = [place for place, message in enumerate(active) if is_summary(message)]
    own = [place for place in summaries if _source(active[place]) in sources]
    if own:
        return _behind(active, own[-1] + 1, sources)
    return _behind(active, summaries[-1] + 1 if summaries else system, None)


def _behind(active: Sequence[Message], place: int, sources: Collection[str | None] | None) -> int:
    """The place behind the messages there that came back before: of these sources, or of any."""
    while place < len(active) and _came_back(active[place]) and (sources is None or _source(active[place]) in sources):
        place += 1
    return place


def _came_back(message: Message) -> bool:
    metadata = message.get("metadata")
    return isinstance(metadata, dict) and metadata.get("rehydrated") is True


def _source(message: Message) -> str | None:
    metadata = message.get("metadata")
    found = metadata.get("source_artifact_id") if isinstance(metadata, dict) else None
    return found if isinstance(found, str) else None
