"""Which spans a query means: by time, tags, authors, places and words, and what is connected with those."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from msgspec import Struct

from ..core.clock import parse_instant
from .spans import Span, clean_tags, newest_first

_MODES = {"all": "all", "and": "all", "any": "any", "or": "any"}


class SpanFilter(Struct, frozen=True, kw_only=True):
    """What a span must have. Texts are compared without case; what is None or empty is not asked for."""

    since: datetime | None = None
    until: datetime | None = None
    #: per tag the values of which one must be there
    tags: dict[str, frozenset[str]] = {}
    any_tag: bool = False
    authors: frozenset[str] = frozenset()
    locations: frozenset[str] = frozenset()

    def matches(self, span: Span) -> bool:
        """Whether the span has it all."""
        return (
            self._in_time(span)
            and self._tagged(span)
            and (not self.authors or _low(span.get("created_by")) in self.authors)
            and (not self.locations or _location(span) in self.locations)
        )

    def _in_time(self, span: Span) -> bool:
        if self.since is None and self.until is None:
            return True
        first = _instant(span.get("from_timestamp")) or _instant(span.get("to_timestamp"))
        last = _instant(span.get("to_timestamp")) or first
        if first is None or last is None:
            return False
        return (self.since is None or last >= self.since) and (self.until is None or first <= self.until)

    def _tagged(self, span: Span) -> bool:
        if not self.tags:
            return True
        own = {_low(key): _low(value) for key, value in _tags(span).items()}
        there = (own.get(key) in values for key, values in self.tags.items())
        return any(there) if self.any_tag else all(there)


def filter_of(payload: Mapping[str, Any]) -> SpanFilter:
    """The filters of a query's payload. Raises ValueError for times that are none."""
    tags = payload.get("tags")
    wanted: dict[str, frozenset[str]] = {}
    for key, value in tags.items() if isinstance(tags, dict) else ():
        values = value if isinstance(value, list | tuple) else [value]
        texts = frozenset(_low(one) for one in values if isinstance(one, str) and one.strip())
        if isinstance(key, str) and key != "kind" and texts:
            wanted[_low(key)] = texts
    mode = next((payload[name] for name in ("tags_mode", "tagsMode", "tag_mode") if payload.get(name)), "all")
    return SpanFilter(
        since=_time(payload, "since"),
        until=_time(payload, "until"),
        tags=wanted,
        any_tag=_MODES.get(str(mode).strip().lower()) == "any",
        authors=_texts(payload, "authors", "usernames", "users"),
        locations=_texts(payload, "locations", "location"),
    )


def words_of(span: Span) -> str:
    """The text of a span's own metadata and tags, in lower case: what a query is looked for in first."""
    own = [str(value) for key, value in span.items() if isinstance(value, str) and key != "artifact_id"]
    return "\n".join([*own, *(f"{key} {value}" for key, value in _tags(span).items())]).lower()


def connected_with(chosen: Iterable[Span], spans: Iterable[Span], *, hops: int, by: Iterable[str]) -> list[Span]:
    """Spans beside the chosen ones: so many neighbours in time on each side, and those that share a tag in `by`."""
    ordered = newest_first(spans)
    places = {id(span): place for place, span in enumerate(ordered)}
    ids = {span["artifact_id"] for span in chosen}
    wanted = [span for span in ordered if span["artifact_id"] in ids]
    near = {
        place
        for span in wanted
        for place in range(max(0, places[id(span)] - hops), min(len(ordered), places[id(span)] + hops + 1))
    }
    shared = {(key, _low(value)) for span in wanted for key, value in _tags(span).items() if key in set(by)}
    found = []
    for place, span in enumerate(ordered):
        tagged = any((key, _low(value)) in shared for key, value in _tags(span).items())
        if span["artifact_id"] not in ids and (place in near or tagged):
            found.append(span)
    return found


def first_matching(spans: Iterable[Span], matches: Callable[[Span], bool], limit: int) -> list[Span]:
    """The newest spans that match, at most so many."""
    found: list[Span] = []
    for span in newest_first(spans):
        if len(found) >= limit:
            break
        if matches(span):
            found.append(span)
    return found


def _tags(span: Span) -> dict[str, str]:
    return clean_tags(span.get("tags"))


def _location(span: Span) -> str:
    return _low(span.get("location")) or _low(_tags(span).get("location"))


def _texts(payload: Mapping[str, Any], *names: str) -> frozenset[str]:
    given = next((payload[name] for name in names if payload.get(name)), ())
    values = given if isinstance(given, list | tuple) else [given]
    return frozenset(_low(one) for one in values if isinstance(one, str) and one.strip())


def _low(value: Any) -> str:
    return value.strip().lower() if isinstance(value, str) else ""


def _instant(value: Any) -> datetime | None:
    try:
        return parse_instant(value) if value else None
    except ValueError:
        return None


def _time(payload: Mapping[str, Any], name: str) -> datetime | None:
    given = payload.get(name)
    if given is None or given == "":
        return None
    try:
        return parse_instant(given)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
