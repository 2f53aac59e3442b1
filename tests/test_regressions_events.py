"""Events that got lost or came twice elsewhere: before, while and after a wait registered, and beside a deadline."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from abstractruntime import Effect, RunState, RunStatus, StaleResumeError, StepPlan

from . import worlds
from .scale import scaled
from .worlds import World, flow, one

world = worlds.world
async_world = worlds.async_world

PAID = one("wait_event", {"name": "paid"}, "got")


def wait_twice(run: RunState, ctx: Any) -> StepPlan:
    """The same event with the same deadline rule, twice."""
    run.vars["n"] = run.vars.get("n", 0) + 1
    effect = Effect("wait_event", {"name": "paid", "timeout_s": 60}, f"got{run.vars['n']}")
    return StepPlan("wait", effect, "wait" if run.vars["n"] < 2 else "end")


TWICE = flow("wait", wait=wait_twice)


async def test_emit_before_wait(world: World) -> None:
    rt = world.runtime()
    await rt.start(workflow=PAID, run_id="r", session_id="s")
    await rt.emit_event(name="paid", session_id="s", payload={"n": 1})
    state = await rt.tick(workflow=PAID, run_id="r")
    assert state.output["got"]["payload"] == {"n": 1}


async def test_emit_during_wait_registration(async_world: World, seed: int) -> None:
    rng, rt = random.Random(seed), async_world.runtime()
    runs = [f"r{number}" for number in range(scaled(40, 500))]
    for run_id in runs:
        await rt.start(workflow=PAID, run_id=run_id, session_id="s")

    async def later(turns: int, call: Any) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await call

    ticks = [later(rng.randint(0, 20), rt.tick(workflow=PAID, run_id=run_id)) for run_id in runs]
    await asyncio.gather(*ticks, later(rng.randint(0, 20), rt.emit_event(name="paid", session_id="s")))
    for run_id in runs:
        state = await rt.tick(workflow=PAID, run_id=run_id)
        assert state.status is RunStatus.COMPLETED, run_id


async def test_emit_to_not_yet_started_run(world: World) -> None:
    """It is none of the run's business, and does not come back to it under the same id either."""
    rt = world.runtime()
    await rt.emit_event(name="go", scope="run", run_id="r", event_id="e1")
    world.clock.advance(1)
    work = one("wait_event", {"name": "go", "scope": "run"}, "got")
    assert (await rt.run(work, run_id="r")).status is RunStatus.WAITING
    assert (await rt.emit_event(name="go", scope="run", run_id="r", event_id="e1"))["delivered"] == 0
    assert (await rt.emit_event(name="go", scope="run", run_id="r", event_id="e2"))["delivered"] == 1


async def test_emit_twice_same_id(world: World) -> None:
    rt = world.runtime()
    await rt.run(TWICE, run_id="r", session_id="s")
    for _ in range(3):
        await rt.emit_event(name="paid", session_id="s", event_id="e1")
        state = await rt.tick(workflow=TWICE, run_id="r")
    assert state.status is RunStatus.WAITING
    assert "got2" not in state.vars


async def test_event_and_timeout_race_exactly_one_wins(async_world: World, seed: int) -> None:
    rng, rt = random.Random(seed), async_world.runtime()
    for number in range(scaled(20, 300)):
        run_id, session = f"r{number}", f"s{number}"
        await rt.run(TWICE, run_id=run_id, session_id=session)
        async_world.clock.advance(rng.choice((59.999999, 60, 60.000001)))
        racers = [
            rt.tick(workflow=TWICE, run_id=run_id),
            rt.emit_event(name="paid", session_id=session, payload={"n": number}),
            rt.tick(workflow=TWICE, run_id=run_id),
        ]
        rng.shuffle(racers)
        await asyncio.gather(*racers)
        async_world.clock.advance(1)
        state = await rt.tick(workflow=TWICE, run_id=run_id)
        resumes = [r for r in await rt.get_ledger(run_id) if (r["effect"] or {}).get("type") == "resume"]
        heard = [key for key in ("got1", "got2") if "payload" in state.vars.get(key, {})]
        assert len(heard) == 1, "the event was lost, or heard twice"
        assert len(resumes) == (1 if heard == ["got1"] else 2)


async def test_timeout_then_rewait_same_name(world: World) -> None:
    """The second wait has an identity of its own; a late event is its, and not the first one's."""
    rt = world.runtime()
    first = (await rt.run(TWICE, run_id="r", session_id="s")).waiting
    world.clock.advance(60)
    second = (await rt.tick(workflow=TWICE, run_id="r")).waiting
    assert first.wait_key == second.wait_key == "evt:session:s:paid"
    assert first.details["wait_id"] != second.details["wait_id"]
    with pytest.raises(StaleResumeError):
        await rt.resume(workflow=TWICE, run_id="r", wait_key=first.details["wait_id"], payload=1)
    await rt.emit_event(name="paid", session_id="s")
    state = await rt.tick(workflow=TWICE, run_id="r")
    assert state.vars["got1"]["timed_out"] is True
    assert state.vars["got2"]["name"] == "paid"
