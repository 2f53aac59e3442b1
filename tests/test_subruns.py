"""The run that calls a model for MEMORY_COMPACT: below the run that compacts, one per effect, with what runs have."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from abstractruntime import (
    AsyncScheduler,
    DefaultEffectPolicy,
    Effect,
    EffectCall,
    EffectOutcome,
    InMemoryArtifactStore,
    RunState,
    RunStatus,
    WaitReason,
    WaitState,
    WorkflowRegistry,
    WorkflowSpec,
)
from abstractruntime.core.clock import SystemClock
from abstractruntime.core.errors import StoreError

from . import worlds
from .faults import FaultyBackend, ProcessDied
from .worlds import World, chain, one

world = worlds.world
async_world = worlds.async_world

COMPACT = chain(Effect("memory_compact", {"preserve_recent": 1}, "compacted"))


class Model:
    """Summarises in one sentence, counts how often each key was performed, and how many were at it together."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.at_once = self.most = 0

    async def __call__(self, call: EffectCall) -> EffectOutcome:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(0.01)
        self.at_once -= 1
        self.keys.append(call.key)
        usage = {"input_tokens": 30, "output_tokens": 12, "total_tokens": 42}
        return EffectOutcome.completed({"content": "what was said", "usage": usage})


def conversation(lines: int = 5) -> dict[str, Any]:
    return {"context": {"messages": [{"role": "user", "content": f"line {number}"} for number in range(lines)]}}


def made(world: World, model: Any, artifacts: Any = None, **options: Any) -> Any:
    return world.runtime({"llm_call": model}, artifact_store=artifacts or InMemoryArtifactStore(), **options)


def llm_run_of(state: RunState) -> str:
    assert state.status is RunStatus.COMPLETED, state.error
    found = state.output["compacted"]["results"][0]["meta"]["llm_run_id"]
    assert isinstance(found, str)
    return found


async def test_the_summary_is_made_by_a_run_below_the_one_that_compacts(world: World):
    rt = made(world, Model())
    state = await rt.run(COMPACT, vars=conversation(), session_id="s", actor_id="ann")
    child = await rt.get_state(llm_run_of(state))
    assert (child.workflow_id, child.status) == ("wf_memory_compact_llm", RunStatus.COMPLETED)
    assert (child.parent_run_id, child.root, child.session_id, child.actor_id) == (
        state.run_id,
        state.run_id,
        "s",
        "ann",
    )
    ledger = await rt.get_ledger(child.run_id)
    assert [record["status"] for record in ledger if (record["effect"] or {}).get("type") == "llm_call"] == [
        "started",
        "completed",
    ]
    assert "what was said" in state.vars["context"]["messages"][0]["content"]


async def test_its_tokens_are_among_those_of_the_tree(async_world: World):
    rt = made(async_world, Model())
    state = await rt.run(COMPACT, vars=conversation())
    assert await rt.get_token_usage(state.run_id) == {"run": 0, "tree": 42}
    assert await rt.get_token_usage(llm_run_of(state)) == {"run": 42, "tree": 42}


async def test_its_call_waits_for_a_place_as_every_other(async_world: World):
    model = Model()
    rt = made(async_world, model, effect_limits={"llm_call": 1})
    states = await asyncio.gather(*(rt.run(COMPACT, vars=conversation()) for _ in range(5)))
    assert len({llm_run_of(state) for state in states}) == 5
    assert model.most == 1


@pytest.mark.parametrize("kind", ["memory", "sqlite", "json"])
@pytest.mark.parametrize("mode", FaultyBackend.MODES)
async def test_a_crash_at_any_write_asks_the_model_again_only_where_its_answer_was_lost(tmp_path, kind, mode):
    for at in range(1, 40):
        world = World("async", kind, tmp_path / f"{at}", synchronous="NORMAL")
        (tmp_path / f"{at}").mkdir()
        artifacts, model = InMemoryArtifactStore(), Model()
        rt, store = world.faulty_runtime({"llm_call": model}, at=at, mode=mode, artifact_store=artifacts)
        try:
            await rt.start(workflow=COMPACT, run_id="r", vars=conversation())
            await rt.tick(workflow=COMPACT, run_id="r")
        except (ProcessDied, StoreError):
            again = made(world, model, artifacts)
            await again.start(workflow=COMPACT, run_id="r", vars=conversation())
            await again.tick(workflow=COMPACT, run_id="r")
        reader = made(world, model)
        state = await reader.get_state("r")
        child = await reader.get_state(llm_run_of(state))
        assert child.status is RunStatus.COMPLETED, f"{mode} at write {at}"
        assert [found.run_id for found in await reader.run_store.list_children(parent_run_id="r")] == [child.run_id]
        assert len(model.keys) <= 2, f"{mode} at write {at}"
        assert len(set(model.keys)) == 1, f"{mode} at write {at}: one key, whoever performs it"
        assert len(state.vars["context"]["messages"]) == 2
        assert len(artifacts.search(run_id="r", tags={"kind": "conversation_span"})) == 1
        fired = store.backend is not None and store.backend.fired
        await world.close()
        if not fired:
            return
    raise AssertionError("the walk never came to its end")


async def test_a_model_that_fails_fails_the_compaction_and_the_next_attempt_has_a_run_of_its_own(async_world: World):
    answers = [EffectOutcome.failed("overloaded", retryable=False), EffectOutcome.completed({"content": "at last"})]
    policy = DefaultEffectPolicy(2, default_backoff_base=0.0)
    rt = made(async_world, lambda call: answers.pop(0), effect_policy=policy)
    state = await rt.run(COMPACT, vars=conversation(), run_id="r")
    child = await rt.get_state(llm_run_of(state))
    stood = {run.run_id: run.status for run in await rt.run_store.list_children(parent_run_id="r")}
    assert stood == {child.run_id: RunStatus.COMPLETED, child.run_id.removesuffix("-2"): RunStatus.FAILED}


async def test_one_that_fails_for_good_is_told_and_leaves_the_conversation_as_it_is(async_world: World):
    rt = made(async_world, lambda call: EffectOutcome.failed("no such model", retryable=False))
    state = await rt.run(COMPACT, vars=conversation())
    assert state.status is RunStatus.FAILED
    assert "the summary could not be made: no such model" in state.error
    assert len(state.vars["context"]["messages"]) == 5


async def test_one_that_comes_to_wait_is_cancelled_and_the_compaction_fails(async_world: World):
    wait = WaitState(reason=WaitReason.USER, wait_key="which model?")
    rt = made(async_world, lambda call: EffectOutcome.waiting(wait))
    state = await rt.run(COMPACT, vars=conversation(), run_id="r")
    assert state.status is RunStatus.FAILED
    assert "must not wait" in state.error
    (child,) = await rt.run_store.list_children(parent_run_id="r")
    assert child.status is RunStatus.CANCELLED


async def test_a_cancel_reaches_the_call_and_the_run_that_makes_it(async_world: World):
    asked, stopped = asyncio.Event(), asyncio.Event()

    async def model(call: EffectCall) -> EffectOutcome:
        asked.set()
        try:
            await asyncio.sleep(3600)
        finally:
            stopped.set()
        raise AssertionError("it was not cancelled")

    rt = made(async_world, model)
    await rt.start(workflow=COMPACT, run_id="r", vars=conversation())
    ticking = asyncio.create_task(rt.tick(workflow=COMPACT, run_id="r"))
    await asyncio.wait_for(asked.wait(), worlds.PATIENCE)
    await rt.cancel_run("r", reason="enough")
    await asyncio.wait_for(stopped.wait(), worlds.PATIENCE)
    state = await asyncio.wait_for(ticking, worlds.PATIENCE)
    assert state.status is RunStatus.CANCELLED
    (child,) = await rt.run_store.list_children(parent_run_id="r")
    assert child.status is RunStatus.CANCELLED


async def test_it_goes_on_where_a_stopped_process_left_it(async_world: World):
    asked = asyncio.Event()

    async def slow(call: EffectCall) -> EffectOutcome:
        asked.set()
        await asyncio.sleep(3600)
        raise AssertionError("it was not cancelled")

    artifacts, model = InMemoryArtifactStore(), Model()
    first = made(async_world, slow, artifacts)
    await first.start(workflow=COMPACT, run_id="r", vars=conversation())
    ticking = asyncio.create_task(first.tick(workflow=COMPACT, run_id="r"))
    await asyncio.wait_for(asked.wait(), worlds.PATIENCE)
    ticking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ticking
    second = made(async_world, model, artifacts)
    state = await second.tick(workflow=COMPACT, run_id="r")
    assert await second.get_state(llm_run_of(state)) is not None
    assert len(await second.run_store.list_children(parent_run_id="r")) == 1
    assert len(model.keys) == 1


async def test_several_compactions_of_one_step_have_a_run_each(async_world: World):
    workflow: WorkflowSpec[Any] = one("memory_compact", {"preserve_recent": 1})
    rt = made(async_world, Model())
    states = await asyncio.gather(*(rt.run(workflow, vars=conversation()) for _ in range(3)))
    ids = {state.output["result"]["results"][0]["meta"]["llm_run_id"] for state in states}
    assert len(ids) == 3


async def test_a_driver_finishes_one_whose_process_died_and_complains_of_nothing(tmp_path):
    """Nobody registers its workflow, and it may be found before the run that it belongs to."""
    world = World("async", "sqlite", tmp_path)
    artifacts, model, failed = InMemoryArtifactStore(), Model(), []
    for at in range(1, 40):
        rt, store = world.faulty_runtime({"llm_call": model}, at=at, artifact_store=artifacts)
        with suppress(ProcessDied):
            await rt.start(workflow=COMPACT, run_id=f"r{at}", vars=conversation())
            await rt.tick(workflow=COMPACT, run_id=f"r{at}")
        assert store.backend is not None
        if not store.backend.fired:
            break
        await rt.aclose()
    registry = WorkflowRegistry()
    registry.register(COMPACT)
    last = made(world, model, artifacts, workflow_registry=registry, clock=SystemClock())
    async with (
        asyncio.timeout(worlds.PATIENCE),
        AsyncScheduler(last, poll_interval_s=0.05, on_run_failed=lambda *told: failed.append(told)),
    ):
        while await last.run_store.list_runs(status=RunStatus.RUNNING):
            await worlds.a_moment()
    assert failed == []
    states = await last.run_store.list_runs(status=RunStatus.COMPLETED)
    parents = [state for state in states if state.workflow_id == COMPACT.workflow_id]
    assert len(parents) >= at - 1 > 5
    assert len({llm_run_of(state) for state in parents}) == len(parents)
    await world.close()


async def test_a_driver_that_stops_lets_it_finish(async_world: World):
    asked, gate = asyncio.Event(), asyncio.Event()

    async def model(call: EffectCall) -> EffectOutcome:
        asked.set()
        await gate.wait()
        return EffectOutcome.completed({"content": "short"})

    registry = WorkflowRegistry()
    registry.register(COMPACT)
    rt = made(async_world, model, clock=SystemClock())
    async with asyncio.timeout(worlds.PATIENCE), AsyncScheduler(rt, registry, poll_interval_s=0.05) as scheduler:
        run_id = await rt.start(workflow=COMPACT, vars=conversation())
        await asked.wait()
        stopping = asyncio.create_task(scheduler.stop(3600))
        await asyncio.sleep(0)
        gate.set()
        await stopping
        state = await rt.get_state(run_id)
        assert state.vars["compacted"]["results"][0]["meta"]["llm_run_id"]
