"""Brings runs of the published package, from its JSON folders or its SQLite files, into stores of this one.

The source is only read. Each run comes as it is: status, wait, vars, and its ledger with the hashes of a chain. So a
run that waits can be resumed, and one that runs be ticked. Stop the processes that write to the source before.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from ..core import portal
from ..core.backend import Write
from ..core.clock import iso, parse_instant
from ..core.codec import encode_records, encode_run, record_dict
from ..core.errors import AbstractRuntimeError, StoreError, StoreUnclear
from ..core.ids import check_id, new_id
from ..core.journal import prepare, prepare_save
from ..core.models import Commit, RunState, StepRecord
from ..core.secrets import admit
from .joining import Joined, join
from .published import Found, Source, open_source
from .user_pair import call, in_thread

log = logging.getLogger("abstractruntime.storage")


class ImportProblem(Struct, frozen=True, kw_only=True):
    """What could not be imported: the run, the file it is in, and why."""

    run_id: str
    file: str
    reason: str


class ImportReport(Struct, frozen=True, kw_only=True):
    """What an import did: how many runs and records it wrote, and how many runs were there already."""

    runs: int
    records: int
    skipped: int
    errors: tuple[ImportProblem, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing was left behind."""
        return not self.errors


def import_runs(source: str | Path, *, run_store: Any, ledger_store: Any, overwrite: bool = False) -> ImportReport:
    """Like `aimport_runs`, and blocks until it is done."""
    return portal.drive(aimport_runs, source, run_store=run_store, ledger_store=ledger_store, overwrite=overwrite)


async def aimport_runs(
    source: str | Path, *, run_store: Any, ledger_store: Any, overwrite: bool = False
) -> ImportReport:
    """Copy all runs and ledgers of a folder of JSON files, or of a SQLite file, into these stores.

    A run whose id is stored is skipped, so that an import can be repeated; with `overwrite` it is deleted and imported
    anew. A run that is damaged or cannot be stored is reported in `errors`, and the others are imported. Raises
    StoreError for a source that is none.

    >>> report = import_runs("old_runs/", run_store=runs, ledger_store=ledgers)  # doctest: +SKIP
    >>> report.runs, report.errors  # doctest: +SKIP
    (12, ())
    """
    target = _Target(run_store, ledger_store, overwrite=overwrite)
    opened: Source = await in_thread(open_source, Path(source))
    runs = records = skipped = 0
    errors: list[ImportProblem] = []
    try:
        for name in await in_thread(opened.names):
            found: Found | None = None
            try:
                found = await in_thread(opened.read, name)
                written = await target.store(found)
            except (AbstractRuntimeError, ValueError) as error:
                run_id = found.run_id if found is not None else name
                errors.append(ImportProblem(run_id=run_id, file=opened.file(name), reason=str(error)))
                continue
            if written is None:
                skipped += 1
                continue
            runs += found.run is not None
            records += written
            if found.problem:
                errors.append(ImportProblem(run_id=found.run_id, file=opened.file(name), reason=found.problem))
    finally:
        await in_thread(opened.close)
    return ImportReport(runs=runs, records=records, skipped=skipped, errors=tuple(errors))


class _Target:
    """The stores that are written to."""

    def __init__(self, run_store: Any, ledger_store: Any, *, overwrite: bool) -> None:
        self._runs, self._ledgers, self._overwrite = run_store, ledger_store, overwrite
        self._joined: Joined = join(run_store, ledger_store)

    async def store(self, found: Found) -> int | None:
        """Write a run and its records; how many of these, or None for what is there already."""
        run_id = check_id(found.run_id, "run_id")
        backend = self._joined.stored
        stored = await backend.load(run_id)
        if self._overwrite and (stored is not None or await backend.records(run_id, limit=1)):
            await self._delete(run_id)
            stored = None
        if stored is not None:
            return None
        records = [_admitted(record, run_id) for record in found.records]
        there = await backend.records(run_id)
        if [_shown(record) for record in there] != [_shown(record) for record in records[: len(there)]]:
            raise StoreError(
                f"Run {run_id!r} has a ledger with other records where it is to be imported. Import it into other "
                "stores, or with overwrite=True."
            )
        missing = records[len(there) :]
        if found.run is not None:
            await self._commit(await self._prepared(found.run, records, missing))
        else:
            if not missing:
                return None
            for record in missing:
                await call(self._ledgers.append, record)
        return len(missing)

    async def _prepared(self, run: RunState, records: Sequence[StepRecord], missing: Sequence[StepRecord]) -> Write:
        run = replace(run, created_at=iso(parse_instant(run.created_at)), updated_at=iso(parse_instant(run.updated_at)))
        clean = prepare_save(None, replace(run, revision=1), overwrite=False, commit_id=new_id()).run
        clean.records = len(records)
        hashes = [record.record_hash for record in records]
        if any(hashes):  # a chain stays what it is: what is moved out, or linked anew, would have another hash
            clean.chain_head = hashes[-1] if all(hashes) else None
            return Write(
                run=clean,
                data=encode_run(clean),
                expected=None,
                records=encode_records(missing),
                count=len(missing),
            )
        clean.records = len(missing)
        layers = self._joined.layers
        commit = Commit(run=clean, records=tuple(missing))
        if layers.offload is not None:
            commit = await layers.offload.commit(commit)
        return prepare(commit, slim=False, chain=layers.chain)

    async def _commit(self, write: Write) -> None:
        backend = self._joined.stored
        try:
            await backend.commit(write)
        except StoreUnclear:
            if not await backend.landed(write.run.run_id, write.run.commit_id or ""):
                raise

    async def _delete(self, run_id: str) -> None:
        for store in (self._runs, self._ledgers):
            delete = getattr(store, "delete", None)
            if delete is None:
                raise StoreError(f"{store!r} cannot delete, so run {run_id!r} cannot be overwritten.")
            await call(delete, run_id)


def _admitted(record: StepRecord, run_id: str) -> StepRecord:
    """The record as it may be stored: raw secrets of the source are redacted, which breaks the chain they are in."""
    if record.run_id != run_id:
        raise StoreError(f"The ledger of run {run_id!r} has a record of run {record.run_id!r}.")
    clean = replace(record, effect=admit(record.effect, "effect"), result=admit(record.result, "result"))
    if record.record_hash and clean != record:
        log.warning("Run %s: a secret in its hash-chained ledger was redacted, so the chain does not verify", run_id)
    return clean


def _shown(record: StepRecord) -> dict[str, Any]:
    """What two records have in common that are the same one, one of them stored."""
    shown = record_dict(record)
    return {name: shown[name] for name in ("step_id", "node_id", "status", "started_at", "ended_at", "attempt")}


__all__ = ["ImportProblem", "ImportReport", "aimport_runs", "import_runs"]
