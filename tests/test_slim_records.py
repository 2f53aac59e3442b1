"""A payload is journaled once: the record that ends an attempt does not repeat what its STARTED record holds."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import pytest

from abstractruntime import DefaultEffectPolicy, Effect, EffectCall, EffectOutcome, StepPlan
from abstractruntime.core.codec import fill
from abstractruntime.core.models import StepRecord, StepStatus

from . import worlds
from .worlds import World, flow, one

world = worlds.world
async_world = worlds.async_world
sqlite_world = worlds.sqlite_world

PAYLOAD = {"text": "the-payload-that-is-journaled-once"}


async def stored_ledger(world: World) -> str:
    """All that the ledger of run r holds, as it is stored."""
    query = "SELECT l.data FROM ledger l JOIN runs r ON r.id = l.run WHERE r.run_id = 'r'"

    def read() -> str:
        connection = sqlite3.connect(world.path)
        rows = connection.execute(query).fetchall()
        connection.close()
        return "".join(bytes(row[0]).decode() for row in rows)

    return await asyncio.to_thread(read)


def flaky(call: EffectCall) -> EffectOutcome:
    return EffectOutcome.failed("busy") if call.attempt == 1 else EffectOutcome.completed("done")


async def test_a_payload_is_stored_once_per_attempt_and_read_with_every_record(sqlite_world: World) -> None:
    rt = sqlite_world.runtime({"host": flaky}, effect_policy=DefaultEffectPolicy(2, default_backoff_base=0.0))
    await rt.run(one("host", PAYLOAD), run_id="r")
    assert (await stored_ledger(sqlite_world)).count(PAYLOAD["text"]) == 2, "two attempts"
    records = [record for record in await rt.get_ledger("r") if record["step_id"].startswith("r:0.")]
    assert [(record["status"], record["effect"]["payload"]) for record in records] == [
        ("started", PAYLOAD),
        ("failed", PAYLOAD),
        ("started", PAYLOAD),
        ("completed", PAYLOAD),
    ]
    assert records[0]["effect"] is not records[1]["effect"]


async def test_an_inside_effect_is_stored_once(sqlite_world: World) -> None:
    rt = sqlite_world.runtime()
    await rt.run(one("answer_user", {"message": "hello", **PAYLOAD}), run_id="r")
    assert (await stored_ledger(sqlite_world)).count(PAYLOAD["text"]) == 1


async def test_several_effects_are_stored_once_each(sqlite_world: World) -> None:
    rt = sqlite_world.runtime({"host": lambda call: EffectOutcome.completed("done")})
    effects = [Effect("host", PAYLOAD) for _ in range(3)]
    await rt.run(flow("work", work=lambda run, ctx: StepPlan("work", effects=effects, next_node="end")), run_id="r")
    assert (await stored_ledger(sqlite_world)).count(PAYLOAD["text"]) == 3
    assert sum(r["effect"] is not None and r["effect"]["payload"] == PAYLOAD for r in await rt.get_ledger("r")) == 6


@pytest.mark.parametrize("how", ["cancel", "hand back"])
async def test_however_an_attempt_ends_its_record_is_read_whole(async_world: World, how: str) -> None:
    async def hang(call: EffectCall) -> EffectOutcome:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    started = asyncio.Event()
    rt = async_world.runtime({"host": hang})
    running = asyncio.ensure_future(rt.run(one("host", PAYLOAD), run_id="r"))
    await started.wait()
    if how == "cancel":
        await rt.cancel_run("r")
        await running
    else:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    ended = [record for record in await rt.get_ledger("r") if record["status"] == "cancelled"]
    assert [record["effect"]["payload"] for record in ended] == [PAYLOAD]


async def test_a_page_that_begins_behind_the_start_is_whole_too(world: World) -> None:
    rt = world.runtime({"host": lambda call: EffectOutcome.completed("done")})
    workflow = flow("a", a=worlds.ask("a", "host", {"n": 1}, then="b"), b=worlds.ask("b", "host", {"n": 2}))
    await rt.run(workflow, run_id="r")
    full = await rt.get_ledger("r")
    _, ledgers = world.stores()
    for after in range(len(full)):
        page: Any = ledgers.list_after(run_id="r", after=after, limit=1)
        records, _ = await page if asyncio.iscoroutine(page) else page
        assert records == full[after : after + 1]


def test_a_record_whose_start_is_nowhere_stays_without_an_effect():
    ended = StepRecord("r", "r:0.1", "n", StepStatus.COMPLETED, slim=True)
    other = StepRecord("r", "r:1.1", "n", StepStatus.STARTED, {"type": "a", "payload": {}, "result_key": None})
    fill([ended], lambda: iter([other]))
    assert ended.effect is None
