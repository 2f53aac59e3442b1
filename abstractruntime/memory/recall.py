"""Recall levels: how much effort a query may take. What goes beyond a level is brought down to it, with a warning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace


class Effort(Struct, frozen=True, kw_only=True):
    """What a query does: how many spans and messages it looks at, how far it follows them."""

    limit_spans: int = 5
    deep: bool = False
    deep_limit_spans: int = 50
    deep_limit_messages_per_span: int = 400
    connected: bool = False
    neighbor_hops: int = 1
    max_messages: int = -1


class Level(Struct, frozen=True, kw_only=True):
    """A level: what it does unless asked for less, and the most that it does."""

    default: Effort
    most: Effort
    #: messages that a rehydration puts back, unless asked otherwise, and at most
    rehydrate: tuple[int, int]


_SHALLOW = Effort(deep_limit_spans=0, deep_limit_messages_per_span=0, neighbor_hops=0)

LEVELS: Mapping[str, Level] = {
    "urgent": Level(
        default=replace(_SHALLOW, limit_spans=2, max_messages=30),
        most=replace(_SHALLOW, limit_spans=3, max_messages=60),
        rehydrate=(30, 60),
    ),
    "standard": Level(
        default=Effort(limit_spans=5, deep_limit_spans=25, deep_limit_messages_per_span=200, max_messages=80),
        most=Effort(
            limit_spans=8,
            deep=True,
            deep_limit_spans=25,
            deep_limit_messages_per_span=200,
            connected=True,
            max_messages=150,
        ),
        rehydrate=(80, 200),
    ),
    "deep": Level(
        default=Effort(
            limit_spans=8, deep=True, deep_limit_spans=100, connected=True, neighbor_hops=2, max_messages=200
        ),
        most=Effort(limit_spans=20, deep=True, deep_limit_spans=100, connected=True, neighbor_hops=2, max_messages=400),
        rehydrate=(200, 800),
    ),
}


def level_of(payload: Mapping[str, Any]) -> str | None:
    """The recall level that a payload asks for. Raises ValueError for none of the three."""
    given = payload.get("recall_level", payload.get("recallLevel"))
    if given is None or (isinstance(given, str) and not given.strip()):
        return None
    level = str(given).strip().lower()
    if level not in LEVELS:
        raise ValueError(f"recall_level must be one of {', '.join(LEVELS)}, found {given!r:.80}")
    return level


def number(payload: Mapping[str, Any], name: str, default: int) -> int:
    """A whole number of a payload; zero is a value. Raises ValueError."""
    given = payload.get(name)
    if given is None or isinstance(given, bool):
        return default
    try:
        return int(given)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must be a whole number, found {given!r:.80}") from None


def boolish(value: Any, default: bool = False) -> bool:
    """What a model may write for yes and no."""
    if isinstance(value, str):
        return value.strip().lower() in ("true", "yes", "1", "on", "y") if value.strip() else default
    return default if value is None else bool(value)


def effort_of(payload: Mapping[str, Any], level: str | None) -> tuple[Effort, list[str]]:
    """What this query does, and a warning for everything that its level does not allow. Raises ValueError."""
    base = LEVELS[level].default if level is not None else Effort()
    words = bool(_text(payload.get("query"))) and (level is None or LEVELS[level].most.deep)
    limit = number(payload, "limit_spans", base.limit_spans)
    asked = Effort(
        limit_spans=5 if limit == 0 and level is None else max(1, limit),
        deep=boolish(payload.get("deep"), base.deep or words),
        deep_limit_spans=max(0, number(payload, "deep_limit_spans", base.deep_limit_spans)),
        deep_limit_messages_per_span=max(
            0, number(payload, "deep_limit_messages_per_span", base.deep_limit_messages_per_span)
        ),
        connected=boolish(payload.get("connected"), base.connected),
        neighbor_hops=max(0, number(payload, "neighbor_hops", base.neighbor_hops)),
        max_messages=number(payload, "max_messages", base.max_messages),
    )
    return (asked, []) if level is None else _within(asked, LEVELS[level].most, level)


def rehydrated_at_most(payload: Mapping[str, Any], level: str | None) -> tuple[int | None, list[str]]:
    """How many messages a rehydration puts back (None: all), and a warning where the level allows fewer."""
    given = payload.get("max_messages")
    wanted = None if given is None else number(payload, "max_messages", 0)
    if level is None:
        return (None if wanted is None or wanted < 0 else wanted), []
    default, most = LEVELS[level].rehydrate
    if wanted is None:
        return default, []
    if wanted < 0 or wanted > most:
        return most, [_warning(level, "max_messages", wanted, most)]
    return wanted, []


def _within(asked: Effort, most: Effort, level: str) -> tuple[Effort, list[str]]:
    warnings: list[str] = []
    changes: dict[str, Any] = {}
    for name in Effort.__struct_fields__:
        value, limit = getattr(asked, name), getattr(most, name)
        unbounded = name == "max_messages" and value < 0
        if value is True and limit is False:
            changes[name] = False
        elif type(value) is int and (value > limit or unbounded):
            changes[name] = limit
        if name in changes:
            warnings.append(_warning(level, name, value, changes[name]))
    return replace(asked, **changes), warnings


def _warning(level: str, name: str, asked: Any, applied: Any) -> str:
    return f"recall_level={level} allows {name}={applied}, asked was {asked}"


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""
