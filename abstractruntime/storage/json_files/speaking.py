"""What is said on the streams of a folder, and who hears it.

A message that a run's commit sends is in the run's file, as `pending`, until it is on its stream. It is put there
before anybody reads the stream.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path

from ...core.backend import Write
from ...core.codec import decode_run
from ...core.models import Message
from ...core.streams import Listening, Unread, heard_by
from .files import Files
from .index import Index
from .streams import StreamFiles
from .texts import Placed


class Speaking:
    """The part of a folder that keeps messages."""

    path: Path
    files: Files
    _owning: bool
    _index: Index
    _streams: StreamFiles

    @abstractmethod
    def _own(self) -> None:
        """Be the process that writes here."""

    def send(self, messages: Iterable[Message], keep: int) -> None:
        """Put messages on their streams: see `core.backend.Backend`."""
        self._own()
        self._streams.send(messages, keep)

    def unread(self, key: str, name: str, read: Mapping[str, int], since: str) -> Unread | None:
        """The next message that somebody has not read."""
        return self._streams_now([key]).known.stream(key).unread(key, name, read, since)

    def listening(self, message: Message, limit: int) -> Listening:
        """Whose waits the message would make due."""
        self._own()
        known = self._streams_now([message.stream]).known
        if message.message_id in known.stream(message.stream):
            return Listening()
        rows = [(run_id, self._index.rows[run_id].narrow) for run_id in known.heard_by(message)[:limit]]
        if not rows:
            return Listening(names=known.names(message.stream))
        return heard_by((decode_run(data, run_id) for run_id, data in rows), message)

    def nudged(self, key: str | None, limit: int) -> list[str]:
        """Runs whose waits are due, the longest first."""
        streams = self._streams_now(None if key is None else [key])
        if not self._owning:
            self._hear(streams)
        return streams.known.nudged(key, limit)

    def _placed(self, write: Write) -> tuple[Placed, ...]:
        """Where the messages of a write go."""
        if not write.messages:
            return ()
        self._streams.keep = write.keep
        return self._streams.place(write.messages)

    def _hear(self, streams: StreamFiles) -> None:
        """Take in what every run listens to."""
        for run_id, row in self._index.rows.items():
            streams.hear(run_id, row.hearing)

    def _streams_now(self, keys: list[str] | None) -> StreamFiles:
        """The streams, with all that belongs into these of them, or into any.

        Where nobody writes and something is missing since a crash, this process becomes the one that writes.
        """
        if not self._owning:
            self._index.refresh()
            self._streams = StreamFiles(self.path, self.files)
            if self._missing(keys):
                self._own()
        if self._owning:
            self._streams.settle(self._streams.unsettled if keys is None else keys)
        return self._streams

    def _missing(self, keys: list[str] | None) -> bool:
        """Whether a run's file holds a message that is not on its stream."""
        return any(
            self._streams.lacks(placed)
            for row in self._index.rows.values()
            if row.beside.pending is not None
            for placed in row.beside.pending.messages
            if keys is None or placed.message.stream in keys
        )
