"""What a run store must do: keep each run as it was given, under its id, and hand out values of their own."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from msgspec.structs import replace

from ...core.errors import RevisionConflict
from ...core.models import RunState, RunStatus
from . import values
from .capabilities import Capability
from .queries import RunQueries
from .suite import Work


class RunStoreConformance(RunQueries):
    """The suite of run stores: see `storage.base.RunStore`. `make` returns the store."""

    known: ClassVar = frozenset(
        {
            Capability.QUERY,
            Capability.INDEX,
            Capability.FIND,
            Capability.DELETE,
            Capability.CREATE_IF_ABSENT,
            Capability.REVISIONS,
            Capability.PERSISTENT,
        }
    )

    def test_an_unknown_run_is_none(self) -> None:
        self.save(values.run("known"))
        for run_id in ("unknown", "know", "known ", "KNOWN", "*", "%", *values.PATHS):
            try:
                found = self.load(run_id)
            except ValueError:  # what can be no id may be refused
                continue
            assert found is None, run_id

    def test_every_documented_field_comes_back(self) -> None:
        full = values.full_run()
        bare = RunState("bare", "w", RunStatus.RUNNING, "n", created_at=values.instant(0), updated_at=values.instant(1))
        for run in (full, bare):
            given = values.fields_of(run, values.RUN_FIELDS)
            self.save(run)
            found = self.load(run.run_id)
            assert isinstance(found, RunState)
            for name, value in given.items():
                assert values.plain(getattr(found, name)) == value, f"{run.run_id}.{name}"

    def test_enums_and_waits_come_back_as_what_they_were(self) -> None:
        self.save(values.full_run())
        found = self.load("full")
        assert found.status is RunStatus.WAITING
        assert found.waiting is not None
        assert type(found.waiting) is type(values.full_run().waiting)
        assert found.waiting.reason is values.full_run().waiting.reason  # type: ignore[union-attr]

    def test_each_status_comes_back(self) -> None:
        for status in RunStatus:
            self.save(values.waiting(status) if status is RunStatus.WAITING else values.run(status, status=status))
        assert [self.load(status).status for status in RunStatus] == [*RunStatus]

    def test_the_latest_save_counts(self) -> None:
        self.save(values.waiting("r"))
        run = self.load("r")
        run.status, run.waiting, run.vars = RunStatus.COMPLETED, None, {"other": 1}
        run.output, run.updated_at = {"done": True}, values.instant(5)
        self.save(run)
        found = self.load("r")
        assert (found.status, found.waiting, found.vars) == (RunStatus.COMPLETED, None, {"other": 1})
        assert (found.output, found.updated_at) == ({"done": True}, values.instant(5))

    def test_runs_do_not_touch_each_other(self) -> None:
        for n in range(5):
            self.save(values.run(f"r{n}", vars={"n": n}))
        run = self.load("r2")
        run.vars["n"] = "changed"
        self.save(run)
        assert [self.load(f"r{n}").vars["n"] for n in range(5)] == [0, 1, "changed", 3, 4]

    def test_what_was_saved_is_not_aliased_with_what_is_stored(self) -> None:
        run = values.waiting("r", vars={"list": [1]}, output={"o": []})
        self.save(run)
        run.vars["list"].append(2)
        run.output["o"].append(2)
        run.status = RunStatus.FAILED
        assert run.waiting is not None
        run.waiting.prompt = "changed"
        assert run.waiting.choices is not None
        run.waiting.choices.append("changed")
        self._is_untouched(self.load("r"))

    def test_what_was_loaded_is_not_aliased_with_what_is_stored(self) -> None:
        self.save(values.waiting("r", vars={"list": [1]}, output={"o": []}))
        run = self.load("r")
        run.vars["list"].append(2)
        run.output["o"].append(2)
        run.status = RunStatus.FAILED
        run.waiting.prompt = "changed"
        run.waiting.choices.append("changed")
        self._is_untouched(self.load("r"))

    def _is_untouched(self, run: Any) -> None:
        assert (run.status, run.vars, run.output) == (RunStatus.WAITING, {"list": [1]}, {"o": []})
        assert (run.waiting.prompt, run.waiting.choices) == ("Well?", ["yes", "no"])

    def test_unsaved_attributes_are_taken_and_not_stored(self) -> None:
        run = values.waiting("r")
        run.mine = object()  # type: ignore[attr-defined]
        run.waiting.mine = object()  # type: ignore[union-attr]
        self.save(run)
        found = self.load("r")
        assert not hasattr(found, "mine")
        assert not hasattr(found.waiting, "mine")

    def test_odd_ids_are_ids_like_any_other(self) -> None:
        for n, run_id in enumerate(values.ODD_IDS):
            self.save(values.run(run_id, vars={"n": n}))
        found = [self.load(run_id) for run_id in values.ODD_IDS]
        assert [run.run_id for run in found] == [*values.ODD_IDS]
        assert [run.vars["n"] for run in found] == [*range(len(values.ODD_IDS))]

    def test_an_id_is_never_a_path(self) -> None:
        before = {path for path in self.folder.parent.iterdir()}
        for run_id in values.PATHS:
            if not self.refuses(self.store.save, values.run(run_id)):
                assert self.load(run_id).run_id == run_id
        assert {path for path in self.folder.parent.iterdir()} == before, "something was written outside of the folder"

    def test_bad_values_are_refused_or_kept_and_lose_nothing(self) -> None:
        for name, value in values.BAD_VALUES.items():
            self.save(values.run(name, vars={"good": 1}))
            for change in ({"vars": {"v": [value]}}, {"output": {"v": value}}):
                run = self.load(name)
                for field, changed in change.items():
                    setattr(run, field, changed)
                before = repr(values.fields_of(self.load(name), values.RUN_FIELDS))
                kept = repr(values.fields_of(copy.deepcopy(run), values.RUN_FIELDS))
                expected = before if self.refuses(self.store.save, run) else kept
                assert repr(values.fields_of(self.load(name), values.RUN_FIELDS)) == expected, name
        self.save(values.run("after"))
        assert self.load("after") is not None

    def test_what_is_no_json_is_refused_and_loses_nothing(self) -> None:
        cycle: dict[str, Any] = {}
        cycle["self"] = cycle
        self.save(values.run("r", vars={"good": 1}))
        for name, bad in {"cycle": cycle, "object": {"o": object()}, "set": {"s": {1}}, "bytes": {"b": b"x"}}.items():
            for status, change in ((RunStatus.RUNNING, {"vars": bad}), (RunStatus.COMPLETED, {"output": bad})):
                run = replace(self.load("r"), status=status, **change)
                assert self.refuses(self.store.save, run), f"{name} is no JSON: it cannot be the same after a restart"
                assert (self.load("r").vars, self.load("r").output) == ({"good": 1}, None)

    def test_revisions_are_kept_or_not_at_all(self) -> None:
        run = values.run("r")
        self.save(run)
        stale, fresh = self.load("r"), self.load("r")
        fresh.vars = {"fresh": True}
        self.save(fresh)
        stale.vars = {"stale": True}
        try:
            self.save(stale)
            refused = False
        except RevisionConflict:
            refused = True
        self.agrees(Capability.REVISIONS, refused)
        assert self.load("r").vars == ({"fresh": True} if refused else {"stale": True})

    def test_save_raises_the_revision_in_place(self) -> None:
        self.needs(Capability.REVISIONS)
        run = values.run("r")
        self.save(run)
        seen = [run.revision]
        for _ in range(3):
            self.save(run)
            seen.append(run.revision)
            assert self.load("r").revision == run.revision
        assert seen == [*range(seen[0], seen[0] + 4)]

    def test_a_second_run_of_the_same_id_is_a_conflict(self) -> None:
        self.needs(Capability.REVISIONS)
        self.save(values.run("r", vars={"first": 1}))
        conflict = self.conflicts(self.store.save, values.run("r", vars={"second": 1}))
        assert conflict.found == self.load("r").revision
        assert self.load("r").vars == {"first": 1}

    def test_overwrite_replaces_what_is_stored_and_goes_on_counting(self) -> None:
        self.needs(Capability.REVISIONS)
        first = values.run("r")
        self.save(first)
        other = values.run("r", vars={"other": 1}, status=RunStatus.FAILED)
        self.do(self.store.save, other, overwrite=True)
        assert (other.revision, self.load("r").revision) == (first.revision + 1,) * 2
        assert (self.load("r").vars, self.load("r").status) == ({"other": 1}, RunStatus.FAILED)
        assert self.conflicts(self.store.save, first).expected == first.revision

    def test_a_refused_save_leaves_the_object_as_it_is(self) -> None:
        self.needs(Capability.REVISIONS)
        self.save(values.run("r"))
        stale = self.load("r")
        self.save(self.load("r"))
        before = copy.deepcopy(stale)
        self.conflicts(self.store.save, stale)
        assert stale == before

    def test_fields_of_the_engine_are_kept(self) -> None:
        self.needs(Capability.REVISIONS)
        names = tuple(set(RunState.__struct_fields__) - set(values.RUN_FIELDS) - set(values.SET_BY_SAVE))
        self.save(values.full_run())
        assert values.fields_of(self.load("full"), names) == values.fields_of(values.full_run(), names)

    def test_create_if_absent_creates_once(self) -> None:
        self.needs(Capability.CREATE_IF_ABSENT)
        stored, created = self.do(self.store.create_if_absent, values.run("r", vars={"first": 1}))
        assert (created, stored.vars) == (True, {"first": 1})
        again, created = self.do(self.store.create_if_absent, values.run("r", vars={"second": 1}))
        assert (created, again.vars) == (False, {"first": 1})
        assert self.load("r").vars == {"first": 1}

    def test_delete_forgets_the_run_alone(self) -> None:
        self.needs(Capability.DELETE)
        for run_id in ("a", "b"):
            self.save(values.run(run_id))
        assert self.do(self.store.delete, "a") is True
        assert self.do(self.store.delete, "a") is False
        assert self.do(self.store.delete, "unknown") is False
        assert self.load("a") is None
        assert self.load("b") is not None
        self.save(values.run("a", vars={"again": 1}))
        assert self.load("a").vars == {"again": 1}

    def test_a_restart_keeps_all_or_nothing(self) -> None:
        self.save(values.full_run())
        for run_id in values.ODD_IDS:
            self.save(values.run(run_id))
        before = self.load("full")
        self.reopened()
        found = [self.load(run_id) is not None for run_id in ("full", *values.ODD_IDS)]
        assert all(found) or not any(found), "a part of the runs is gone after a restart"
        self.agrees(Capability.PERSISTENT, all(found))
        if all(found):
            assert self.load("full") == before
            self.save(self.load("full"))

    def test_several_writers_at_once_lose_nothing(self) -> None:
        """Every store is called from several threads: blocking runtimes and sync stores of async ones do so."""

        def work(own: str) -> Work:
            for n in range(10):
                run = (yield self.store.load, own) or values.run(own)
                run.vars = {"n": n}
                yield self.store.save, run

        self.at_once(self.store.save, *(work(f"r{n}") for n in range(4)))
        assert [self.load(f"r{n}").vars for n in range(4)] == [{"n": 9}] * 4

    def test_of_several_who_save_the_same_run_one_wins_each_time(self) -> None:
        self.needs(Capability.REVISIONS)
        self.save(values.run("r", vars={"n": 0}))

        def work() -> Work:
            for _ in range(5):
                while True:
                    run = yield self.store.load, "r"
                    run.vars["n"] += 1
                    if not isinstance((yield self.store.save, run), RevisionConflict):
                        break

        self.at_once(self.store.save, *(work() for _ in range(4)))
        assert self.load("r").vars == {"n": 20}
