"""The streams of a folder: a file of lines for each, and what is known of who listens.

A message is a line. The end of a file may be torn: what a crash cut off is no message, and is cut off before the next
one is written. What belongs into a file and is not there yet stands in the run's file that sent it, as `pending`; it is
put there before anybody reads the stream, so nobody takes in what may not survive.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from zlib import crc32

import msgspec
from msgspec import Struct

from ...core.codec import REFUSALS, encode
from ...core.errors import StoreCorrupt, StoreError, StoreUnclear
from ...core.models import Message
from ..streams import Hearing, Stream, Streams
from .files import Files
from .names import messages_file
from .texts import Placed

log = logging.getLogger("abstractruntime.storage")

_CRC = re.compile(rb',"crc":"([0-9a-f]{8})"\}\Z')


class _Line(Struct, kw_only=True, omit_defaults=True):
    position: int
    #: None in the first line of a stream whose messages were deleted: it goes on behind that position
    message: Message | None = None


_decode = msgspec.json.Decoder(_Line).decode


class StreamFiles:
    """The streams of one folder; the rest of what a `Streams` does goes through `known`."""

    def __init__(self, folder: Path, files: Files) -> None:
        self._folder, self._files = folder, files
        self.known = Streams(self._read)
        #: how many messages a stream keeps; None until somebody says
        self.keep: int | None = None
        self._ends: dict[str, int] = {}
        self._owed: dict[str, list[Placed]] = {}
        #: streams whose files may not survive as they are, because a flush failed
        self._unsure: set[str] = set()

    def hear(self, run_id: str, hearing: Hearing | None) -> None:
        """Take in what a run listens to. A stream that cannot be read now is no reason not to write the run."""
        try:
            self.known.take(run_id, hearing)
        except StoreError as error:
            log.warning("Run %s listens to a stream that cannot be read: %s", run_id, error)

    def place(self, messages: Iterable[Message]) -> tuple[Placed, ...]:
        """Say where messages go; those that are there already are left out. Raises StoreError as `settle` does."""
        found: dict[tuple[str, str], Placed] = {}
        ends: dict[str, int] = {}
        for message in messages:
            key = message.stream
            self.settle([key])
            stream, name = self.known.stream(key), (key, message.message_id)
            if message.message_id not in stream and name not in found:
                ends[key] = ends.get(key, stream.last) + 1
                found[name] = Placed(message, ends[key])
        return tuple(found.values())

    def owe(self, messages: Iterable[Placed]) -> None:
        """Take messages in that a run's file holds; `settle` puts them where they belong."""
        for placed in messages:
            self._owed.setdefault(placed.message.stream, []).append(placed)

    def lacks(self, placed: Placed) -> bool:
        """Whether the message is not on its stream, and never was."""
        return placed.position > self.known.stream(placed.message.stream).last

    @property
    def unsettled(self) -> list[str]:
        """The streams whose files lack something, or may not survive."""
        return [*self._owed, *self._unsure]

    def settle(self, keys: Iterable[str]) -> None:
        """Write what belongs to these streams and is not in their files. Raises StoreError when that does not go."""
        for key in dict.fromkeys(keys):
            if key in self._unsure:
                self._write_anew(key)
            if key in self._owed:
                self._append(key, self._owed[key])
                del self._owed[key]

    def send(self, messages: Iterable[Message], keep: int) -> None:
        """Put messages on their streams, one stream after the other."""
        self.keep = keep
        by_stream: dict[str, list[Placed]] = {}
        for placed in self.place(messages):
            by_stream.setdefault(placed.message.stream, []).append(placed)
        for key, some in by_stream.items():
            self._append(key, some)

    def clear(self, key: str) -> None:
        """Delete the messages of a stream."""
        try:
            self.settle([key])
        except StoreCorrupt:  # to delete it is one way out
            self._files.remove(self._path(key))
            self.known.forget(key)
        if self.known.stream(key).last:
            self.known.clear(key)
            self._replace(key, self.known.stream(key))

    def _path(self, key: str) -> Path:
        return self._folder / messages_file(key)

    def _append(self, key: str, messages: Iterable[Placed]) -> None:
        stream = self.known.stream(key)
        new = [placed for placed in messages if self.lacks(placed)]
        if not new:
            return
        data = b"".join(_line(placed.position, placed.message) for placed in new)
        try:
            self._files.append(self._path(key), self._ends[key], data)
        except StoreUnclear:
            self._unsure.add(key)
            raise
        self._ends[key] += len(data)
        for placed in new:
            self.known.add(placed.message)
        if self.keep is not None and self.known.drop(key, self.keep):
            self._shorten(key, stream)

    def _shorten(self, key: str, stream: Stream) -> None:
        """Take out of the file what the stream has dropped."""
        try:
            self._replace(key, stream)
        except StoreError as error:  # the messages are there, and so are the old ones
            log.warning("%s: the oldest messages could not be dropped yet: %s", self._path(key), error)
            self._unsure.add(key)

    def _write_anew(self, key: str) -> None:
        """Look what is in the file, write that for good, and see whom it wakes."""
        self.known.forget(key)
        self._replace(key, self.known.stream(key))
        self._unsure.discard(key)
        self.known.look_again(key)

    def _replace(self, key: str, stream: Stream) -> None:
        places = range(stream.first, stream.last + 1)
        data = b"".join(_line(position, stream.message(key, position)) for position in places)
        data = data or _line(stream.last, None)
        self._files.put(self._path(key), data)
        self._ends[key] = len(data)

    def _read(self, key: str) -> Stream:
        """The stream as its file has it. Raises StoreCorrupt."""
        path = self._path(key)
        data, stream, end = self._files.read(path) or b"", Stream(), 0
        for number, text in enumerate(data.splitlines(keepends=True), 1):
            try:
                line = _read_line(text)
                if number == 1:
                    stream = Stream(line.position + (line.message is None))
                _put(stream, key, line, first=number == 1)
            except ValueError as error:
                if text.endswith(b"\n") and b"\0" not in data[end:]:
                    raise StoreCorrupt(
                        f"{path}: line {number}: {error}. Nothing was changed. Restore the file from a backup."
                    ) from error
                log.warning("%s: its last %d bytes are what a crash left of an append", path, len(data) - end)
                break
            end += len(text)
        self._ends[key] = end
        return stream


def _put(stream: Stream, key: str, line: _Line, *, first: bool) -> None:
    """Put the message of a line on its stream. Raises ValueError for one that does not belong there."""
    if line.message is None and first:
        return
    if line.message is None or line.message.stream != key:
        raise ValueError("it is of another stream")
    if line.position != stream.last + 1 or not stream.add(line.message):
        raise ValueError(f"it is number {line.position} and stands behind number {stream.last}")


def _line(position: int, message: Message | None) -> bytes:
    body = encode(_Line(position=position, message=message))[:-1]
    return body + b',"crc":"%08x"}\n' % crc32(body)


def _read_line(text: bytes) -> _Line:
    """A line with its end. Raises ValueError."""
    if not text.endswith(b"\n"):
        raise ValueError("it has no end")
    found = _CRC.search(text[:-1])
    if found is not None and crc32(text[: found.start()]) != int(found[1], 16):
        raise ValueError("the text does not fit its checksum")
    try:
        return _decode(text)
    except REFUSALS as error:
        raise ValueError(f"this is no message ({error})") from error
