"""What the searches of a run store mean, held to their reference in `storage.base` and `storage.listing`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...core.models import RunState, RunStatus, WaitReason
from ...storage.base import due_first, index_row, newest_first, run_filter
from . import values
from .capabilities import Capability
from .suite import Suite

#: the columns of the index
INDEX_FIELDS = (
    *("run_id", "workflow_id", "status", "wait_reason", "wait_until", "parent_run_id", "actor_id", "session_id"),
    *("created_at", "updated_at", "run_lifecycle"),
)


def some_runs() -> list[RunState]:
    """Runs in each status and of each origin, in no order of their ids or times."""
    return [
        values.run("m", workflow_id="w1", updated_at=values.instant(3), session_id="s1"),
        values.waiting("c", workflow_id="w1", updated_at=values.instant(7), parent_run_id="m", actor_id="ann"),
        values.waiting("x", values.instant(20), workflow_id="w2", updated_at=values.instant(5), parent_run_id="m"),
        values.waiting("b", values.instant(10), workflow_id="w1", updated_at=values.instant(1), session_id="s1"),
        values.waiting("d", values.instant(10), workflow_id="w2", updated_at=values.instant(9), session_id="s2"),
        values.run("z", workflow_id="w2", status=RunStatus.COMPLETED, updated_at=values.instant(3), parent_run_id="m"),
        values.run("k", status=RunStatus.FAILED, updated_at=values.instant(8), vars={"_run_lifecycle": {"at": 1}}),
        values.waiting(
            "p",
            values.instant(5),
            updated_at=values.instant(2),
            vars={"_runtime": {"control": {"paused": True}}},
        ),
    ]


class RunQueries(Suite):
    """The searches among the tests of run stores."""

    def save(self, run: RunState) -> None:
        """Save a run."""
        self.do(self.store.save, run)

    def load(self, run_id: str) -> Any:
        """Load a run."""
        return self.do(self.store.load, run_id)

    def _saved(self, capability: Capability) -> list[RunState]:
        self.needs(capability)
        runs = some_runs()
        for run in runs:
            self.save(run)
        return [self.load(run.run_id) for run in runs]

    def _is(self, found: Iterable[RunState], expected: Iterable[RunState]) -> None:
        found, expected = [*found], [*expected]
        assert [run.run_id for run in found] == [run.run_id for run in expected]
        assert found == expected

    def test_list_runs_gives_the_newest_first(self) -> None:
        runs = self._saved(Capability.QUERY)
        self._is(self.do(self.store.list_runs), newest_first(runs))

    def test_list_runs_filters_by_status_reason_and_workflow(self) -> None:
        runs = self._saved(Capability.QUERY)
        for filters in _combinations(
            {
                "status": [None, *RunStatus],
                "wait_reason": [None, *WaitReason],
                "workflow_id": [None, "w1", "w2", "nobody's"],
            }
        ):
            expected = newest_first(filter(run_filter(**filters), runs))
            found = self.do(self.store.list_runs, **filters)
            assert [run.run_id for run in found] == [run.run_id for run in expected], filters

    def test_a_limit_is_kept_and_nothing_means_a_hundred(self) -> None:
        runs = newest_first(self._saved(Capability.QUERY))
        for limit, most in ((1, 1), (3, 3), (-1, 1), (0, 100), (1000, 1000)):
            self._is(self.do(self.store.list_runs, limit=limit), runs[:most])
            due = due_first(runs, values.instant(30))[:most]
            self._is(self.do(self.store.list_due_wait_until, now_iso=values.instant(30), limit=limit), due)

    def test_a_hundred_is_the_default_limit(self) -> None:
        self.needs(Capability.QUERY)
        for n in range(102):
            self.save(values.waiting(f"r{n:03}", values.instant(1), parent_run_id="p"))
        assert len(self.do(self.store.list_runs)) == 100
        assert len(self.do(self.store.list_runs, limit=0)) == 100
        assert len(self.do(self.store.list_due_wait_until, now_iso=values.instant(1))) == 100
        assert len(self.do(self.store.list_children, parent_run_id="p")) == 102, "children have no limit"

    def test_due_waits_come_earliest_first_and_not_before_their_time(self) -> None:
        runs = self._saved(Capability.QUERY)
        for minute in (0, 5, 9, 10, 19, 20, 50):
            found = self.do(self.store.list_due_wait_until, now_iso=values.instant(minute))
            self._is(found, due_first(runs, values.instant(minute)))

    def test_now_may_be_written_with_any_offset(self) -> None:
        self._saved(Capability.QUERY)
        for now in ("2026-01-31T10:10:00+01:00", "2026-01-31T09:10:00Z"):
            found = self.do(self.store.list_due_wait_until, now_iso=now)
            assert [run.run_id for run in found] == ["b", "d"], now

    def test_a_wait_that_was_answered_is_no_longer_due(self) -> None:
        self._saved(Capability.QUERY)
        run = self.load("b")
        run.status, run.waiting = RunStatus.RUNNING, None
        self.save(run)
        found = self.do(self.store.list_due_wait_until, now_iso=values.instant(10))
        assert [run.run_id for run in found] == ["d"]

    def test_children_are_those_of_their_parent(self) -> None:
        self._saved(Capability.QUERY)
        found = self.do(self.store.list_children, parent_run_id="m")
        assert sorted(run.run_id for run in found) == ["c", "x", "z"]
        found = self.do(self.store.list_children, parent_run_id="m", status=RunStatus.WAITING)
        assert sorted(run.run_id for run in found) == ["c", "x"]
        assert self.do(self.store.list_children, parent_run_id="nobody") == []

    def test_what_is_listed_is_not_aliased_with_what_is_stored(self) -> None:
        self._saved(Capability.QUERY)
        listed = [
            *self.do(self.store.list_runs),
            *self.do(self.store.list_due_wait_until, now_iso=values.instant(30)),
            *self.do(self.store.list_children, parent_run_id="m"),
        ]
        for run in listed:
            run.vars["spoiled"], run.workflow_id = True, "spoiled"
        assert not [run for run in self.do(self.store.list_runs) if "spoiled" in (*run.vars, run.workflow_id)]

    def test_the_index_gives_narrow_rows_newest_first(self) -> None:
        runs = self._saved(Capability.INDEX)
        rows = self.do(self.store.list_run_index)
        assert [row["run_id"] for row in rows] == [run.run_id for run in newest_first(runs)]
        for row, run in zip(rows, newest_first(runs), strict=True):
            expected = index_row(run)
            assert {name: row[name] for name in INDEX_FIELDS} == {name: expected[name] for name in INDEX_FIELDS}

    def test_the_index_filters_and_keeps_its_limit(self) -> None:
        runs = self._saved(Capability.INDEX)
        for filters in _combinations(
            {
                "status": [None, RunStatus.WAITING, RunStatus.COMPLETED],
                "workflow_id": [None, "w1"],
                "session_id": [None, "s1", "s2"],
                "root_only": [False, True],
            }
        ):
            expected = [run.run_id for run in newest_first(filter(run_filter(**filters), runs))]
            for limit, most in ((100, 100), (2, 2), (-1, 1)):
                rows = self.do(self.store.list_run_index, **filters, limit=limit)
                assert [row["run_id"] for row in rows] == expected[:most], (filters, limit)

    def test_find_runs_gives_each_once_page_by_page(self) -> None:
        runs = self._saved(Capability.FIND)
        for filters in _combinations(
            {
                "status": [None, RunStatus.WAITING, (RunStatus.FAILED, RunStatus.RUNNING)],
                "workflow_id": [None, "w1"],
                "parent_run_id": [None, "m"],
                "root_only": [False, True],
            }
        ):
            expected = [run.run_id for run in reversed(runs) if run_filter(**filters)(run)]
            for limit in (1, 2, 100):
                found = self._pages(self.store.find_runs, **filters, limit=limit)
                assert [row["run_id"] for row in found] == expected, (filters, limit)

    def test_find_waits_gives_what_can_be_answered(self) -> None:
        self._saved(Capability.FIND)
        for limit in (1, 2, 100):
            assert [row["run_id"] for row in self._pages(self.store.find_waits, limit=limit)] == ["d", "b", "x", "c"]
            due = self._pages(self.store.find_waits, due_before=values.instant(20), limit=limit)
            assert [row["run_id"] for row in due] in (["b", "d", "x"], ["d", "b", "x"])
        paused = self._pages(self.store.find_waits, include_paused=True)
        assert [row["run_id"] for row in paused] == ["p", "d", "b", "x", "c"]
        (row,) = self._pages(self.store.find_waits, wait_key="user:c")
        assert (row["reason"], row["prompt"], row["choices"]) == ("user", "Well?", ["yes", "no"])

    def test_a_cursor_from_elsewhere_is_refused(self) -> None:
        self._saved(Capability.FIND)
        for cursor in ("nonsense", "", "1"):
            assert self.refuses(self.store.find_runs, cursor=cursor), cursor
            assert self.refuses(self.store.find_waits, cursor=cursor), cursor

    def _pages(self, method: Any, **query: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor = None
        for _ in range(100):
            page = self.do(method, **query, cursor=cursor)
            assert len(page.items) <= query.get("limit", 100)
            found, cursor = found + page.items, page.cursor
            if cursor is None:
                return found
        raise AssertionError("the pages have no end")


def _combinations(choices: dict[str, list[Any]]) -> Iterable[dict[str, Any]]:
    combinations: list[dict[str, Any]] = [{}]
    for name, values_ in choices.items():
        combinations = [{**before, name: value} for before in combinations for value in values_]
    return combinations
