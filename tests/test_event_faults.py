"""Walk a fault through every write of runs that speak to each other, restart, and compare the ends.

Two runs on one pair of stores: one emits, the other waits, named, for any name, and with deadlines; a host sends too.
The four faults are those of `test_fault_walk`, whose worlds are used.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    AsyncInMemoryLedgerStore,
    AsyncInMemoryRunStore,
    AsyncJsonFileRunStore,
    AsyncJsonlLedgerStore,
    AsyncRuntime,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    Effect,
    EffectCall,
    EffectOutcome,
    RunState,
    RunStatus,
    SqliteDatabase,
    StepPlan,
)
from abstractruntime.core.backend import Backend
from abstractruntime.core.codec import record_dict
from abstractruntime.core.models import TERMINAL, Message

from .checks import check_ledger, shape
from .clocks import StillClock
from .faults import FaultyBackend, ProcessDied
from .scale import scaled
from .worlds import ask, flow


class SpeakingBackend(FaultyBackend):
    """One whose sending counts as a write, too."""

    async def send(self, messages: Iterable[Message], **options: Any) -> None:
        sent = tuple(messages)
        await self._faulty(lambda: self._inner.send(sent, **options))


class Runs:
    """A run store that joins into a faulty backend."""

    def __init__(self, run_store: Any, at: int, mode: str) -> None:
        self._run_store, self._at, self._mode = run_store, at, mode
        self.backend: SpeakingBackend | None = None

    def join(self, ledger_store: Any) -> Backend:
        backend: Backend = self._run_store.join(ledger_store)
        self.backend = SpeakingBackend(backend, self._at, self._mode)
        return self.backend


def emit(node: str, name: str, then: str, **payload: Any) -> Any:
    return ask(node, "emit_event", {"name": name, "scope": "global", "payload": {"by": node}, **payload}, node, then)


def hear(node: str, name: str, then: str, **payload: Any) -> Any:
    return ask(node, "wait_event", {"name": name, "scope": "global", **payload}, node, then)


async def speak(call: EffectCall) -> EffectOutcome:
    """An outside effect that says something, with its result."""
    data = {"name": "outside", "payload": {"by": "speak"}}
    said = Message(stream="global:global", name="outside", message_id=call.key, at=call.now, data=data)
    return EffectOutcome.completed("said", messages=(said,))


SPEAKER = flow(
    "one",
    workflow_id="speaker",
    one=emit("one", "red", "two"),
    two=emit("two", "blue", "three", max_steps=1),
    three=hear("three", "answer", "four"),
    four=emit("four", "red", "both", event_id="chosen"),
    both=lambda run, ctx: StepPlan(
        "both",
        effects=[
            Effect("emit_event", {"name": "pair", "scope": "global", "payload": {"by": n}}, f"pair{n}") for n in (1, 2)
        ],
        next_node="speak",
    ),
    speak=ask("speak", "speak", {}, "spoken", "end"),
)

LISTENER = flow(
    "red",
    workflow_id="listener",
    red=hear("red", "red", "any"),
    any=hear("any", "*", "reply"),
    reply=emit("reply", "answer", "late"),
    late=hear("late", "never", "again", timeout_s=3600),
    again=hear("again", "red", "pair1", timeout_s=360_000),
    pair1=hear("pair1", "pair", "pair2"),
    pair2=hear("pair2", "pair", "outside"),
    outside=hear("outside", "outside", "host"),
    host=hear("host", "host", "end"),
)

WORKFLOWS = {workflow.workflow_id: workflow for workflow in (SPEAKER, LISTENER)}


class World:
    """Stores that outlive processes, of one kind."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.path, self.clock = kind, folder / "runs", StillClock()
        self._memory = (AsyncInMemoryRunStore(), AsyncInMemoryLedgerStore())
        self._databases: list[SqliteDatabase] = []

    def stores(self) -> tuple[Any, Any]:
        if self.kind == "memory":
            return self._memory
        if self.kind == "json":
            return (
                AsyncJsonFileRunStore(self.path, durability="none"),
                AsyncJsonlLedgerStore(self.path, durability="none"),
            )
        self._databases.append(SqliteDatabase(self.path, synchronous="NORMAL"))
        return AsyncSqliteRunStore(self._databases[-1]), AsyncSqliteLedgerStore(self._databases[-1])

    async def live(self, *, at: int = 0, mode: str = "die_before") -> SpeakingBackend:
        runs, ledgers = self.stores()
        faulty = Runs(runs, at, mode)
        rt = AsyncRuntime(
            run_store=faulty,
            ledger_store=ledgers,
            effect_handlers={"speak": speak},
            workflow_registry=WORKFLOWS,
            clock=self.clock,
        )
        try:
            await self._lived(rt)
        except* ProcessDied:
            assert at
        assert faulty.backend is not None
        return faulty.backend

    async def _lived(self, rt: AsyncRuntime) -> None:
        """What a host does with its runs; every part may be repeated by the next life."""
        for workflow_id, workflow in WORKFLOWS.items():
            await rt.start(workflow=workflow, run_id=workflow_id)
        for _ in range(30):
            states = [await rt.tick(workflow=workflow, run_id=run_id) for run_id, workflow in WORKFLOWS.items()]
            if all(state.status in TERMINAL for state in states):
                return
            at = [state.current_node for state in states]
            if at[0] in ("end", "three") and at[1] == "late":
                self.clock.advance(3600)
            if at[1] == "host":
                await rt.emit_event(name="host", scope="global", event_id="h1")
        raise AssertionError("they never came to their ends")

    async def read(self, run_id: str) -> tuple[RunState, list[dict[str, Any]]]:
        runs, ledgers = self.stores()
        backend = runs.join(ledgers)
        loaded = await backend.load(run_id)
        assert loaded is not None
        return loaded.run, [record_dict(record) for record in await backend.records(run_id)]

    async def ends(self) -> dict[str, Any]:
        """How both runs ended, without what depends on how often somebody died."""
        found: dict[str, Any] = {}
        for run_id in WORKFLOWS:
            state, ledger = await self.read(run_id)
            assert state.status is RunStatus.COMPLETED
            check_ledger(state, ledger)
            output = {key: said_by(value) for key, value in state.output.items()}
            if "pair2" in output:  # in the order in which the two effects of one step landed
                output["pair1"], output["pair2"] = sorted((output["pair1"], output["pair2"]))
            found[run_id] = output, sorted(shape(ledger), key=str)
            found[f"{run_id} read"] = state.read
        return found

    async def close(self) -> None:
        for database in self._databases:
            await database.aclose()


def said_by(value: Any) -> Any:
    """Who said what was heard; of what a sender is told, whom it reached depends on who was ticked when."""
    if isinstance(value, dict) and "payload" in value:
        return value["name"], value["payload"].get("by")
    return sorted(value) if isinstance(value, dict) else value


async def reference(folder: Path) -> tuple[int, dict[str, Any]]:
    """The same life without a fault: its writes, and how it ends."""
    world = World("memory", folder)
    backend = await world.live()
    ends = await world.ends()
    output, _ = ends["listener"]
    assert [output[node] for node in ("red", "any")] == [("red", "one"), ("blue", "two")]
    assert output["late"] == ["timed_out", "until"]
    assert [output[node] for node in ("again", "outside")] == [("red", "four"), ("outside", "speak")]
    assert [output["pair1"], output["pair2"]] == [("pair", 1), ("pair", 2)]
    return backend.writes, ends


@pytest.mark.parametrize("kind", ["memory", "sqlite", "json"])
@pytest.mark.parametrize("mode", FaultyBackend.MODES)
async def test_every_write_may_fail_and_every_event_is_heard_once(kind: str, mode: str, tmp_path: Path) -> None:
    writes, expected = await reference(tmp_path)
    assert writes > 25
    for at in range(1, writes + 1):
        folder = tmp_path / f"{at}"
        folder.mkdir()
        world = World(kind, folder)
        backend = await world.live(at=at, mode=mode)
        assert backend.fired, f"write {at} was never reached"
        if mode.startswith("die"):
            await world.live()  # the next process
        ends = await world.ends()
        await world.close()
        assert ends == expected, f"{mode} at write {at}"


async def test_faults_at_random_places_again_and_again(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    _, expected = await reference(tmp_path)
    for round_ in range(scaled(20, 500)):
        folder = tmp_path / f"round{round_}"
        folder.mkdir()
        world = World(rng.choice(["memory", "sqlite", "json"]), folder)
        for _ in range(50):
            backend = await world.live(at=rng.randint(1, 15), mode=rng.choice(FaultyBackend.MODES))
            if not backend.fired:
                break
        await world.live()
        ends = await world.ends()
        await world.close()
        assert ends == expected
