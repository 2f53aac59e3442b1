"""Streams and their listeners in memory: what the other stores are held to, and what JSON files know of theirs."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from ..core.codec import decode, encode
from ..core.event_keys import ANY, listens_to
from ..core.models import Message, RunState
from ..core.streams import MOST_NAMES, Unread, begin_of, missed_of, since_of, surplus


class Stream:
    """The messages of one stream that are kept, in order; the first one is at position `first`."""

    def __init__(self, first: int = 1) -> None:
        self.first = first
        self._kept: list[tuple[str, str, str, bytes]] = []  # name, id, instant and data
        self._ids: set[str] = set()
        self._by_name: dict[str, list[int]] = defaultdict(list)

    @property
    def last(self) -> int:
        """The position of the last message."""
        return self.first + len(self._kept) - 1

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._ids

    def add(self, message: Message) -> bool:
        """Put a message behind the others, unless one of its id is there; whether it was put."""
        if message.message_id in self._ids:
            return False
        self._kept.append((message.name, message.message_id, message.at, encode(message.data)))
        self._ids.add(message.message_id)
        self._by_name[message.name].append(self.last)
        return True

    def drop(self, keep: int) -> int:
        """Let the oldest go, if there are too many; how many went."""
        return self._drop(surplus(self.first, self.last, keep))

    def clear(self) -> None:
        """Let all go. Positions go on behind them, for readers remember how far they are."""
        self._drop(len(self._kept))

    def _drop(self, count: int) -> int:
        for name, message_id, _, _ in self._kept[:count]:
            self._ids.remove(message_id)
            positions = self._by_name[name]
            del positions[: bisect_right(positions, self.first + count - 1)]
            if not positions:
                del self._by_name[name]
        del self._kept[:count]
        self.first += count
        return count

    def message(self, key: str, position: int) -> Message:
        """A fresh copy of the message at this position, of this stream."""
        name, message_id, at, data = self._kept[position - self.first]
        return Message(stream=key, name=name, message_id=message_id, at=at, data=decode(data))

    def unread(self, key: str, name: str, read: Mapping[str, int], since: str) -> Unread | None:
        """See `core.backend.Backend.next_message`."""
        begin = begin_of(read, self.first) if "" in read else self._first_since(since)
        position = None if begin is None else self._next(name, read, begin)
        if begin is None or position is None:
            return None
        missed = missed_of(read, name, self.first, begin)
        return Unread(position=position, message=self.message(key, position), begin=begin, missed=missed)

    def _first_since(self, since: str) -> int | None:
        return next((self.first + place for place, (_, _, at, _) in enumerate(self._kept) if at >= since), None)

    def _next(self, name: str, read: Mapping[str, int], begin: int) -> int | None:
        if name == ANY:
            for position in range(begin, self.last + 1):
                if position > read.get(self._kept[position - self.first][0], 0):
                    return position
            return None
        positions = self._by_name.get(name, [])
        place = bisect_right(positions, max(begin - 1, read.get(name, 0)))
        return positions[place] if place < len(positions) else None


class Hearing(Struct, frozen=True, gc=False):
    """What a waiting run listens to, how far it has read there, and since when it is there."""

    stream: str
    name: str
    read: dict[str, int]
    since: str


def hearing_of(run: RunState) -> Hearing | None:
    """What a run listens to; None for nothing."""
    address = listens_to(run)
    if address is None:
        return None
    stream, name = address
    return Hearing(stream, name, run.read.get(stream, {}), since_of(run))


class Streams:
    """Streams by key, and who listens to them. Not thread-safe: its owner has a lock.

    `load` gives a stream that is needed for the first time.
    """

    def __init__(self, load: Callable[[str], Stream] = lambda key: Stream()) -> None:
        self._load = load
        self._streams: dict[str, Stream] = {}
        #: what each run listens to, and of each stream and name who does
        self._listens: dict[str, Hearing] = {}
        self._heard: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        #: per stream whose waits are due, and since which message
        self._nudged: dict[str, dict[str, str]] = defaultdict(dict)

    def stream(self, key: str) -> Stream:
        """The stream of this key."""
        found = self._streams.get(key)
        if found is None:
            found = self._streams[key] = self._load(key)
        return found

    def add(self, message: Message) -> bool:
        """Put a message on its stream and make the waits for it due; False if one of its id is there."""
        if not self.stream(message.stream).add(message):
            return False
        nudged = self._nudged[message.stream]
        for run_id in self.heard_by(message):
            nudged.setdefault(run_id, message.at)
        return True

    def drop(self, key: str, keep: int) -> int:
        """Let the oldest messages of a stream go, if there are too many; how many went."""
        count = self.stream(key).drop(keep)
        if count:
            self.look_again(key)
        return count

    def clear(self, key: str) -> None:
        """Drop all messages of a stream."""
        self.stream(key).clear()
        self.look_again(key)

    def forget(self, key: str) -> None:
        """Know nothing of this stream until it is loaded again."""
        self._streams.pop(key, None)

    def heard_by(self, message: Message) -> list[str]:
        """The runs whose waits this message makes due, and no other has, in order."""
        names, nudged = self._heard.get(message.stream, {}), self._nudged.get(message.stream, {})
        heard = names.get(message.name, set()) | names.get(ANY, set())
        return sorted(run_id for run_id in heard if run_id not in nudged)

    def names(self, key: str) -> tuple[str, ...]:
        """Some names that anybody listens for on this stream."""
        return tuple(sorted(self._heard.get(key, {}))[:MOST_NAMES])

    def nudged(self, key: str | None, limit: int) -> list[str]:
        """The runs whose waits are due, on this stream or any, the longest first."""
        some: Iterable[dict[str, str]] = self._nudged.values() if key is None else [self._nudged.get(key, {})]
        due = sorted((at, run_id) for runs in some for run_id, at in runs.items())
        return [run_id for _, run_id in due[:limit]]

    def take(self, run_id: str, hearing: Hearing | None) -> None:
        """Take in where a run stands: what it listens to, and whether that lies there already."""
        self.leave(run_id)
        if hearing is not None:
            self._listens[run_id] = hearing
            self._heard[hearing.stream][hearing.name].add(run_id)
            self._look(run_id, hearing)

    def look_again(self, key: str) -> None:
        """See whose waits are due on a stream that is not what it was."""
        for run_id in [run_id for runs in self._heard.get(key, {}).values() for run_id in runs]:
            self._look(run_id, self._listens[run_id])

    def _look(self, run_id: str, hearing: Hearing) -> None:
        key = hearing.stream
        found = self.stream(key).unread(key, hearing.name, hearing.read, hearing.since)
        if found is not None:
            self._nudged[key][run_id] = found.message.at
        elif run_id in self._nudged.get(key, {}):
            del self._nudged[key][run_id]

    def leave(self, run_id: str) -> None:
        """The run listens to nothing."""
        hearing = self._listens.pop(run_id, None)
        if hearing is None:
            return
        key, name = hearing.stream, hearing.name
        names = self._heard[key]
        names[name].discard(run_id)
        if not names[name]:
            del names[name]
        if not names:
            del self._heard[key]
        nudged = self._nudged.get(key, {})
        nudged.pop(run_id, None)
        if not nudged:
            self._nudged.pop(key, None)
