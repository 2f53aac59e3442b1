"""Crashes, unclear writes and zombies: bugs that users of durable runtimes have suffered, as tests of ours."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    DefaultEffectPolicy,
    Effect,
    EffectCall,
    EffectOutcome,
    RunState,
    RunStatus,
    StaleResumeError,
    StepPlan,
    StoreBusy,
    StoreCorrupt,
)
from abstractruntime.core import leases

from . import worlds
from .clocks import StillClock
from .faults import ProcessDied
from .worlds import Gate, World, ask, eventually, flow, one, statuses

world = worlds.world
async_world = worlds.async_world
sqlite_world = worlds.sqlite_world


class Till:
    """The world outside: counts what it was told to do, by idempotency key."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __call__(self, call: EffectCall) -> EffectOutcome:
        self.calls[call.key] += 1
        return EffectOutcome.completed(call.payload.get("n", sum(self.calls.values())))


def loop_three_times(run: RunState, ctx: Any) -> StepPlan:
    run.vars["n"] = run.vars.get("n", 0) + 1
    return StepPlan(
        "loop", Effect("host", {"same": True}, f"got{run.vars['n']}"), "loop" if run.vars["n"] < 3 else "end"
    )


async def test_a_loop_with_an_identical_payload_performs_each_of_its_effects(world: World) -> None:
    till = Till()
    state = await world.runtime({"host": till}).run(flow("loop", loop=loop_three_times))
    assert state.output == {"n": 3, "got1": 1, "got2": 2, "got3": 3}
    assert list(till.calls.values()) == [1, 1, 1]


async def test_a_loop_that_queries_vars_sees_each_change(world: World) -> None:
    def loop(run: RunState, ctx: Any) -> StepPlan:
        run.vars["n"] = run.vars.get("n", 0) + 1
        then = "loop" if run.vars["n"] < 3 else "end"
        return StepPlan("loop", Effect("vars_query", {"path": "n"}, f"seen{run.vars['n']}"), then)

    state = await world.runtime().run(flow("loop", loop=loop))
    seen = [state.output[f"seen{n}"]["results"][0]["output"] for n in (1, 2, 3)]
    assert [text.split('"value": ')[1].split("\n")[0] for text in seen] == ["1", "2", "3"]


@pytest.mark.parametrize("mode", ["die_before", "die_after"])
async def test_sigkill_between_state_and_ledger_leaves_them_in_agreement(world: World, mode: str) -> None:
    work = flow("a", a=ask("a", "host", {}, "x", "b"), b=ask("b", "answer_user", {"message": "hi"}, "y"))
    till = Till()
    for at in range(1, 20):
        rt, store = world.faulty_runtime({"host": till}, at=at, mode=mode)
        run_id = f"{mode}{at}"
        try:
            await rt.run(work, run_id=run_id)
        except ProcessDied:
            later = world.runtime({"host": till})
            await agree(later, run_id)
            state = await later.run(work, run_id=run_id)
            await agree(later, run_id)
            assert state.output["y"] == {"message": "hi", "level": "message"}
        else:
            assert store.backend is not None
            assert not store.backend.fired
            break
    else:
        raise AssertionError("the walk never came to its end")


async def agree(rt: Any, run_id: str) -> None:
    """What the ledger says of the run is what its state says."""
    ledger = await rt.get_ledger(run_id)
    try:
        state = await rt.get_state(run_id)
    except KeyError:
        assert ledger == []
        return
    assert state.records == len(ledger)
    landed = [r for r in ledger if r["status"] in ("completed", "waiting") and r["step_id"].startswith(f"{run_id}:")]
    assert state.vars["_runtime"].get("effect_seq", 0) == len(landed)
    ended = [r for r in ledger if (r["idempotency_key"] or "").startswith("system:")]
    assert len(ended) == (2 if state.status is RunStatus.COMPLETED else 0)


async def test_write_landed_but_caller_saw_error_and_nothing_is_done_twice(world: World) -> None:
    for at in range(1, 7):
        till = Till()
        rt, _ = world.faulty_runtime({"host": till}, at=at, mode="landed_but_error")
        state = await rt.run(one("host", {"n": 5}), run_id=f"r{at}")
        assert state.output == {"result": 5}
        assert list(till.calls.values()) == [1]
        await agree(rt, f"r{at}")


async def test_an_answer_whose_write_landed_but_was_reported_lost_is_delivered_once(world: World) -> None:
    work = one("ask_user", {"prompt": "?"})
    for mode in ("landed_but_error", "lost_with_error"):
        await world.runtime().run(work, run_id=mode)
        rt, store = world.faulty_runtime(at=1, mode=mode)
        state = await rt.resume(workflow=work, run_id=mode, wait_key=None, payload="yes")
        assert store.backend is not None
        assert store.backend.fired
        assert state.output == {"result": "yes"}
        assert statuses(await rt.get_ledger(mode), "resume") == ["completed"]


async def test_a_start_whose_write_landed_but_was_reported_lost_is_one_run(world: World) -> None:
    rt, _ = world.faulty_runtime(at=1, mode="landed_but_error")
    assert await rt.start(workflow=flow("end"), run_id="r", vars={"x": 1}) == "r"
    assert (await rt.get_state("r")).revision == 1


async def test_a_crash_after_the_answer_was_committed_loses_nothing(world: World) -> None:
    work = one("ask_user", {"prompt": "?"})
    await world.runtime().run(work, run_id="r")
    rt, _ = world.faulty_runtime(at=1, mode="die_after")
    with pytest.raises(ProcessDied):
        await rt.resume(workflow=work, run_id="r", wait_key=None, payload="yes")
    later = world.runtime()
    with pytest.raises(StaleResumeError):
        await later.resume(workflow=work, run_id="r", wait_key=None, payload="again")
    assert (await later.tick(workflow=work, run_id="r")).output == {"result": "yes"}


async def test_a_crash_between_attempts_does_not_start_counting_anew(world: World) -> None:
    policy = DefaultEffectPolicy(3, default_backoff_base=0.0)
    attempts: list[int] = []

    def flaky(call: EffectCall) -> EffectOutcome:
        attempts.append(call.attempt)
        return EffectOutcome.failed("no")

    for at in (4, 5):  # start, lease, promise, first retry, claim of the second attempt
        attempts.clear()
        rt, _ = world.faulty_runtime({"host": flaky}, at=at, mode="die_after", effect_policy=policy)
        with pytest.raises(ProcessDied):
            await rt.run(one("host"), run_id=f"r{at}")
        state = await world.runtime({"host": flaky}, effect_policy=policy).run(one("host"), run_id=f"r{at}")
        assert state.error == "Effect failed after 3 attempts: no"
        assert len(attempts) == 3


async def test_zombie_writes_after_lease_loss_are_refused(async_world: World) -> None:
    gate, keys = Gate(), []

    async def slow(call: EffectCall) -> EffectOutcome:
        keys.append(call.key)
        await gate.passed()
        return EffectOutcome.completed("the zombie's")

    zombie = async_world.runtime({"host": slow}, clock=StillClock())  # its time stands still: it cannot renew
    task = asyncio.create_task(zombie.run(one("host"), run_id="r"))
    await eventually(lambda: gate.inside)
    forget_owner(zombie)
    async_world.clock.advance(60)

    def quick(call: EffectCall) -> EffectOutcome:
        keys.append(call.key)
        return EffectOutcome.completed("the successor's")

    successor = async_world.runtime({"host": quick})
    state = await successor.tick(workflow=one("host"), run_id="r")
    assert state.output == {"result": "the successor's"}
    gate.open()
    late = await task
    assert (late.status, late.output, late.revision) == (state.status, state.output, state.revision)
    ledger = await successor.get_ledger("r")
    assert statuses(ledger, "host") == ["started", "failed", "started", "completed"]
    assert "zombie" not in str(ledger)
    assert keys[0] == keys[1]


def forget_owner(rt: AsyncRuntime) -> None:
    """Let a runtime of this process be judged as if it lived in another one: by its lease alone."""
    del leases._PEERS[rt._leases.owner]


async def test_a_claim_that_is_alive_in_another_process_is_left_alone(sqlite_world: World) -> None:
    gate, till = Gate(), Till()

    async def slow(call: EffectCall) -> EffectOutcome:
        await gate.passed()
        return till(call)

    first, second = sqlite_world.runtime({"host": slow}), sqlite_world.runtime({"host": slow})
    task = asyncio.create_task(first.run(one("host", {"n": 1}), run_id="r"))
    await eventually(lambda: gate.inside)
    forget_owner(first)
    state = await second.tick(workflow=one("host"), run_id="r")
    assert (state.status, gate.inside) == (RunStatus.RUNNING, 1)
    gate.open()
    assert (await task).output == {"result": 1}
    assert (await second.tick(workflow=one("host"), run_id="r")).status is RunStatus.COMPLETED


async def test_a_lock_error_is_told_and_never_becomes_the_end_of_a_run(world: World) -> None:
    rt, store = world.faulty_runtime({"host": Till()}, at=10**9)
    for kind, work in (("host", one("host", {"n": 1})), ("answer_user", one("answer_user", {"message": "x"}))):
        await rt.start(workflow=work, run_id=kind)
        backend = store.backend
        assert backend is not None
        inner, backend._inner = backend._inner, Locked(backend._inner)
        with pytest.raises(StoreBusy):
            await rt.tick(workflow=work, run_id=kind)
        backend._inner = inner
        state = await rt.tick(workflow=work, run_id=kind)
        assert (state.status, state.node_errors) == (RunStatus.COMPLETED, 0)


class Locked:
    """A backend whose writes find the database locked."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def commit(self, write: Any) -> None:
        raise StoreBusy("locked")

    async def renew(self, owner: str, until: int) -> None:
        raise StoreBusy("locked")


async def test_a_store_that_fails_in_mid_effect_leaves_the_effect_to_whoever_comes_next(world: World) -> None:
    till = Till()

    def lock_out(call: EffectCall) -> EffectOutcome:
        backend._inner = Locked(backend._inner)
        return till(call)

    rt, store = world.faulty_runtime({"host": lock_out}, at=10**9)
    assert store.backend is not None
    backend = store.backend
    with pytest.raises(StoreBusy):
        await rt.run(one("host", {"n": 1}), run_id="r")
    state = await world.runtime({"host": till}).tick(workflow=one("host"), run_id="r")
    assert state.output == {"result": 1}
    assert list(till.calls.values()) == [2], "at least once, with one key"


async def test_a_damaged_state_is_told_as_damage_and_not_as_an_unknown_run(async_world: World) -> None:
    rt = async_world.runtime()
    await rt.start(workflow=flow("end"), run_id="r")
    if async_world.kind == "memory":
        async_world._memory[0]._rows["r"].data = b'{"run_id":'
    else:
        with sqlite3.connect(async_world.path) as connection:
            connection.execute("UPDATE states SET data = ?", (b'{"run_id":',))
        connection.close()
    for attempt in (rt.get_state("r"), rt.tick(workflow=flow("end"), run_id="r"), rt.cancel_run("r")):
        with pytest.raises(StoreCorrupt, match="'r'"):
            await attempt


async def test_a_node_that_raises_after_changing_vars_changes_nothing_that_is_stored(world: World) -> None:
    def spoil(run: RunState, ctx: Any) -> StepPlan:
        run.vars["deep"]["list"].append("spoiled")
        raise ValueError("no")

    rt = world.runtime()
    work = flow("spoil", spoil=spoil)
    await rt.start(workflow=work, run_id="r", vars={"deep": {"list": []}})
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            await rt.tick(workflow=work, run_id="r")
    assert (await rt.get_state("r")).vars["deep"] == {"list": []}
