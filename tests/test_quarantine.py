"""Runs that fail again and again: set apart with a reason, listed, requeued, and not forgotten by the next process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    AsyncScheduler,
    RunNotFailed,
    RunState,
    RunStatus,
    Runtime,
    Scheduler,
    StepPlan,
    WorkflowRegistry,
    WorkflowSpec,
)
from abstractruntime.core.errors import UnknownRun

from .clocks import StillClock

#: whether the node of `FRAIL` raises
broken = True


def frail(run: RunState, ctx: Any) -> StepPlan:
    if broken:
        raise ArithmeticError("poison")
    return StepPlan("frail", complete_output={"mended": True})


FRAIL: WorkflowSpec[Any] = WorkflowSpec("frail", "frail", {"frail": frail})
REGISTRY = WorkflowRegistry()
REGISTRY.register(FRAIL)


@pytest.fixture(autouse=True)
def break_it(caplog: pytest.LogCaptureFixture) -> None:
    global broken
    broken = True
    caplog.set_level(logging.CRITICAL, "abstractruntime.scheduler")


def mend() -> None:
    global broken
    broken = False


@pytest.fixture(params=["memory", "sqlite", "files"])
def url(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    return {"memory": "memory:", "sqlite": f"sqlite:///{tmp_path}/runs.db", "files": f"files:{tmp_path}/data"}[
        request.param
    ]


async def passing(clock: StillClock, condition: Callable[[], Any]) -> Any:
    """Let time pass until it holds."""
    while not (found := condition()):
        clock.advance(1)
        await asyncio.sleep(0.001)
    return found


async def ended(rt: AsyncRuntime, run_id: str) -> RunState:
    while (state := await rt.get_state(run_id)).status is not RunStatus.COMPLETED:  # noqa: ASYNC110 - as stored
        await asyncio.sleep(0.001)
    return state


async def test_what_a_scheduler_gives_up_is_listed_requeued_and_not_forgotten_at_a_restart(url):
    clock, raised = StillClock(), []
    async with AsyncRuntime.open(url, clock=clock) as rt:
        options: dict[str, Any] = {"give_up_after": 3, "on_run_failed": lambda run_id, error: raised.append(run_id)}
        run_id = await rt.start(workflow=FRAIL)
        async with AsyncScheduler(rt, REGISTRY, **options) as scheduler:
            await passing(clock, lambda: scheduler._driver._asides.given_up())
            (apart,) = await scheduler.quarantined()
            assert (apart.run_id, apart.workflow_id, apart.by) == (run_id, "frail", "scheduler")
            assert apart.reason == "its ticks raised 3 times in a row, last at node 'frail'"
            assert apart.error == "ArithmeticError: poison"
            assert (await rt.get_state(run_id)).status is RunStatus.RUNNING
        assert raised == [run_id] * 3
        async with AsyncScheduler(rt, REGISTRY, **options) as scheduler:
            await passing(clock, lambda: scheduler._driver._asides.given_up())
            assert raised == [run_id] * 4, "one more try"
            assert [one.run_id for one in await scheduler.quarantined()] == [run_id]
            await scheduler.requeue(run_id)
            assert await scheduler.quarantined() == []
            await passing(clock, lambda: scheduler._driver._asides.given_up())
            assert raised == [run_id] * 7, "as many as at first"
            mend()
            await scheduler.requeue(run_id)
            assert (await ended(rt, run_id)).output == {"mended": True}
            assert await scheduler.quarantined() == []
            with pytest.raises(RunNotFailed):
                await scheduler.requeue(run_id)
        with pytest.raises(UnknownRun):
            await scheduler.requeue("nobody")


async def test_what_the_runtime_sets_apart_is_so_for_everybody_and_for_good(url):
    clock = StillClock()
    async with AsyncRuntime.open(url, clock=clock, quarantine_after=2) as rt:
        run_ids = [await rt.start(workflow=FRAIL) for _ in range(3)]
        failed = []
        async with AsyncScheduler(rt, REGISTRY, on_run_failed=lambda run_id, error: failed.append(run_id)):
            await passing(clock, lambda: len(failed) == 6)
        async with AsyncScheduler(rt, REGISTRY) as scheduler:
            apart = await scheduler.quarantined()
            assert [one.run_id for one in apart] == run_ids[::-1]
            assert {(one.by, one.reason, one.error) for one in apart} == {
                ("runtime", "node 'frail' raised 2 times in a row", "ArithmeticError: poison")
            }
            assert len(await scheduler.quarantined(limit=2)) == 2
            mend()
            for run_id in run_ids:
                await scheduler.requeue(run_id)
                await ended(rt, run_id)
            assert await scheduler.quarantined() == []


async def test_what_was_given_up_is_taken_up_again_when_somebody_else_moved_it():
    clock = StillClock()
    async with AsyncRuntime.open("memory:", clock=clock) as rt:
        run_id = await rt.start(workflow=FRAIL)
        async with AsyncScheduler(rt, REGISTRY, give_up_after=1) as scheduler:
            await passing(clock, lambda: scheduler._driver._asides.given_up())
            mend()
            await rt.update_limits(run_id, {"max_iterations": 7})
            await ended(rt, run_id)


def test_the_blocking_scheduler_lists_and_requeues_too(tmp_path):
    with (
        Runtime.open(f"sqlite:///{tmp_path}/runs.db") as rt,
        Scheduler(rt, REGISTRY, give_up_after=1, poll_interval_s=0.01) as scheduler,
    ):
        run_id = rt.start(workflow=FRAIL)
        while not (apart := scheduler.quarantined()):
            pass
        assert apart[0].run_id == run_id
        mend()
        scheduler.requeue(run_id)
        while rt.get_state(run_id).status is not RunStatus.COMPLETED:
            pass
