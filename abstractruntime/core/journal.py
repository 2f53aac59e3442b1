"""A run store and a ledger store as one `commit`: prepare it, let the backend make it durable, tell the observers.

The journal is where "did my write land?" is answered. A backend that cannot say raises `StoreUnclear`; the journal
then looks for the commit's id, in the state and in the ledger, before it writes again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from msgspec.structs import replace

from .backend import Backend, Loaded, Write
from .chain import linked
from .clock import Clock, iso, parse_instant
from .codec import REFUSALS, decode_records, decode_run, encode_records, encode_run
from .errors import RevisionConflict, StoreCorrupt, StoreUnclear, UnknownRun, UnsafeValue
from .ids import check_id, is_storable
from .kernel import in_flight, known_by
from .layers import PLAIN, Layers, LedgerCallback, Observers
from .models import Commit, Intent, Message, RunState, RunStatus, StepRecord, StepStatus, WaitReason, WaitState
from .secrets import admit
from .streams import DEFAULT_KEPT
from .tokens import MOST_TOKENS

log = logging.getLogger("abstractruntime.journal")

_RUNNING = RunStatus.RUNNING  # every step asks for it, and a member of an enum is looked up far slower

#: seconds between the tries of an unclear write
_PATIENCE = (0.01, 0.05, 0.25, 1.0)


def prepare(commit: Commit, *, slim: bool = True, chain: bool = False, keep: int = DEFAULT_KEPT) -> Write:
    """A commit as bytes with its guard. What crosses the JSON and secrets borders was admitted before.

    With `slim` the record that ends an attempt does not repeat the effect that its STARTED record holds. With `chain`
    the records are linked to the last one before them, and the head of the chain is set in `commit.run`. Streams
    that are written to keep so many messages.
    """
    before, run = commit.before, commit.run
    if chain:
        records: Sequence[StepRecord] = linked(commit.records, None if before is None else before.chain_head)
        run.chain_head = records[-1].record_hash if records else run.chain_head
    else:
        records = _slim(commit) if slim and before is not None and before.intent is not None else commit.records
    if commit.landing is not None:
        return _landing(commit, commit.landing, records, keep)
    return Write(
        run=run,
        data=encode_run(run),
        expected=None if before is None else before.revision,
        expected_records=0 if before is None else before.records,
        answered=len(commit.answers),
        records=encode_records(records) if records else b"[]",
        count=run.records if before is None else run.records - before.records,
        lookup_key=commit.lookup_key,
        requests=commit.requests,
        also=tuple(map(_other, commit.also)),
        messages=commit.messages,
        keep=keep,
        hot=before is not None
        and before.status is _RUNNING
        and run.status is _RUNNING
        and before.owner == run.owner
        # an index of stores says when the next attempt is due
        and (before.intent is None or before.intent.due is None)
        and (run.intent is None or run.intent.due is None)
        and not (commit.answers or commit.requests or commit.also or commit.messages),
    )


def _other(commit: Commit) -> Write:
    """Another run that is written with a commit: created, or changed in nothing but what its data holds."""
    run, before = commit.run, commit.before
    if before is None:
        return Write(run=run, data=encode_run(run), expected=None, if_absent=commit.if_absent)
    return Write(
        run=run,
        data=encode_run(run),
        expected=before.revision,
        expected_records=before.records,
        answered=commit.standing,
        hot=True,
    )


def _slim(commit: Commit) -> tuple[StepRecord, ...]:
    intent = None if commit.before is None else commit.before.intent
    if intent is None or (intent.token is None and not intent.children):
        return commit.records
    begun = {attempt.step_id for attempt in in_flight(intent)} if intent.parts else (intent.step_id,)
    return tuple(
        replace(record, effect=None, slim=True)
        if record.step_id in begun and record.status is not StepStatus.STARTED and record.reused_from is None
        else record
        for record in commit.records
    )


def _landing(commit: Commit, commit_id: str, records: Sequence[StepRecord], keep: int) -> Write:
    before = commit.before
    assert before is not None
    return Write(
        run=replace(commit.run, commit_id=commit_id),
        data=b"",
        expected=before.revision,
        expected_records=before.records,
        records=encode_records(records),
        count=len(records),
        lookup_key=commit.lookup_key,
        requests=commit.requests,
        also=tuple(map(_other, commit.also)),
        landing=True,
        messages=commit.messages,
        keep=keep,
    )


def prepare_save(
    stored: Loaded | None, run: RunState, *, overwrite: bool, commit_id: str, parent: RunState | None = None
) -> Write:
    """A host's `save(run)` as a write: insert an unknown run, else replace the stored one at the same revision.

    With `overwrite` the stored revision, intent and counters stay the store's own and the rest is replaced. `parent` is
    the run that `parent_run_id` names, if it is stored. Raises `RevisionConflict` naming both revisions, and
    `UnsafeValue` for what JSON cannot carry.
    """
    check_id(run.run_id, "run_id")
    if type(run.tokens) is not int or not 0 <= run.tokens <= MOST_TOKENS:
        raise UnsafeValue("tokens", f"expected a whole number from 0 to {MOST_TOKENS}, found {run.tokens!r:.80}")
    clean = replace(
        run,
        vars=admit(run.vars, "vars"),
        waiting=_admitted_wait(run.waiting),
        error=admit(run.error, "error"),
        output=admit(run.output, "output"),
        status=RunStatus(run.status),
        commit_id=commit_id,
        chain_head=None if stored is None else stored.run.chain_head,
        root_run_id=_root(run, stored, parent),
    )
    if stored is None:
        clean.revision, clean.records = max(1, run.revision), 0
        return Write(run=clean, data=_readable(clean), expected=None)
    found = stored.run
    if run.revision != found.revision:
        if not overwrite:
            raise RevisionConflict(run.run_id, run.revision, found.revision)
        clean.intent, clean.owner, clean.fingerprint = found.intent, found.owner, found.fingerprint
        clean.workflow_version, clean.identity, clean.read = found.workflow_version, found.identity, found.read
        clean.warned = found.warned
    clean.tokens = found.tokens
    clean.revision, clean.records = found.revision + 1, found.records
    return Write(
        run=clean,
        data=_readable(clean),
        expected=found.revision,
        expected_records=found.records,
        answered=len(stored.requests) if overwrite else 0,
    )


def _root(run: RunState, stored: Loaded | None, parent: RunState | None) -> str | None:
    """The run at the top of the tree; of a parent that is not stored nobody knows whether it has one itself."""
    if not run.parent_run_id:
        return None
    if parent is not None:
        return parent.root
    known = run if stored is None else stored.run
    return (known.root_run_id if known.parent_run_id == run.parent_run_id else None) or run.parent_run_id


def _readable(run: RunState) -> bytes:
    """A host's run as bytes that can be read again, or `UnsafeValue`."""
    try:
        data = encode_run(run)
        decode_run(data, run.run_id)
    except (StoreCorrupt, *REFUSALS) as error:
        raise UnsafeValue(f"run {run.run_id!r}", f"could not be read again ({error.__cause__ or error})") from error
    return data


def _admitted_wait(wait: WaitState | None) -> WaitState | None:
    if wait is None:
        return None
    if not isinstance(wait, WaitState):
        raise UnsafeValue("waiting", f"expected a WaitState, found a {type(wait).__name__}")
    until = None if wait.until is None else iso(parse_instant(wait.until))
    fields = {name: admit(getattr(wait, name), f"waiting.{name}") for name in WaitState.__struct_fields__}
    return WaitState(**{**fields, "reason": WaitReason(wait.reason), "until": until})


def _may_land(intent: Intent) -> bool:
    """Whether something may have landed of the effect that this state does not know."""
    return bool(intent.parts) or intent.token is not None


class Journal:
    """What the runtime knows of storage: load, commit, read the ledger, subscribe."""

    def __init__(
        self,
        backend: Backend,
        clock: Clock,
        *,
        layers: Layers = PLAIN,
        resolving: Backend | None = None,
        keep: int = DEFAULT_KEPT,
    ) -> None:
        #: as stored: large values that were moved out are references
        self.stored = backend
        #: with all values in their places: what the engine reads and writes
        self.backend = backend if resolving is None else resolving
        self._clock, self._layers, self._keep = clock, layers, keep
        self._observers = Observers()
        self._told = (self._observers, *layers.observers)
        #: per run, who is told the state of each commit once it is durable; they are quick, and raise nothing
        self.watchers: dict[str, set[Callable[[RunState], None]]] = {}
        #: who is told of the commits of all runs in the same way
        self.overseers: set[Callable[[RunState], None]] = set()

    async def load(self, run_id: str, *, resolve: bool = True) -> Loaded:
        """The latest durable state, with what of its effects has landed since; `UnknownRun` if there is none."""
        backend = self.backend if resolve else self.stored
        loaded = await backend.load(run_id) if run_id.isascii() or is_storable(run_id) else None
        if loaded is None:
            raise UnknownRun(run_id)
        run = loaded.run
        if run.intent is not None and _may_land(run.intent):
            after = run.intent.known if backend.atomic else 0
            if backend.atomic and run.records == after:
                return loaded
            records = await backend.records(run_id, after=after)
            run.intent = known_by(run, run.intent, records)
            if backend.atomic and run.records != after + len(records):  # one landed between the two reads
                return await self.load(run_id, resolve=resolve)
        return loaded

    async def commit(self, commit: Commit) -> RunState:
        """Make the commit durable and return its state; observers have heard of it then.

        Raises `RevisionConflict` when the run moved on, `StoreUnclear` when not even looking helped.
        """
        layers, kept = self._layers, commit
        if layers.offload is not None:
            kept = await layers.offload.commit(commit)
        # a chain once begun goes on, also where a runtime was built without the decorator
        chain = layers.chain or (commit.before is not None and commit.before.chain_head is not None)
        atomic = self.backend.atomic
        write = prepare(kept, slim=atomic, chain=chain and atomic, keep=self._keep)
        if chain:
            commit.run.chain_head = kept.run.chain_head
        try:
            await self.backend.commit(write)
        except StoreUnclear as error:
            await self._make_sure(write, error)
        if self.watchers or self.overseers:
            for run in (commit.run, *(other.run for other in commit.also)):
                for watcher in (*self.watchers.get(run.run_id, ()), *self.overseers):
                    watcher(run)
        if commit.records and any(self._told):
            records = decode_records(write.records, commit.run.run_id) if chain else kept.records
            for observers in self._told:
                await observers.tell_here(records)
        return commit.run

    async def settled(self, run_id: str, key: str) -> StepRecord | None:
        """The record of an effect that completed under this key, where keys are looked up."""
        found = await self.backend.find(run_id, key)
        return next(
            (r for r in found if r.idempotency_key == key and r.status is StepStatus.COMPLETED and r.effect), None
        )

    async def send(self, messages: Iterable[Message]) -> None:
        """Put messages on their streams, without a run; once each, because their ids say which they are.

        Raises `StoreUnclear` when the store cannot say whether they are there after several tries.
        """
        sent = tuple(messages)
        for pause in (0.0, *_PATIENCE, None):  # once more at once, as is done with commits
            try:
                await self.backend.send(sent, keep=self._keep)
                return
            except StoreUnclear as error:
                if pause is None:
                    raise
                log.warning("The store cannot say whether %d messages are there (%s); again", len(sent), error)
                await self._clock.sleep(pause)

    def subscribe(self, callback: LedgerCallback, run_id: str | None) -> Callable[[], None]:
        """Call `callback(record)` with every record that becomes durable through this journal, until unsubscribed."""
        return self._observers.add(callback, run_id)

    async def _make_sure(self, write: Write, error: StoreUnclear) -> None:
        run_id, commit_id = write.run.run_id, write.run.commit_id or ""
        for pause in _PATIENCE:
            log.warning("Run %s: the store cannot say whether commit %s landed (%s); looking", run_id, commit_id, error)
            try:
                if await self.backend.landed(run_id, commit_id):
                    return
                await self.backend.commit(write)
                return
            except RevisionConflict:
                if await self.backend.landed(run_id, commit_id):  # it had been on its way
                    return
                raise
            except StoreUnclear as again:
                error = again
            await self._clock.sleep(pause)
        raise error
