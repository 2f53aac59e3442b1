"""What a commit must do that writes other runs too: all of it lands, or nothing."""

from __future__ import annotations

from msgspec.structs import replace

from . import values
from .backends import BackendTests
from .capabilities import Capability
from .writes import asked, step, write


class TogetherTests(BackendTests):
    """The tests of `Write.also`, among those of joint pairs."""

    def test_other_runs_are_written_in_the_same_commit(self) -> None:
        run, other = self.two_runs()
        child = write(values.run("child", commit_id="c2", parent_run_id="r"))
        told = write(replace(other, commit_id="c2", vars={"told": 1}), other, hot=True)
        self.commit(write(replace(run, commit_id="c2"), run, step("c2", 1), also=(child, told)))
        assert (self.loaded().run.revision, self.ledger()) == (2, [1])
        assert (self.loaded("child").run.parent_run_id, self.loaded("child").run.revision) == ("r", 1)
        assert (self.loaded("other").run.vars, self.loaded("other").run.revision) == ({"told": 1}, 2)
        assert self.do(self.store[0].load, "child").workflow_id == "w"
        if self.has(Capability.PERSISTENT):
            self.reopened()
            self.joint()
            assert [self.loaded(run_id).run.revision for run_id in ("r", "child", "other")] == [2, 1, 2]

    def test_a_conflict_of_one_run_takes_all_back(self) -> None:
        run, other = self.two_runs()
        stale = replace(other)
        self.commit(write(replace(other, commit_id="o2"), other))
        child = write(values.run("child", commit_id="c2"))
        told = write(replace(stale, commit_id="c2"), stale, hot=True)
        taken = write(values.run("other", commit_id="c2"))
        for also in ((child, told), (told, child), (child, taken)):
            self.lands_nothing(write(replace(run, commit_id="c2"), run, step("c2", 1), also=also))
            assert self.do(self.backend.load, "child") is None
        ahead = replace(run, revision=9)
        self.lands_nothing(write(replace(ahead), ahead, also=(child,)))
        assert self.do(self.backend.load, "child") is None

    def test_what_is_created_if_absent_is_left_alone_if_not(self) -> None:
        run, other = self.two_runs()
        again = write(values.run("other", commit_id="c2", vars={"again": 1}), if_absent=True)
        child = write(values.run("child", commit_id="c2"), if_absent=True)
        self.commit(write(replace(run, commit_id="c2"), run, also=(again, child)))
        assert self.loaded("other").run == other
        assert self.loaded("child").run.revision == 1
        assert self.loaded().run.revision == 2

    def test_requests_to_another_run_that_is_written_stay(self) -> None:
        run, other = self.two_runs()
        run = self.commit(write(replace(run, commit_id="c2"), run, requests=(asked("other"),)))
        unaware = write(replace(other, commit_id="c3"), other, hot=True)
        self.lands_nothing(write(replace(run, commit_id="c3"), run, also=(unaware,)))
        aware = write(replace(other, commit_id="c3"), other, hot=True, answered=1)
        self.commit(write(replace(run, commit_id="c3"), run, also=(aware,)))
        assert (self.loaded("other").run.revision, self.loaded("other").requests) == (2, (asked("other"),))
