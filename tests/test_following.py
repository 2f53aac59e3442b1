"""Following a ledger: what is stored, what comes, and when it ends. Clocks stand still: nobody looks by chance."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    EffectOutcome,
    InMemoryLedgerStore,
    InMemoryRunStore,
    LedgerEntry,
    RunState,
    RunStatus,
    Runtime,
    StepRecord,
    StepStatus,
    UnknownRun,
)
from abstractruntime.following import PAGE
from abstractruntime.storage import LedgerStore, RunStore

from . import worlds
from .scale import scaled
from .spies import WatchedRunStore
from .worlds import World, ask, eventually, flow, go, one

world = worlds.world
async_world = worlds.async_world
sqlite_world = worlds.sqlite_world

QUESTION = one("ask_user", {"prompt": "Continue?"})
MANY = scaled(40, 2_000)


async def host(call: Any) -> EffectOutcome:
    return EffectOutcome.completed(call.key)


#: asks a host for as many effects as `left` says, each of two records
LONG = flow("work", work=ask("work", "host", {}, "x", "count"), count=lambda run, ctx: _again(run))


def _again(run: RunState) -> Any:
    run.vars["left"] = run.vars.get("left", MANY) - 1
    return go("count", "work" if run.vars["left"] > 0 else "end")(run, None)


async def entries(rt: Any, run_id: str, **options: Any) -> AsyncIterator[LedgerEntry]:
    """The entries under either facade; a blocking one blocks a thread."""
    found = rt.follow_ledger(run_id, **options)
    if isinstance(found, AsyncGenerator):
        async for entry in found:
            yield entry
        return
    while (entry := await asyncio.to_thread(next, found, None)) is not None:
        yield entry


async def collect(rt: Any, run_id: str, **options: Any) -> list[LedgerEntry]:
    async with asyncio.timeout(worlds.PATIENCE):
        return [entry async for entry in entries(rt, run_id, **options)]


def watchers(rt: Any) -> dict[str, Any]:
    """Who is told of commits; under either facade."""
    aio: AsyncRuntime = rt if isinstance(rt, AsyncRuntime) else rt.rt.aio
    return aio._journal.watchers


def numbered(ledger: list[dict[str, Any]], after: int = 0) -> list[LedgerEntry]:
    return [LedgerEntry(offset=number, record=record) for number, record in enumerate(ledger, 1)][after:]


async def test_the_ledger_of_a_run_that_has_ended_comes_whole_and_ends(world: World) -> None:
    rt = world.runtime({"host": host})
    await rt.run(LONG, run_id="r", vars={"left": 3})
    ledger = await rt.get_ledger("r")
    assert len(ledger) > 6
    assert await collect(rt, "r") == numbered(ledger)
    assert await collect(rt, "r", after=4) == numbered(ledger, 4)
    assert await collect(rt, "r", after=-3, follow=False) == numbered(ledger)
    assert await collect(rt, "r", after=10**30) == []
    assert await collect(rt, "r", after=len(ledger)) == await collect(rt, "r", after=10_000) == []


async def test_what_is_stored_of_a_run_that_goes_on_can_be_had_without_waiting(world: World) -> None:
    rt = world.runtime()
    await rt.run(QUESTION, run_id="r")
    assert await collect(rt, "r", follow=False) == numbered(await rt.get_ledger("r"))


async def test_each_commit_comes_at_once_and_the_end_of_the_run_ends_it(world: World) -> None:
    rt = world.runtime()
    await rt.run(QUESTION, run_id="r")
    seen: list[LedgerEntry] = []

    async def follow() -> None:
        async for entry in entries(rt, "r"):
            seen.append(entry)  # noqa: PERF401 - others look at what was seen up to now

    follower = asyncio.create_task(follow())
    await eventually(lambda: len(seen) == 2)
    await rt.pause_run("r")  # no record
    await rt.resume(workflow=QUESTION, run_id="r", wait_key=None, payload="yes")
    async with asyncio.timeout(worlds.PATIENCE):
        await follower
    assert seen == numbered(await rt.get_ledger("r"))
    assert watchers(rt) == {}


async def test_followers_of_a_busy_run_each_see_every_record_once_in_order(world: World) -> None:
    rt = world.runtime({"host": host})
    await rt.start(workflow=LONG, run_id="r")
    followers = [asyncio.create_task(collect(rt, "r")) for _ in range(3)]
    await eventually(lambda: len(watchers(rt).get("r", ())) == 3)
    await rt.run(QUESTION, run_id="another-one")
    await rt.tick(workflow=LONG, run_id="r", max_steps=10 * MANY)
    expected = numbered(await rt.get_ledger("r"))
    assert len(expected) > 2 * MANY
    for follower in followers:
        assert await follower == expected


async def test_a_reader_that_comes_back_again_and_again_misses_nothing(world: World, seed: int) -> None:
    rng = random.Random(seed)
    rt = world.runtime({"host": host})
    await rt.start(workflow=LONG, run_id="r")
    driving = asyncio.create_task(rt.tick(workflow=LONG, run_id="r", max_steps=10 * MANY))
    seen: list[LedgerEntry] = []
    ended = False
    while not ended:
        wanted = rng.randint(1, 30)
        async with aclosing(entries(rt, "r", after=seen[-1].offset if seen else 0)) as some:  # type: ignore[type-var]
            async for entry in some:
                seen.append(entry)
                wanted -= 1
                if not wanted:
                    break
            else:
                ended = True
    await driving
    assert seen == numbered(await rt.get_ledger("r"))
    gc.collect()  # what was left behind by breaking off is closed by the loop
    await eventually(lambda: watchers(rt) == {})


async def test_a_slow_reader_holds_up_no_writer_and_keeps_one_page(async_world: World) -> None:
    rt = async_world.runtime({"host": host})
    await rt.start(workflow=LONG, run_id="r", vars={"left": PAGE})
    await rt.tick(workflow=LONG, run_id="r", max_steps=1)
    slow = rt.follow_ledger("r")
    first = await anext(slow)
    state = await rt.tick(workflow=LONG, run_id="r", max_steps=10 * PAGE)
    assert state.status is RunStatus.COMPLETED
    ledger = await rt.get_ledger("r")
    assert len(ledger) > 2 * PAGE
    assert [first, *[entry async for entry in slow]] == numbered(ledger)


async def test_long_ledgers_are_read_in_pages_and_the_state_is_not_decoded_for_every_commit(
    async_world: World,
) -> None:
    runs, ledgers = async_world.stores()
    spy = WatchedRunStore(runs)
    rt = async_world.runtime({"host": host}, stores=(spy, ledgers))
    await rt.run(LONG, run_id="long", vars={"left": PAGE})
    spy.calls.clear()
    long = await collect(rt, "long")
    assert spy.calls["records"] == len(long) // PAGE + 2
    await rt.start(workflow=LONG, run_id="r")
    follower = asyncio.create_task(collect(rt, "r"))
    await eventually(lambda: watchers(rt))
    spy.calls.clear()
    for _ in range(MANY):
        await rt.tick(workflow=LONG, run_id="r", max_steps=2)
    await rt.tick(workflow=LONG, run_id="r")
    await follower
    ticks = MANY + 1
    assert spy.calls["load"] <= ticks + 4, "the follower's own are a few at the beginning and at the end"


async def test_a_commit_that_comes_while_the_reader_looks_is_not_slept_over(async_world: World) -> None:
    runs, ledgers = async_world.stores()
    spy = WatchedRunStore(runs)
    rt = async_world.runtime(stores=(spy, ledgers))
    await rt.run(QUESTION, run_id="r")
    backend = spy.backend
    assert backend is not None
    read = backend.records

    async def records(run_id: str, **part: Any) -> list[StepRecord]:
        found = await read(run_id, **part)
        if not found and (await rt.get_state(run_id)).status is RunStatus.WAITING:
            await rt.resume(workflow=QUESTION, run_id=run_id, wait_key=None, payload="yes")
        return found

    backend.records = records  # type: ignore[method-assign]
    assert await collect(rt, "r") == numbered(await rt.get_ledger("r"))
    assert async_world.clock.naps == []


@pytest.mark.parametrize("follow", [True, False])
async def test_an_unknown_run_is_said_to_be_unknown(world: World, follow: bool) -> None:
    rt = world.runtime()
    with pytest.raises(UnknownRun, match="'nobody'"):
        await collect(rt, "nobody", follow=follow)
    with pytest.raises(ValueError, match="poll_seconds must be above 0, found 0"):
        rt.follow_ledger("nobody", poll_seconds=0)
    assert watchers(rt) == {}


async def test_what_another_runtime_writes_is_found_by_looking_again(world: World) -> None:
    rt, other = world.runtime(), world.runtime()
    await rt.run(QUESTION, run_id="r")
    follower = asyncio.create_task(collect(rt, "r", poll_seconds=7))
    await eventually(lambda: world.clock.naps == [7])
    await other.resume(workflow=QUESTION, run_id="r", wait_key=None, payload="yes")
    ledger = await other.get_ledger("r")
    while not follower.done():
        world.clock.advance(7)
        await eventually(lambda: follower.done() or world.clock.naps)
    assert follower.result() == numbered(ledger)


async def test_an_end_without_a_record_ends_it_too(world: World) -> None:
    """A host may save a run as ended: no record says so, and no commit of the runtime."""
    rt = world.runtime()
    await rt.run(QUESTION, run_id="r")
    follower = asyncio.create_task(collect(rt, "r", poll_seconds=7))
    await eventually(lambda: world.clock.naps == [7])
    runs = world.runtime().run_store
    state = await rt.get_state("r")
    state.status, state.waiting = RunStatus.FAILED, None
    saved = runs.save(state) if world.facade == "async" else await asyncio.to_thread(runs.save, state)
    if saved is not None:
        await saved
    world.clock.advance(7)
    assert len(await follower) == 2


async def test_a_run_whose_end_is_taken_back_is_followed_further(async_world: World) -> None:
    rt = async_world.runtime()
    await rt.run(QUESTION, run_id="r")
    await rt.cancel_run("r")
    follower = rt.follow_ledger("r")
    assert (await anext(follower)).offset == 1
    state = await rt.get_state("r")
    state.status, state.error, state.current_node = RunStatus.RUNNING, None, "work"
    await rt.run_store.save(state)  # while the reader is on its first page
    rest = asyncio.create_task(collect_rest(follower))
    await eventually(lambda: async_world.clock.naps)
    assert not rest.done()
    await rt.tick(workflow=QUESTION, run_id="r")
    await rt.resume(workflow=QUESTION, run_id="r", wait_key=None, payload="yes")
    assert await rest == numbered(await rt.get_ledger("r"), 1)


async def collect_rest(follower: AsyncIterator[LedgerEntry]) -> list[LedgerEntry]:
    async with asyncio.timeout(worlds.PATIENCE):
        return [entry async for entry in follower]


async def test_closing_the_runtime_ends_every_follower(world: World) -> None:
    rt = world.runtime()
    await rt.run(QUESTION, run_id="r")
    await rt.run(QUESTION, run_id="s")
    waiting = [asyncio.create_task(collect(rt, run_id)) for run_id in ("r", "r", "s")]
    within = entries(rt, "r")
    assert (await anext(within)).offset == 1
    unused = entries(rt, "r")
    await eventually(lambda: len(world.clock.naps) == 3)
    await rt.aclose()
    async with asyncio.timeout(worlds.PATIENCE):
        assert [[entry.offset for entry in found] for found in await asyncio.gather(*waiting)] == [[1, 2]] * 3
    assert [entry.offset async for entry in within] == [], "not even what it had read"
    await unused.aclose()  # type: ignore[attr-defined]
    assert watchers(rt) == {}


async def test_following_can_be_stopped_while_all_else_goes_on(world: World) -> None:
    rt = world.runtime()
    await rt.run(QUESTION, run_id="r")
    waiting = [asyncio.create_task(collect(rt, "r")) for _ in range(2)]
    within = entries(rt, "r")
    assert (await anext(within)).offset == 1
    await eventually(lambda: len(world.clock.naps) == 2)
    rt.stop_following()
    rt.stop_following()
    async with asyncio.timeout(worlds.PATIENCE):
        assert [[entry.offset for entry in found] for found in await asyncio.gather(*waiting)] == [[1, 2]] * 2
    assert [entry.offset async for entry in within] == []
    assert await collect(rt, "r") == [], "nor does anybody begin"
    assert watchers(rt) == {}
    state = await rt.resume(workflow=QUESTION, run_id="r", wait_key=None, payload="yes")
    assert state.status is RunStatus.COMPLETED


async def test_a_follower_of_a_closed_runtime_and_store_ends_without_an_error(sqlite_world: World) -> None:
    rt = sqlite_world.runtime()
    await rt.run(QUESTION, run_id="r")
    begun, unused = rt.follow_ledger("r"), rt.follow_ledger("r")
    await anext(begun)
    await sqlite_world.close()
    assert [entry async for entry in begun] == [entry async for entry in unused] == []


async def test_a_cancelled_reader_leaves_nothing_behind(async_world: World) -> None:
    rt = async_world.runtime()
    await rt.run(QUESTION, run_id="r")
    reader = asyncio.create_task(collect(rt, "r"))
    await eventually(lambda: async_world.clock.naps)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    gc.collect()
    await eventually(lambda: watchers(rt) == {})
    await rt.resume(workflow=QUESTION, run_id="r", wait_key=None, payload="yes")


def test_a_blocking_follower_sees_what_other_threads_do_until_the_runtime_is_closed() -> None:
    rt = Runtime(run_store=InMemoryRunStore(), ledger_store=InMemoryLedgerStore())
    rt.run(QUESTION, run_id="r")
    rt.run(QUESTION, run_id="s")
    found: dict[str, list[int]] = {"r": [], "s": []}

    def follow(run_id: str) -> None:
        for entry in rt.follow_ledger(run_id, poll_seconds=3_600):
            found[run_id].append(entry.offset)

    threads = {run_id: threading.Thread(target=follow, args=(run_id,)) for run_id in found}
    for thread in threads.values():
        thread.start()
    rt.resume(workflow=QUESTION, run_id="r", wait_key=None, payload="yes")
    threads["r"].join(worlds.PATIENCE)
    assert threads["s"].is_alive()
    rt.close()
    threads["s"].join(worlds.PATIENCE)
    assert not any(thread.is_alive() for thread in threads.values())
    assert found["r"] == list(range(1, len(rt.get_ledger("r")) + 1))
    assert found["s"] in ([], [1], [1, 2])


def test_a_blocking_follower_that_is_dropped_leaves_nothing_behind() -> None:
    rt = Runtime(run_store=InMemoryRunStore(), ledger_store=InMemoryLedgerStore())
    rt.run(QUESTION, run_id="r")
    for entry in rt.follow_ledger("r"):
        assert entry.offset == 1
        break
    gc.collect()
    assert rt.aio._journal.watchers == {}


class Runs(RunStore):
    """A user's store: the two documented methods."""

    def __init__(self) -> None:
        self.inner = InMemoryRunStore()

    def save(self, run: RunState) -> None:
        self.inner.save(run, overwrite=True)

    def load(self, run_id: str) -> RunState | None:
        return self.inner.load(run_id)


class Ledgers(LedgerStore):
    def __init__(self) -> None:
        self.inner = InMemoryLedgerStore()

    def append(self, record: StepRecord) -> None:
        self.inner.append(record)

    def list(self, run_id: str) -> Any:
        return self.inner.list(run_id)


async def test_a_pair_of_users_stores_is_followed_like_ours() -> None:
    async with AsyncRuntime(run_store=Runs(), ledger_store=Ledgers(), effect_handlers={"host": host}) as rt:
        await rt.start(workflow=LONG, run_id="r", vars={"left": 3})
        follower = asyncio.create_task(collect(rt, "r"))
        await eventually(lambda: watchers(rt))
        await rt.tick(workflow=LONG, run_id="r")
        assert await follower == numbered(await rt.get_ledger("r"))


async def test_a_record_that_a_host_appends_comes_in_its_place(async_world: World) -> None:
    rt = async_world.runtime()
    await rt.run(QUESTION, run_id="r")
    await rt.ledger_store.append(StepRecord("r", "note", "n", StepStatus.COMPLETED, result={"by": "host"}))
    await rt.resume(workflow=QUESTION, run_id="r", wait_key=None, payload="yes")
    found = await collect(rt, "r")
    assert found == numbered(await rt.get_ledger("r"))
    assert found[2].record["result"] == {"by": "host"}
