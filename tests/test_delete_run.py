"""Deleting a run: all that is its own goes, what others name stays, and what was stopped half-way is finished."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    DeletedRun,
    EffectCall,
    EffectInFlight,
    EffectOutcome,
    HashChainedLedgerStore,
    InMemoryArtifactStore,
    InMemoryLedgerStore,
    InMemoryRunStore,
    InMemorySnapshotStore,
    InvalidId,
    OffloadingLedgerStore,
    OffloadingRunStore,
    RunNotEnded,
    RunStatus,
    StoreError,
    UnknownRun,
    artifact_ref,
)

from . import worlds
from .faults import ProcessDied
from .test_restore import RUN, Shop, UserLedger, UserRuns
from .worlds import Gate, World, eventually

world, async_world = worlds.world, worlds.async_world


class Commands:
    """As much of a command store as deleting takes."""

    def __init__(self) -> None:
        self.of = {RUN: 3, "other": 1}

    def delete_by_run(self, run_id: str) -> int:
        return self.of.pop(run_id, 0)


class Office:
    """A shop that keeps artifacts and snapshots."""

    def __init__(self, world: World) -> None:
        self.world, self.shop = world, Shop()
        self.artifacts, self.snapshots = InMemoryArtifactStore(), InMemorySnapshotStore()
        self.runs, self.ledgers = world.stores()
        self.rt = self.runtime()

    def runtime(self) -> Any:
        return self.world.runtime(
            self.shop.handlers,
            stores=(self.runs, self.ledgers),
            artifact_store=self.artifacts,
            snapshot_store=self.snapshots,
        )

    async def done(self, run_id: str = RUN, **vars: Any) -> None:
        await self.rt.start(workflow=self.shop.workflow, run_id=run_id, vars=vars)
        await self.rt.tick(workflow=self.shop.workflow, run_id=run_id)
        await self.rt.resume(workflow=self.shop.workflow, run_id=run_id, wait_key=None, payload="yes")

    def keep(self, text: str, run_id: str | None = RUN) -> str:
        return self.artifacts.store_text(text, run_id=run_id).artifact_id

    def kept(self) -> set[str]:
        return {found.artifact_id for found in self.artifacts.list_all()}


async def test_all_that_is_the_runs_own_goes_and_nothing_else(world: World):
    office, commands = Office(world), Commands()
    await office.done()
    await office.done("other")
    for run_id in (RUN, RUN, "other"):
        await office.rt.snapshot_run(run_id, name="x")
    office.keep("mine")
    others, nobodys = office.keep("theirs", "other"), office.keep("nobody's", None)
    records = len(await office.rt.get_ledger(RUN))
    before = await office.rt.get_state("other"), await office.rt.get_ledger("other")

    found = await office.rt.delete_run(RUN, command_store=commands)
    assert found == DeletedRun(run=True, records=records, artifacts=1, snapshots=2, commands=3)
    with pytest.raises(UnknownRun):
        await office.rt.get_state(RUN)
    assert await office.rt.get_ledger(RUN) == []
    assert [row["run_id"] for row in (await office.rt.find_runs()).items] == ["other"]
    assert [one.run_id for one in office.snapshots.list()] == ["other"]
    assert (office.kept(), commands.of) == ({others, nobodys}, {"other": 1})
    assert (await office.rt.get_state("other"), await office.rt.get_ledger("other")) == before
    assert await office.rt.delete_run(RUN, command_store=commands) == DeletedRun()
    await office.done()
    assert len(await office.rt.get_ledger(RUN)) == records


@pytest.mark.parametrize("where", ["vars", "ledger", "snapshot", "a text that holds JSON", "an artifact id"])
async def test_an_artifact_that_another_run_names_stays(world: World, where: str):
    office = Office(world)
    named, own = office.keep("named"), office.keep("own")
    await office.done(file=artifact_ref(own))
    if where == "vars":
        await office.done("other", files=[{"deep": artifact_ref(named)}])
    elif where == "ledger":
        await office.rt.start(workflow=office.shop.workflow, run_id="other")
        await office.rt.tick(workflow=office.shop.workflow, run_id="other")
        answer = {"file": artifact_ref(named)}
        await office.rt.resume(workflow=office.shop.workflow, run_id="other", wait_key=None, payload=answer)
        other = await office.runs.load("other") if world.facade == "async" else office.runs.load("other")
        other.vars, other.output = {}, None
        await office.runs.save(other) if world.facade == "async" else office.runs.save(other)
    elif where == "snapshot":
        await office.done("other", file=artifact_ref(named))
        await office.rt.snapshot_run("other", name="x")
        snapshots, office.snapshots = office.snapshots, InMemorySnapshotStore()
        await office.runtime().delete_run("other")
        office.snapshots = snapshots
    elif where == "a text that holds JSON":
        await office.done("other", text=f'{{"file": {{"$artifact": "{named}"}}}}')
    else:
        await office.done("other", spans=[{"kind": "evidence", "artifact_id": named}])
    assert (await office.rt.delete_run(RUN)).artifacts == 1
    assert office.kept() == {named}


async def test_the_runs_own_snapshots_and_ledger_keep_no_artifact(world: World):
    office = Office(world)
    own = office.keep("own")
    await office.done(file=artifact_ref(own))
    await office.rt.snapshot_run(RUN, name="x")
    assert (await office.rt.delete_run(RUN)).artifacts == 1
    assert office.kept() == set()


async def test_a_fork_is_whole_without_its_original(async_world: World):
    shop, artifacts = Shop(), InMemoryArtifactStore()
    runs, ledgers = async_world.stores()
    rt = async_world.runtime(shop.handlers, stores=(runs, HashChainedLedgerStore(ledgers)), artifact_store=artifacts)
    shared, own = (artifacts.store_text(text, run_id=RUN).artifact_id for text in ("shared", "own"))
    await rt.start(workflow=shop.workflow, run_id=RUN, vars={"file": artifact_ref(shared)})
    await shop.tick(rt)
    fork = await rt.fork(RUN)
    assert (await rt.delete_run(RUN, force=True)).artifacts == 1
    assert (artifacts.exists(shared), artifacts.exists(own)) == (True, False)
    await rt.tick(workflow=shop.workflow, run_id=fork)
    end = await rt.resume(workflow=shop.workflow, run_id=fork, wait_key=None, payload="yes")
    assert (end.status, end.output["file"], shop.done["pay"]) == (RunStatus.COMPLETED, artifact_ref(shared), 1)
    assert (await rt.verify_ledger(fork))["ok"]


async def test_more_runs_than_a_page_are_asked(async_world: World, monkeypatch):
    monkeypatch.setattr("abstractruntime.deleting._PAGE", 2)
    office = Office(async_world)
    names = {f"n{number}": office.keep(f"n{number}") for number in range(5)}
    for run_id, artifact_id in names.items():
        await office.rt.start(workflow=office.shop.workflow, run_id=run_id, vars={"file": artifact_ref(artifact_id)})
    own = office.keep("own")
    await office.done()
    for _ in range(5):
        await office.rt.snapshot_run(RUN, name="x")
    found = await office.rt.delete_run(RUN)
    assert (found.artifacts, found.snapshots) == (1, 5)
    assert office.kept() == set(names.values())
    assert own not in office.kept()


async def test_values_that_were_moved_out_go_with_the_run():
    shop, runs_of, ledgers_of = Shop(), InMemoryArtifactStore(), InMemoryArtifactStore()
    runs = OffloadingRunStore(InMemoryRunStore(), artifact_store=runs_of, max_inline_bytes=50)
    ledgers = OffloadingLedgerStore(InMemoryLedgerStore(), artifact_store=ledgers_of, max_inline_bytes=50)
    rt = AsyncRuntime(run_store=runs, ledger_store=HashChainedLedgerStore(ledgers), effect_handlers=shop.handlers)
    await rt.start(workflow=shop.workflow, run_id=RUN, vars={"large": "x" * 1000})
    await shop.tick(rt)
    await shop.answer(rt, "y" * 1000)
    assert runs_of.list_by_run(RUN)
    assert ledgers_of.list_by_run(RUN)
    found = await rt.delete_run(RUN)
    assert found.artifacts > 1
    assert runs_of.list_all() == ledgers_of.list_all() == []
    await rt.aclose()


async def test_a_run_that_goes_on_is_deleted_by_force_only(world: World):
    office = Office(world)
    await office.rt.start(workflow=office.shop.workflow, run_id=RUN)
    for _ in range(2):
        before = await office.rt.get_state(RUN)
        with pytest.raises(RunNotEnded, match=f"Run 'r' is {before.status}; nothing was deleted"):
            await office.rt.delete_run(RUN)
        assert await office.rt.get_state(RUN) == before
        await office.rt.tick(workflow=office.shop.workflow, run_id=RUN)
    records = len(await office.rt.get_ledger(RUN))
    found = await office.rt.delete_run(RUN, force=True)
    assert (found.run, found.records) == (True, records + 1), "it was cancelled first"
    assert (await office.rt.find_waits()).items == []


async def test_a_run_whose_effect_somebody_performs_is_not_deleted(async_world: World):
    gate = Gate()

    async def pay(call: EffectCall) -> EffectOutcome:
        await gate.passed()
        return EffectOutcome.completed("paid")

    workflow = worlds.one("pay")
    rt = async_world.runtime({"pay": pay})
    await rt.start(workflow=workflow, run_id=RUN)
    tick = asyncio.create_task(rt.tick(workflow=workflow, run_id=RUN))
    await eventually(lambda: gate.inside)
    for other in (rt, async_world.runtime()):
        with pytest.raises(EffectInFlight, match="nothing was deleted"):
            await other.delete_run(RUN, force=True)
    gate.open()
    assert (await tick).status is RunStatus.COMPLETED
    assert (await rt.delete_run(RUN)).run


async def test_a_run_whose_performer_died_is_deleted(async_world: World):
    shop = Shop()
    rt, dying = async_world.runtime(shop.handlers), async_world.faulty_runtime(shop.handlers, at=3)[0]
    await rt.start(workflow=shop.workflow, run_id=RUN)
    with pytest.raises(ProcessDied):
        await shop.tick(dying)
    found = await rt.delete_run(RUN, force=True)
    assert (found.run, found.records) == (True, 3)


async def test_runs_that_it_started_stay(world: World):
    office = Office(world)
    await office.done()
    child = await office.rt.start(workflow=office.shop.workflow, parent_run_id=RUN)
    await office.rt.delete_run(RUN)
    assert (await office.rt.get_state(child)).parent_run_id == RUN


async def test_a_tick_of_a_run_that_is_deleted_under_it_hears_that_it_is_gone(async_world: World):
    office = Office(async_world)
    deleted = asyncio.Event()

    async def slow(run: Any, ctx: Any) -> Any:
        await office.rt.delete_run(RUN, force=True)
        deleted.set()
        return worlds.end(run, ctx)

    workflow = worlds.flow("slow", slow=slow)
    await office.rt.start(workflow=workflow, run_id=RUN)
    with pytest.raises(UnknownRun):
        await office.rt.tick(workflow=workflow, run_id=RUN)
    assert deleted.is_set()
    assert await office.rt.get_ledger(RUN) == []


class Breaking:
    """A store whose call number `at`, of those that delete, dies before or after it has done its work."""

    def __init__(self, inner: Any, life: dict[str, int], *, landed: bool) -> None:
        self._inner, self._life, self._landed = inner, life, landed

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if not name.startswith("delete"):
            return method

        async def deleting(*args: Any) -> Any:
            self._life["left"] -= 1
            if self._life["left"] == 0 and not self._landed:
                raise ProcessDied
            found = method(*args)
            found = await found if asyncio.iscoroutine(found) else found
            if self._life["left"] == 0:
                raise ProcessDied
            return found

        return deleting


@pytest.mark.parametrize("landed", [False, True])
async def test_a_deletion_that_dies_anywhere_is_finished_by_the_same_call(async_world: World, landed: bool):
    for at in range(1, 20):
        office, commands = Office(async_world), Commands()
        await office.done()
        for name in ("a", "b"):
            office.keep(name)
            await office.rt.snapshot_run(RUN, name=name)
        life = {"left": at}
        breaking = [
            Breaking(inner, life, landed=landed)
            for inner in (office.runs, office.ledgers, office.artifacts, office.snapshots, commands)
        ]
        dying = AsyncRuntime(
            run_store=breaking[0], ledger_store=breaking[1], artifact_store=breaking[2], snapshot_store=breaking[3]
        )
        try:
            assert (await dying.delete_run(RUN, command_store=breaking[4])).run
        except ProcessDied:
            left = [row["run_id"] for row in (await office.rt.find_runs()).items]
            assert left == ([RUN] if life["left"] < 1 and not (landed and at == 7) else [])
            await office.rt.delete_run(RUN, command_store=commands)
        assert (await office.rt.find_runs()).items == []
        assert await office.rt.get_ledger(RUN) == []
        assert (office.kept(), office.snapshots.list(), commands.of) == (set(), [], {"other": 1})
        if life["left"] > 0:
            assert at == 8, "two snapshots, the commands, two artifacts, the ledger and the state"
            return
    raise AssertionError


async def test_what_cannot_be_deleted_is_refused_before_anything_goes(async_world: World):
    office = Office(async_world)
    await office.done()
    with pytest.raises(InvalidId):
        await office.rt.delete_run("")
    async with AsyncRuntime(run_store=UserRuns(), ledger_store=UserLedger()) as rt:
        with pytest.raises(StoreError, match="cannot delete; nothing was deleted"):
            await rt.delete_run(RUN)

    class Deletable(UserRuns):
        def delete(self, run_id: str) -> bool:
            return self.kept.pop(run_id, None) is not None

    class DeletableLedger(UserLedger):
        def delete(self, run_id: str) -> int:
            before = len(self.kept)
            self.kept = [record for record in self.kept if record["run_id"] != run_id]
            return before - len(self.kept)

    shop, artifacts = Shop(), InMemoryArtifactStore()
    stores: dict[str, Any] = {"run_store": Deletable(), "ledger_store": DeletableLedger()}
    async with AsyncRuntime(**stores, effect_handlers=shop.handlers, artifact_store=artifacts) as rt:
        await shop.to_the_question(rt)
        await rt.cancel_run(RUN)
        kept = artifacts.store_text("own", run_id=RUN)
        with pytest.raises(StoreError, match="cannot be searched"):
            await rt.delete_run(RUN)
        assert await rt.get_ledger(RUN) != []
        artifacts.delete(kept.artifact_id)
        found = await rt.delete_run(RUN)
        assert (found.run, found.records) == (True, 5)
