"""Bookmarks of runs, and the way back to them."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from abstractruntime import (
    AsyncInMemoryLedgerStore,
    AsyncInMemoryRunStore,
    AsyncInMemorySnapshotStore,
    AsyncOffloadingRunStore,
    AsyncRuntime,
    DefaultEffectPolicy,
    Effect,
    EffectCall,
    EffectInFlight,
    EffectOutcome,
    HashChainedLedgerStore,
    InMemorySnapshotStore,
    InvalidSnapshot,
    ReentrantTick,
    RunState,
    RunStatus,
    Snapshot,
    StaleResumeError,
    StepPlan,
    StoreError,
    UnknownRun,
    UnknownSnapshot,
    UnsafeValue,
    WorkflowChanged,
    diff_snapshots,
)
from abstractruntime.core.codec import copy_of_run, record_dict
from abstractruntime.storage import LedgerStore, RunStore

from . import worlds
from .checks import check_on_the_way
from .faults import ProcessDied
from .scale import scaled
from .worlds import Gate, World, ask, eventually, flow, go, statuses

world, async_world = worlds.world, worlds.async_world

RUN = "r"


def key_of(state: RunState) -> str | None:
    """The key of what the run waits for."""
    assert state.waiting is not None
    return state.waiting.wait_key


class Shop:
    """A workflow that pays, asks and ships, and counts what it really did."""

    def __init__(self, **question: Any) -> None:
        self.done: Counter[str] = Counter()
        self.workflow = flow(
            "pay",
            pay=ask("pay", "pay", {}, "paid", "ask"),
            ask=ask("ask", "ask_user", {"prompt": "Ship?", **question}, "answer", "ship"),
            ship=ask("ship", "ship", {}, "shipped"),
        )

    def handle(self, call: EffectCall) -> EffectOutcome:
        self.done[call.effect.type] += 1
        return EffectOutcome.completed(f"{call.effect.type} {self.done[call.effect.type]}")

    @property
    def handlers(self) -> dict[str, Any]:
        return {"pay": self.handle, "ship": self.handle}

    async def tick(self, rt: Any) -> RunState:
        state: RunState = await rt.tick(workflow=self.workflow, run_id=RUN)
        return state

    async def answer(self, rt: Any, payload: Any, key: str | None = None, **options: Any) -> RunState:
        state: RunState = await rt.resume(workflow=self.workflow, run_id=RUN, wait_key=key, payload=payload, **options)
        return state

    async def to_the_question(self, rt: Any) -> RunState:
        await rt.start(workflow=self.workflow, run_id=RUN, vars={"cart": ["desk"]})
        return await self.tick(rt)


async def test_an_answer_is_taken_back_and_another_given(world: World):
    shop, store = Shop(), InMemorySnapshotStore()
    rt = world.runtime(shop.handlers, snapshot_store=store)
    before = await shop.to_the_question(rt)
    bookmark = await rt.snapshot_run(RUN, name="before the answer", description="d", tags=["t"])
    assert (bookmark.position, bookmark.step_id, bookmark.created_at) == (4, None, before.updated_at)
    assert store.load(bookmark.snapshot_id) == bookmark
    first = await shop.answer(rt, "no")
    assert (first.status, first.output["answer"]) == (RunStatus.COMPLETED, "no")

    back = await rt.restore(RUN, bookmark.snapshot_id, reason="a mistake", actor_id="eve")
    assert (back.status, back.current_node, back.output) == (RunStatus.WAITING, "ask", None)
    assert (back.revision, back.records) == (first.revision + 1, first.records + 1)
    assert back == await rt.get_state(RUN)
    second = await shop.answer(rt, "yes", key_of(back))
    assert second.output == {"cart": ["desk"], "paid": "pay 1", "answer": "yes", "shipped": "ship 2"}
    assert shop.done == {"pay": 1, "ship": 2}

    ledger = await rt.get_ledger(RUN)
    (restored,) = [r for r in ledger if (r["effect"] or {}).get("type") == "restore"]
    assert restored["actor_id"] == "eve"
    assert restored["effect"]["payload"] == {
        "snapshot_id": bookmark.snapshot_id,
        "name": "before the answer",
        "position": 4,
        "chain_head": None,
        "reason": "a mistake",
    }
    check_on_the_way(second, ledger)
    assert "restore" not in str(await rt.get_node_traces(RUN))
    assert (await rt.find_runs(status=RunStatus.COMPLETED)).items[0]["run_id"] == RUN


async def test_an_answer_to_what_was_asked_before_the_restore_is_stale(world: World):
    shop = Shop()
    rt = world.runtime(shop.handlers)
    asked = await shop.to_the_question(rt)
    bookmark = await rt.snapshot_run(RUN, name="x")
    await shop.answer(rt, "no", key_of(asked))
    back = await rt.restore(RUN, bookmark)
    assert key_of(back) != key_of(asked)
    with pytest.raises(StaleResumeError, match="wait_key mismatch"):
        await shop.answer(rt, "late", key_of(asked))
    assert (await rt.get_state(RUN)) == back
    assert (await rt.find_waits(run_id=RUN)).items[0]["wait_key"] == key_of(back)
    again = await rt.restore(RUN, bookmark)
    assert again == back, "it stands there already"
    await shop.answer(rt, "no")
    third = await rt.restore(RUN, bookmark)
    with pytest.raises(StaleResumeError):
        await shop.answer(rt, "late", key_of(back))
    assert (await shop.answer(rt, "yes", key_of(third))).output["answer"] == "yes"


async def test_a_key_that_the_author_chose_answers_again_and_the_identity_beside_it_does_not(world: World):
    shop = Shop(wait_key="ship?")
    rt = world.runtime(shop.handlers)
    await shop.to_the_question(rt)
    bookmark = await rt.snapshot_run(RUN, name="x")
    await shop.answer(rt, "no", "ship?")
    back = await rt.restore(RUN, bookmark)
    assert key_of(back) == "ship?"
    with pytest.raises(StaleResumeError):
        await shop.answer(rt, "late", bookmark.run_state["waiting"]["details"]["wait_id"])
    assert (await shop.answer(rt, "yes", "ship?")).output["answer"] == "yes"


async def test_an_answer_by_id_counts_once_also_behind_a_restore(world: World):
    shop = Shop()
    rt = world.runtime(shop.handlers)
    await shop.to_the_question(rt)
    bookmark = await rt.snapshot_run(RUN, name="x")
    await shop.answer(rt, "no", resume_id="a")
    back = await rt.restore(RUN, bookmark)
    assert (await shop.answer(rt, "no", resume_id="a")).waiting == back.waiting
    assert (await shop.answer(rt, "yes", resume_id="b")).output["answer"] == "yes"


async def test_a_restored_timer_rings_again(world: World):
    workflow = worlds.one("wait_until", {"until": "2026-01-31T10:00:00Z"})
    rt = world.runtime()
    await rt.start(workflow=workflow, run_id=RUN)
    await rt.tick(workflow=workflow, run_id=RUN)
    bookmark = await rt.snapshot_run(RUN, name="x")
    world.clock.advance(3600)
    assert (await rt.tick(workflow=workflow, run_id=RUN)).status is RunStatus.COMPLETED
    back = await rt.restore(RUN, bookmark)
    assert (back.status, back.waiting.until) == (RunStatus.WAITING, "2026-01-31T10:00:00.000000+00:00")
    assert (await rt.find_waits(due_before="2026-01-31T10:00:00Z")).items[0]["run_id"] == RUN
    assert (await rt.tick(workflow=workflow, run_id=RUN)).status is RunStatus.COMPLETED
    assert len(statuses(await rt.get_ledger(RUN), "resume")) == 2


async def test_a_snapshot_in_the_middle_of_an_effect_issues_it_again(async_world: World):
    gate, keys = Gate(), list[str]()

    async def pay(call: EffectCall) -> EffectOutcome:
        keys.append(call.key)
        await gate.passed()
        return EffectOutcome.completed(len(keys))

    workflow = worlds.one("pay")
    rt = async_world.runtime({"pay": pay})
    await rt.start(workflow=workflow, run_id=RUN)
    tick = asyncio.create_task(rt.tick(workflow=workflow, run_id=RUN))
    await eventually(lambda: gate.inside)
    bookmark = await rt.snapshot_run(RUN, name="inside")
    assert (bookmark.step_id, bookmark.run_state["intent"]["token"] is not None) == ("r:0.1", True)
    assert bookmark.position == 1
    with pytest.raises(EffectInFlight, match="Wait until it has landed, or cancel the run, and restore it then"):
        await rt.restore(RUN, bookmark)
    gate.open()
    assert (await tick).output == {"result": 1}
    back = await rt.restore(RUN, bookmark)
    assert (back.status, back.current_node, back.intent) == (RunStatus.RUNNING, "work", None)
    assert (await rt.tick(workflow=workflow, run_id=RUN)).output == {"result": 2}
    assert len(set(keys)) == 2
    check_on_the_way(await rt.get_state(RUN), await rt.get_ledger(RUN))


async def test_a_run_that_was_cancelled_in_mid_effect_is_restored_and_its_steps_get_new_ids(async_world: World):
    gate = Gate()

    async def pay(call: EffectCall) -> EffectOutcome:
        await gate.passed()
        return EffectOutcome.completed("paid")

    workflow = worlds.one("pay")
    rt = async_world.runtime({"pay": pay})
    await rt.start(workflow=workflow, run_id=RUN)
    bookmark = await rt.snapshot_run(RUN, name="begun")
    tick = asyncio.create_task(rt.tick(workflow=workflow, run_id=RUN))
    await eventually(lambda: gate.inside)
    await rt.cancel_run(RUN)
    await tick
    gate.open()
    await rt.restore(RUN, bookmark)
    assert (await rt.tick(workflow=workflow, run_id=RUN)).output == {"result": "paid"}
    started = [record["step_id"] for record in await rt.get_ledger(RUN) if record["status"] == "started"]
    assert started == ["r:0.1", "r:1.1"]


async def test_an_effect_whose_performer_died_is_no_bar(async_world: World):
    shop = Shop()
    rt = async_world.runtime(shop.handlers)
    await rt.start(workflow=shop.workflow, run_id=RUN)
    bookmark = await rt.snapshot_run(RUN, name="begun")
    dying, _ = async_world.faulty_runtime(shop.handlers, at=3)
    with pytest.raises(ProcessDied):
        await shop.tick(dying)
    assert (await rt.get_state(RUN)).intent.token
    back = await rt.restore(RUN, bookmark)
    assert (back.intent, back.current_node) == (None, "pay")
    check_on_the_way(back, await rt.get_ledger(RUN))
    assert (await shop.tick(rt)).current_node == "ask"
    assert shop.done["pay"] == 2


async def test_an_attempt_that_is_due_later_is_dropped(async_world: World):
    def fail(call: EffectCall) -> EffectOutcome:
        return EffectOutcome.failed("busy")

    workflow = flow("hop", hop=go("hop", "work"), work=ask("work", "pay", {}, "result"))
    policy = DefaultEffectPolicy(3, default_backoff_base=600.0, default_backoff_max=600.0)
    rt = async_world.runtime({"pay": fail}, effect_policy=policy)
    await rt.start(workflow=workflow, run_id=RUN)
    bookmark = await rt.snapshot_run(RUN, name="begun")
    assert (await rt.tick(workflow=workflow, run_id=RUN)).intent is not None
    await rt.restore(RUN, bookmark)
    state = await rt.tick(workflow=workflow, run_id=RUN)
    assert (state.intent.seq, state.intent.attempt) == (1, 2)
    check_on_the_way(state, await rt.get_ledger(RUN))


async def test_a_pause_is_part_of_where_a_run_stands(world: World):
    shop = Shop()
    rt = world.runtime(shop.handlers)
    await rt.start(workflow=shop.workflow, run_id=RUN)
    await rt.pause_run(RUN, reason="lunch")
    held = await rt.snapshot_run(RUN, name="held")
    await rt.resume_run(RUN)
    await shop.tick(rt)
    assert (await rt.restore(RUN, held)).paused
    assert (await shop.tick(rt)).paused
    await rt.resume_run(RUN)
    assert (await shop.tick(rt)).current_node == "ask"


async def test_runs_that_were_started_since_are_asked_to_cancel(world: World):
    shop = Shop()
    rt = world.runtime(shop.handlers)
    await shop.to_the_question(rt)
    await rt.start(workflow=shop.workflow, run_id="before", parent_run_id=RUN)
    world.clock.advance(1)
    await rt.update_limits(RUN, {"max_iterations": 3})
    bookmark = await rt.snapshot_run(RUN, name="x")
    world.clock.advance(1)
    for name, parent in (("after", RUN), ("ended", RUN), ("nobody's", None)):
        await rt.start(workflow=shop.workflow, run_id=name.replace("'", ""), parent_run_id=parent)
    await rt.cancel_run("ended", reason="before")
    await shop.answer(rt, "no")
    await rt.restore(RUN, bookmark)
    ends = [await rt.tick(workflow=shop.workflow, run_id=name) for name in ("before", "after", "ended", "nobodys")]
    assert [str(state.status) for state in ends] == ["waiting", "cancelled", "cancelled", "waiting"]
    assert ends[1].error == "Run 'r' was put back to before it started this one"
    assert ends[2].error == "before"


async def test_what_cannot_be_restored_is_refused_and_changes_nothing(world: World):
    shop, store = Shop(), InMemorySnapshotStore()
    rt = world.runtime(shop.handlers, snapshot_store=store)
    state = await shop.to_the_question(rt)
    bookmark = await rt.snapshot_run(RUN, name="x")
    other = await rt.start(workflow=shop.workflow)
    with pytest.raises(InvalidSnapshot, match=r"is of run 'r', not of run .* call fork\('r', at=\.\.\.\)"):
        await rt.restore(other, bookmark)
    for error, run_id, what in (
        (UnknownRun, "nobody", Snapshot("s", "nobody", run_state={**bookmark.run_state, "run_id": "nobody"})),
        (UnknownSnapshot, RUN, "nothing"),
        (InvalidSnapshot, RUN, Snapshot("s", RUN, run_state={})),
        (InvalidSnapshot, RUN, Snapshot("s", RUN, run_state={**bookmark.run_state, "workflow_id": "other"})),
        (ValueError, RUN, "../x"),
        (UnsafeValue, RUN, Snapshot("s", RUN, run_state=bookmark.run_state, position=float("nan"))),  # type: ignore[arg-type]
        (UnsafeValue, RUN, Snapshot("s", RUN, run_state=bookmark.run_state, name="\ud800")),
        (ValueError, RUN, {"snapshot_id": "s"}),
    ):
        with pytest.raises(error):
            await rt.restore(run_id, what)
    with pytest.raises(ValueError, match="reason must be a text"):
        await rt.restore(RUN, bookmark, reason=5)
    assert await rt.get_state(RUN) == state
    without = world.runtime(shop.handlers)
    with pytest.raises(StoreError, match="this runtime has no snapshot_store"):
        await without.restore(RUN, bookmark.snapshot_id)
    assert (without.snapshot_store, rt.snapshot_store) == (None, store)
    with pytest.raises(UnknownRun):
        await rt.snapshot_run("nobody", name="x")
    for one in (rt, without):
        with pytest.raises(UnsafeValue, match="name"):
            await one.snapshot_run(RUN, name=5)


async def test_a_restored_run_never_stands_at_a_node_that_is_gone(world: World):
    first = flow("old", old=go("old", "ask"), ask=ask("ask", "ask_user", {"prompt": "?"}, "a"))
    second = flow("ask", ask=ask("ask", "ask_user", {"prompt": "?"}, "a"))
    rt = world.runtime()
    await rt.start(workflow=first, run_id=RUN)
    bookmark = await rt.snapshot_run(RUN, name="x")
    await rt.tick(workflow=first, run_id=RUN)
    await rt.resume(workflow=second, run_id=RUN, wait_key=None, payload=1)
    back = await rt.restore(RUN, bookmark)
    with pytest.raises(WorkflowChanged, match="stands at 'old', which is gone"):
        await rt.tick(workflow=second, run_id=RUN)
    assert await rt.get_state(RUN) == back
    assert (await rt.tick(workflow=first, run_id=RUN)).status is RunStatus.WAITING


async def test_a_node_may_not_put_its_own_run_back_for_ever(async_world: World):
    bookmarks: list[Snapshot] = []

    async def loop(run: RunState, ctx: Any) -> StepPlan:
        await rt.update_limits(RUN, {"max_iterations": run.revision})
        await rt.restore(RUN, bookmarks[0])
        return StepPlan("loop", next_node="end")

    rt = async_world.runtime()
    workflow = flow("loop", loop=loop)
    await rt.start(workflow=workflow, run_id=RUN)
    bookmarks.append(await rt.snapshot_run(RUN, name="x"))
    with pytest.raises(ReentrantTick, match="changes its own run 'r' from outside"):
        await rt.tick(workflow=workflow, run_id=RUN)


async def test_the_chain_of_a_ledger_goes_on_over_a_restore(async_world: World):
    shop = Shop()
    runs, ledgers = async_world.stores()
    rt = async_world.runtime(shop.handlers, stores=(runs, HashChainedLedgerStore(ledgers)))
    asked = await shop.to_the_question(rt)
    bookmark = await rt.snapshot_run(RUN, name="x")
    assert bookmark.chain_head == asked.chain_head == (await rt.get_ledger(RUN))[-1]["record_hash"]
    await shop.answer(rt, "no")
    await rt.restore(RUN, bookmark)
    await shop.answer(rt, "yes")
    report = await rt.verify_ledger(RUN)
    assert (report["ok"], report["count"]) == (True, (await rt.get_state(RUN)).records)
    forked = await rt.fork(RUN, at=bookmark)
    ledger = await rt.get_ledger(forked)
    assert ledger[0]["effect"]["payload"]["chain_head"] == bookmark.chain_head
    assert (await rt.verify_ledger(forked))["ok"]


async def test_large_values_that_were_moved_out_are_in_the_snapshot():
    shop = Shop()
    runs = AsyncOffloadingRunStore(AsyncInMemoryRunStore(), artifact_store=Shelf(), max_inline_bytes=100)
    rt = AsyncRuntime(run_store=runs, ledger_store=AsyncInMemoryLedgerStore(), effect_handlers=shop.handlers)
    await rt.start(workflow=shop.workflow, run_id=RUN, vars={"large": "x" * 1000})
    await shop.tick(rt)
    done = await shop.answer(rt, "yes")
    assert "$artifact" in str((await rt.get_state(RUN)).output)
    bookmark = await rt.snapshot_run(RUN, name="the end")
    assert bookmark.run_state["output"] == done.output
    await rt.aclose()


class Shelf:
    """As much of an artifact store as moving values out takes."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def store(self, content: bytes, *, artifact_id: str, content_type: str, **about: Any) -> Any:
        fields = {"artifact_id": artifact_id, "content": content, "content_type": content_type}
        self.kept[artifact_id] = type("Artifact", (), fields)
        return self.kept[artifact_id]

    def load(self, artifact_id: str) -> Any:
        return self.kept.get(artifact_id)


# Beside others


async def test_beside_concurrent_ticks_no_update_is_lost(async_world: World, seed: int):
    """Whatever comes first: the ledger says in order what happened, and the state is what it says last."""
    rng = random.Random(seed)

    def count(run: RunState, ctx: Any) -> StepPlan:
        run.vars["n"] = run.vars.get("n", 0) + 1
        return StepPlan("count", Effect("answer_user", {"message": str(run.vars["n"])}, "said"), "count")

    async def moved(rt: Any) -> None:
        for _ in range(10):
            await rt.tick(workflow=workflow, run_id=RUN, max_steps=rng.randint(1, 4))
            await asyncio.sleep(0)

    async def restored(rt: Any, bookmark: Snapshot) -> None:
        for _ in range(5):
            back = await rt.restore(RUN, bookmark)
            assert back.vars["n"] == 2
            for _ in range(rng.randint(0, 3)):
                await asyncio.sleep(0)

    workflow = flow("count", count=count)
    first, second = async_world.runtime(), async_world.runtime()
    await first.start(workflow=workflow, run_id=RUN)
    await first.tick(workflow=workflow, run_id=RUN, max_steps=2)
    bookmark = await first.snapshot_run(RUN, name="two")
    for _ in range(scaled(3, 100)):
        await asyncio.gather(moved(first), moved(second), restored(first, bookmark), restored(second, bookmark))
    state, n = await first.get_state(RUN), 0
    ledger = await first.get_ledger(RUN)
    check_on_the_way(state, ledger)
    for record in ledger:
        if record["effect"]["type"] == "restore":
            n = 2
        elif record["status"] == "completed":
            n += 1
            assert record["effect"]["payload"] == {"message": str(n)}
    assert state.vars["n"] == n


class UserRuns(RunStore):
    def __init__(self) -> None:
        self.kept: dict[str, RunState] = {}

    def save(self, run: RunState) -> None:
        self.kept[run.run_id] = copy_of_run(run)

    def load(self, run_id: str) -> RunState | None:
        return self.kept.get(run_id)


class UserLedger(LedgerStore):
    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []

    def append(self, record: Any) -> None:
        self.kept.append(record_dict(record))

    def list(self, run_id: str) -> Any:
        return [record for record in self.kept if record["run_id"] == run_id]


async def test_a_users_own_stores_and_an_async_snapshot_store_do():
    shop, store = Shop(), AsyncInMemorySnapshotStore()
    runs, ledgers = UserRuns(), UserLedger()
    async with AsyncRuntime(
        run_store=runs, ledger_store=ledgers, effect_handlers=shop.handlers, snapshot_store=store
    ) as rt:
        await shop.to_the_question(rt)
        bookmark = await rt.snapshot_run(RUN, name="x")
        assert bookmark.position == 4
        await shop.answer(rt, "no")
        back = await rt.restore(RUN, bookmark.snapshot_id)
        assert back.waiting is not None
        done = await shop.answer(rt, "yes", key_of(back))
        assert done.output is not None
        assert done.output["answer"] == "yes"
        fork = await rt.fork(RUN, at=bookmark.snapshot_id, vars={"cart": ["lamp"]})
        state = await rt.tick(workflow=shop.workflow, run_id=fork)
        assert (state.current_node, state.vars["cart"]) == ("ask", ["lamp"])
        assert shop.done == {"pay": 1, "ship": 2}


async def test_two_snapshots_are_compared(world: World):
    shop = Shop()
    rt = world.runtime(shop.handlers)
    await shop.to_the_question(rt)
    before = await rt.snapshot_run(RUN, name="before")
    await shop.answer(rt, "yes")
    changes = {entry["path"]: entry["op"] for entry in diff_snapshots(before, await rt.snapshot_run(RUN, name="after"))}
    assert changes["/vars/answer"] == "added"
    assert changes["/status"] == changes["/waiting"] == changes["/output"] == "changed"
    assert "/vars/paid" not in changes
