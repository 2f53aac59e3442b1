"""What the journal needs of storage: one atomic commit of a whole step, and a few reads.

A backend stores bytes that the journal prepared (`Write`) and hands out fresh values, so nothing that it hands out is
aliased with what it holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from msgspec import Struct

from .models import Message, Request, RunState, StepRecord
from .streams import DEFAULT_KEPT, EVER, Listening, Unread


class Write(Struct, frozen=True, kw_only=True, gc=False):
    """A commit made ready for a backend: encoded, checked, with its guard.

    It lands only if the stored run is at `expected` (None: no such run) with `expected_records` ledger records and
    exactly `answered` standing requests; else `RevisionConflict`, and nothing of it is stored. After it, the run's
    standing requests are gone and `requests` stand at their runs (unknown or ended runs are passed over).
    """

    run: RunState
    data: bytes
    expected: int | None
    expected_records: int = 0
    answered: int = 0
    #: a JSON array of `count` records, numbered from `expected_records + 1`
    records: bytes = b"[]"
    count: int = 0
    lookup_key: str | None = None
    requests: tuple[Request, ...] = ()
    #: True when only revision, records and data change: status, wait, owner stay what they were
    hot: bool = False
    #: True when nothing happens if a run of this id exists
    if_absent: bool = False
    #: other runs, in the same atomic write: each is created or `hot`, the latter with `answered` requests that stay
    also: tuple[Write, ...] = ()
    #: True when records are added and the stored state stays as it is, at its revision; standing requests are no bar
    landing: bool = False
    #: each is put on its stream behind what is there, unless one of its id is; waits for it are due from then on
    messages: tuple[Message, ...] = ()
    #: how many messages a stream keeps that is written to
    keep: int = DEFAULT_KEPT


class Loaded(Struct, kw_only=True, gc=False):
    """A run as stored now, with what stands beside it."""

    run: RunState
    requests: tuple[Request, ...] = ()


class Due(Struct, frozen=True, kw_only=True, gc=False):
    """A run that can move. With `between`, somebody may be at it and between two of its commits, or nobody is."""

    run_id: str
    workflow_id: str
    revision: int
    between: bool


class Backend(Protocol):
    """One store of runs and ledgers together, with an atomic commit."""

    #: False where state and ledger are written one after the other
    atomic: bool
    #: True where other processes may write
    shared: bool

    async def load(self, run_id: str) -> Loaded | None:
        """The latest durable state, with the number of its ledger records, or None. Raises StoreCorrupt."""

    async def commit(self, write: Write) -> None:
        """Make the write durable, whole.

        Raises RevisionConflict (nothing of it is stored), StoreUnclear (it may be), another StoreError (it is not).
        Once called it is carried through even if the awaiting task is cancelled; the cancellation is raised after.
        """

    async def landed(self, run_id: str, commit_id: str) -> bool:
        """Whether a commit of this id is in the run's state or ledger: asked after StoreUnclear."""

    async def find(self, run_id: str, key: str) -> list[StepRecord]:
        """The records that were written under this `lookup_key`, oldest first."""

    async def records(self, run_id: str, *, after: int = 0, limit: int | None = None) -> list[StepRecord]:
        """Ledger records numbered above `after` (the first is 1), oldest first."""

    async def renew(self, owner: str, until: int) -> None:
        """Say that `owner` lives until then (microseconds since 1970); the first call also takes its OS lock."""

    async def release(self, owner: str) -> None:
        """Give up the owner's lease and lock."""

    async def alive(self, owner: str, now: int) -> bool:
        """Whether the owner's lease runs on and, on this machine, its process holds its lock."""

    async def send(self, messages: Iterable[Message], *, keep: int = DEFAULT_KEPT) -> None:
        """Put messages on their streams, those of one stream in one atomic write. Raises as `commit` does."""

    async def next_message(self, stream: str, name: str, read: Mapping[str, int], since: str) -> Unread | None:
        """The first message of this name (`*`: of any) that somebody has not read; `read` is how far (`RunState.read`).

        A stream of which nothing was read begins with the first message whose `at` is `since` or later.
        """

    async def listening(self, message: Message, *, limit: int = 10_000) -> Listening:
        """Whose waits the message would make due; nobody's if it is on its stream already."""

    async def nudged(self, *, stream: str | None = None, since: str = EVER, limit: int = 100) -> list[str]:
        """Runs that a message waits for, on this stream or any, sent at `since` or later; of the oldest first."""

    async def due(
        self,
        now: str,
        *,
        limit: int,
        passing: Collection[str] = (),
        watched: Collection[str] = (),
        owner: str = "",
    ) -> list[Due]:
        """Runs but for `passing` and `watched` that can move at this instant, some of each kind.

        They run, and no later attempt is due; their timer or deadline has come; a message they wait for is there; a run
        that they wait for has ended; or something was asked of them. `owner` is who asks: it knows what itself is at.
        Of the watched, those come all the same that run and whose owner has died.
        """

    async def next_due(self, after: str) -> str | None:
        """The first instant after this one at which a timer, a deadline or an attempt is due, if one is."""

    async def tree_tokens(self, root_run_id: str) -> int:
        """The sum of `RunState.tokens` of this run and of those whose `root_run_id` it is."""

    async def claims(self, run_ids: Iterable[str]) -> dict[str, tuple[str | None, bool]]:
        """Per stored run: the token of its intent, and whether a cancel request stands. The unknown is left out."""
