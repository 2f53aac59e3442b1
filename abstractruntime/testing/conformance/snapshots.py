"""What a store of snapshots must do: keep each as it was taken, and find it again."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from ...storage.snapshots import Snapshot
from . import values
from .capabilities import Capability
from .suite import Suite, Work


class SnapshotStoreConformance(Suite):
    """The suite of stores of snapshots: see `storage.snapshots.SnapshotStore`. `make` returns the store."""

    known: ClassVar = frozenset({Capability.PERSISTENT})

    def saved(self, snapshot_id: str, **fields: Any) -> Snapshot:
        """Save a snapshot, and return it."""
        given = {"run_id": "r", "created_at": values.instant(0), "updated_at": values.instant(0)}
        snapshot = Snapshot(snapshot_id, **{"run_state": {"run_id": "r"}, **given, **fields})
        self.do(self.store.save, snapshot)
        return snapshot

    def load(self, snapshot_id: str) -> Any:
        """Load a snapshot."""
        return self.do(self.store.load, snapshot_id)

    def ids(self, **filters: Any) -> list[str]:
        """The ids that the list gives, in its order."""
        return [snapshot.snapshot_id for snapshot in self.do(self.store.list, **filters)]

    def test_every_field_comes_back(self) -> None:
        run = values.full_run()
        run.records, run.chain_head = 7, "a hash"
        snapshot = Snapshot.from_run(
            run=run, name="before 日本", description="what\nwas", tags=["a", "B"], step_id="full:3.1"
        )
        given = copy.deepcopy(snapshot)
        self.do(self.store.save, snapshot)
        found = self.load(snapshot.snapshot_id)
        assert isinstance(found, Snapshot)
        for name in Snapshot.__struct_fields__:
            if name != "updated_at":
                assert getattr(found, name) == getattr(given, name), name

    def test_a_run_that_is_taken_out_is_the_one_that_was_put_in(self) -> None:
        run = values.full_run()
        snapshot = Snapshot.from_run(run=run, name="now")
        self.do(self.store.save, snapshot)
        assert self.load(snapshot.snapshot_id).as_run() == run

    def test_save_tells_when_it_was_updated(self) -> None:
        snapshot = self.saved("a")
        assert snapshot.updated_at > values.instant(0)
        assert snapshot.created_at == values.instant(0)
        assert self.load("a").updated_at == snapshot.updated_at

    def test_the_latest_save_counts(self) -> None:
        self.saved("a", name="first", tags=["old"])
        snapshot = self.load("a")
        snapshot.name, snapshot.tags = "second", ["new"]
        self.do(self.store.save, snapshot)
        assert (self.load("a").name, self.load("a").tags) == ("second", ["new"])
        assert (self.ids(), self.ids(tag="old"), self.ids(query="first")) == (["a"], [], [])

    def test_an_unknown_snapshot_is_none(self) -> None:
        self.saved("known")
        assert (self.load("unknown"), self.load("KNOWN")) == (None, None)
        assert self.do(self.store.delete, "unknown") is False

    def test_delete_forgets_one(self) -> None:
        for snapshot_id in ("a", "b"):
            self.saved(snapshot_id)
        assert self.do(self.store.delete, "a") is True
        assert self.do(self.store.delete, "a") is False
        assert (self.load("a"), self.ids()) == (None, ["b"])

    def test_an_id_is_refused_or_kept_and_never_a_path(self) -> None:
        before = {path for path in self.folder.parent.iterdir()}
        kept = [
            snapshot_id
            for snapshot_id in (*values.ODD_IDS, *values.PATHS)
            if not self.refuses(self.saved, snapshot_id, name=snapshot_id)
        ]
        assert [self.load(snapshot_id).name for snapshot_id in kept] == kept
        assert sorted(self.ids()) == sorted(kept)
        assert {path for path in self.folder.parent.iterdir()} == before, "something was written outside of the folder"

    def test_nothing_is_aliased_with_what_is_stored(self) -> None:
        snapshot = self.saved("a", tags=["t"], run_state={"run_id": "r", "vars": {"list": [1]}})
        for handed_out in (snapshot, self.load("a"), *self.do(self.store.list)):
            handed_out.run_state["vars"]["list"].append(2)
            handed_out.tags.append("spoiled")
            handed_out.name = "spoiled"
        found = self.load("a")
        assert (found.run_state["vars"], found.tags, found.name) == ({"list": [1]}, ["t"], "")

    def test_bad_values_are_refused_or_kept_and_lose_nothing(self) -> None:
        for name, value in values.BAD_VALUES.items():
            self.saved(name, run_state={"run_id": "r", "vars": {}})
            snapshot = self.load(name)
            snapshot.run_state = {"run_id": "r", "vars": {"v": [value]}}
            kept = not self.refuses(self.store.save, snapshot)
            assert repr(self.load(name).run_state["vars"]) == repr({"v": [value]} if kept else {}), name
        cycle: dict[str, Any] = {}
        cycle["self"] = cycle
        for bad in (cycle, {"o": object()}, {"s": {1}}, {"b": b"x"}):
            assert self.refuses(self.saved, "bad", run_state=bad), f"{bad} is no JSON"
        assert self.load("bad") is None

    def _some(self) -> None:
        self.saved("c", created_at=values.instant(2), name="Before lunch", tags=["Meal", "day"])
        self.saved("a", created_at=values.instant(3), run_id="other", description="the LUNCH itself")
        self.saved("d", created_at=values.instant(1), name="100%_sure", tags=["meal"])
        self.saved("b", created_at=values.instant(4), name="after", tags=["mealtime"])

    def test_the_list_gives_the_newest_first_and_keeps_its_limit(self) -> None:
        self._some()
        for limit, most in ((1, 1), (3, 3), (1000, 1000), (0, 100), (-1, 1)):
            assert self.ids(limit=limit) == ["b", "a", "c", "d"][:most], limit

    def test_a_hundred_is_the_default_limit(self) -> None:
        for n in range(101):
            self.saved(f"s{n}")
        assert len(self.ids()) == 100

    def test_filters_must_all_hold_and_know_no_case(self) -> None:
        self._some()
        for filters, expected in (
            ({"run_id": "r"}, ["b", "c", "d"]),
            ({"run_id": "nobody"}, []),
            ({"tag": "meal"}, ["c", "d"]),
            ({"tag": "MEAL"}, ["c", "d"]),
            ({"tag": "mea"}, []),
            ({"query": "lunch"}, ["a", "c"]),
            ({"query": "Lunch", "run_id": "r"}, ["c"]),
            ({"query": "%_"}, ["d"]),
            ({"query": "nothing"}, []),
            ({"query": "lunch", "tag": "meal"}, ["c"]),
            ({"query": "", "tag": ""}, ["b", "a", "c", "d"]),
        ):
            assert self.ids(**filters) == expected, filters

    def test_a_restart_keeps_all_or_nothing(self) -> None:
        self._some()
        before = [self.load(snapshot_id) for snapshot_id in "abcd"]
        self.reopened()
        after = [self.load(snapshot_id) for snapshot_id in "abcd"]
        assert after == before or not any(after), "a part of the snapshots is gone after a restart"
        self.agrees(Capability.PERSISTENT, after == before)
        assert self.ids() == (["b", "a", "c", "d"] if after == before else [])

    def test_several_writers_at_once_lose_nothing(self) -> None:
        def work(writer: int) -> Work:
            for n in range(5):
                snapshot = Snapshot(f"s{writer}.{n}", "r", run_state={"n": n})
                yield self.store.save, snapshot

        self.at_once(self.store.save, *(work(writer) for writer in range(4)))
        assert sorted(self.ids()) == [f"s{writer}.{n}" for writer in range(4) for n in range(5)]
