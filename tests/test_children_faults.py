"""Faults and deaths at every write of lives with children: one child per step, and the same end.

A run starts children in every way; a second tree of runs is cancelled from above. Each write of such a life goes wrong
in four ways, on every kind of stores, and the next process goes on.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    EffectCall,
    EffectOutcome,
    RunState,
    RunStatus,
    SqliteDatabase,
)
from abstractruntime.core.models import TERMINAL

from .checks import check_ledger, shape
from .clocks import StillClock
from .faults import FaultyBackend, ProcessDied
from .outside import perform, performances
from .scale import scaled
from .test_ledger_chain import DictLedger, DictRuns
from .worlds import World, ask, flow

ROOT = Path(__file__).parent.parent
SUB = "start_subworkflow"


def sub(workflow_id: str, **more: Any) -> dict[str, Any]:
    return {"workflow_id": workflow_id, **more}


WORKING = flow("work", workflow_id="working", work=ask("work", "act", {}, "acted"))
ASKING = flow("ask", workflow_id="asking", ask=ask("ask", "ask_user", {"prompt": "Yes?"}, "said"))
NESTED = flow("work", workflow_id="nested", work=ask("work", SUB, sub("working"), "result"))
LIFE = flow(
    "sync",
    workflow_id="life",
    sync=ask("sync", SUB, sub("nested"), "sync", "waiting"),
    waiting=ask("waiting", SUB, sub("asking", run_id="named"), "waiting", "started"),
    started=ask("started", SUB, sub("working", **{"async": True}), "started", "awaited"),
    awaited=ask("awaited", SUB, sub("working", **{"async": True, "wait": True}), "awaited", "fan"),
    fan=ask("fan", SUB, {"children": [sub("working")] * 3, "max_parallel": 2}, "fan", "race"),
    race=ask("race", SUB, {"children": [sub("asking"), sub("working")], "join": "any"}, "race"),
)
MIDDLE = flow("work", workflow_id="middle", work=ask("work", SUB, {"children": [sub("asking"), sub("working")]}, "x"))
DOOMED = flow(
    "start",
    workflow_id="doomed",
    start=ask("start", SUB, sub("asking", **{"async": True}), "x", "work"),
    work=ask("work", SUB, {"children": [sub("middle"), sub("asking")]}, "y"),
)
REGISTRY: dict[str, Any] = {spec.workflow_id: spec for spec in (WORKING, ASKING, NESTED, LIFE, MIDDLE, DOOMED)}


class DyingBackend(FaultyBackend):
    """A process that died writes nothing any more, whatever its tasks still try."""

    async def _faulty(self, operation: Any, *args: Any) -> None:
        if self.fired and self._mode.startswith("die"):
            raise ProcessDied("it is dead")
        await super()._faulty(operation, *args)


class DyingRunStore:
    """A run store that joins into a dying backend, and shows the rest of the store."""

    def __init__(self, run_store: Any, at: int, mode: str) -> None:
        self._run_store, self._at, self._mode = run_store, at, mode
        self.backend: DyingBackend | None = None

    def join(self, ledger_store: Any) -> Any:
        self.backend = DyingBackend(self._run_store.join(ledger_store), self._at, self._mode)
        return self.backend

    async def list_children(self, **query: Any) -> Any:
        return await self._run_store.list_children(**query)


class Life:
    """What a host does with its runs, in one process. Every part may be repeated by the next."""

    def __init__(self, rt: Any, resume_id: str | None = "one") -> None:
        self.rt, self.resume_id = rt, resume_id

    async def live(self) -> None:
        rt = self.rt
        await rt.start(workflow=LIFE, run_id="main")
        for _ in range(50):
            state = await rt.tick(workflow=LIFE, run_id="main")
            if state.status in TERMINAL:
                break
            details = state.waiting.details
            child = await rt.get_state(details["sub_run_id"])
            spec = REGISTRY[child.workflow_id]
            if child.waiting is not None:
                key, answer = child.waiting.wait_key, {"text": "yes"}
                await rt.resume(
                    workflow=spec,
                    run_id=child.run_id,
                    wait_key=key,
                    payload=answer,
                    resume_id=self.resume_id,
                    max_steps=0,
                )
            if details.get("async"):
                await rt.tick(workflow=spec, run_id=child.run_id)
        else:
            raise AssertionError("the run never ended")
        await rt.tick(workflow=WORKING, run_id=state.output["started"]["sub_run_id"])
        await rt.start(workflow=DOOMED, run_id="doomed")
        if (await rt.get_state("doomed")).status is RunStatus.RUNNING:
            await rt.tick(workflow=DOOMED, run_id="doomed")
        await rt.cancel_run("doomed", reason="enough")


class Lives:
    """A world in which processes live and die, and what they did outside."""

    def __init__(self, kind: str, folder: Path) -> None:
        folder.mkdir()
        self.world = World("async", kind, folder, synchronous="NORMAL")
        self.calls: Counter[str] = Counter()

    async def act(self, call: EffectCall) -> EffectOutcome:
        self.calls[call.key] += 1
        return EffectOutcome.completed({"acted": True})

    async def live(self, at: int = 0, mode: str = "die_before") -> DyingBackend:
        runs, ledgers = self.world.stores()
        store = DyingRunStore(runs, at, mode)
        rt = AsyncRuntime(
            run_store=store,
            ledger_store=ledgers,
            effect_handlers={"act": self.act},
            workflow_registry=REGISTRY,
            clock=self.world.clock,
        )
        try:
            await Life(rt).live()
        except ProcessDied:
            assert at
        assert store.backend is not None
        return store.backend

    async def end(self) -> dict[str, Any]:
        """Where all runs stand, without what depends on faults."""
        runs, ledgers = self.world.stores()
        rt = AsyncRuntime(run_store=runs, ledger_store=ledgers, workflow_registry=REGISTRY, clock=self.world.clock)
        found: dict[str, Any] = {}
        for row in (await rt.find_runs(limit=1000)).items:
            state = await rt.get_state(row["run_id"])
            if state.status not in TERMINAL:  # a cancel stands, that nobody has answered yet
                state = await rt.tick(workflow=REGISTRY[state.workflow_id], run_id=state.run_id)
            ledger = await rt.get_ledger(state.run_id)
            assert len(ledger) == state.records
            if state.status is RunStatus.COMPLETED:
                check_ledger(state, ledger)
            found[state.run_id] = (state.workflow_id, state.parent_run_id, state.status, state.output, state.error)
            found[f"{state.run_id} ledger"] = shape(ledger)
        return found


def agree(found: dict[str, Any], expected: dict[str, Any], where: str) -> None:
    assert found.keys() == expected.keys(), f"{where}: other children"
    for name in expected:
        run = name.removesuffix(" ledger")
        if expected[run][2] is RunStatus.CANCELLED or expected[run][1] == "doomed":
            continue  # how far a run that is cancelled came is not told
        assert found[name] == expected[name], where
    assert found["doomed"][2:] == (RunStatus.CANCELLED, None, "enough"), where
    assert {found[name][2] for name in found if not name.endswith("ledger")} <= set(TERMINAL), where


async def reference(folder: Path) -> tuple[int, dict[str, Any]]:
    lives = Lives("memory", folder)
    backend = await lives.live()
    found = await lives.end()
    assert found["main"][2] is RunStatus.COMPLETED
    return backend.writes, found


@pytest.mark.parametrize("kind", ["memory", "sqlite", "json"])
@pytest.mark.parametrize("mode", FaultyBackend.MODES)
async def test_every_write_may_fail_and_each_step_has_its_children_once(kind: str, mode: str, tmp_path: Path) -> None:
    writes, expected = await reference(tmp_path / "reference")
    assert writes > 40
    for at in range(1, writes + 1, 1 if kind == "memory" else scaled(4, 1)):
        lives = Lives(kind, tmp_path / f"{at}")
        backend = await lives.live(at, mode)
        assert backend.fired
        if mode.startswith("die"):
            await lives.live()
        found = await lives.end()
        await lives.world.close()
        where = f"{mode} at write {at}"
        agree(found, expected, where)
        assert max(lives.calls.values()) <= (2 if mode.startswith("die") else 1), where


async def test_deaths_at_random_places_again_and_again_still_reach_the_end(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    _, expected = await reference(tmp_path / "reference")
    for round_ in range(scaled(10, 300)):
        lives = Lives(rng.choice(["memory", "sqlite", "json"]), tmp_path / f"{round_}")
        for _ in range(50):
            backend = await lives.live(rng.randint(1, 25), rng.choice(FaultyBackend.MODES))
            if not backend.fired:
                break
        await lives.live()
        agree(await lives.end(), expected, f"round {round_}")
        await lives.world.close()


# -- stores that do not commit together


class DyingPair:
    """A run store and a ledger store in one, for two that know nothing of each other; the k-th write is the last."""

    def __init__(self) -> None:
        self.runs, self.ledger = DictRuns(), DictLedger()
        self.left = 0

    def _write(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise ProcessDied

    async def save(self, run: RunState) -> None:
        self._write()
        self.runs.save(run)

    async def load(self, run_id: str) -> RunState | None:
        return self.runs.load(run_id)

    async def append(self, record: Any) -> None:
        self._write()
        self.ledger.append(record)

    async def list(self, run_id: str) -> list[dict[str, Any]]:
        return self.ledger.list(run_id)


async def test_stores_that_do_not_commit_together_may_die_anywhere_too() -> None:
    async def act(call: EffectCall) -> EffectOutcome:
        return EffectOutcome.completed(True)

    ends = []
    for at in range(0, 1000, scaled(3, 1)):
        pair = DyingPair()
        for pair.left in (at, 0):
            rt = AsyncRuntime(
                run_store=pair,
                ledger_store=pair,
                effect_handlers={"act": act},
                workflow_registry=REGISTRY,
                clock=StillClock(),
            )
            try:
                await Life(rt, resume_id=None).live()  # which tells an old answer by its instant, and time stands still
            except ProcessDied:
                continue
            break
        state = pair.runs.load("main")
        assert state is not None
        ends.append((state.status, state.output, sorted(pair.runs.runs)))
        assert ends[-1] == ends[0], f"died at write {at}"
        if at and pair.left > 0:
            return
    raise AssertionError("the walk never came to its end")


# -- a process is killed in the middle of a child


STEPS = 30
SLOW = flow(
    "work",
    workflow_id="slow",
    work=lambda run, ctx: _slow(run),
)
KILLED = flow(
    "one",
    workflow_id="killed",
    one=ask("one", SUB, sub("slow"), "one", "many"),
    many=ask("many", SUB, {"children": [sub("slow")] * 4, "max_parallel": 2}, "many"),
)


def _slow(run: RunState) -> Any:
    run.vars["n"] = run.vars.get("n", 0) + 1
    follow = "work" if run.vars["n"] < STEPS else "end"
    return ask("work", "perform", {}, None, follow)(run, None)


async def drive(database: Path, outside: Path) -> RunState:
    """One process's part."""

    def act(call: EffectCall) -> EffectOutcome:
        perform(outside, call)
        return EffectOutcome.completed(True)

    async with SqliteDatabase(database) as db:
        rt = AsyncRuntime(
            run_store=AsyncSqliteRunStore(db),
            ledger_store=AsyncSqliteLedgerStore(db),
            effect_handlers={"perform": act},
            workflow_registry={"slow": SLOW},
        )
        async with rt:
            await rt.start(workflow=KILLED, run_id="p")
            return await rt.tick(workflow=KILLED, run_id="p", max_steps=100)


def test_killed_in_the_middle_of_a_child_the_next_process_goes_on(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    database, outside = tmp_path / "runs.db", tmp_path / "outside"
    kills = 0
    for kill in range(scaled(4, 40)):
        wanted = lines(outside) + rng.randint(1, 30)
        command = [sys.executable, "-m", "tests.test_children_faults", str(database), str(outside)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            while process.poll() is None and lines(outside) < wanted:
                time.sleep(0.001)  # between two looks at another process
            process.kill()
        if process.returncode == 0:
            assert kill > 0, "it was never killed"
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
    assert kills
    state = asyncio.run(drive(database, outside))
    check_killed(state, database, outside, performed_again=2 * kills)


def lines(outside: Path) -> int:
    """How many effects were performed; the last one may be half written at the moment."""
    return outside.read_bytes().count(b"\n") if outside.exists() else 0


def check_killed(state: RunState, database: Path, outside: Path, *, performed_again: int) -> None:
    assert state.status is RunStatus.COMPLETED, state.error
    children = [state.output["one"], *state.output["many"]["results"]]
    assert [child["output"]["n"] for child in children] == [STEPS] * 5
    assert len({child["sub_run_id"] for child in children}) == 5
    with SqliteDatabase(database) as db:
        rows = asyncio.run(_children(db))
    assert len(rows) == 5, "a child was made twice"
    done = Counter(performance.key for performance in performances(outside))
    assert len(done) == 5 * STEPS, "an effect was never performed, or under a key nobody knows"
    assert sum(done.values()) <= 5 * STEPS + performed_again


def test_two_processes_at_one_tree_end_it_once(tmp_path: Path) -> None:
    database, outside = tmp_path / "runs.db", tmp_path / "outside"
    command = [sys.executable, "-m", "tests.test_children_faults", str(database), str(outside)]
    one, two = (subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2))
    with one, two:
        one.communicate()
        two.communicate()
    assert (one.returncode, two.returncode) == (0, 0)
    check_killed(asyncio.run(drive(database, outside)), database, outside, performed_again=0)


async def _children(db: SqliteDatabase) -> list[Any]:
    return await AsyncSqliteRunStore(db).list_children(parent_run_id="p")


if __name__ == "__main__":
    print(json.dumps(str(asyncio.run(drive(Path(sys.argv[1]), Path(sys.argv[2]))).status)))
