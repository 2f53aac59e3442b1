"""What the filters, the order and the facets of a search for artifacts mean. Every store of ours uses this."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any

from msgspec import Struct

from ...core.errors import UnsafeValue
from .describing import check_tags, instant
from .models import ArtifactMetadata

#: filters and facets by name, and where their value stands in the metadata
FIELDS: dict[str, Callable[[ArtifactMetadata], str | None]] = {
    "run_id": attrgetter("run_id"),
    "content_type": attrgetter("content_type"),
    "semantic_kind": attrgetter("descriptor.semantic_kind"),
    "render_kind": attrgetter("descriptor.render_kind"),
    "modality": attrgetter("descriptor.modality"),
    "session_id": attrgetter("descriptor.session_id"),
    "workflow_id": attrgetter("descriptor.workflow_id"),
    "node_id": attrgetter("descriptor.node_id"),
}

#: what `stats` counts when it is not told
DEFAULT_FACETS = ("content_type", "semantic_kind", "render_kind", "modality")

_TAG = "tags."


class Filters(Struct, frozen=True, kw_only=True):
    """The filters of a search: all that are given must hold."""

    equal: dict[str, str]
    tags: dict[str, str]
    created_after: str | None
    created_before: str | None

    def matches(self, meta: ArtifactMetadata) -> bool:
        """Whether an artifact is found."""
        return (
            all(FIELDS[name](meta) == value for name, value in self.equal.items())
            and all(meta.tags.get(key) == value for key, value in self.tags.items())
            and (self.created_after is None or meta.created_at >= self.created_after)
            and (self.created_before is None or meta.created_at < self.created_before)
        )

    def told(self) -> dict[str, Any]:
        """The filters that were given, as a dict."""
        bounds = {"created_after": self.created_after, "created_before": self.created_before}
        given = {**self.equal, "tags": self.tags or None, **bounds}
        return {name: value for name, value in given.items() if value is not None}


def filters_of(given: Mapping[str, Any]) -> Filters:
    """Filters by name, where None asks for nothing. Raises ValueError for an unknown one, or a time that is none."""
    rest = {name: value for name, value in given.items() if value is not None}
    tags = check_tags(rest.pop("tags", None))
    after, before = rest.pop("created_after", None), rest.pop("created_before", None)
    for name, value in rest.items():
        if name not in FIELDS:
            raise ValueError(f"{name!r} is no filter. Use {', '.join(FIELDS)}, tags, created_after or created_before.")
        if not isinstance(value, str):
            raise UnsafeValue(name, f"a text is expected, found a {type(value).__name__}")
    return Filters(
        equal=rest,
        tags=tags,
        created_after=None if after is None else instant(after),
        created_before=None if before is None else instant(before),
    )


def in_order(found: Iterable[ArtifactMetadata], order: str = "desc") -> list[ArtifactMetadata]:
    """By creation, newest first with `desc` and oldest first with `asc`; then by id in the same direction."""
    if order not in ("asc", "desc"):
        raise ValueError(f'order must be "asc" or "desc", found {order!r}.')
    return sorted(found, key=lambda meta: (meta.created_at, meta.artifact_id), reverse=order == "desc")


def window(found: list[ArtifactMetadata], offset: int, limit: int) -> list[ArtifactMetadata]:
    """At most `limit` of them behind the first `offset`; a limit of 0 or less means all."""
    for name, value in (("offset", offset), ("limit", limit)):
        if not isinstance(value, int):
            raise ValueError(f"{name} must be a whole number, found {value!r:.80}.")
    start = max(0, offset)
    return found[start : start + limit if limit > 0 else None]


def facet(found: Iterable[ArtifactMetadata], name: str) -> dict[str, int]:
    """How many have each value of a field, or of a tag as in `tags.kind`; the most frequent first, then by value.

    What has no value is not counted. Raises ValueError for an unknown field.
    """
    if name.startswith(_TAG):
        key = name.removeprefix(_TAG)
        values = [meta.tags.get(key) for meta in found]
    elif name in FIELDS:
        values = [FIELDS[name](meta) for meta in found]
    else:
        raise ValueError(f"{name!r} is no facet. Use {', '.join(FIELDS)}, or a tag as in {_TAG}kind.")
    counts = Counter(value for value in values if value is not None)
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
