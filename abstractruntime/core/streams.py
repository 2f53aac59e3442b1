"""What reading a stream means, whoever stores it: where a reader begins, what it has missed, what is kept.

Positions of a stream count from 1, without gaps. The oldest messages are dropped when there are too many, in bulk, so
what is kept is always an unbroken stretch up to the last one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct

from .clock import iso, parse_instant
from .event_keys import ANY
from .models import Message, RunState, WaitState

#: how many messages a stream keeps
DEFAULT_KEPT = 10_000

#: names of other listeners that an event which nobody heard is told
MOST_NAMES = 15

#: the part of what is kept that may come on top before the oldest go
_SLACK = 10

_EVER = "1970-01-01T00:00:00.000000+00:00"


class Unread(Struct, frozen=True, kw_only=True, gc=False):
    """A message that a reader has not read, and its position.

    What lies before `begin` is read, dropped, or older than the reader. `missed` says how many messages of the stream,
    whatever their names, were dropped that it had not read (1 stands for one or more where it had read nothing yet).
    """

    position: int
    message: Message
    begin: int
    missed: int = 0


class Listener(Struct, frozen=True, kw_only=True, gc=False):
    """A run that waits for an event. `ends` says that it has no node to go on at, and completes with the event."""

    run_id: str
    workflow_id: str
    ends: bool = False


class Listening(Struct, frozen=True, kw_only=True, gc=False):
    """Who hears an event, by run id; where nobody does, some names that others listen for on the same stream."""

    listeners: tuple[Listener, ...] = ()
    names: tuple[str, ...] = ()


def comes_in_time(wait: WaitState, message: Message) -> bool:
    """Whether the message ends the wait: it was sent before the deadline, or just then; else the deadline does."""
    return wait.until is None or message.at <= wait.until


def heard_by(runs: Iterable[RunState], message: Message) -> Listening:
    """Who of these, which wait for such a message, hears it before its deadline."""
    return Listening(
        listeners=tuple(
            Listener(run_id=run.run_id, workflow_id=run.workflow_id, ends=run.waiting.resume_to_node is None)
            for run in runs
            if run.waiting is not None and comes_in_time(run.waiting, message)
        )
    )


def since_of(run: RunState) -> str:
    """From when on a run hears what is said on streams: its creation. A creation that is no instant was long ago."""
    try:
        return iso(parse_instant(run.created_at))
    except ValueError:
        return _EVER


def begin_of(read: Mapping[str, int], first: int) -> int:
    """Where somebody goes on who has read so far, on a stream whose first message is at this position."""
    return max(read[""] + 1, first)


def missed_of(read: Mapping[str, int], name: str, first: int, begin: int) -> int:
    """How many messages were dropped that somebody who has read so far would have come to: see `Unread`."""
    if "" not in read:
        return 1 if 1 < first == begin else 0
    last = read[""] if name == ANY else max(read[""], read.get(name, 0))
    return max(0, first - 1 - last)


def read_on(read: Mapping[str, int], found: Unread, *, wildcard: bool) -> dict[str, int]:
    """What somebody has read behind this message: see `RunState.read`."""
    floor = found.position if wildcard else found.begin - 1
    names = {**read, found.message.name: found.position}
    ahead = {position for name, position in names.items() if name and position > floor}
    while floor + 1 in ahead:
        floor += 1
    return {"": floor, **{name: position for name, position in names.items() if name and position > floor}}


def surplus(first: int, last: int, keep: int) -> int:
    """How many of the oldest messages go: none, until there is a tenth more than `keep`."""
    kept = last - first + 1
    return kept - max(1, keep) if kept > max(1, keep) + keep // _SLACK else 0
