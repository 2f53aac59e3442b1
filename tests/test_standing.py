"""How the runs of a store without SQL stand: the same as a look at all of them says, and without looking at all."""

from __future__ import annotations

import random
from typing import Any

from abstractruntime import AsyncRuntime, Effect, EffectType, RunState, StepPlan, WorkflowSpec
from abstractruntime.core.clock import iso
from abstractruntime.storage.standing import Standing, Standings

from .clocks import StillClock
from .scale import scaled

TIMES = [None, "", *(f"2026-01-0{day}" for day in range(1, 10))]


def some_standing(rng: random.Random, parent: str | None, children: list[str]) -> Standing:
    """Waits for runs of its own, has ended, or runs or waits until some time."""
    kind = rng.choice(["gathers", "ended", "runs", "waits"])
    return Standing(
        workflow_id="w",
        revision=rng.randrange(9),
        moves={"gathers": rng.choice(TIMES[2:]), "runs": rng.choice(TIMES[1:]), "waits": rng.choice(TIMES[2:])}.get(
            kind
        ),
        runs=kind == "runs",
        ended=kind == "ended",
        parent=parent,
        awaits=tuple(rng.sample(children, rng.randint(0, len(children)))) if kind == "gathers" else (),
    )


def due_of_all(rows: dict[str, Standing], now: str, passing: set[str]) -> set[str]:
    ended = {run_id for run_id, row in rows.items() if row.ended}
    return {
        run_id
        for run_id, row in rows.items()
        if run_id not in passing and ((row.moves is not None and row.moves <= now) or ended.intersection(row.awaits))
    }


def test_whatever_happens_a_look_finds_what_a_look_at_all_finds(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(scaled(100, 2_000)):
        ids, rows, standings = (
            [f"r{number}" for number in range(rng.randrange(2, 12))],
            dict[str, Standing](),
            Standings(),
        )
        parents = {run_id: rng.choice([None, *ids]) for run_id in ids}
        for _ in range(60):
            run_id = rng.choice(ids)
            if rng.random() < 0.1:
                rows.pop(run_id, None)
                standings.drop(run_id)
            else:
                new = some_standing(rng, parents[run_id], [one for one in ids if parents[one] == run_id])
                rows[run_id] = new
                standings.put(run_id, new)
            now, passing = rng.choice(TIMES[2:]) or "", set(rng.sample(ids, 1))
            found = standings.due((), (), now=now, limit=100, passing=passing)
            wanted = due_of_all(rows, now, passing)
            assert {row.run_id for row in found} >= wanted
            extra = {row.run_id for row in found} - wanted
            assert all(rows[one].awaits for one in extra), (
                "a parent may look once too often when a child was deleted or started again"
            )
            assert all(row.revision == rows[row.run_id].revision for row in found)
            later = [row.moves for row in rows.values() if row.moves and row.moves > now]
            assert standings.next(now) == min(later, default=None)


class Unread(dict[str, Any]):
    """Says no to whoever goes through all of it."""

    def __iter__(self) -> Any:
        raise AssertionError("somebody goes through all runs")

    items = keys = values = __iter__


def ask(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("ask", Effect(EffectType.WAIT_EVENT, {"wait_key": "k", "until": run.vars["until"]}))


async def test_a_look_costs_nothing_per_run_that_waits() -> None:
    clock, workflow = StillClock(), WorkflowSpec[Any]("ask", "ask", {"ask": ask})
    async with AsyncRuntime.open("memory:", clock=clock) as rt:
        for number in range(50):
            until = f"2100-01-01T00:00:{number:02}+00:00"
            await rt.run(workflow, vars={"until": until}, run_id=f"run-{number}")
        backend = rt._journal.stored
        standings = rt.run_store.sync._standings
        standings._rows, standings._later = Unread(standings._rows.copy()), Unread(standings._later.copy())
        assert await backend.due(iso(clock.now()), limit=10) == []
        assert await backend.next_due(iso(clock.now())) == "2100-01-01T00:00:00.000000+00:00"


async def test_what_is_out_of_date_does_not_pile_up() -> None:
    standings = Standings()
    for number in range(10_000):
        at = f"2100-{number:05}"
        standings.put("r", Standing("w", number, at, False, False, None, ()))
    assert len(standings._heap) < 2_000
    assert standings.next("2026") == "2100-09999"
