"""Several effects of one step: performed together, landing one by one, ending the step together."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    Change,
    DefaultEffectPolicy,
    Effect,
    EffectCall,
    EffectOutcome,
    EffectType,
    InvalidPlan,
    Request,
    RunState,
    RunStatus,
    SqliteDatabase,
    StepPlan,
)

from . import worlds
from .checks import check_on_the_way
from .faults import FaultyBackend, ProcessDied
from .scale import scaled
from .worlds import Gate, World, end, eventually, flow, statuses

world = worlds.world
async_world = worlds.async_world


def step(*effects: Effect, then: str | None = "end", **options: Any) -> Any:
    """A workflow of one step with these effects, and `end`."""

    def work(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("work", effects=list(effects), next_node=then, **options)

    return flow("work", work=work)


def shops(count: int, kind: str = "fetch") -> list[Effect]:
    return [Effect(kind, {"shop": number}, f"price.s{number}") for number in range(count)]


class Shop:
    """Handlers that count their calls by key, and may fail, hang or raise for some shops."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.order: list[int] = []
        self.now = self.most = 0
        self.gates: dict[int, Gate] = {}
        self.failing: dict[int, Any] = {}

    async def fetch(self, call: EffectCall) -> EffectOutcome:
        self.calls[call.key] += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            shop = call.payload["shop"]
            if shop in self.gates:
                await self.gates[shop].passed()
            await asyncio.sleep(0)
            self.order.append(shop)
            failure = self.failing.get(shop)
            return failure(call) if failure else EffectOutcome.completed(shop * 10)
        finally:
            self.now -= 1

    def fetch_blocking(self, call: EffectCall) -> EffectOutcome:
        self.calls[call.key] += 1
        return EffectOutcome.completed(call.payload["shop"] * 10)


def _landed(ledger: list[dict[str, Any]]) -> int:
    return sum(record["status"] == "completed" and record["effect"] is not None for record in ledger)


async def until_landed(rt: Any, count: int) -> None:
    """Let the loop turn until so many effects of run r have landed."""
    while _landed(await rt.get_ledger("r")) < count:  # noqa: ASYNC110 - what is awaited stands in the store
        await asyncio.sleep(0)


@pytest.mark.parametrize("handler", ["fetch", "fetch_blocking"])
async def test_effects_of_one_step_give_each_its_own_result(world: World, handler: str) -> None:
    shop = Shop()
    rt = world.runtime({"fetch": getattr(shop, handler)})
    state = await rt.run(step(*shops(5)), run_id="r")
    assert (state.status, state.output) == (RunStatus.COMPLETED, {"price": {f"s{n}": n * 10 for n in range(5)}})
    ledger = await rt.get_ledger("r")
    assert Counter(statuses(ledger, "fetch")) == {"started": 5, "completed": 5}
    assert {record["step_id"] for record in ledger if record["status"] == "started"} == {f"r:{n}.1" for n in range(5)}
    assert len(shop.calls) == 5
    assert state.vars["_runtime"]["effect_seq"] == 5
    check_on_the_way(state, ledger)
    traces = await rt.get_node_traces("r")
    assert len(traces["work"]["steps"]) == 5


async def test_they_are_in_flight_together_and_no_more_than_the_width(world: World) -> None:
    shop = Shop()
    shop.gates = {number: Gate() for number in range(10)}
    rt = world.runtime({"fetch": shop.fetch})
    running = asyncio.ensure_future(rt.run(step(*shops(10), max_parallel=4), run_id="r"))
    await eventually(lambda: shop.now == 4)
    assert Counter(statuses(await rt.get_ledger("r"), "fetch")) == {"started": 4}
    for gate in shop.gates.values():
        gate.open()
    state = await running
    assert state.status is RunStatus.COMPLETED
    assert shop.most == 4
    assert len(shop.order) == 10


async def test_each_lands_by_itself_while_the_others_go_on(world: World) -> None:
    shop = Shop()
    shop.gates = {2: Gate()}
    rt = world.runtime({"fetch": shop.fetch})
    running = asyncio.ensure_future(rt.run(step(*shops(3)), run_id="r"))
    await until_landed(rt, 2)
    state = await rt.get_state("r")
    assert [part.ended.result if part.ended else None for part in state.intent.parts] == [0, 10, None]
    assert "price" not in state.vars
    shop.gates[2].open()
    assert (await running).output == {"price": {"s0": 0, "s1": 10, "s2": 20}}


async def test_results_are_written_in_the_order_of_the_list(world: World) -> None:
    async def slow(call: EffectCall) -> EffectOutcome:
        await asyncio.sleep(0.02 if call.payload["first"] else 0)
        change = Change(path="log", value=call.payload["first"], op="append")
        return EffectOutcome.completed(call.payload["first"], changes=(change,))

    rt = world.runtime({"slow": slow})
    effects = [Effect("slow", {"first": True}, "a"), Effect("slow", {"first": False}, "a.b")]
    state = await rt.run(step(*effects), run_id="r")
    assert state.output == {"a": {"b": False}, "log": [True, False]}


async def test_without_a_next_node_the_run_ends_with_all_results(world: World) -> None:
    rt = world.runtime({"fetch": Shop().fetch})
    state = await rt.run(step(*shops(2), then=None), run_id="r")
    assert state.output == {"success": True, "results": [0, 10]}


async def test_a_built_in_effect_may_be_one_of_several(world: World) -> None:
    rt = world.runtime({"fetch": Shop().fetch})
    said = Effect(EffectType.ANSWER_USER, {"message": "hello"}, "said")
    state = await rt.run(step(said, *shops(1)), run_id="r")
    assert state.output == {"said": {"message": "hello", "level": "message"}, "price": {"s0": 0}}


async def test_one_that_fails_fails_the_run_and_cancels_the_others(world: World) -> None:
    shop = Shop()
    shop.gates = {0: Gate()}
    shop.failing = {1: lambda call: EffectOutcome.failed("sold out", retryable=False)}
    rt = world.runtime({"fetch": shop.fetch})
    state = await rt.run(step(*shops(2)), run_id="r")
    assert (state.status, state.error) == (RunStatus.FAILED, "Effect 2 of 2 (fetch) failed: sold out")
    ledger = await rt.get_ledger("r")
    assert sorted(statuses(ledger, "fetch")) == ["cancelled", "failed", "started", "started"]
    assert "price" not in state.vars
    assert shop.now == 0, "the other handler was cancelled"


async def test_collected_failures_are_results(world: World) -> None:
    shop = Shop()
    shop.failing = {1: lambda call: EffectOutcome.failed("sold out", retryable=False)}
    rt = world.runtime({"fetch": shop.fetch})
    state = await rt.run(step(*shops(3), on_failure="collect"), run_id="r")
    assert state.output == {"price": {"s0": 0, "s1": {"ok": False, "error": "sold out"}, "s2": 20}}


async def test_an_effect_that_would_wait_is_refused_among_several(world: World) -> None:
    rt = world.runtime({"fetch": Shop().fetch})
    question = Effect(EffectType.ASK_USER, {"prompt": "Go on?"}, "answer")
    state = await rt.run(step(question, *shops(1)), run_id="r")
    assert state.status is RunStatus.FAILED
    assert "ask_user would wait" in state.error
    assert "step of its own" in state.error


async def test_a_type_that_nobody_handles_fails_the_step(world: World) -> None:
    state = await world.runtime().run(step(*shops(2)), run_id="r")
    assert state.error == "Effect 1 of 2 (fetch) failed: No effect handler registered for fetch"


@pytest.mark.parametrize(
    ("effects", "options", "why"),
    [
        ([Effect("a", {}, "x"), Effect("b", {}, "x")], {}, "two effects with the result_key 'x'"),
        ([Effect("a"), "b"], {}, "no Effect with a dict payload: found a str"),
        ([Effect("a", {"x": {1, 2}})], {}, r"effects\[0\].payload.x"),
        ([Effect("a")], {"max_parallel": 0}, "max_parallel=0"),
        ([Effect("a")], {"on_failure": "ignore"}, "on_failure='ignore'"),
        ([Effect("a")], {"effect": Effect("b")}, "both effect and effects"),
    ],
)
async def test_a_plan_that_makes_no_sense_is_a_node_error(async_world: World, effects, options, why) -> None:
    rt = async_world.runtime()
    workflow = flow("work", work=lambda run, ctx: StepPlan("work", effects=effects, next_node="end", **options))
    await rt.start(workflow=workflow, run_id="r")
    with pytest.raises((InvalidPlan, ValueError), match=why):
        await rt.tick(workflow=workflow, run_id="r")
    assert (await rt.get_state("r")).status is RunStatus.RUNNING


async def test_an_attempt_that_failed_is_made_again_while_the_others_go_on(world: World) -> None:
    shop = Shop()
    shop.failing = {1: lambda call: EffectOutcome.failed("busy") if call.attempt < 3 else EffectOutcome.completed(7)}
    rt = world.runtime({"fetch": shop.fetch}, effect_policy=DefaultEffectPolicy(3, default_backoff_base=0.0))
    state = await rt.run(step(*shops(3)), run_id="r")
    assert state.output == {"price": {"s0": 0, "s1": 7, "s2": 20}}
    assert sorted(shop.calls.values()) == [1, 1, 3], "every attempt has the same key"
    ledger = await rt.get_ledger("r")
    assert [r["attempt"] for r in ledger if r["status"] == "failed"] == [1, 2]
    check_on_the_way(state, ledger)


async def test_after_the_last_attempt_the_error_says_how_many_there_were(world: World) -> None:
    shop = Shop()
    shop.failing = {0: lambda call: EffectOutcome.failed("busy")}
    rt = world.runtime({"fetch": shop.fetch}, effect_policy=DefaultEffectPolicy(2, default_backoff_base=0.0))
    state = await rt.run(step(*shops(1)), run_id="r")
    assert state.error == "Effect 1 of 1 (fetch) failed after 2 attempts: busy"


async def test_a_long_backoff_of_one_is_durable_and_repeats_only_that_one(async_world: World) -> None:
    shop = Shop()
    shop.failing = {1: lambda call: EffectOutcome.failed("busy") if call.attempt == 1 else EffectOutcome.completed(7)}
    policy = DefaultEffectPolicy(2, default_backoff_base=600.0, default_backoff_max=600.0)
    rt = async_world.runtime({"fetch": shop.fetch}, effect_policy=policy)
    workflow = step(*shops(3))
    state = await rt.run(workflow, run_id="r")
    assert state.status is RunStatus.RUNNING
    assert state.intent.due == "2026-01-31T09:10:00.000000+00:00"
    assert state.intent.token is None
    await rt.aclose()
    async_world.clock.advance(600)
    again = async_world.runtime({"fetch": shop.fetch}, effect_policy=policy)
    state = await again.tick(workflow=workflow, run_id="r")
    assert state.output == {"price": {"s0": 0, "s1": 7, "s2": 20}}
    assert sorted(shop.calls.values()) == [1, 1, 2]


async def test_a_pause_between_attempts_outlives_the_process(async_world: World) -> None:
    shop = Shop()
    shop.failing = {1: lambda call: EffectOutcome.failed("busy") if call.attempt == 1 else EffectOutcome.completed(7)}
    policy = DefaultEffectPolicy(2, default_backoff_base=600.0, default_backoff_max=600.0)
    options: dict[str, Any] = {"effect_policy": policy, "max_inline_backoff": 3600.0}
    rt = async_world.runtime({"fetch": shop.fetch}, **options)
    workflow = step(*shops(2))
    await rt.start(workflow=workflow, run_id="r")
    ticking = asyncio.ensure_future(rt.tick(workflow=workflow, run_id="r"))
    await eventually(lambda: any(nap > 500 for nap in async_world.clock.naps))
    await rt.aclose()
    with pytest.raises(asyncio.CancelledError):
        await ticking
    again = async_world.runtime({"fetch": shop.fetch}, effect_policy=policy)
    state = await again.tick(workflow=workflow, run_id="r")
    assert (state.status, state.due) == (RunStatus.RUNNING, "2026-01-31T09:10:00.000000+00:00")
    assert sorted(shop.calls.values()) == [1, 1], "its time has not come"
    async_world.clock.advance(600)
    state = await again.tick(workflow=workflow, run_id="r")
    assert state.output == {"price": {"s0": 0, "s1": 7}}
    assert sorted(shop.calls.values()) == [1, 2]


async def test_one_of_several_that_waits_for_a_place_has_not_begun(async_world: World) -> None:
    shop = Shop()
    shop.gates = {number: Gate() for number in range(3)}
    policy = DefaultEffectPolicy(unknown_rules={"fetch": "ask"})
    workflow = step(*shops(3))
    rt = async_world.runtime({"fetch": shop.fetch}, effect_limits={"fetch": 1}, effect_policy=policy)
    running = asyncio.ensure_future(rt.run(workflow, run_id="r"))
    await eventually(lambda: shop.now == 1)
    await asyncio.sleep(0.01)
    assert statuses(await rt.get_ledger("r"), "fetch") == ["started"], "who has no place has promised nothing"
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    for gate in shop.gates.values():
        gate.open()
    state = await rt.tick(workflow=workflow, run_id="r")
    assert state.output == {"price": {"s0": 0, "s1": 10, "s2": 20}}
    assert shop.most == 1
    assert sorted(shop.calls.values()) == [1, 1, 2]
    check_on_the_way(state, await rt.get_ledger("r"))


async def test_requests_to_other_runs_land_with_their_effect(async_world: World) -> None:
    async def stop(call: EffectCall) -> EffectOutcome:
        request = Request(run_id="other", kind="cancel", by=call.run.run_id, at=call.now)
        return EffectOutcome.completed("asked", requests=(request,))

    shop = Shop()
    shop.gates = {0: Gate()}
    rt = async_world.runtime({"stop": stop, "fetch": shop.fetch})
    other = step(*shops(1))
    await rt.start(workflow=other, run_id="other")
    running = asyncio.ensure_future(rt.run(step(Effect("stop", {}, "stopped"), *shops(1)), run_id="r"))
    await until_landed(rt, 1)
    assert (await rt.tick(workflow=other, run_id="other")).status is RunStatus.CANCELLED
    shop.gates[0].open()
    assert (await running).status is RunStatus.COMPLETED


async def test_a_cancel_reaches_every_handler_and_closes_what_had_not_landed(world: World) -> None:
    shop = Shop()
    shop.gates = {1: Gate(), 2: Gate()}
    rt = world.runtime({"fetch": shop.fetch})
    running = asyncio.ensure_future(rt.run(step(*shops(3)), run_id="r"))
    await eventually(lambda: shop.now == 2 and shop.order == [0])
    await until_landed(rt, 1)
    assert (await rt.cancel_run("r", reason="changed my mind")).status is RunStatus.CANCELLED
    assert (await running).status is RunStatus.CANCELLED
    await eventually(lambda: shop.now == 0)
    state, ledger = await rt.get_state("r"), await rt.get_ledger("r")
    assert Counter(statuses(ledger, "fetch")) == {"started": 3, "completed": 1, "cancelled": 2}
    check_on_the_way(state, ledger)


async def test_a_pause_lets_the_step_end_and_holds_the_run_behind_it(world: World) -> None:
    shop = Shop()
    shop.gates = {0: Gate()}
    rt = world.runtime({"fetch": shop.fetch})
    workflow = step(*shops(2))
    running = asyncio.ensure_future(rt.run(workflow, run_id="r"))
    await eventually(lambda: shop.order == [1])
    await rt.pause_run("r")
    shop.gates[0].open()
    state = await running
    assert state.paused
    assert state.vars["price"] == {"s0": 0, "s1": 10}
    await rt.resume_run("r")
    assert (await rt.tick(workflow=workflow, run_id="r")).output == {"price": {"s0": 0, "s1": 10}}
    assert sorted(shop.calls.values()) == [1, 1]


async def test_a_tick_that_is_cancelled_hands_back_what_had_not_landed(async_world: World) -> None:
    shop = Shop()
    shop.gates = {1: Gate()}
    rt = async_world.runtime({"fetch": shop.fetch})
    workflow = step(*shops(2))
    await rt.start(workflow=workflow, run_id="r")
    ticking = asyncio.ensure_future(rt.tick(workflow=workflow, run_id="r"))
    await until_landed(rt, 1)
    ticking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ticking
    state, ledger = await rt.get_state("r"), await rt.get_ledger("r")
    assert state.intent.token is None
    check_on_the_way(state, ledger)
    shop.gates[1].open()
    state = await rt.tick(workflow=workflow, run_id="r")
    assert state.output == {"price": {"s0": 0, "s1": 10}}
    assert sorted(shop.calls.values()) == [1, 2], "what had landed was not repeated"


async def test_secrets_of_each_effect_reach_its_handler_and_nothing_else(async_world: World) -> None:
    seen: list[str] = []

    async def call_api(call: EffectCall) -> EffectOutcome:
        seen.append(call.payload["api_key"])
        return EffectOutcome.completed({"echo": call.payload["api_key"]})

    rt = async_world.runtime({"api": call_api})
    effects = [Effect("api", {"api_key": f"sk-secret-{n}"}, f"r{n}") for n in range(2)]
    await rt.run(step(*effects), run_id="r")
    assert sorted(seen) == ["sk-secret-0", "sk-secret-1"]
    assert "sk-secret" not in str(await rt.get_ledger("r"))
    assert "sk-secret" not in str(await rt.get_state("r"))


@pytest.mark.parametrize(("rule", "status"), [("again", "completed"), ("fail", "failed"), ("ask", "waiting")])
async def test_after_a_death_the_policy_decides_about_those_that_had_not_landed(
    async_world: World, rule: Any, status: str
) -> None:
    shop = Shop()
    policy = DefaultEffectPolicy(unknown_rules={"fetch": rule})
    workflow = step(*shops(3), max_parallel=1)
    rt, _ = async_world.faulty_runtime({"fetch": shop.fetch}, at=4, mode="die_before", effect_policy=policy)
    with pytest.raises((ProcessDied, BaseExceptionGroup)):
        await rt.run(workflow, run_id="r")
    performed = sum(shop.calls.values())
    again = async_world.runtime({"fetch": shop.fetch}, effect_policy=policy)
    state = await again.tick(workflow=workflow, run_id="r")
    assert state.status.value == status
    if rule == "ask":
        assert state.waiting.details["kind"] == "unknown_outcome"
        state = await again.resume(workflow=workflow, run_id="r", wait_key=None, payload={"choice": "perform again"})
        assert state.status is RunStatus.COMPLETED
    if rule == "fail":
        assert "Outcome unknown" in state.error
        assert sum(shop.calls.values()) == performed
    check_on_the_way(state, await again.get_ledger("r"))


def parallel_and_flaky(shop: Shop) -> Any:
    def count(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("count", effects=shops(4), next_node="end", max_parallel=2)

    shop.failing = {1: lambda call: EffectOutcome.failed("busy") if call.attempt == 1 else EffectOutcome.completed(7)}
    return flow("count", count=count, end=end)


@pytest.mark.parametrize("mode", FaultyBackend.MODES)
async def test_every_write_of_a_parallel_step_may_fail_and_only_what_had_not_landed_is_repeated(
    async_world: World, mode: str
) -> None:
    policy = DefaultEffectPolicy(2, default_backoff_base=0.0)
    at = fired = 0
    while at == 0 or fired:
        at += 1
        shop, run_id = Shop(), f"r{at}"
        workflow = parallel_and_flaky(shop)
        rt, store = async_world.faulty_runtime({"fetch": shop.fetch}, at=at, mode=mode, effect_policy=policy)
        try:
            await rt.run(workflow, run_id=run_id)
        except (ProcessDied, BaseExceptionGroup):
            assert mode.startswith("die")
        assert store.backend is not None
        fired = store.backend.fired
        again = async_world.runtime({"fetch": shop.fetch}, effect_policy=policy)
        await again.start(workflow=workflow, run_id=run_id)
        state = await again.tick(workflow=workflow, run_id=run_id)
        where = f"{mode} at write {at}"
        assert state.output == {"price": {"s0": 0, "s1": 7, "s2": 20, "s3": 30}}, where
        ledger = await again.get_ledger(run_id)
        check_on_the_way(state, ledger)
        landed = Counter(r["idempotency_key"] for r in ledger if r["status"] == "completed" and r["effect"])
        fetched = {key: count for key, count in landed.items() if key in shop.calls}
        assert set(fetched.values()) == {1}, where
        assert len(fetched) == 4, where
        lost = Counter(r["idempotency_key"] for r in ledger if r["result"] == {"outcome": "unknown"})
        attempts = Counter(r["idempotency_key"] for r in ledger if r["status"] == "started")
        assert all(shop.calls[key] <= attempts[key] for key in shop.calls), where
        if not mode.startswith("die"):
            assert not lost, where
            assert sorted(shop.calls.values()) == [1, 1, 1, 2], where
    assert at > 8


async def test_fleets_of_parallel_steps_land_in_shared_commits(async_world: World) -> None:
    shop = Shop()
    rt = async_world.runtime({"fetch": shop.fetch})
    states = await asyncio.gather(*(rt.run(step(*shops(8))) for _ in range(scaled(30, 500))))
    assert {state.status for state in states} == {RunStatus.COMPLETED}
    assert set(shop.calls.values()) == {1}


async def test_stores_of_users_get_the_same_and_repeat_only_what_had_not_landed(tmp_path: Any) -> None:
    database, other = SqliteDatabase(tmp_path / "runs.db"), SqliteDatabase(tmp_path / "ledger.db")
    pair: dict[str, Any] = {"run_store": AsyncSqliteRunStore(database), "ledger_store": AsyncSqliteLedgerStore(other)}
    shop = Shop()
    shop.gates = {1: Gate()}
    workflow = step(*shops(3))
    async with database, other:
        rt = AsyncRuntime(**pair, effect_handlers={"fetch": shop.fetch})
        await rt.start(workflow=workflow, run_id="r")
        ticking = asyncio.ensure_future(rt.tick(workflow=workflow, run_id="r"))
        await until_landed(rt, 2)
        intent = (await rt.get_state("r")).intent
        assert intent is not None
        assert [part.ended is not None for part in intent.parts] == [True, False, True]
        ticking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ticking
        shop.gates[1].open()
        async with AsyncRuntime(**pair, effect_handlers={"fetch": shop.fetch}) as again:
            state = await again.tick(workflow=workflow, run_id="r")
        assert state.output == {"price": {"s0": 0, "s1": 10, "s2": 20}}
        assert sorted(shop.calls.values()) == [1, 1, 2]


def expected_of(fates: list[str], collect: bool) -> tuple[RunStatus, dict[str, Any] | None]:
    """How a step of these effects ends: `ok`, `flaky` (fails in its first attempt) or `never`."""
    if "never" in fates and not collect:
        return RunStatus.FAILED, None
    results: dict[str, Any] = {f"s{n}": n * 10 for n in range(len(fates))}
    for n, fate in enumerate(fates):
        if fate == "never":
            results[f"s{n}"] = {"ok": False, "error": "sold out"}
    return RunStatus.COMPLETED, results


class Fates:
    """A handler that does what the fate of each shop says, and counts its tries by key."""

    def __init__(self, fates: list[str], tries: Counter[str]) -> None:
        self.fates, self.tries = fates, tries

    async def __call__(self, call: EffectCall) -> EffectOutcome:
        fate = self.fates[call.payload["shop"]]
        self.tries[call.key] += 1
        await asyncio.sleep(0)
        if fate == "never":
            return EffectOutcome.failed("sold out", retryable=False)
        if fate == "flaky" and self.tries[call.key] == 1:
            return EffectOutcome.failed("busy")
        return EffectOutcome.completed(call.payload["shop"] * 10)


async def test_random_steps_with_faults_at_random_places_end_as_they_should(tmp_path: Any, seed: int) -> None:
    rng = random.Random(seed)
    policy = DefaultEffectPolicy(2, default_backoff_base=0.0)
    for number in range(scaled(60, 3_000)):
        world = World("async", rng.choice(["memory", "sqlite"]), tmp_path)
        fates = [rng.choice(["ok", "ok", "flaky", "never"]) for _ in range(rng.randint(1, 6))]
        collect = rng.random() < 0.5
        workflow = step(*shops(len(fates)), max_parallel=rng.randint(1, 4), on_failure="collect" if collect else "fail")
        run_id, deaths, tries = f"r{number}", 0, Counter[str]()

        fetch = Fates(fates, tries)

        for _ in range(rng.randint(0, 4)):
            at, mode = rng.randint(1, 8), rng.choice(FaultyBackend.MODES)
            rt, store = world.faulty_runtime({"fetch": fetch}, at=at, mode=mode, effect_policy=policy)
            with suppress(ProcessDied, BaseExceptionGroup):
                await rt.run(workflow, run_id=run_id)
            assert store.backend is not None
            deaths += store.backend.fired and mode.startswith("die")
        rt = world.runtime({"fetch": fetch}, effect_policy=policy)
        state = await rt.run(workflow, run_id=run_id)
        status, results = expected_of(fates, collect)
        where = f"round {number}: {fates}, {state.error}"
        assert state.status is status, where
        ledger = await rt.get_ledger(run_id)
        check_on_the_way(state, ledger)
        if results is not None:
            assert state.output == {"price": results}, where
            assert len(tries) == len(fates), where
            assert all(tries[key] <= 2 + deaths for key in tries), where
        landed = Counter(r["idempotency_key"] for r in ledger if r["status"] == "completed" and r["effect"])
        assert all(count == 1 for key, count in landed.items() if key in tries), where
        await world.close()
