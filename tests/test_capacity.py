"""Limits of how many effects are performed at once: per type and per key, and fair when one of them is busy."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Mapping
from contextvars import Context
from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    AsyncScheduler,
    Effect,
    EffectCall,
    EffectOutcome,
    EffectType,
    RunState,
    RunStatus,
    Runtime,
    Scheduler,
    StepPlan,
    WorkflowRegistry,
    WorkflowSpec,
)
from abstractruntime.core.capacity import Capacity
from abstractruntime.core.clock import SYSTEM_CLOCK

from .scale import scaled


def act(run: RunState, ctx: Any) -> StepPlan:
    effect = Effect(run.vars.get("type", "call"), {"model": run.vars.get("model")}, "did")
    return StepPlan("act", effect, "end")


def several(run: RunState, ctx: Any) -> StepPlan:
    effects = [Effect("call", {"model": model}, f"did.{place}") for place, model in enumerate(run.vars["models"])]
    return StepPlan("several", effects=effects, next_node="end")


def parent(run: RunState, ctx: Any) -> StepPlan:
    payload = {"workflow_id": "act", "vars": {"model": run.vars["model"]}, "wait": True}
    return StepPlan("parent", Effect(EffectType.START_SUBWORKFLOW, payload, "did"), "end")


def end(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("end", complete_output={"did": run.vars.get("did")})


ACT: WorkflowSpec[Any] = WorkflowSpec("act", "act", {"act": act, "end": end})
SEVERAL: WorkflowSpec[Any] = WorkflowSpec("several", "several", {"several": several, "end": end})
PARENT: WorkflowSpec[Any] = WorkflowSpec("parent", "parent", {"parent": parent, "end": end})
REGISTRY = WorkflowRegistry()
for workflow in (ACT, SEVERAL, PARENT):
    REGISTRY.register(workflow)


def model_of(effect: Effect) -> str | None:
    model: str | None = effect.payload.get("model")
    return model


class Desk:
    """Performs calls, and notes how many of a model at once. Those of the model `busy` wait for `open`."""

    def __init__(self) -> None:
        self.now, self.most = Counter[str | None](), Counter[str | None]()
        self.open = asyncio.Event()

    async def __call__(self, call: EffectCall) -> EffectOutcome:
        model = call.effect.payload["model"]
        self.now[model] += 1
        self.most[model] = max(self.most[model], self.now[model])
        await (self.open.wait() if model == "busy" else asyncio.sleep(0.002))
        self.now[model] -= 1
        return EffectOutcome.completed(model)


async def completed(rt: AsyncRuntime, run_ids: list[str]) -> None:
    for run_id in run_ids:
        while (await rt.get_state(run_id)).status is not RunStatus.COMPLETED:  # noqa: ASYNC110 - the stored state
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("limit", [3, {"small": 3, "local": 3}])
async def test_effects_of_a_key_are_counted_together_and_others_are_not(limit: int | Mapping[str, int]) -> None:
    desk = Desk()
    rt = AsyncRuntime.open("memory:", effect_handlers={"call": desk}, concurrency_key=model_of, key_limit=limit)
    async with rt:
        models = ["small", "local", None] * 10
        runs = [rt.run(ACT, vars={"model": model}) for model in models]
        await asyncio.gather(*runs, rt.run(SEVERAL, vars={"models": models}))
        assert desk.most == {"small": 3, "local": 3, None: desk.most[None]}
        assert desk.most[None] > 10
        assert rt._attempts.capacity._places == {}, "keys that nobody uses are forgotten"


async def test_keys_that_are_not_named_have_no_limit() -> None:
    desk = Desk()
    options: dict[str, Any] = {"concurrency_key": model_of, "key_limit": {"local": 1}}
    async with AsyncRuntime.open("memory:", effect_handlers={"call": desk}, **options) as rt:
        await asyncio.gather(*(rt.run(ACT, vars={"model": model}) for model in ["local", "large"] * 8))
    assert desk.most == {"local": 1, "large": 8}


async def test_a_key_that_cannot_be_said_is_logged_and_limits_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def raises(effect: Effect) -> str | None:
        raise LookupError("a host's mistake")

    async with AsyncRuntime.open(
        "memory:", effect_handlers={"call": Desk()}, concurrency_key=raises, key_limit=1
    ) as rt:
        assert (await rt.run(ACT)).status is RunStatus.COMPLETED
    assert "a host's mistake" in caplog.text


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "many", {"local": 0}])
def test_limits_that_make_no_sense_are_refused(limit: Any) -> None:
    with pytest.raises(ValueError, match="key_limit"):
        AsyncRuntime.open("memory:", concurrency_key=model_of, key_limit=limit)


@pytest.mark.parametrize("half", [{"concurrency_key": model_of}, {"key_limit": 3}])
def test_half_of_it_is_refused(half: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give both"):
        Runtime.open("memory:", **half)


async def test_what_an_effect_does_for_itself_needs_no_second_place() -> None:
    capacity, effect = Capacity({"call": 1}, model_of, 1), Effect("call", {"model": "one"})
    async with asyncio.timeout(5):
        async with capacity.place(effect), capacity.place(effect):
            pass
        async with capacity.place(effect):
            other = asyncio.create_task(taken(capacity, effect))  # in the context of who holds it
            await asyncio.sleep(0)
        await other


async def taken(capacity: Capacity, effect: Effect) -> None:
    async with capacity.place(effect):
        pass


async def test_a_wait_that_is_cancelled_leaves_the_place_to_the_next() -> None:
    capacity, effect = Capacity(None, model_of, 1), Effect("call", {"model": "one"})
    async with asyncio.timeout(5):
        async with capacity.place(effect):
            tasks = [
                asyncio.get_running_loop().create_task(taken(capacity, effect), context=Context()) for _ in range(3)
            ]
            await asyncio.sleep(0)
            tasks[1].cancel()
        await asyncio.gather(tasks[0], tasks[2])
    assert capacity._places == {}


BUSY = {"per key": {"concurrency_key": model_of, "key_limit": 2}, "per type": {"effect_limits": {"call": 2}}}


@pytest.mark.parametrize("kind", ["act", "parent"])
@pytest.mark.parametrize("options", BUSY.values(), ids=BUSY)
async def test_under_a_driver_whoever_waits_for_a_busy_place_holds_nobody_up(options: Any, kind: str) -> None:
    """Twenty times as many stand in line as ticks may be under way."""
    desk = Desk()
    workflow, count = REGISTRY.get_or_raise(kind), scaled(40, 400)
    handlers = {"call": desk, "other": desk}
    async with (
        AsyncRuntime.open("memory:", effect_handlers=handlers, workflow_registry=REGISTRY, **options) as rt,
        AsyncScheduler(rt, REGISTRY, concurrency=count // 20 + 2) as scheduler,
    ):
        busy = [await rt.start(workflow=workflow, vars={"model": "busy"}) for _ in range(count)]
        while desk.now["busy"] < 2:  # noqa: ASYNC110 - anything may change it
            await asyncio.sleep(0.001)
        others = [await rt.start(workflow=ACT, vars={"model": "idle", "type": "other"}) for _ in range(10)]
        await completed(rt, others)
        assert desk.most["busy"] == 2
        desk.open.set()
        await completed(rt, busy)
        assert desk.most["busy"] == 2
        while scheduler._driver._running:  # noqa: ASYNC110 - anything may change it
            await asyncio.sleep(0.001)
        assert scheduler._driver._in_line == 0


def test_under_the_blocking_scheduler_neither() -> None:
    gate = threading.Event()

    def call(call: EffectCall) -> EffectOutcome:
        if call.effect.payload["model"] == "busy":
            gate.wait(30)
        return EffectOutcome.completed("done")

    options: dict[str, Any] = {"concurrency_key": model_of, "key_limit": 1, "effect_handlers": {"call": call}}
    with (
        Runtime.open("memory:", **options) as rt,
        Scheduler(rt, REGISTRY, concurrency=4, poll_interval_s=0.01) as scheduler,
    ):
        busy = [rt.start(workflow=ACT, vars={"model": "busy"}) for _ in range(10)]
        while scheduler.aio._driver._in_line < 9:
            blocked()
        others = [rt.start(workflow=ACT, vars={"model": "idle"}) for _ in range(3)]
        while any(rt.get_state(run_id).status is not RunStatus.COMPLETED for run_id in others):
            blocked()
        gate.set()
        while any(rt.get_state(run_id).status is not RunStatus.COMPLETED for run_id in busy):
            blocked()


def blocked() -> None:
    asyncio.run(SYSTEM_CLOCK.sleep(0.002))
