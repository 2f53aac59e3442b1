"""Whom a driver leaves alone, and how long."""

from __future__ import annotations

from math import inf

from abstractruntime.core.backend import Due
from abstractruntime.scheduler.asides import Asides


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


def test_whoever_fails_is_tried_again_later_each_time_and_left_alone_in_the_end():
    asides = Asides(pause=0.5, give_up_after=3)
    assert asides.failed("r", 0.0, counts=True)
    assert (asides.next_end(0.0), asides.resting(0.9)) == (1.0, ["r"])
    assert asides.failed("r", 1.0, counts=False), "the store's errors are none of its own"
    assert asides.failed("r", 9.0, counts=True)
    assert not asides.failed("r", 99.0, counts=True)
    assert (asides.next_end(99.0), asides.resting(1e9)) == (inf, ["r"])
    asides.sweep(1e9)
    assert asides.resting(1e9) == ["r"]
    asides.forget("r")
    assert asides.admits(row(), 1e9, wary=False)


def test_an_unknown_workflow_is_news_once():
    asides = Asides(pause=0.5, give_up_after=3)
    assert asides.unknown("r", 0.0)
    assert not asides.unknown("r", 30.0)
    asides.sweep(10_000.0)
    assert len(asides) == 0
