"""Run stores that do one thing wrong each."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from abstractruntime import InMemoryRunStore
from abstractruntime.core.errors import RevisionConflict
from abstractruntime.core.models import RunStatus
from abstractruntime.testing.conformance import (
    RunStoreConformance,
)

from .breaking import broken, each_in
from .dict_stores import DictRunStore

run_store = each_in(RunStoreConformance)


@run_store("test_what_was_loaded_is_not_aliased_with_what_is_stored")
class HandsOutOneObject(InMemoryRunStore):
    def __init__(self) -> None:
        super().__init__()
        self.handed_out: dict[str, Any] = {}

    def load(self, run_id: str) -> Any:
        return self.handed_out.setdefault(run_id, super().load(run_id))


@run_store("test_what_was_saved_is_not_aliased_with_what_is_stored")
class KeepsTheObject(DictRunStore):
    def save(self, run: Any) -> None:
        self.rows[run.run_id] = run

    def load(self, run_id: str) -> Any:
        return self.rows.get(run_id)


@run_store("test_what_is_listed_is_not_aliased_with_what_is_stored")
class ListsTheSameObjects(InMemoryRunStore):
    def __init__(self) -> None:
        super().__init__()
        self.listed: dict[tuple[str, int], Any] = {}

    def list_runs(self, **options: Any) -> Any:
        return [self.listed.setdefault((run.run_id, run.revision), run) for run in super().list_runs(**options)]


@run_store("test_every_documented_field_comes_back")
class LosesAField(InMemoryRunStore):
    def load(self, run_id: str) -> Any:
        run = super().load(run_id)
        return run and replace(run, session_id=None)


@run_store("test_fields_of_the_engine_are_kept")
class LosesTheIntent(InMemoryRunStore):
    def load(self, run_id: str) -> Any:
        run = super().load(run_id)
        return run and replace(run, intent=None)


@run_store("test_enums_and_waits_come_back_as_what_they_were")
class GivesStatusAsText(InMemoryRunStore):
    def load(self, run_id: str) -> Any:
        run = super().load(run_id)
        return run and replace(run, status=str(run.status))


@run_store("test_revisions_are_kept_or_not_at_all")
class SwallowsConflicts(InMemoryRunStore):
    def save(self, run: Any, *, overwrite: bool = False) -> None:
        with suppress(RevisionConflict):
            super().save(run, overwrite=overwrite)


@run_store("test_a_second_run_of_the_same_id_is_a_conflict")
class SavesAnyNewObject(InMemoryRunStore):
    def save(self, run: Any, *, overwrite: bool = False) -> None:
        super().save(run, overwrite=overwrite or run.revision == 0)


@run_store("test_overwrite_replaces_what_is_stored_and_goes_on_counting")
class CannotOverwrite(InMemoryRunStore):
    def save(self, run: Any, *, overwrite: bool = False) -> None:
        super().save(run)


@run_store("test_save_raises_the_revision_in_place")
class LeavesTheRevision(InMemoryRunStore):
    def save(self, run: Any, *, overwrite: bool = False) -> None:
        super().save(replace(run), overwrite=overwrite)


@run_store("test_a_refused_save_leaves_the_object_as_it_is")
class TouchesWhatItRefuses(InMemoryRunStore):
    def save(self, run: Any, *, overwrite: bool = False) -> None:
        run.retries += 1
        super().save(run, overwrite=overwrite)


@run_store("test_of_several_who_save_the_same_run_one_wins_each_time")
class ChecksBeforeItWrites(InMemoryRunStore):
    def save(self, run: Any, *, overwrite: bool = False) -> None:
        found = self.load(run.run_id)
        if found is not None and found.revision != run.revision and not overwrite:
            raise RevisionConflict(run.run_id, run.revision, found.revision)
        time.sleep(0.002)  # in which another writer comes between
        super().save(run, overwrite=True)


@run_store("test_several_writers_at_once_lose_nothing")
class WritesEverythingAnew(DictRunStore):
    def save(self, run: Any) -> None:
        before = dict(self.rows)
        super().save(run)
        time.sleep(0.001)  # in which another writer comes between
        self.rows = {**before, run.run_id: self.rows.get(run.run_id, "null")}


@run_store("test_bad_values_are_refused_or_kept_and_lose_nothing")
class TurnsNanIntoNothing(InMemoryRunStore):
    def save(self, run: Any, *, overwrite: bool = False) -> None:
        if "nan" in repr(run.vars):
            run.vars = {"v": [None]}
        super().save(run, overwrite=overwrite)


@run_store("test_what_is_no_json_is_refused_and_loses_nothing")
class LosesWhatItRefuses(InMemoryRunStore):
    def save(self, run: Any, *, overwrite: bool = False) -> None:
        try:
            super().save(run, overwrite=overwrite)
        except ValueError:
            self.delete(run.run_id)
            raise


@run_store("test_odd_ids_are_ids_like_any_other")
class KnowsNoCase(InMemoryRunStore):
    def load(self, run_id: str) -> Any:
        return super().load(run_id.lower()) or super().load(run_id)


@run_store("test_an_unknown_run_is_none")
class RaisesForUnknownRuns(InMemoryRunStore):
    def load(self, run_id: str) -> Any:
        found = super().load(run_id)
        if found is None:
            raise KeyError(run_id)
        return found


class PutsIdsIntoPaths(DictRunStore):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def save(self, run: Any) -> None:
        if len(run.run_id) < 100 and "/etc" not in run.run_id and ".." in run.run_id:
            (self.folder / f"{run.run_id}.json").write_text("{}")
        super().save(run)


broken("PutsIdsIntoPaths", RunStoreConformance, "test_an_id_is_never_a_path", PutsIdsIntoPaths, ())


@run_store("test_unsaved_attributes_are_taken_and_not_stored")
class RefusesAttributes(InMemoryRunStore):
    def save(self, run: Any, *, overwrite: bool = False) -> None:
        if hasattr(run, "mine"):
            raise AttributeError("mine")
        super().save(run, overwrite=overwrite)


@run_store("test_list_runs_gives_the_newest_first")
class ListsTheOldestFirst(InMemoryRunStore):
    def list_runs(self, **options: Any) -> Any:
        return super().list_runs(**options)[::-1]


@run_store("test_a_limit_is_kept_and_nothing_means_a_hundred")
class KnowsNoLimit(InMemoryRunStore):
    def list_runs(self, **options: Any) -> Any:
        return super().list_runs(**{**options, "limit": 10_000})


@run_store("test_a_hundred_is_the_default_limit")
class HasNoDefaultLimit(InMemoryRunStore):
    def list_runs(self, *, limit: int = 10_000, **options: Any) -> Any:
        return super().list_runs(limit=limit, **options)


@run_store("test_list_runs_filters_by_status_reason_and_workflow")
class IgnoresTheReason(InMemoryRunStore):
    def list_runs(self, *, wait_reason: Any = None, **options: Any) -> Any:
        return super().list_runs(**options)


@run_store("test_due_waits_come_earliest_first_and_not_before_their_time")
class IsLateByAMoment(InMemoryRunStore):
    def list_due_wait_until(self, *, now_iso: str, limit: int = 100) -> Any:
        found = super().list_due_wait_until(now_iso=now_iso, limit=limit)
        return [run for run in found if run.waiting and run.waiting.until != now_iso]


@run_store("test_now_may_be_written_with_any_offset")
class ComparesTexts(InMemoryRunStore):
    def list_due_wait_until(self, *, now_iso: str, limit: int = 100) -> Any:
        found = super().list_due_wait_until(now_iso="2099-01-01T00:00:00+00:00", limit=limit)
        return [run for run in found if run.waiting and (run.waiting.until or "") <= now_iso]


@run_store("test_a_wait_that_was_answered_is_no_longer_due")
class RemembersOldWaits(InMemoryRunStore):
    def __init__(self) -> None:
        super().__init__()
        self.due: dict[str, Any] = {}

    def list_due_wait_until(self, *, now_iso: str, limit: int = 100) -> Any:
        return [*self.due.values()] or super().list_due_wait_until(now_iso=now_iso, limit=limit)

    def save(self, run: Any, *, overwrite: bool = False) -> None:
        self.due.update({run.run_id: run} if run.run_id == "b" and run.revision else {})
        super().save(run, overwrite=overwrite)


@run_store("test_children_are_those_of_their_parent")
class ListsAllChildren(InMemoryRunStore):
    def list_children(self, *, parent_run_id: str, status: Any = None) -> Any:
        return super().list_children(parent_run_id=parent_run_id)


@run_store("test_the_index_gives_narrow_rows_newest_first")
class HasPoorRows(InMemoryRunStore):
    def list_run_index(self, **options: Any) -> Any:
        return [{**row, "wait_until": None} for row in super().list_run_index(**options)]


@run_store("test_the_index_filters_and_keeps_its_limit")
class IndexesChildrenToo(InMemoryRunStore):
    def list_run_index(self, *, root_only: bool = False, **options: Any) -> Any:
        return super().list_run_index(**options)


@run_store("test_find_runs_gives_each_once_page_by_page")
class RepeatsTheFirstPage(InMemoryRunStore):
    def find_runs(self, *, cursor: Any = None, **options: Any) -> Any:
        page = super().find_runs(cursor=cursor, **options)
        return page if cursor is None else replace(page, items=super().find_runs(**options).items)


@run_store("test_find_waits_gives_what_can_be_answered")
class AsksThePaused(InMemoryRunStore):
    def find_waits(self, *, include_paused: bool = False, **options: Any) -> Any:
        return super().find_waits(include_paused=True, **options)


@run_store("test_a_cursor_from_elsewhere_is_refused")
class TakesAnyCursor(InMemoryRunStore):
    def find_runs(self, *, cursor: Any = None, **options: Any) -> Any:
        known = cursor is not None and cursor.startswith("memory")
        return super().find_runs(cursor=cursor if known else None, **options)


@run_store("test_create_if_absent_creates_once")
class CreatesOverWhatIsThere(InMemoryRunStore):
    def create_if_absent(self, run: Any) -> Any:
        self.save(run, overwrite=True)
        return run, True


@run_store("test_delete_forgets_the_run_alone")
class OnlySaysThatItDeleted(InMemoryRunStore):
    def delete(self, run_id: str) -> bool:
        return self.load(run_id) is not None


@run_store("test_the_latest_save_counts")
class KeepsTheFirstOutput(InMemoryRunStore):
    def save(self, run: Any, *, overwrite: bool = False) -> None:
        super().save(replace(run, output=None) if run.revision else run, overwrite=overwrite)


@run_store("test_each_status_comes_back")
class KnowsOneEnd(InMemoryRunStore):
    def load(self, run_id: str) -> Any:
        run = super().load(run_id)
        return replace(run, status=RunStatus.FAILED) if run and run.status is RunStatus.CANCELLED else run


@run_store("test_runs_do_not_touch_each_other")
class SharesVars(InMemoryRunStore):
    def save(self, run: Any, *, overwrite: bool = False) -> None:
        super().save(run, overwrite=overwrite)
        self.latest = run.vars

    def load(self, run_id: str) -> Any:
        run = super().load(run_id)
        return run and replace(run, vars=self.latest)
