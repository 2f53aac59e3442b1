"""Commands of hosts: what one is, and the contracts of the stores that keep them in the order in which they came.

The runtime itself never reads them. A host appends what its users want (start, resume, cancel), and a worker reads on
from its cursor and does it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from ...core.codec import REFUSALS, copy_of
from ...core.errors import InvalidId, StoreCorrupt, UnsafeValue
from ...core.ids import check_id, check_optional, check_text, new_id
from ...core.secrets import admit

_MOST = 2**63 - 1


class CommandRecord(Struct, frozen=True):
    """One command. `seq` is its number in the store, given by `append`; `ts` is the host's own time stamp."""

    command_id: str
    run_id: str
    type: str
    payload: dict[str, Any]
    ts: str
    client_id: str | None = None
    seq: int = 0

    def to_json(self) -> dict[str, Any]:
        """All fields as a JSON dict, aliased with nothing here."""
        plain: dict[str, Any] = copy_of(asdict(self))
        return plain


class CommandAppendResult(Struct, frozen=True):
    """What became of a command: `accepted`, or a `duplicate` of the one whose `seq` this is."""

    accepted: bool
    duplicate: bool
    seq: int


class CommandPage(NamedTuple):
    """Some commands in order, and the cursor to read on from."""

    records: list[CommandRecord]
    next_cursor: int


class CommandStore(ABC):
    """Keeps commands, numbered from 1 in the order in which they came. The methods may be `async def`."""

    @abstractmethod
    def append(self, record: CommandRecord) -> Any:
        """Add a command, once: one whose `command_id` is there already is not added again.

        A blank `command_id` becomes a fresh one. Raw secrets in the payload are redacted. Returns a
        `CommandAppendResult`; raises ValueErrors: `InvalidId` for ids and texts, `UnsafeValue` for a payload that is no
        JSON dict. After an error of the store it is safe to append the same `command_id` again.
        """

    @abstractmethod
    def list_after(self, *, after: int, limit: int = 1000) -> Any:
        """At most `limit` commands numbered above `after`, and the next `after`: a pair `(records, next_cursor)`."""

    @abstractmethod
    def get_last_seq(self) -> Any:
        """The highest number that was ever given; 0 before the first."""


class CommandCursorStore(ABC):
    """Keeps how far a consumer has read. The methods may be `async def`."""

    @abstractmethod
    def load(self) -> Any:
        """The cursor that was saved last, or where reading begins."""

    @abstractmethod
    def save(self, cursor: int) -> Any:
        """Keep the cursor. Raises ValueError for what is no whole number of 0 or more."""


@runtime_checkable
class DeletableCommandStore(Protocol):
    """A command store that can forget."""

    def delete_by_run(self, run_id: str) -> Any:
        """Forget the commands of a run; how many there were. Numbers are never given twice."""


def checked(record: CommandRecord) -> CommandRecord:
    """The command as it may be kept, with an id."""
    if not isinstance(record.payload, dict):
        raise UnsafeValue("payload", f"a dict is expected, found a {type(record.payload).__name__}")
    if not check_text(record.type, "type of a command").strip():
        raise InvalidId("type of a command must not be blank.")
    check_id(record.run_id, "run_id of a command")
    check_text(record.ts, "ts of a command")
    check_optional(record.client_id, "client_id of a command")
    command_id = check_text(record.command_id, "command_id")
    return replace(
        record, command_id=command_id if command_id.strip() else new_id(), payload=admit(record.payload, "payload")
    )


def checked_cursor(value: Any, what: str = "cursor") -> int:
    """`value` if it can be a cursor."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST:
        raise ValueError(f"{what} must be a whole number from 0 to {_MOST}, found {value!r:.80}.")
    return int(value)


def checked_window(after: Any, limit: Any) -> tuple[int, int]:
    """The arguments of `list_after`; fewer than one means one."""
    if not isinstance(limit, int):
        raise ValueError(f"limit must be a whole number, found {limit!r:.80}.")
    return checked_cursor(after, "after"), min(max(1, limit), _MOST)


def page_of(records: list[CommandRecord], after: int) -> CommandPage:
    """Commands as `list_after` gives them."""
    return CommandPage(records, records[-1].seq if records else after)


def decode_command(data: bytes, place: str) -> CommandRecord:
    """A stored command. Raises StoreCorrupt naming the place."""
    try:
        return _decode(data)
    except REFUSALS as error:
        raise damaged_command(place, error) from error


def damaged_command(place: str, error: object) -> StoreCorrupt:
    """The error of what should be a command and is none."""
    return StoreCorrupt(f"{place}: this is no command ({error}). Restore the store from a backup.")


_decode = msgspec.json.Decoder(CommandRecord).decode
