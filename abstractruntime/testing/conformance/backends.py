"""What the backend of a joint pair must do: one atomic commit with its guards, and reads that agree with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from ...core.backend import Backend, Loaded, Write
from ...core.chain import linked
from ...core.codec import encode_records, encode_run, record_dict
from ...core.errors import RevisionConflict
from ...core.models import Effect, Intent, RunState, RunStatus, StepRecord, StepStatus
from ...storage.joining import join
from . import values
from .capabilities import Capability
from .suite import Suite
from .writes import asked, landing, step, write


class BackendTests(Suite):
    """The tests of `core.backend.Backend`, among those of pairs; all of them are about joint ones."""

    backend: Backend

    def joint(self) -> Backend:
        """The backend of a joint pair."""
        self.needs(Capability.JOINT)
        runs, ledgers = self.store
        self.backend = join(runs, ledgers).stored
        return self.backend

    def let_go(self) -> None:
        """Close the pair, and hold neither it nor its backend any longer."""
        vars(self).pop("backend", None)
        super().let_go()

    def commit(self, one: Write) -> RunState:
        """Commit, and return the state as it is loaded then."""
        self.do(self.backend.commit, one)
        return self.loaded(one.run.run_id).run

    def loaded(self, run_id: str = "r") -> Loaded:
        """The run as the backend has it."""
        found = self.do(self.backend.load, run_id)
        assert isinstance(found, Loaded)
        return found

    def ledger(self, **options: Any) -> list[int]:
        """The numbers of the records of the run `r`."""
        return [record.result["n"] for record in self.do(self.backend.records, "r", **options)]

    def begun(self, *records: StepRecord, **fields: Any) -> RunState:
        """The run `r` after its first commit."""
        self.joint()
        return self.commit(write(values.run("r", commit_id="c1", **fields), None, *records))

    def lands_nothing(self, one: Write, run_id: str = "r") -> None:
        """The write is a conflict, and nothing of it is stored: no state, no record, no request, no key."""
        before = self._everything(run_id)
        conflict = self.conflicts(self.backend.commit, one)
        assert conflict.run_id in {each.run.run_id for each in (one, *one.also)}
        assert self._everything(run_id) == before

    def _everything(self, run_id: str) -> Any:
        backend = self.backend
        reads: list[tuple[Callable[..., Any], Any]] = [(backend.load, id_) for id_ in {run_id, "r", "other"}]
        reads += [(backend.records, id_) for id_ in {run_id, "r", "other"}]
        return [self.do(function, id_) for function, id_ in reads], self.do(backend.find, run_id, "looked for")

    def test_the_pair_joins_or_not_as_declared(self) -> None:
        runs, ledgers = self.store
        self.agrees(Capability.JOINT, join(runs, ledgers).stored.atomic)

    def test_a_commit_stores_state_and_records(self) -> None:
        run = self.begun(step("c1", 1), step("c1", 2))
        assert (run.revision, run.records, run.commit_id, run.vars) == (1, 2, "c1", values.run().vars)
        assert self.ledger() == [1, 2]
        assert self.loaded().requests == ()
        new = self.commit(write(replace(run, vars={"two": 2}, commit_id="c2"), run, step("c2", 3)))
        assert (new.revision, new.records, new.vars) == (2, 3, {"two": 2})
        assert self.ledger() == [1, 2, 3]
        third = self.commit(write(replace(new, commit_id="c3"), new))
        assert (third.revision, third.records, self.ledger()) == (3, 3, [1, 2, 3])

    def test_a_commit_that_moves_only_the_state_is_like_any_other(self) -> None:
        run = self.begun(step("c1", 1))
        new = self.commit(write(replace(run, commit_id="c2", vars={"hot": 1}), run, step("c2", 2), hot=True))
        assert (new.revision, new.vars, new.status, self.ledger()) == (2, {"hot": 1}, run.status, [1, 2])
        self.lands_nothing(write(replace(run, commit_id="c3"), run, step("c3", 3), hot=True))

    def test_every_field_of_the_state_comes_back(self) -> None:
        self.joint()
        given = values.full_run("r")
        given.commit_id = "c1"
        found = self.commit(write(given))
        assert values.plain(found) == values.plain(given)

    def test_both_stores_show_what_was_committed(self) -> None:
        run = self.begun(step("c1", 1), step("c1", 2))
        runs, ledgers = self.store
        assert values.fields_of(self.do(runs.load, "r"), values.RUN_FIELDS) == values.fields_of(run, values.RUN_FIELDS)
        shown = [record_dict(record) for record in self.do(self.backend.records, "r")]
        assert self.do(ledgers.list, "r") == shown

    def test_what_the_stores_write_is_part_of_the_same_run(self) -> None:
        run = self.begun(step("c1", 1))
        runs, ledgers = self.store
        self.do(ledgers.append, values.record("r", 2))
        assert self.loaded().run.records == 2
        self.lands_nothing(write(replace(run, commit_id="c2"), run))
        saved = self.do(runs.load, "r")
        saved.vars = {"host": 1}
        self.do(runs.save, saved)
        assert (self.loaded().run.vars, self.loaded().run.revision) == ({"host": 1}, 2)
        assert self.ledger() == [1, 2]

    def test_an_unknown_run_is_none_and_has_no_records(self) -> None:
        backend = self.joint()
        assert self.do(backend.load, "r") is None
        assert self.do(backend.records, "r") == []
        assert self.do(backend.find, "r", "k") == []
        assert self.do(backend.landed, "r", "c1") is False

    def test_a_state_that_moved_on_is_a_conflict(self) -> None:
        run = self.begun(step("c1", 1))
        self.commit(write(replace(run, commit_id="c2"), run, step("c2", 2)))
        self.lands_nothing(write(replace(run, vars={"late": 1}), run, step("c3", 3), requests=(asked("other"),)))
        ahead = replace(run, revision=7, records=2)
        self.lands_nothing(write(replace(ahead), ahead, step("c3", 3), lookup_key="looked for"))

    def test_a_run_is_created_once(self) -> None:
        self.begun(step("c1", 1))
        self.lands_nothing(write(values.run("r", commit_id="c2", vars={"other": 1}), None, step("c2", 2)))

    def test_what_is_not_there_cannot_be_changed(self) -> None:
        backend = self.joint()
        before = values.run("r", revision=1)
        for one in (write(values.run("r"), before, step("c1", 1)), landing(before, "c1", step("c1", 1))):
            self.lands_nothing(one)
        assert self.do(backend.load, "r") is None

    def test_a_ledger_that_grew_is_a_conflict(self) -> None:
        run = self.begun(step("c1", 1))
        shorter = replace(run, records=0)
        self.lands_nothing(write(replace(run, commit_id="c2"), shorter, step("c2", 2)))
        self.lands_nothing(landing(shorter, "c2", step("c2", 2)))
        longer = replace(run, records=2)
        self.lands_nothing(write(replace(run, commit_id="c2"), longer, step("c2", 2)))

    def two_runs(self) -> tuple[RunState, RunState]:
        """The runs `r` and `other`, each after its first commit."""
        run = self.begun()
        other = self.commit(write(values.run("other", commit_id="o1")))
        return run, other

    def test_a_request_stands_until_it_is_answered(self) -> None:
        run, other = self.two_runs()
        self.commit(write(replace(run, commit_id="c2"), run, requests=(asked("other"),)))
        assert self.loaded("other").requests == (asked("other"),)
        assert self.loaded("other").run == other, "a request changes no state"
        self.lands_nothing(write(replace(other, commit_id="o2"), other), "other")
        self.commit(write(replace(other, commit_id="o2"), other, answered=1))
        assert self.loaded("other").requests == ()

    def test_an_answer_to_what_does_not_stand_is_a_conflict(self) -> None:
        _, other = self.two_runs()
        self.lands_nothing(write(replace(other, commit_id="o2"), other, answered=1), "other")

    def test_a_request_of_each_kind_stands_once(self) -> None:
        run, _ = self.two_runs()
        for revision, request in enumerate((asked("other"), asked("other", by="another"), asked("other", "pause")), 2):
            run = self.commit(write(replace(run, commit_id=f"c{revision}"), run, requests=(request,)))
        assert {(one.kind, one.by) for one in self.loaded("other").requests} == {("cancel", "boss"), ("pause", "boss")}

    def test_requests_to_unknown_and_ended_runs_are_passed_over(self) -> None:
        run, other = self.two_runs()
        self.commit(write(replace(other, status=RunStatus.COMPLETED, commit_id="o2"), other))
        self.commit(write(replace(run, commit_id="c2"), run, requests=(asked("other"), asked("unknown"))))
        assert self.loaded("other").requests == ()
        assert self.do(self.backend.load, "unknown") is None
        self.commit(write(values.run("unknown", commit_id="u1")))
        assert self.loaded("unknown").requests == ()

    def test_a_landing_adds_records_and_leaves_the_state(self) -> None:
        run = self.begun(step("c1", 1))
        landed = self.commit(landing(run, "l1", step("l1", 2), step("l1", 3)))
        assert landed == replace(run, records=3)
        assert self.ledger() == [1, 2, 3]
        again = self.commit(landing(landed, "l2", step("l2", 4)))
        assert again == replace(run, records=4)
        new = self.commit(write(replace(again, commit_id="c2"), again, step("c2", 5)))
        assert (new.revision, new.records, self.ledger()) == (2, 5, [1, 2, 3, 4, 5])

    def test_a_landing_on_a_state_that_moved_on_is_a_conflict(self) -> None:
        run = self.begun(step("c1", 1))
        self.commit(write(replace(run, commit_id="c2"), run))
        self.lands_nothing(landing(run, "l1", step("l1", 2)))

    def test_a_standing_request_is_no_bar_to_a_landing(self) -> None:
        run, other = self.two_runs()
        self.commit(write(replace(run, commit_id="c2"), run, requests=(asked("other"),)))
        self.do(self.backend.commit, landing(other, "l1", values.record("other", 1, commit_id="l1")))
        assert self.loaded("other").requests == (asked("other"),)
        assert self.loaded("other").run.records == 1

    def test_records_are_found_by_their_lookup_key(self) -> None:
        run = self.begun(step("c1", 1))
        for number, key in ((2, "k"), (3, None), (4, "other"), (5, "k")):
            one = write(replace(run, commit_id=f"c{number}"), run, step(f"c{number}", number), lookup_key=key)
            run = self.commit(one)
        assert [record.result["n"] for record in self.do(self.backend.find, "r", "k")] == [2, 5]
        assert self.do(self.backend.find, "r", "never") == []
        assert self.do(self.backend.find, "other", "k") == []

    def test_it_tells_whether_a_commit_landed(self) -> None:
        run = self.begun(step("c1", 1))
        second = self.commit(write(replace(run, commit_id="c2"), run))
        self.commit(landing(second, "l1", step("l1", 2)))
        found = {id_: self.do(self.backend.landed, "r", id_) for id_ in ("c1", "c2", "l1", "never", "c")}
        assert found == {"c1": True, "c2": True, "l1": True, "never": False, "c": False}
        assert self.do(self.backend.landed, "other", "c2") is False

    def test_records_are_read_from_a_number_on(self) -> None:
        run = self.begun(*(step("c1", number) for number in range(1, 4)))
        run = self.commit(write(replace(run, commit_id="c2"), run, step("c2", 4)))
        self.commit(write(replace(run, commit_id="c3"), run, step("c3", 5), step("c3", 6)))
        for after in range(8):
            for limit in (None, 1, 2, 3, 10):
                expected = [*range(1, 7)][after:][:limit]
                assert self.ledger(after=after, limit=limit) == expected, (after, limit)

    def test_what_is_stored_folded_or_slim_is_read_whole(self) -> None:
        pay = {"type": "pay", "payload": {"amount": 5}, "result_key": None}
        self.joint()
        folded = step("c2", 1, effect=pay, folded=True)
        new = values.run("r", commit_id="c2", revision=1, records=2)
        run = self.commit(
            Write(run=new, data=encode_run(new), expected=None, records=encode_records([folded]), count=2)
        )
        started = step("c3", 2, effect=pay, status=StepStatus.STARTED, result=None)
        run = self.commit(write(replace(run, commit_id="c3"), run, started))
        run = self.commit(write(replace(run, commit_id="c4"), run, step("c4", 2, slim=True), lookup_key="k"))
        assert run.records == 4
        rows = [record_dict(record) for record in self.do(self.backend.records, "r")]
        assert [row["status"] for row in rows] == ["started", "completed"] * 2
        assert [row["effect"] for row in rows] == [pay] * 4
        assert [record_dict(record) for record in self.do(self.backend.records, "r", after=3)] == rows[3:]
        assert [record_dict(record) for record in self.do(self.backend.find, "r", "k")] == rows[3:]
        assert self.do(self.store[1].list, "r") == rows

    def test_the_head_of_a_chain_is_kept_and_carried_on(self) -> None:
        self.joint()
        links = linked([step("c1", number) for number in range(1, 4)], None)
        heads = [link.record_hash for link in links]
        run = self.commit(write(values.run("r", commit_id="c1", chain_head=heads[0]), None, links[0]))
        assert run.chain_head == heads[0]
        run = self.commit(landing(replace(run, chain_head=heads[1]), "l1", links[1]))
        assert (run.chain_head, run.revision, run.records) == (heads[1], 1, 2)
        run = self.commit(write(replace(run, commit_id="c2", chain_head=heads[2]), run, links[2]))
        assert (run.chain_head, self.do(self.backend.records, "r")) == (heads[2], links)
        self.do(self.store[1].append, values.record("r", 4))
        last = self.do(self.store[1].list, "r")[-1]
        assert (last["prev_hash"], self.loaded().run.chain_head) == (heads[2], last["record_hash"])

    def test_nothing_handed_out_is_aliased_with_what_is_stored(self) -> None:
        self.begun(step("c1", 1))
        loaded = self.loaded()
        loaded.run.vars["spoiled"], loaded.run.revision = True, 9
        (record,) = self.do(self.backend.records, "r")
        record.result["n"] = 9
        assert (self.loaded().run.vars, self.loaded().run.revision) == (values.run().vars, 1)
        assert self.ledger() == [1]

    def test_of_commits_at_once_one_lands(self) -> None:
        run = self.begun()
        writes = [write(replace(run, commit_id=f"c{n}"), run, step(f"c{n}", n)) for n in range(2, 10)]
        results = self.do(self._committed_at_once, writes)
        assert results.count(None) == 1, results
        assert all(one is None or isinstance(one, RevisionConflict) for one in results), results
        winner = results.index(None) + 2
        assert (self.ledger(), self.loaded().run.commit_id, self.loaded().run.records) == ([winner], f"c{winner}", 1)

    async def _committed_at_once(self, writes: list[Write]) -> list[Any]:
        return await asyncio.gather(*map(self.backend.commit, writes), return_exceptions=True)

    def test_claims_tell_token_and_cancel(self) -> None:
        run, _ = self.two_runs()
        intent = Intent(
            step_id="r:1.1",
            seq=1,
            node_id="here",
            effect=Effect("pay"),
            key="k",
            started_at=values.instant(1),
            token="t",  # noqa: S106 - of a claim
        )
        run = self.commit(write(replace(run, commit_id="c2", intent=intent, owner="me"), run))
        assert self.do(self.backend.claims, ["r", "other", "unknown"]) == {"r": ("t", False), "other": (None, False)}
        self.commit(write(replace(run, commit_id="c3"), run, requests=(asked("other"), asked("r", "pause"))))
        assert self.do(self.backend.claims, iter(["r", "other"])) == {"r": ("t", False), "other": (None, True)}

    def test_a_lease_ends_in_time_and_when_it_is_given_up(self) -> None:
        backend = self.joint()
        assert self.do(backend.alive, "nobody", 0) is False
        self.do(backend.renew, "me", 1_000)
        assert self.do(backend.alive, "me", 1_001) is False
        self.do(backend.renew, "me", 2_000)
        assert self.do(backend.alive, "me", 2_001) is False
        self.do(backend.release, "me")
        self.do(backend.release, "me")
        assert self.do(backend.alive, "me", 0) is False

    def test_a_restart_keeps_commits_whole(self) -> None:
        self.needs(Capability.PERSISTENT)
        run = self.begun(step("c1", 1))
        run = self.commit(write(replace(run, commit_id="c2"), run, step("c2", 2), lookup_key="k"))
        other = self.commit(write(values.run("other", commit_id="o1")))
        run = self.commit(write(replace(run, commit_id="c3"), run, requests=(asked("other"),)))
        run = self.commit(landing(run, "l1", step("l1", 3)))
        self.reopened()
        self.joint()
        assert (self.loaded(), self.ledger()) == (Loaded(run=run), [1, 2, 3])
        assert self.loaded("other") == Loaded(run=other, requests=(asked("other"),))
        assert [record.result["n"] for record in self.do(self.backend.find, "r", "k")] == [2]
        assert [self.do(self.backend.landed, "r", id_) for id_ in ("c1", "c2", "c3", "l1", "x")] == [True] * 4 + [False]
