"""Pairs that do one thing wrong each, and backends that they join into."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from abstractruntime import InMemoryLedgerStore, InMemoryRunStore
from abstractruntime.core.errors import RevisionConflict
from abstractruntime.core.models import RunStatus, StepStatus
from abstractruntime.storage.memory_backend import MemoryBackend
from abstractruntime.testing.conformance import (
    Capability,
    PairConformance,
)

from .breaking import OURS, broken
from .dict_stores import DictLedgerStore, DictRunStore


def backend(caught_by: str, capabilities: Any = OURS) -> Any:
    """Remember a class of broken backends, as what a pair joins into."""

    def remember(cls: type[MemoryBackend]) -> type:
        class Runs(InMemoryRunStore):
            def join(self, ledger_store: Any) -> Any:
                return cls(self, ledger_store)

        broken(cls.__name__, PairConformance, caught_by, lambda _: (Runs(), InMemoryLedgerStore()), capabilities)
        return cls

    return remember


@backend("test_a_state_that_moved_on_is_a_conflict")
class AsksBeforeTheGuard(MemoryBackend):
    async def commit(self, write: Any) -> None:
        self._runs.save(replace(write.run, run_id="other", revision=0), overwrite=True) if write.requests else None
        await super().commit(write)


@backend("test_a_state_that_moved_on_is_a_conflict")
class WritesRecordsBeforeTheGuard(MemoryBackend):
    async def commit(self, write: Any) -> None:
        try:
            await super().commit(write)
        except RevisionConflict:
            if write.count:
                self._ledgers._put(write.run.run_id, write.records, write.count, write.lookup_key, None)
            raise


@backend("test_a_state_that_moved_on_is_a_conflict")
class SwallowsTheConflict(MemoryBackend):
    async def commit(self, write: Any) -> None:
        with suppress(RevisionConflict):
            await super().commit(write)


@backend("test_a_ledger_that_grew_is_a_conflict")
class IgnoresTheLedgersLength(MemoryBackend):
    async def commit(self, write: Any) -> None:
        await super().commit(replace(write, expected_records=self._ledgers.count(write.run.run_id)))


@backend("test_a_run_is_created_once")
class CreatesTwice(MemoryBackend):
    async def commit(self, write: Any) -> None:
        found = await self.load(write.run.run_id)
        if write.expected is None and found is not None:
            write = replace(write, expected=found.run.revision, expected_records=found.run.records)
        await super().commit(write)


@backend("test_a_request_stands_until_it_is_answered")
class IgnoresRequests(MemoryBackend):
    async def commit(self, write: Any) -> None:
        found = await self.load(write.run.run_id)
        await super().commit(replace(write, answered=len(found.requests) if found else 0))


@backend("test_a_request_of_each_kind_stands_once")
class PilesUpRequests(MemoryBackend):
    async def commit(self, write: Any) -> None:
        await super().commit(replace(write, requests=()))
        for request in write.requests:
            row = self._runs._rows[request.run_id]
            row.requests = (*row.requests, request)


@backend("test_requests_to_unknown_and_ended_runs_are_passed_over")
class AsksTheEnded(MemoryBackend):
    async def commit(self, write: Any) -> None:
        await super().commit(write)
        for request in write.requests:
            row = self._runs._rows.get(request.run_id)
            if row is not None and not row.requests:
                row.requests = (request,)


@backend("test_a_standing_request_is_no_bar_to_a_landing")
class LetsRequestsBarLandings(MemoryBackend):
    async def commit(self, write: Any) -> None:
        found = await self.load(write.run.run_id)
        if write.landing and found and found.requests:
            raise RevisionConflict(write.run.run_id, 0, 0)
        await super().commit(write)


@backend("test_a_landing_on_a_state_that_moved_on_is_a_conflict")
class LandsOnAnyRevision(MemoryBackend):
    async def commit(self, write: Any) -> None:
        found = await self.load(write.run.run_id)
        await super().commit(replace(write, expected=found.run.revision) if write.landing and found else write)


@backend("test_records_are_found_by_their_lookup_key")
class FindsByNoKey(MemoryBackend):
    async def find(self, run_id: str, key: str) -> Any:
        return await self.records(run_id) if await super().find(run_id, key) else []


@backend("test_it_tells_whether_a_commit_landed")
class LooksAtTheStateAlone(MemoryBackend):
    async def landed(self, run_id: str, commit_id: str) -> bool:
        row = self._runs._rows.get(run_id)
        return bool(row and row.commit_id == commit_id)


@backend("test_it_tells_whether_a_commit_landed")
class LooksAtTheLedgerAlone(MemoryBackend):
    async def landed(self, run_id: str, commit_id: str) -> bool:
        return any(record.commit_id == commit_id for record in await self.records(run_id))


@backend("test_records_are_read_from_a_number_on")
class ReadsOneRecordMore(MemoryBackend):
    async def records(self, run_id: str, *, after: int = 0, limit: int | None = None) -> Any:
        return await super().records(run_id, after=after, limit=limit and limit + 1)


@backend("test_the_head_of_a_chain_is_kept_and_carried_on")
class LosesTheHead(MemoryBackend):
    async def commit(self, write: Any) -> None:
        await super().commit(write)
        if write.landing:
            self._ledgers._heads.pop(write.run.run_id, None)


@backend("test_nothing_handed_out_is_aliased_with_what_is_stored")
class LoadsTheSameObject(MemoryBackend):
    async def load(self, run_id: str) -> Any:
        self.handed_out = getattr(self, "handed_out", {})
        found = await super().load(run_id)
        return found and self.handed_out.setdefault((run_id, self._runs._rows[run_id].revision), found)


@backend("test_claims_tell_token_and_cancel")
class HearsNoCancel(MemoryBackend):
    async def claims(self, run_ids: Any) -> Any:
        return {run_id: (token, False) for run_id, (token, _) in (await super().claims(run_ids)).items()}


@backend("test_a_lease_ends_in_time_and_when_it_is_given_up")
class LivesForEver(MemoryBackend):
    async def alive(self, owner: str, now: int) -> bool:
        return owner != "nobody"


class LosesEnds(DictLedgerStore):
    def append(self, record: Any) -> None:
        if record.status is not StepStatus.COMPLETED:
            super().append(record)


WORKS = "test_a_workflow_runs_to_its_end"
broken("LosesEnds", PairConformance, WORKS, lambda folder: (DictRunStore(), LosesEnds()), ())


class LosesRuntimeVars(DictRunStore):
    def save(self, run: Any) -> None:
        super().save(replace(run, vars={key: value for key, value in run.vars.items() if key != "_runtime"}))


broken("LosesRuntimeVars", PairConformance, WORKS, lambda folder: (LosesRuntimeVars(), DictLedgerStore()), ())


@backend("test_of_commits_at_once_one_lands")
class ChecksBeforeItCommits(MemoryBackend):
    async def commit(self, write: Any) -> None:
        found = await self.load(write.run.run_id)
        if found is not None and found.run.revision != write.expected:
            raise RevisionConflict(write.run.run_id, 0, 0)
        await asyncio.sleep(0)
        found = await self.load(write.run.run_id)
        if found is not None:
            write = replace(write, expected=found.run.revision, expected_records=found.run.records)
        await super().commit(write)


@backend("test_an_unknown_run_is_none_and_has_no_records")
class BelievesThatItLanded(MemoryBackend):
    async def landed(self, run_id: str, commit_id: str) -> bool:
        return True


@backend("test_what_is_not_there_cannot_be_changed")
class CreatesWhatIsNotThere(MemoryBackend):
    async def commit(self, write: Any) -> None:
        found = await self.load(write.run.run_id)
        await super().commit(write if found else replace(write, expected=None))


@backend("test_what_the_stores_write_is_part_of_the_same_run")
class CountsItsOwnRecords(MemoryBackend):
    async def load(self, run_id: str) -> Any:
        return self._runs._loaded(run_id)


@backend("test_both_stores_show_what_was_committed")
class ShowsOtherRecords(MemoryBackend):
    async def records(self, run_id: str, *, after: int = 0, limit: int | None = None) -> Any:
        return [replace(record, node_id="x") for record in await super().records(run_id, after=after, limit=limit)]


@backend("test_every_field_of_the_state_comes_back")
class LosesRetries(MemoryBackend):
    async def load(self, run_id: str) -> Any:
        found = await super().load(run_id)
        return found and replace(found, run=replace(found.run, retries=0))


@backend("test_what_is_stored_folded_or_slim_is_read_whole")
class ReadsSlimRecords(MemoryBackend):
    async def records(self, run_id: str, *, after: int = 0, limit: int | None = None) -> Any:
        found = await super().records(run_id, after=after, limit=limit)
        return [replace(record, effect=None) if record.result else record for record in found]


@backend("test_a_landing_adds_records_and_leaves_the_state")
class MovesTheRevisionOfALanding(MemoryBackend):
    async def commit(self, write: Any) -> None:
        await super().commit(write)
        self._runs._rows[write.run.run_id].revision += write.landing


@backend("test_a_commit_stores_state_and_records")
class DropsRecords(MemoryBackend):
    async def commit(self, write: Any) -> None:
        await super().commit(replace(write, count=0))


@backend("test_an_answer_to_what_does_not_stand_is_a_conflict")
class TakesAnyAnswer(MemoryBackend):
    async def commit(self, write: Any) -> None:
        found = await self.load(write.run.run_id)
        await super().commit(replace(write, answered=min(write.answered, len(found.requests) if found else 0)))


@backend("test_a_commit_that_moves_only_the_state_is_like_any_other")
class SkipsTheHot(MemoryBackend):
    async def commit(self, write: Any) -> None:
        if not write.hot:
            await super().commit(write)


@backend("test_a_restart_keeps_commits_whole", OURS | {Capability.PERSISTENT})
class IsGoneAfterARestart(MemoryBackend):
    pass


def pair_of(caught_by: str, *capabilities: Capability) -> Any:
    """Remember a class of broken run stores, in a pair of dicts."""

    def remember(cls: type) -> type:
        broken(cls.__name__, PairConformance, caught_by, lambda _: (cls(), DictLedgerStore()), capabilities)
        return cls

    return remember


@pair_of("test_a_failing_effect_fails_the_run_and_both_stores_say_so")
class LosesErrors(DictRunStore):
    def save(self, run: Any) -> None:
        super().save(replace(run, error=""))


@pair_of("test_what_a_host_saves_between_ticks_counts")
class LosesItems(DictRunStore):
    def save(self, run: Any) -> None:
        super().save(replace(run, vars={**run.vars, "list": [1]}))


@pair_of("test_a_cancelled_run_stays_cancelled")
class RevivesTheCancelled(DictRunStore):
    def load(self, run_id: str) -> Any:
        run = super().load(run_id)
        return replace(run, status=RunStatus.WAITING) if run and run.status is RunStatus.CANCELLED else run


@pair_of("test_a_workflow_goes_on_after_a_restart", Capability.PERSISTENT)
class ForgetsAtARestart(DictRunStore):
    pass


KEPT: dict[Path, Any] = {}


def kept_in_the_process(folder: Path) -> Any:
    return KEPT.setdefault(folder, (DictRunStore(), DictLedgerStore()))


DIED = "test_an_effect_whose_process_died_is_performed_again_with_the_same_key"
broken("kept_in_the_process", PairConformance, DIED, kept_in_the_process, {Capability.PERSISTENT})


@backend("test_other_runs_are_written_in_the_same_commit")
class LeavesOthersOut(MemoryBackend):
    async def commit(self, write: Any) -> None:
        await super().commit(replace(write, also=()))


@backend("test_a_conflict_of_one_run_takes_all_back")
class WritesOneAfterTheOther(MemoryBackend):
    async def commit(self, write: Any) -> None:
        await super().commit(replace(write, also=()))
        for other in write.also:
            await super().commit(other)


@backend("test_what_is_created_if_absent_is_left_alone_if_not")
class RefusesWhatIsThere(MemoryBackend):
    async def commit(self, write: Any) -> None:
        await super().commit(replace(write, also=tuple(replace(other, if_absent=False) for other in write.also)))


@backend("test_requests_to_another_run_that_is_written_stay")
class AnswersForOthers(MemoryBackend):
    async def commit(self, write: Any) -> None:
        await super().commit(write)
        for other in write.also:
            self._runs._rows[other.run.run_id].requests = ()
