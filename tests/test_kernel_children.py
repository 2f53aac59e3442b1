"""What the kernel makes of orders and of the states of children: tables of facts and answers."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from abstractruntime import Effect, RunState, RunStatus, StepPlan
from abstractruntime.core import kernel
from abstractruntime.core.kernel import Begin, Collect, Done, Rest
from abstractruntime.core.kernel.orders import child_id
from abstractruntime.core.models import Child, Commit

STAMP = kernel.Stamp("2026-01-31T09:00:00.000000+00:00", "commit")


def order(count: int = 0, **more: Any) -> dict[str, Any]:
    one = {"workflow_id": "w"}
    return {"children": [one] * count, **more} if count else {**one, **more}


def begun(payload: dict[str, Any]) -> tuple[RunState, kernel.Order, Commit]:
    """A run whose node has asked for children."""
    run = RunState("p", "parent", RunStatus.RUNNING, "work", created_at=STAMP.at)
    plan = StepPlan("work", Effect("start_subworkflow", payload, "result"), "end")
    assert plan.effect is not None
    read = kernel.order_of(payload, ["work", "end"])
    intent = kernel.intent_of(run, plan, plan.effect, "key", STAMP)
    intent = replace(intent, children=kernel.children_of(run, 0, read))
    made = kernel.begin_children(run, intent, read, STAMP)
    return made.run, read, made


def child(run: RunState, place: int, status: str, **more: Any) -> RunState:
    assert run.intent is not None
    names = {"run_id": run.intent.children[place].run_id, "workflow_id": "w", "parent_run_id": "p"}
    return RunState(status=RunStatus(status), current_node="x", output={"n": place}, **{**names, **more})


ENDS = {"C": "completed", "F": "failed", "X": "cancelled", "r": "running", "w": "waiting"}


def seen(run: RunState, states: str) -> dict[str, RunState | None]:
    """One letter per child: how it ended, or goes on; `-` for one that is not known, `0` for one that is gone."""
    assert run.intent is not None
    found: dict[str, RunState | None] = {}
    for place, letter in enumerate(states):
        if letter == "0":
            found[run.intent.children[place].run_id] = None
        elif letter != "-":
            found[run.intent.children[place].run_id] = child(run, place, ENDS[letter], error="why")
    return found


def said(verdict: Done | Begin | None) -> Any:
    match verdict:
        case Begin(places=places):
            return ("begin", *places)
        case Done(outcome=outcome, spare=spare):
            return (outcome.status, len(spare))
        case None:
            return "open"


@pytest.mark.parametrize(
    ("count", "more", "states", "expected"),
    [
        (0, {}, "C", ("completed", 0)),
        (0, {}, "F", ("failed", 0)),
        (0, {}, "X", ("completed", 0)),
        (0, {}, "0", ("failed", 0)),
        (0, {}, "r", "open"),
        (0, {}, "w", "open"),
        (0, {}, "-", "open"),
        (3, {}, "CCC", ("completed", 0)),
        (3, {}, "CXC", ("completed", 0)),
        (3, {}, "CrC", "open"),
        (3, {}, "rFr", ("failed", 2)),
        (3, {"join": "collect"}, "FrC", "open"),
        (3, {"join": "collect"}, "FX0", ("completed", 0)),
        (3, {"join": "any"}, "FrF", "open"),
        (3, {"join": "any"}, "FrC", ("completed", 1)),
        (3, {"join": "any"}, "FXF", ("failed", 0)),
        (3, {"join": "first"}, "r--", "open"),
        (3, {"join": "first"}, "rFr", ("failed", 2)),
        (3, {"join": "first"}, "rXC", ("completed", 1)),
        (3, {"max_parallel": 2}, "rr-", "open"),
        (3, {"max_parallel": 2}, "rC-", ("begin", 2)),
        (3, {"max_parallel": 1}, "C--", ("begin", 1)),
        (3, {"max_parallel": 2}, "CC-", ("begin", 2)),
        (3, {"max_parallel": 2}, "rF-", ("failed", 1)),
        (3, {"max_parallel": 2, "join": "any"}, "FF-", ("begin", 2)),
        (3, {"max_parallel": 2, "join": "any"}, "FC-", ("completed", 0)),
    ],
)
def test_what_states_mean(count: int, more: dict[str, Any], states: str, expected: Any):
    run, read, _ = begun(order(count, **more))
    assert said(kernel.verdict(run, read, seen(run, states), {})) == expected


def test_a_run_under_the_childs_id_that_is_none_fails_it():
    run, read, _ = begun(order())
    assert run.intent is not None
    for names in ({"parent_run_id": "q"}, {"workflow_id": "v"}, {"parent_run_id": None}):
        found = child(run, 0, "completed", **names)
        verdict = kernel.verdict(run, read, {found.run_id: found}, {})
        assert isinstance(verdict, Done)
        assert "is no child of run 'p'" in (verdict.outcome.error or "")


@pytest.mark.parametrize(
    ("more", "status", "statuses", "kept"),
    [
        ({}, "running", ["started"], True),
        ({"async": True}, "running", ["completed"], False),
        ({"wait": True}, "running", ["started"], True),
        ({"async": True, "wait": True}, "waiting", ["waiting"], True),
    ],
)
def test_how_it_begins(more: dict[str, Any], status: str, statuses: list[str], kept: bool):
    run, _, made = begun(order(**more))
    assert (run.status, [record.status for record in made.records]) == (status, statuses)
    assert (run.intent is not None) == kept
    assert made.records[0].folded == (statuses != ["started"])
    assert kernel.next_move(run, now=STAMP.at) == (Collect() if kept else kernel.Ask())
    assert run.revision == 1


def test_a_run_that_is_held_or_has_ended_looks_at_nobody():
    run, _, _ = begun(order())
    paused = kernel.pause(run, None, STAMP)
    cancelled = kernel.cancel(run, None, "me", STAMP)
    assert paused is not None
    assert cancelled is not None
    assert kernel.next_move(paused.run, now=STAMP.at) == kernel.next_move(cancelled.run, now=STAMP.at) == Rest()
    assert [record.status for record in cancelled.records] == ["cancelled", "completed"]
    resumed = kernel.unpause(paused.run, STAMP)
    assert resumed is not None
    assert kernel.next_move(resumed.run, now=STAMP.at) == Collect()


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(("letter", "status"), [("C", "running"), ("F", "failed")])
def test_how_it_ends(waits: bool, letter: str, status: str):
    run, read, _ = begun(order())
    if waits:
        rested = kernel.wait_for_children(run, read, seen(run, "w"), STAMP)
        assert rested is not None
        run = rested.run
        assert (run.status, kernel.wait_for_children(run, read, seen(run, "w"), STAMP)) == ("waiting", None)
        assert kernel.seq_of(run.vars) == 1
    found = seen(run, letter)
    verdict = kernel.verdict(run, read, found, {})
    assert isinstance(verdict, Done)
    made = kernel.collected(run, verdict.outcome, STAMP, spare=())
    assert (made.run.status, made.run.intent, made.run.waiting) == (status, None, None)
    assert kernel.seq_of(made.run.vars) == 1
    assert made.run.vars.get("result") == (
        None if letter == "F" else {"sub_run_id": next(iter(found)), "output": {"n": 0}}
    )
    assert made.records[0].step_id == ("commit:resume" if waits else "p:0.1")


def test_ids_are_those_of_the_step_and_of_no_other():
    run = RunState("p", "w", RunStatus.RUNNING, "x", created_at=STAMP.at)
    again = replace(run, created_at="2026-02-01T09:00:00.000000+00:00")
    ids = [
        child_id(of, seq, place) for of in (run, again, replace(run, run_id="q")) for seq in (0, 1) for place in (0, 1)
    ]
    assert len(set(ids)) == len(ids)
    assert ids[0] == child_id(replace(run, vars={"changed": True}), 0, 0)


def test_what_was_noted_is_taken_until_more_is_known():
    run, _, _ = begun(order(2))
    assert run.intent is not None
    noted = kernel.begin_more(run, (), seen(run, "Cr"), STAMP).run
    assert noted.intent is not None
    assert [one.ended for one in noted.intent.children] == [True, False]
    assert kernel.all_ended(noted, seen(run, "-C"))
    assert not kernel.all_ended(noted, {})
    again = kernel.begin_more(noted, (), seen(run, "r-"), STAMP).run
    assert again.intent is not None
    assert [one.ended for one in again.intent.children] == [False, False]
    assert all(isinstance(one, Child) for one in again.intent.children)


def test_who_is_known_to_have_ended_takes_no_room():
    run, read, _ = begun(order(6, max_parallel=2))
    for states in ("CC----", "--CC--"):
        run = kernel.begin_more(run, range(4), seen(run, states), STAMP).run
    assert said(kernel.verdict(run, read, {}, {})) == ("begin", 4, 5)
    run = kernel.begin_more(run, (4, 5), {}, STAMP).run
    assert said(kernel.verdict(run, read, seen(run, "----wF"), {})) == ("failed", 1)
    assert said(kernel.verdict(run, read, seen(run, "----wC"), {})) == "open"
