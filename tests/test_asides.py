"""Whom a driver leaves alone, and how long."""

from __future__ import annotations

from abstractruntime import RunState, RunStatus
from abstractruntime.core.backend import Due
from abstractruntime.scheduler.asides import Asides

ERROR = ArithmeticError("poison")


def row(revision: int = 1, between: bool = True) -> Due:
    return Due(run_id="r", workflow_id="w", revision=revision, between=between)


def test_what_may_be_in_other_hands_is_moved_when_it_stands_where_it_stood():
    asides = Asides(pause=0.5, give_up_after=3)
    assert not asides.admits(row(1), 0.0, wary=True)
    assert (asides.watched(0.4), asides.resting(0.4), asides.next_end(0.4)) == (["r"], [], 0.5)
    assert not asides.admits(row(2), 0.5, wary=True)
    assert asides.admits(row(2), 1.0, wary=True)
    asides.forget("r")
    assert asides.admits(row(1), 2.0, wary=False)
    assert asides.admits(row(1, between=False), 2.0, wary=True)


def test_whoever_does_not_move_is_looked_at_ever_more_rarely():
    asides, now, pauses = Asides(pause=0.5, give_up_after=3), 0.0, []
    for _ in range(9):
        asides.unmoved("r", 1, now)
        pauses.append(asides.next_end(now) - now)
        now = asides.next_end(now)
        assert asides.admits(row(1, between=False), now, wary=True)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    asides.unmoved("r", 1, now)
    assert asides.admits(row(1, between=False), now, wary=True), "its owner has died"
    assert len(asides) == 0


def run_at(revision: int, node_errors: int = 0) -> RunState:
    run = RunState(run_id="r", workflow_id="w", status=RunStatus.RUNNING, current_node="n", vars={})
    run.revision, run.node_errors = revision, node_errors
    return run


def test_whoever_raises_is_tried_again_later_each_time_and_left_alone_in_the_end():
    asides = Asides(pause=0.5, give_up_after=3)
    assert asides.raised(run_at(1), ERROR, 0.0, "first")
    assert (asides.next_end(0.0), asides.resting(0.9)) == (1.0, ["r"])
    asides.failed("r", 1.0)
    assert not asides.given_up(), "the store's errors are none of its own"
    assert asides.raised(run_at(1), ERROR, 9.0, "second")
    assert not asides.raised(run_at(1), ERROR, 99.0, "third")
    (apart,) = asides.given_up()
    assert (apart.run_id, apart.by, apart.since) == ("r", "scheduler", "third")
    assert apart.error == "ArithmeticError: poison"
    assert "3 times in a row" in apart.reason
    assert asides.resting(99.0) == ["r"]
    for now in (200.0, 300.0, 400.0):
        assert not asides.admits(row(1), now, wary=False)
        asides.sweep(now + 1)
        assert asides.resting(now + 1) == ["r"]
    asides.forget("r")
    assert asides.admits(row(), 1e9, wary=False)


def test_whoever_was_given_up_is_moved_again_when_others_moved_it_but_not_when_they_tried_in_vain():
    asides = Asides(pause=0.5, give_up_after=1)
    assert not asides.raised(run_at(5, 1), ERROR, 0.0, "")
    assert asides.admits(row(6), 100.0, wary=True)
    assert asides.is_given_up("r")
    assert asides.stands(run_at(6, 2), 100.0)
    assert asides.resting(101.0) == ["r"]
    assert not asides.stands(run_at(8, 2), 200.0)
    assert len(asides) == 0


def test_what_the_run_counts_itself_counts_after_a_restart_unless_it_was_requeued():
    asides = Asides(pause=0.5, give_up_after=3)
    assert not asides.raised(run_at(9, 4), ERROR, 0.0, "")
    asides.requeue(run_at(9, 4), 1.0)
    assert asides.admits(row(9), 1.0, wary=True)
    assert asides.raised(run_at(10, 5), ERROR, 1.0, "")
    assert asides.raised(run_at(11, 6), ERROR, 1.0, "")
    assert not asides.raised(run_at(12, 7), ERROR, 1.0, "")


def test_an_unknown_workflow_is_news_once():
    asides = Asides(pause=0.5, give_up_after=3)
    assert asides.unknown("r", 0.0)
    assert not asides.unknown("r", 30.0)
    asides.sweep(10_000.0)
    assert len(asides) == 0
