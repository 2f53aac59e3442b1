"""`find_runs` and `find_waits` of a runtime: the inbox of an application, on stores of any kind."""

from __future__ import annotations

from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    InMemoryLedgerStore,
    InMemoryRunStore,
    InvalidCursor,
    Page,
    RunStatus,
    StoreError,
    WaitReason,
)
from abstractruntime.core.clock import iso

from . import worlds
from .worlds import World, one

world = worlds.world

QUESTION = one("ask_user", {"prompt": "Continue?", "choices": ["yes", "no"]})
EVENT = one("wait_event", {"wait_key": "rain", "timeout_s": 60})


async def test_an_inbox_shows_what_waits_and_answers_with_what_it_shows(world: World) -> None:
    rt = world.runtime()
    for number in range(3):
        await rt.run(QUESTION, run_id=f"r{number}", actor_id="ann" if number else "bob", session_id="s")
    await rt.run(EVENT, run_id="e")
    await rt.pause_run("e")
    page = await rt.find_waits(reason=WaitReason.USER, actor_id="ann", limit=1)
    (row,) = page.items
    assert (row["run_id"], row["prompt"], row["choices"]) == ("r2", "Continue?", ["yes", "no"])
    state = await rt.resume(workflow=QUESTION, run_id="r2", wait_key=row["wait_id"], payload={"choice": "yes"})
    assert state.status is RunStatus.COMPLETED
    page = await rt.find_waits(reason=WaitReason.USER, actor_id="ann", limit=1, cursor=page.cursor)
    assert ([row["run_id"] for row in page.items], page.cursor) == (["r1"], None)
    assert [row["run_id"] for row in (await rt.find_waits(session_id="s")).items] == ["r1", "r0"]
    assert [row["run_id"] for row in (await rt.find_waits(include_paused=True)).items] == ["e", "r1", "r0"]


async def test_runs_are_found_by_where_they_stand_and_come_from(world: World) -> None:
    rt = world.runtime()
    for number in range(3):
        await rt.run(QUESTION, run_id=f"r{number}", session_id="s" if number else None)
    await rt.cancel_run("r1")
    await rt.start(workflow=EVENT, run_id="e", parent_run_id="r0")

    async def found(**wanted: Any) -> list[str]:
        return [row["run_id"] for row in (await rt.find_runs(**wanted)).items]

    assert await found() == ["e", "r2", "r1", "r0"]
    assert await found(status={RunStatus.CANCELLED, RunStatus.RUNNING}) == ["e", "r1"]
    assert await found(wait_reason=WaitReason.USER, session_id="s") == ["r2"]
    assert await found(root_only=True, limit=2) == ["r2", "r1"]
    assert await found(parent_run_id="r0", workflow_id=EVENT.workflow_id) == ["e"]
    with pytest.raises(InvalidCursor):
        await rt.find_runs(cursor="yesterday")


async def test_due_waits_are_those_that_a_tick_would_move(world: World) -> None:
    rt = world.runtime()
    await rt.run(EVENT, run_id="e")
    await rt.run(QUESTION, run_id="q")
    assert (await rt.find_waits(due_before=world.clock.now())).items == []
    world.clock.advance(60)
    (row,) = (await rt.find_waits(due_before=iso(world.clock.now()))).items
    assert (row["run_id"], row["wait_key"]) == ("e", "rain")
    await rt.tick(workflow=EVENT, run_id="e")
    assert (await rt.find_waits(due_before=world.clock.now())).items == []


class Plain:
    """A user's run store with the two documented methods."""

    def __init__(self) -> None:
        self.inner = InMemoryRunStore()
        self.save, self.load = self.inner.save, self.inner.load

    def __repr__(self) -> str:
        return "Plain()"


class Searchable(Plain):
    async def find_runs(self, **wanted: Any) -> Page:
        return self.inner.find_runs(**wanted)

    def find_waits(self, **wanted: Any) -> Page:
        return self.inner.find_waits(**wanted)


async def test_a_users_store_that_cannot_be_searched_says_what_it_would_need() -> None:
    async with AsyncRuntime(run_store=Plain(), ledger_store=InMemoryLedgerStore()) as rt:
        for find in (rt.find_runs, rt.find_waits):
            with pytest.raises(StoreError, match=r"Plain\(\) cannot be searched.* find_runs\(\) and find_waits\(\)"):
                await find()


async def test_a_users_store_that_can_be_searched_is_asked_sync_or_async() -> None:
    async with AsyncRuntime(run_store=Searchable(), ledger_store=InMemoryLedgerStore()) as rt:
        await rt.run(QUESTION, run_id="r", actor_id="ann")
        assert len((await rt.find_runs(status=["waiting"], actor_id="ann")).items) == 1  # type: ignore[list-item]
        assert len((await rt.find_waits(due_before="2026-01-31")).items) == 0
        assert [row["prompt"] for row in (await rt.find_waits()).items] == ["Continue?"]
