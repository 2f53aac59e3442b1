"""What may stand between the journal and a backend, in one order whatever the order of a user's decorators.

Values come admitted (JSON, without secrets). Then large ones are moved out (`offload`), then records are chained
(`chain`), so that the chain holds what is stored; observers hear of it when it is durable.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from msgspec import Struct

from . import portal
from .codec import copy_of, record_dict
from .models import Commit, StepRecord

log = logging.getLogger("abstractruntime.journal")

_FAILED = "A ledger subscriber failed on a record of run %s"

LedgerCallback = Callable[[dict[str, Any]], object]


class Observers:
    """Who is told of the records of a ledger, each in its own copy."""

    def __init__(self) -> None:
        self._callbacks: dict[int, tuple[LedgerCallback, str | None]] = {}
        self._numbers = itertools.count()

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def add(self, callback: LedgerCallback, run_id: str | None) -> Callable[[], None]:
        """Tell `callback` of every record, or those of one run, until the returned function is called."""
        number = next(self._numbers)
        self._callbacks[number] = (callback, run_id)
        return lambda: self._callbacks.pop(number, None) and None

    def clear(self) -> None:
        """Tell nobody any more."""
        self._callbacks.clear()

    def calls(self, record: StepRecord) -> list[tuple[LedgerCallback, dict[str, Any]]]:
        """Who is to be told of this record, and what."""
        return [
            (callback, copy_of(record_dict(record)))
            for callback, run_id in list(self._callbacks.values())
            if run_id is None or run_id == record.run_id
        ]

    def tell(self, record: StepRecord) -> None:
        """Call them now, in this thread. What one raises is logged: the record is durable, its trouble is its own."""
        for callback, shown in self.calls(record):
            try:
                callback(shown)
            except Exception:  # a boundary: what a subscriber raises is its own
                log.exception(_FAILED, record.run_id)

    async def tell_here(self, records: Sequence[StepRecord]) -> None:
        """Call them in the thread of a blocked caller, or inline; in the order of the records."""
        for record in (record for stored in records for record in stored.unfolded()):
            for callback, shown in self.calls(record):
                try:
                    await portal.here(callback, shown)
                except Exception:  # a boundary: what a subscriber raises is its own
                    log.exception(_FAILED, record.run_id)


class Offload(Protocol):
    """Moves large values out of what is stored."""

    async def commit(self, commit: Commit) -> Commit:
        """The commit as it is stored: the same one where nothing is large. What it moved out is durable then."""


class Layers(Struct, frozen=True, kw_only=True):
    """What the decorators of a pair of stores ask for."""

    chain: bool = False
    offload: Offload | None = None
    observers: tuple[Observers, ...] = ()


#: of a pair without decorators
PLAIN = Layers()
