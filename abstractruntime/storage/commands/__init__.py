"""Commands of hosts, in the order in which they came, and cursors of those who read them."""

from .cursor_file import AsyncJsonFileCommandCursorStore, JsonFileCommandCursorStore
from .in_memory import (
    AsyncInMemoryCommandCursorStore,
    AsyncInMemoryCommandStore,
    InMemoryCommandCursorStore,
    InMemoryCommandStore,
)
from .jsonl import AsyncJsonlCommandStore, JsonlCommandStore
from .model import CommandAppendResult, CommandCursorStore, CommandRecord, CommandStore, DeletableCommandStore
from .sqlite import (
    AsyncSqliteCommandCursorStore,
    AsyncSqliteCommandStore,
    SqliteCommandCursorStore,
    SqliteCommandStore,
)

__all__ = [
    "AsyncInMemoryCommandCursorStore",
    "AsyncInMemoryCommandStore",
    "AsyncJsonFileCommandCursorStore",
    "AsyncJsonlCommandStore",
    "AsyncSqliteCommandCursorStore",
    "AsyncSqliteCommandStore",
    "CommandAppendResult",
    "CommandCursorStore",
    "CommandRecord",
    "CommandStore",
    "DeletableCommandStore",
    "InMemoryCommandCursorStore",
    "InMemoryCommandStore",
    "JsonFileCommandCursorStore",
    "JsonlCommandStore",
    "SqliteCommandCursorStore",
    "SqliteCommandStore",
]
