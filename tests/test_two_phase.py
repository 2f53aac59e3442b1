"""Effects that ask before they are performed, and effects that land in parts, through the runtime."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    CancelSignal,
    DefaultEffectPolicy,
    Effect,
    EffectCall,
    EffectOutcome,
    InMemoryArtifactStore,
    InvalidAnswer,
    RunPaused,
    RunState,
    RunStatus,
    StaleResumeError,
    StepPlan,
    UnsafeValue,
    WaitReason,
    WaitState,
)
from abstractruntime.core.errors import EffectWithdrawn
from abstractruntime.core.questions import Asked, Question

from . import worlds
from .checks import check_ledger, check_on_the_way
from .dict_stores import DictLedgerStore, DictRunStore
from .faults import FaultyBackend, ProcessDied
from .test_fault_walk import every_layer
from .worlds import Gate, World, eventually, flow, statuses

world = worlds.world
async_world = worlds.async_world

WRITE = Asked(call_id="c1", runtime_call_id="rt1", name="write")


class Safe:
    """A handler that asks, then performs in parts, and remembers what it did under which key."""

    def __init__(self, *, until: str | None = None, question: Question | None = None) -> None:
        self.until = until
        self.question = question or Question(kind="approval", digest="d", calls=(WRITE,))
        self.calls: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.answers: list[Any] = []
        self.gate: Gate | None = None

    async def write(self, call: EffectCall) -> EffectOutcome:
        self.calls[call.key] += 1
        if call.answer is None:
            return self.ask()
        self.answers.append(call.answer)
        if call.answer.expired or not call.answer.payload["calls"]["rt1"]["approved"]:
            return EffectOutcome.completed({"written": [], "by": call.answer.by})
        for part in ("one", "two", "three"):
            if part in call.landed:
                continue
            self.done[f"{call.key}:{part}"] += 1
            await call.land(part, {"part": part, "attempt": call.attempt})
            if self.gate is not None:
                await self.gate.passed()
        return EffectOutcome.completed({"written": sorted(call.landed), "by": call.answer.by})

    def write_blocking(self, call: EffectCall) -> EffectOutcome:
        self.calls[call.key] += 1
        if call.answer is None:
            return self.ask()
        for part in ("one", "two", "three"):
            if part not in call.landed:
                self.done[f"{call.key}:{part}"] += 1
                call.land_blocking(part, {"part": part})
        return EffectOutcome.completed({"written": sorted(call.landed), "by": call.answer.by})

    def ask(self) -> EffectOutcome:
        return EffectOutcome.asking(WaitState(WaitReason.USER, until=self.until, prompt="May I?"), self.question)


def asks(result_key: str | None = "result", then: str | None = "end") -> Any:
    return flow("work", work=lambda run, ctx: StepPlan("work", Effect("write", {"n": 1}, result_key), then))


@pytest.mark.parametrize("handler", ["write", "write_blocking"])
@pytest.mark.parametrize("result_key", ["result", None])
async def test_it_waits_for_the_decision_and_then_performs_under_the_same_key(
    world: World, handler: str, result_key: str | None
) -> None:
    safe = Safe()
    rt, workflow = world.runtime({"write": getattr(safe, handler)}), asks(result_key)
    state = await rt.run(workflow, run_id="r")
    assert (state.status, state.waiting.prompt, safe.done) == (RunStatus.WAITING, "May I?", {})
    state = await rt.resume(
        workflow=workflow,
        run_id="r",
        wait_key=state.waiting.wait_key,
        payload={"approved": True},
        max_steps=0,
        actor_id="ann",
    )
    assert (state.status, state.current_node, safe.done) == (RunStatus.RUNNING, "work", {})
    assert len(await rt.get_ledger("r")) == 3, "only the decision was committed"
    state = await rt.tick(workflow=workflow, run_id="r")
    assert state.status is RunStatus.COMPLETED
    assert state.output.get("result") == ({"written": ["one", "three", "two"], "by": "ann"} if result_key else None)
    assert list(safe.calls.values()) == [2], "one key, two calls"
    assert set(safe.done.values()) == {1}
    ledger = await rt.get_ledger("r")
    assert statuses(ledger, "write") == ["started", "waiting", "started", "completed"]
    assert statuses(ledger, "landed") == ["completed"] * 3
    check_ledger(state, ledger)
    traces = await rt.get_node_traces("r")
    assert [step["status"] for step in traces["work"]["steps"]] == ["waiting", "completed"]


async def test_without_a_next_node_the_run_ends_with_the_result(async_world: World) -> None:
    rt, workflow = async_world.runtime({"write": Safe().write}), asks(None, None)
    await rt.run(workflow, run_id="r")
    state = await rt.resume(workflow=workflow, run_id="r", wait_key=None, payload={"approved": False})
    assert state.output == {"success": True, "result": {"written": [], "by": None}}


async def test_double_approve_one_of_two_hosts_wins_and_the_other_is_told(world: World) -> None:
    safe = Safe()
    hosts = [world.runtime({"write": safe.write}) for _ in range(2)]
    workflow = asks()
    state = await hosts[0].run(workflow, run_id="r")
    key = state.waiting.wait_key
    answers = [
        rt.resume(workflow=workflow, run_id="r", wait_key=key, payload={"approved": approved})
        for rt, approved in zip(hosts, (True, False), strict=True)
    ]
    found = await asyncio.gather(*answers, return_exceptions=True)
    assert [type(one) for one in found if isinstance(one, BaseException)] == [StaleResumeError]
    assert len(safe.answers) == 1
    with pytest.raises(StaleResumeError):
        await hosts[0].resume(workflow=workflow, run_id="r", wait_key=key, payload={"approved": True})


async def test_the_same_answer_with_the_same_resume_id_counts_once(async_world: World) -> None:
    safe = Safe()
    rt, workflow = async_world.runtime({"write": safe.write}), asks()
    key = (await rt.run(workflow, run_id="r")).waiting.wait_key
    for _ in range(2):
        state = await rt.resume(
            workflow=workflow, run_id="r", wait_key=key, payload={"approved": True}, resume_id="once"
        )
        assert state.status is RunStatus.COMPLETED
    assert set(safe.done.values()) == {1}


async def test_what_is_no_decision_leaves_the_run_waiting(async_world: World) -> None:
    rt, workflow = async_world.runtime({"write": Safe().write}), asks()
    before = await rt.run(workflow, run_id="r")
    payloads: list[Any] = [{"text": "ok"}, {"approved": "false"}, {"results": []}, "yes"]
    for payload in payloads:
        with pytest.raises(InvalidAnswer):
            await rt.resume(workflow=workflow, run_id="r", wait_key=before.waiting.wait_key, payload=payload)
    assert await rt.get_state("r") == before


async def test_silence_counts_as_a_decision_at_the_deadline(async_world: World) -> None:
    safe = Safe(until="2026-01-31T10:00:00+00:00")
    rt, workflow = async_world.runtime({"write": safe.write}), asks()
    state = await rt.run(workflow, run_id="r")
    async_world.clock.advance(3600)
    with pytest.raises(InvalidAnswer, match="expired at"):
        await rt.resume(workflow=workflow, run_id="r", wait_key=state.waiting.wait_key, payload={"approved": True})
    state = await rt.tick(workflow=workflow, run_id="r")
    assert state.output["result"] == {"written": [], "by": "timer"}
    assert safe.answers[0].expired


async def test_a_paused_run_takes_no_decision_and_one_that_is_cancelled_neither(async_world: World) -> None:
    safe = Safe(question=Question())
    job = EffectOutcome.asking(WaitState(WaitReason.JOB, "job"))
    rt, workflow = async_world.runtime({"write": lambda call: job if call.answer is None else safe.ask()}), asks()
    await rt.run(workflow, run_id="r")
    await rt.pause_run("r")
    with pytest.raises(RunPaused):
        await rt.resume(workflow=workflow, run_id="r", wait_key="job", payload=1)
    await rt.resume_run("r")
    await rt.cancel_run("r")
    with pytest.raises(StaleResumeError):
        await rt.resume(workflow=workflow, run_id="r", wait_key="job", payload=1)
    check_on_the_way(await rt.get_state("r"), await rt.get_ledger("r"))


async def test_an_effect_of_several_may_not_ask(async_world: World) -> None:
    rt = async_world.runtime({"write": Safe().write})
    workflow = flow("work", work=lambda run, ctx: StepPlan("work", effects=[Effect("write", {})], next_node="end"))
    state = await rt.run(workflow, run_id="r")
    assert "would wait, and an effect of several may not" in state.error


@pytest.mark.parametrize(
    ("wait", "why"),
    [
        (WaitState(WaitReason.UNTIL, until="2026-02-01T00:00:00Z"), "cannot ask with a wait for until"),
        (WaitState(WaitReason.SUBWORKFLOW, "x"), "cannot ask with a wait for subworkflow"),
        (WaitState(WaitReason.EVENT, "evt:session:s:paid"), "cannot ask with a wait for event"),
    ],
)
async def test_a_wait_that_something_else_would_end_is_refused(async_world: World, wait: WaitState, why: str) -> None:
    rt = async_world.runtime({"write": lambda call: EffectOutcome.asking(wait)})
    state = await rt.run(asks(), run_id="r")
    assert state.status is RunStatus.FAILED
    assert why in state.error


# -- landing


def batch(*parts: str, gates: dict[str, Gate] | None = None, done: Counter[str]) -> Any:
    async def perform(call: EffectCall) -> EffectOutcome:
        async def do(part: str) -> None:
            if gates and part in gates:
                await gates[part].passed()
            done[part] += 1
            await call.land(part, part.upper())

        await asyncio.gather(*(do(part) for part in parts if part not in call.landed))
        return EffectOutcome.completed([call.landed[part] for part in parts])

    return perform


async def test_parts_that_landed_are_not_done_again_by_whoever_takes_over(async_world: World) -> None:
    done: Counter[str] = Counter()
    gates = {"c": Gate()}
    rt, workflow = async_world.runtime({"write": batch("a", "b", "c", gates=gates, done=done)}), asks()
    await rt.start(workflow=workflow, run_id="r")
    ticking = asyncio.ensure_future(rt.tick(workflow=workflow, run_id="r"))
    await eventually(lambda: gates["c"].inside == 1)
    while (await rt.get_state("r")).intent.landed.keys() != {"a", "b"}:  # noqa: ASYNC110
        await asyncio.sleep(0)
    ledger = await rt.get_ledger("r")
    assert statuses(ledger, "landed") == ["completed"] * 2
    check_on_the_way(await rt.get_state("r"), ledger)
    await rt.aclose()
    with pytest.raises(asyncio.CancelledError):
        await ticking
    again = async_world.runtime({"write": batch("a", "b", "c", done=done)})
    state = await again.tick(workflow=workflow, run_id="r")
    assert state.output["result"] == ["A", "B", "C"]
    assert done == {"a": 1, "b": 1, "c": 1}
    check_ledger(state, await again.get_ledger("r"))


async def test_parts_that_come_while_a_commit_is_on_its_way_share_the_next(async_world: World) -> None:
    done: Counter[str] = Counter()
    names = [str(number) for number in range(50)]
    rt, store = async_world.faulty_runtime({"write": batch(*names, done=done)}, at=10_000)
    state = await rt.run(asks(), run_id="r")
    assert state.output["result"] == names
    assert store.backend is not None
    assert store.backend.writes < 12, "fifty parts took a few commits"


async def test_others_may_change_the_run_while_parts_land(async_world: World) -> None:
    done: Counter[str] = Counter()
    gates = {"b": Gate()}
    rt, workflow = async_world.runtime({"write": batch("a", "b", gates=gates, done=done)}), asks()
    await rt.start(workflow=workflow, run_id="r")
    ticking = asyncio.ensure_future(rt.tick(workflow=workflow, run_id="r"))
    await eventually(lambda: gates["b"].inside == 1 and done["a"] == 1)
    await rt.update_limits("r", {"max_iterations": 7})
    await rt.pause_run("r")
    gates["b"].open()
    state = await ticking
    assert state.paused
    assert state.vars["result"] == ["A", "B"]
    await rt.resume_run("r")
    state = await rt.tick(workflow=workflow, run_id="r")
    assert (state.status, done) == (RunStatus.COMPLETED, {"a": 1, "b": 1})
    check_ledger(state, await rt.get_ledger("r"))


async def test_a_handler_that_was_cancelled_lands_nothing_any_more(async_world: World) -> None:
    gate, errors = threading.Event(), []

    def perform(call: EffectCall) -> EffectOutcome:
        call.land_blocking("a", 1)
        gate.wait(worlds.PATIENCE)
        try:
            call.land_blocking("b", 2)
        except EffectWithdrawn as error:
            errors.append(error)
        return EffectOutcome.completed()

    rt, workflow = async_world.runtime({"write": perform}), asks()
    await rt.start(workflow=workflow, run_id="r")
    ticking = asyncio.ensure_future(rt.tick(workflow=workflow, run_id="r"))
    while not statuses(await rt.get_ledger("r"), "landed"):  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    await rt.cancel_run("r")
    await ticking
    gate.set()
    await eventually(lambda: len(errors) == 1)
    assert statuses(await rt.get_ledger("r"), "landed") == ["completed"]
    check_on_the_way(await rt.get_state("r"), await rt.get_ledger("r"))


async def test_what_cannot_be_landed_is_told_to_the_handler_who_may_go_on(async_world: World) -> None:
    async def perform(call: EffectCall) -> EffectOutcome:
        with pytest.raises(UnsafeValue):
            await call.land("a", {1, 2})
        with pytest.raises(RuntimeError, match=r"await call\.land"):
            call.land_blocking("a", 1)
        await call.land("key", {"api_key": "sk-12345678"})
        assert call.landed["key"] == {"api_key": {"$redacted": "api_key"}}
        await call.land("key", "another")
        return EffectOutcome.completed(call.landed)

    state = await async_world.runtime({"write": perform}).run(asks(), run_id="r")
    assert state.output["result"] == {"key": "another"}


async def test_a_failed_attempt_leaves_what_it_landed_to_the_next(async_world: World) -> None:
    seen: list[Any] = []

    async def perform(call: EffectCall) -> EffectOutcome:
        seen.append(dict(call.landed))
        await call.land(f"a{call.attempt}", call.attempt)
        if call.attempt < 3:
            return EffectOutcome.failed("busy")
        return EffectOutcome.completed(call.landed)

    rt = async_world.runtime({"write": perform}, effect_policy=DefaultEffectPolicy(3, default_backoff_base=0.0))
    state = await rt.run(asks(), run_id="r")
    assert state.output["result"] == {"a1": 1, "a2": 2, "a3": 3}
    assert seen == [{}, {"a1": 1}, {"a1": 1, "a2": 2}]
    check_ledger(state, await rt.get_ledger("r"))


async def test_effects_of_several_land_in_parts_too(async_world: World) -> None:
    gate = Gate()

    async def perform(call: EffectCall) -> EffectOutcome:
        for part in ("x", "y"):
            if part not in call.landed:
                await call.land(part, [call.payload["n"], call.attempt])
            if call.payload["n"] == 1:
                await gate.passed()
        return EffectOutcome.completed(call.landed)

    effects = [Effect("write", {"n": number}, f"got.n{number}") for number in range(2)]
    workflow = flow("work", work=lambda run, ctx: StepPlan("work", effects=effects, next_node="end"))
    rt = async_world.runtime({"write": perform})
    await rt.start(workflow=workflow, run_id="r")
    ticking = asyncio.ensure_future(rt.tick(workflow=workflow, run_id="r"))
    await eventually(lambda: gate.inside == 1)
    while [len(part.landed) for part in (await rt.get_state("r")).intent.parts] != [2, 1]:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await rt.aclose()
    with pytest.raises(asyncio.CancelledError):
        await ticking
    gate.open()
    again = async_world.runtime({"write": perform})
    state = await again.tick(workflow=workflow, run_id="r")
    assert state.output["got"] == {"n0": {"x": [0, 1], "y": [0, 1]}, "n1": {"x": [1, 1], "y": [1, 2]}}
    check_ledger(state, await again.get_ledger("r"))


def test_a_call_built_by_hand_lands_nowhere_and_remembers() -> None:
    run = RunState("r", "w", RunStatus.RUNNING, "n")
    call = EffectCall(
        run=run,
        effect=Effect("write"),
        node_id="n",
        next_node=None,
        step_id="r:0.1",
        key="k",
        attempt=1,
        now="",
        cancelled=CancelSignal(),
    )
    asyncio.run(call.land("a", 1))
    call.land_blocking("b", 2)
    assert call.landed == {"a": 1, "b": 2}


async def test_stores_that_do_not_commit_together_ask_and_land_too() -> None:
    runs, ledgers, safe = DictRunStore(), DictLedgerStore(), Safe()
    workflow = asks()
    async with AsyncRuntime(run_store=runs, ledger_store=ledgers, effect_handlers={"write": safe.write}) as rt:
        await rt.run(workflow, run_id="r")
        await rt.resume(workflow=workflow, run_id="r", wait_key=None, payload={"approved": True}, max_steps=0)
        safe.gate = Gate()
        ticking = asyncio.ensure_future(rt.tick(workflow=workflow, run_id="r"))
        await eventually(lambda: safe.gate is not None and safe.gate.inside == 1)
    with pytest.raises(asyncio.CancelledError):
        await ticking
    safe.gate = None
    async with AsyncRuntime(run_store=runs, ledger_store=ledgers, effect_handlers={"write": safe.write}) as rt:
        state = await rt.tick(workflow=workflow, run_id="r")
    assert state.status is RunStatus.COMPLETED
    assert set(safe.done.values()) == {1}


@pytest.mark.parametrize("kind", ["memory", "sqlite", "json"])
async def test_decorated_stores_ask_and_land_too(kind: str, tmp_path: Path) -> None:
    """Chained, with nearly everything moved out: what landed is read back as it was, and the chain holds."""
    world, safe, artifacts = World("async", kind, tmp_path, synchronous="NORMAL"), Safe(), InMemoryArtifactStore()

    def runtime() -> Any:
        return world.runtime({"write": safe.write}, stores=every_layer(*world.stores(), artifacts))

    rt, workflow = runtime(), asks()
    await rt.run(workflow, run_id="r")
    await rt.resume(workflow=workflow, run_id="r", wait_key=None, payload={"approved": True}, max_steps=0)
    safe.gate = Gate()
    ticking = asyncio.ensure_future(rt.tick(workflow=workflow, run_id="r"))
    await eventually(lambda: safe.gate is not None and safe.gate.inside == 1)
    await rt.aclose()
    with pytest.raises(asyncio.CancelledError):
        await ticking
    safe.gate = None
    again = runtime()
    state = await again.tick(workflow=workflow, run_id="r")
    assert state.output["result"] == {"written": ["one", "three", "two"], "by": None}
    assert set(safe.done.values()) == {1}
    assert (await again.verify_ledger("r"))["ok"]
    await world.close()


# -- faults


async def live(world: World, safe: Safe, *, at: int = 0, mode: str = "die_before") -> FaultyBackend | None:
    """One life of the process; every part may be repeated by the next."""
    workflow = asks()
    rt, store = world.faulty_runtime({"write": safe.write}, at=at, mode=mode, max_inline_backoff=0.0)
    try:
        await rt.start(workflow=workflow, run_id="r")
        for _ in range(10):
            state = await rt.tick(workflow=workflow, run_id="r")
            if state.status is RunStatus.COMPLETED:
                break
            if state.status is RunStatus.WAITING:
                await rt.resume(
                    workflow=workflow,
                    run_id="r",
                    wait_key=state.waiting.wait_key,
                    payload={"approved": True},
                    max_steps=0,
                    actor_id="ann",
                )
    except ProcessDied:
        assert at
    return store.backend


@pytest.mark.parametrize("kind", ["memory", "sqlite", "json"])
@pytest.mark.parametrize("mode", FaultyBackend.MODES)
async def test_every_write_may_fail_and_nothing_that_landed_is_done_twice(kind: str, mode: str, tmp_path: Path) -> None:
    writes = 1
    at = 0
    while at < writes + 1:
        at += 1
        folder = tmp_path / f"{at}"
        folder.mkdir()
        world, safe = World("async", kind, folder, synchronous="NORMAL"), Safe()
        backend = await live(world, safe, at=at, mode=mode)
        assert backend is not None
        writes = backend.writes if not backend.fired else max(writes, at + 1)
        if backend.fired and mode.startswith("die"):
            await live(world, safe)  # the next process
        rt = world.runtime()
        state, ledger = await rt.get_state("r"), await rt.get_ledger("r")
        where = f"{mode} at write {at}"
        assert state.status is RunStatus.COMPLETED, where
        assert state.output["result"] == {"written": ["one", "three", "two"], "by": "ann"}, where
        check_ledger(state, ledger)
        assert len(safe.calls) == 1, f"{where}: another key"
        assert len(safe.done) == 3
        assert sum(safe.done.values()) <= (4 if mode.startswith("die") else 3), f"{where}: {safe.done}"
        assert sum((record["effect"] or {}).get("type") == "resume" for record in ledger) == 1, where
        await world.close()
        if not backend.fired:
            break
    assert at > 8
