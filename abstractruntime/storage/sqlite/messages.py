"""Streams, messages and who waits for them, as SQL. What they mean is said in `core.streams`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping

from ...core.clock import instant_text, micros
from ...core.codec import REFUSALS, decode, decode_run, encode
from ...core.errors import StoreCorrupt
from ...core.event_keys import ANY, listens_to
from ...core.models import Message, RunState
from ...core.streams import MOST_NAMES, Listening, Unread, begin_of, heard_by, missed_of, since_of, surplus
from .narrow import narrow_run
from .statements import QUERIES, first

_ID_OF_STREAM = QUERIES["id_of_stream"]
_INSERT_STREAM = QUERIES["insert_stream"]
_INSERT_MESSAGE = QUERIES["insert_message"]
_RAISE_HEAD = QUERIES["raise_head"]
_NUDGE_WAITS = QUERIES["nudge_waits"]
_NUDGE_WAIT = QUERIES["nudge_wait"]
_FIRST_MESSAGE = QUERIES["first_message"]
_FIRST_MESSAGE_SINCE = QUERIES["first_message_since"]
_DELETE_MESSAGES = QUERIES["delete_messages"]
_NUDGED_STATES = QUERIES["nudged_states"]
_MESSAGE_OF_NAME = QUERIES["message_of_name"]
_MESSAGES_FROM = QUERIES["messages_from"]
_MESSAGE_BY_ID = QUERIES["message_by_id"]
_LISTENERS = QUERIES["listeners"]
_NAMES_LISTENED_FOR = QUERIES["names_listened_for"]
_NUDGED_RUNS = QUERIES["nudged_runs"]
_NUDGED_RUNS_OF_STREAM = QUERIES["nudged_runs_of_stream"]


def send(connection: sqlite3.Connection, messages: Iterable[Message], keep: int) -> None:
    """Put messages on their streams, make the waits for them due, and drop what is too much."""
    grown: dict[str, tuple[int, int]] = {}
    for message in messages:
        key = message.stream.split(":", 1)
        connection.execute(_INSERT_STREAM, key)
        stream, head = connection.execute(_ID_OF_STREAM, key).fetchone()
        position, at = head + 1, micros(message.at)
        row = {"stream": stream, "position": position, "message_id": message.message_id, "name": message.name, "at": at}
        if connection.execute(_INSERT_MESSAGE, {**row, "data": encode(message.data)}).rowcount:
            connection.execute(_RAISE_HEAD, (position, stream))
            connection.execute(_NUDGE_WAITS, {"at": at, "key": message.stream, "name": message.name})
            grown[message.stream] = stream, position
    for name, (stream, last) in grown.items():
        lowest = first(connection, _FIRST_MESSAGE, (stream,))
        gone = surplus(lowest, last, keep)
        if gone:
            connection.execute(_DELETE_MESSAGES, (stream, lowest + gone))
            _look_again(connection, name)


def next_message(
    connection: sqlite3.Connection, key: str, name: str, read: Mapping[str, int], since: str
) -> Unread | None:
    """See `core.backend.Backend.next_message`."""
    stream = first(connection, _ID_OF_STREAM, key.split(":", 1))
    lowest = None if stream is None else first(connection, _FIRST_MESSAGE, (stream,))
    if lowest is None:
        return None
    known = "" in read
    begin = begin_of(read, lowest) if known else first(connection, _FIRST_MESSAGE_SINCE, (stream, micros(since)))
    if begin is None:
        return None
    for position, message_id, found, at, data in (
        connection.execute(_MESSAGES_FROM, (stream, begin))
        if name == ANY
        else connection.execute(_MESSAGE_OF_NAME, (stream, name, max(begin, read.get(name, 0) + 1)))
    ):
        if position > read.get(found, 0):
            message = Message(stream=key, name=found, message_id=message_id, at=instant_text(at), data=_data(data, key))
            missed = missed_of(read, name, lowest, begin)
            return Unread(position=position, message=message, begin=begin, missed=missed)
    return None


def register(connection: sqlite3.Connection, run_pk: int, run: RunState) -> None:
    """Make the wait of a run due that was just stored, if what it waits for lies there already."""
    address = listens_to(run)
    if address is None:
        return
    stream, name = address
    found = next_message(connection, stream, name, run.read.get(stream, {}), since_of(run))
    if found is not None:
        connection.execute(_NUDGE_WAIT, (micros(found.message.at), run_pk))


def _look_again(connection: sqlite3.Connection, key: str) -> None:
    """See whose waits are still due on a stream that has lost messages."""
    for run_pk, run_id, data in connection.execute(_NUDGED_STATES, (key,)).fetchall():
        connection.execute(_NUDGE_WAIT, (None, run_pk))
        try:
            run = decode_run(data, run_id)
        except StoreCorrupt:  # whoever loads it is told
            continue
        register(connection, run_pk, run)


def listening(connection: sqlite3.Connection, message: Message, limit: int) -> Listening:
    """Whose waits the message would make due; nobody's if it is on its stream already."""
    stream = first(connection, _ID_OF_STREAM, message.stream.split(":", 1))
    if stream is not None and first(connection, _MESSAGE_BY_ID, (stream, message.message_id)):
        return Listening()
    rows = connection.execute(_LISTENERS, (message.stream, message.name, limit)).fetchall()
    if rows:
        return heard_by((narrow_run(data, run_id) for run_id, data in rows), message)
    names = connection.execute(_NAMES_LISTENED_FOR, (message.stream, MOST_NAMES)).fetchall()
    return Listening(names=tuple(name for (name,) in names))


def nudged(connection: sqlite3.Connection, stream: str | None, limit: int) -> list[str]:
    """Runs whose waits are due, the longest first."""
    if stream is None:
        rows = connection.execute(_NUDGED_RUNS, (limit,))
    else:
        rows = connection.execute(_NUDGED_RUNS_OF_STREAM, (stream, limit))
    return [run_id for (run_id,) in rows.fetchall()]


def clear(connection: sqlite3.Connection, key: str) -> None:
    """Delete the messages of a stream. Positions go on behind them, for readers remember how far they are."""
    stream = first(connection, _ID_OF_STREAM, key.split(":", 1))
    if stream is not None:
        connection.execute(_DELETE_MESSAGES, (stream, 2**63 - 1))
        _look_again(connection, key)


def _data(data: bytes, key: str) -> dict[str, object]:
    try:
        found: dict[str, object] = decode(data)
    except REFUSALS as error:
        raise StoreCorrupt(f"A message of stream {key!r} cannot be read: {error}. Restore it from a backup.") from error
    return found
