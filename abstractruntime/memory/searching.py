"""Finding spans: by name, or by filters and words, in what a run lists of them and, deeper, in what they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msgspec import Struct

from .filters import SpanFilter, connected_with, filter_of, first_matching, words_of
from .messages import is_summary, messages_of
from .recall import Effort
from .spans import NOTE, Span, memories, resolve, spans_of
from .telling import text_of

#: gives what the artifact of a span holds, or None
Load = Callable[[str], Any]


class Query(Struct, frozen=True, kw_only=True):
    """What is looked for."""

    names: list[Any]
    words: str
    filter: SpanFilter
    effort: Effort
    connect_by: tuple[str, ...] = ("topic", "person")

    @classmethod
    def of(cls, payload: Mapping[str, Any], effort: Effort) -> Query:
        """The query of a payload. Raises ValueError."""
        given = payload.get("span_ids", payload.get("span_id"))
        names = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
        by = payload.get("connect_by")
        words = payload.get("query")
        return cls(
            names=names,
            words=words.strip().lower() if isinstance(words, str) else "",
            filter=filter_of(payload),
            effort=effort,
            connect_by=tuple(one for one in by if isinstance(one, str))
            if isinstance(by, list)
            else ("topic", "person"),
        )


def summaries_of(vars: dict[str, Any]) -> dict[str, str]:
    """The texts of the summaries in a conversation, by the artifact of the span that they stand for."""
    found = {}
    for message in messages_of(vars):
        if is_summary(message):
            source = message["metadata"].get("source_artifact_id")
            if isinstance(source, str):
                found[source] = str(message.get("content") or "")
    return found


def search(query: Query, owners: Iterable[dict[str, Any]], load: Load) -> list[Span]:
    """The spans that match, of all owners, whose vars these are; those of the first owner first.

    Named spans come in the order in which they are named; an id that no owner lists stands for its artifact.
    """
    found: list[Span] = []
    for vars in owners:
        spans = memories(spans_of(vars))
        found += _named(query.names, spans) if query.names else _found(query, spans, summaries_of(vars), load)
    unique: dict[str, Span] = {}
    for span in found:  # who lists it says more than who only named it
        known = unique.get(span["artifact_id"])
        if known is None or len(known) == 1:
            unique[span["artifact_id"]] = span
    return list(unique.values())


def _named(names: list[Any], spans: list[Span]) -> list[Span]:
    listed = {span["artifact_id"]: span for span in spans}
    return [listed.get(span_id, {"artifact_id": span_id}) for span_id in resolve(names, spans)]


def _found(query: Query, spans: list[Span], summaries: Mapping[str, str], load: Load) -> list[Span]:
    effort = query.effort
    deep_left = [effort.deep_limit_spans if effort.deep else 0]

    def matches(span: Span) -> bool:
        return query.filter.matches(span) and (not query.words or _says(span, query, summaries, load, deep_left))

    chosen = first_matching(spans, matches, effort.limit_spans)
    if effort.connected:
        chosen += connected_with(chosen, spans, hops=effort.neighbor_hops, by=query.connect_by)
    return chosen


def _says(span: Span, query: Query, summaries: Mapping[str, str], load: Load, deep_left: list[int]) -> bool:
    """Whether the words are in the span's metadata, its summary, its note or, deep, its messages."""
    span_id = span["artifact_id"]
    if query.words in words_of(span) or query.words in summaries.get(span_id, "").lower():
        return True
    if span.get("kind") == NOTE:
        return query.words in text_of(load(span_id), 0)
    if deep_left[0] <= 0:
        return False
    deep_left[0] -= 1
    return query.words in text_of(load(span_id), query.effort.deep_limit_messages_per_span)
