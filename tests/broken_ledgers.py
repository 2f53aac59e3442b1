"""Ledger stores that do one thing wrong each."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from abstractruntime import InMemoryLedgerStore
from abstractruntime.core.errors import AbstractRuntimeError
from abstractruntime.testing.conformance import (
    Capability,
    LedgerStoreConformance,
)

from .breaking import broken, each_in
from .dict_stores import DictLedgerStore

ledger_store = each_in(LedgerStoreConformance)
CHAINED = "test_records_are_chained_or_not_at_all"


@ledger_store("test_records_come_in_the_order_in_which_they_were_appended")
class SortsRecords(InMemoryLedgerStore):
    def list(self, run_id: str) -> Any:
        return sorted(super().list(run_id), key=lambda row: str(row["step_id"]))


@ledger_store("test_the_two_records_of_a_step_are_both_kept")
class KeepsOneRecordPerStep(InMemoryLedgerStore):
    def list(self, run_id: str) -> Any:
        return [*{(row["step_id"], row["result"] and 1): row for row in super().list(run_id) if row["result"]}.values()]


@ledger_store("test_every_field_comes_back")
class LosesAFieldOfRecords(InMemoryLedgerStore):
    def append(self, record: Any) -> None:
        super().append(replace(record, idempotency_key=None))


@ledger_store("test_what_was_appended_is_not_aliased_with_what_is_stored")
class KeepsTheRecord(DictLedgerStore):
    def append(self, record: Any) -> None:
        self.kept = getattr(self, "kept", [])
        self.kept.append(record)
        super().append(record)

    def list(self, run_id: str) -> Any:
        found = [record for record in getattr(self, "kept", []) if record.run_id == run_id]
        return [{**row, "result": record.result} for row, record in zip(super().list(run_id), found, strict=True)]


@ledger_store("test_what_was_listed_is_not_aliased_with_what_is_stored")
class ListsTheSameRows(InMemoryLedgerStore):
    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, Any] = {}

    def list(self, run_id: str) -> Any:
        shown = self.shown.setdefault(run_id, [])
        shown += super().list(run_id)[len(shown) :]
        return shown


@ledger_store("test_ledgers_of_several_runs_do_not_mix")
class MixesLedgers(InMemoryLedgerStore):
    def list(self, run_id: str) -> Any:
        return super().list("a") + super().list("b") if run_id in ("a", "b") else super().list(run_id)


@ledger_store("test_an_unknown_run_has_no_records")
class GivesNoneForUnknownRuns(InMemoryLedgerStore):
    def list(self, run_id: str) -> Any:
        return super().list(run_id) or None


@ledger_store("test_bad_values_are_refused_or_kept_and_lose_nothing")
class DropsWhatItCannotWrite(InMemoryLedgerStore):
    def append(self, record: Any) -> None:
        with suppress(AbstractRuntimeError):
            super().append(record)


@ledger_store("test_list_after_reads_on_from_a_number")
class ReadsOneRecordTwice(InMemoryLedgerStore):
    def list_after(self, *, run_id: str, after: int, limit: int = 1000) -> Any:
        return super().list_after(run_id=run_id, after=max(0, after - 1), limit=limit)


@ledger_store("test_list_after_pages_to_the_end_and_finds_what_comes_later")
class ForgetsTheCursorAtTheEnd(InMemoryLedgerStore):
    def list_after(self, *, run_id: str, after: int, limit: int = 1000) -> Any:
        rows, cursor = super().list_after(run_id=run_id, after=after, limit=limit)
        return rows, cursor if rows else 0


@ledger_store("test_counts_are_those_of_the_list")
class CountsOneMore(InMemoryLedgerStore):
    def count(self, run_id: str) -> int:
        return super().count(run_id) + 1


@ledger_store("test_counts_of_many_are_those_of_the_lists")
class LeavesOutTheUnknown(InMemoryLedgerStore):
    def count_many(self, run_ids: Any) -> Any:
        return {run_id: count for run_id, count in super().count_many(run_ids).items() if count}


@ledger_store("test_metrics_are_those_of_completed_records")
class CountsNoTokens(InMemoryLedgerStore):
    def metrics_many(self, run_ids: Any) -> Any:
        return {run_id: {**found, "tokens_total": 0} for run_id, found in super().metrics_many(run_ids).items()}


@ledger_store("test_delete_forgets_one_ledger")
class CountsOnAfterDelete(InMemoryLedgerStore):
    def delete(self, run_id: str) -> int:
        count = super().delete(run_id)
        self._counts[run_id] = count
        return count


@ledger_store("test_several_writers_at_once_lose_nothing")
class AppendsToACopy(DictLedgerStore):
    def append(self, record: Any) -> None:
        before = [*self.rows.get(record.run_id, [])]
        super().append(record)
        time.sleep(0.001)  # in which another writer comes between
        self.rows[record.run_id] = [*before, self.rows[record.run_id][-1]]


class ForksTheChain(DictLedgerStore):
    def append(self, record: Any) -> None:
        super().append(replace(record, record_hash="made up"))


broken("ForksTheChain", LedgerStoreConformance, CHAINED, lambda folder: ForksTheChain(), {Capability.CHAIN})


@ledger_store("test_what_is_listed_is_plain_json")
class ListsSets(DictLedgerStore):
    def list(self, run_id: str) -> Any:
        return [{**row, "seen": {1}} for row in super().list(run_id)]


@ledger_store("test_odd_ids_are_ids_like_any_other")
class KnowsNoCaseOfLedgers(InMemoryLedgerStore):
    def list(self, run_id: str) -> Any:
        return super().list(run_id.lower())


@ledger_store("test_unsaved_attributes_are_taken_and_not_stored")
class StoresAttributes(InMemoryLedgerStore):
    def list(self, run_id: str) -> Any:
        return [{**row, "mine": None} for row in super().list(run_id)]


@ledger_store("test_what_is_no_json_is_refused_and_loses_nothing")
class WritesWhatItCannotRead(DictLedgerStore):
    def append(self, record: Any) -> None:
        try:
            super().append(record)
        except (TypeError, ValueError):
            super().append(replace(record, result={"n": 2}))


class PutsRunsIntoPaths(DictLedgerStore):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def append(self, record: Any) -> None:
        if record.run_id == "../up":
            (self.folder / record.run_id).write_text("")
        super().append(record)


broken("PutsRunsIntoPaths", LedgerStoreConformance, "test_an_id_is_never_a_path", PutsRunsIntoPaths, ())
