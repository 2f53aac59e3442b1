"""Walk a fault through every store write of a workflow that uses every effect, restart, and compare the ends.

The fault is one of four: the process dies before the write, dies after it, the write lands although the caller sees an
error, or it is lost with an error. After it a new runtime on the same stores takes over, as a new process would.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    AsyncHashChainedLedgerStore,
    AsyncInMemoryLedgerStore,
    AsyncInMemoryRunStore,
    AsyncJsonFileRunStore,
    AsyncJsonlLedgerStore,
    AsyncObservableLedgerStore,
    AsyncOffloadingLedgerStore,
    AsyncOffloadingRunStore,
    AsyncRuntime,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    Effect,
    EffectCall,
    EffectOutcome,
    EffectType,
    Request,
    RetryPolicy,
    RunState,
    RunStatus,
    SqliteDatabase,
    StepPlan,
    WorkflowSpec,
    verify_ledger_chain,
)
from abstractruntime.core.codec import record_dict
from abstractruntime.core.models import TERMINAL
from abstractruntime.storage.artifacts import InMemoryArtifactStore
from abstractruntime.storage.joining import join

from .checks import check_ledger, shape
from .clocks import StillClock
from .faults import FaultyBackend, FaultyRunStore, ProcessDied
from .scale import scaled

START = "2026-01-31T09:00:00+00:00"


class Bank:
    """The world outside: it charges once per idempotency key, however often it is called."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.charged: dict[str, int] = {}
        self.refusals = 1

    async def charge(self, call: EffectCall) -> EffectOutcome:
        self.calls[call.key] += 1
        self.charged.setdefault(call.key, call.payload["amount"])
        return EffectOutcome.completed({"amount": call.payload["amount"]})

    def flaky(self, call: EffectCall) -> EffectOutcome:
        """Fails in the first attempt of a run and again whenever an attempt is a first one."""
        self.calls[call.key] += 1
        if call.attempt == 1:
            return EffectOutcome.failed("try again")
        return EffectOutcome.completed("at last")

    async def stop_other(self, call: EffectCall) -> EffectOutcome:
        self.calls[call.key] += 1
        asked = Request(run_id="other", kind="cancel", by=call.run.run_id, at=call.now, reason="no longer needed")
        return EffectOutcome.completed({"asked": True}, requests=(asked,))


def effect(node: str, kind: str, payload: dict[str, Any], next_node: str | None, key: str | None = None) -> Any:
    """A node that always asks for this effect."""

    def ask(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan(node, Effect(kind, payload, key), next_node)

    return ask


def again(run: RunState, ctx: Any) -> StepPlan:
    """Charge twice, at one node with one payload: each must be charged."""
    run.vars["charges"] = run.vars.get("charges", 0) + 1
    follow = "again" if run.vars["charges"] < 2 else "hop"
    return StepPlan("again", Effect("charge", {"amount": 5}, f"charge{run.vars['charges']}"), follow)


def hop(run: RunState, ctx: Any) -> StepPlan:
    run.vars["hops"] = run.vars.get("hops", 0) + 1
    return StepPlan("hop", next_node="flaky")


def end(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("end", complete_output={k: v for k, v in run.vars.items() if not k.startswith("_")})


EVERYTHING: WorkflowSpec[Any] = WorkflowSpec(
    "everything",
    "say",
    {
        "say": effect("say", EffectType.ANSWER_USER, {"message": "hello"}, "again", "said"),
        "again": again,
        "hop": hop,
        "flaky": effect("flaky", "flaky", {}, "query", "flaky"),
        "query": effect("query", EffectType.VARS_QUERY, {"path": "charges"}, "past", "queried"),
        "past": effect("past", EffectType.WAIT_UNTIL, {"until": START}, "later", "past"),
        "later": effect("later", EffectType.WAIT_UNTIL, {"until": "2026-01-31T10:00:00Z"}, "ask", "later"),
        "ask": effect(
            "ask",
            EffectType.ASK_USER,
            {"prompt": "Go on?", "choices": ["yes", "no"], "allow_free_text": False},
            "silence",
            "answer",
        ),
        "silence": effect("silence", EffectType.ASK_USER, {"prompt": "Anyone?", "timeout_s": 60}, "event", "silence"),
        "event": effect("event", EffectType.WAIT_EVENT, {"wait_key": "door"}, "deadline", "event"),
        "deadline": effect(
            "deadline",
            EffectType.WAIT_EVENT,
            {"name": "never", "until": "2026-01-31T12:00:00+00:00"},
            "stop_other",
            "deadline",
        ),
        "stop_other": effect("stop_other", "stop_other", {}, "end", "stopped"),
        "end": end,
    },
)

OTHER: WorkflowSpec[Any] = WorkflowSpec(
    "other", "wait", {"wait": effect("wait", EffectType.WAIT_EVENT, {"wait_key": "other-door"}, None)}
)

ANSWERS: dict[str, Any] = {"ask": {"choice": "yes"}, "event": {"opened": True}}


class Process:
    """What a host does with its runs, in one life of its process. Every part may be repeated by the next life."""

    def __init__(self, run_store: Any, ledger_store: Any, bank: Bank, clock: StillClock) -> None:
        self.clock, self.bank = clock, bank
        self.rt = AsyncRuntime(
            run_store=run_store,
            ledger_store=ledger_store,
            effect_handlers={"charge": bank.charge, "flaky": bank.flaky, "stop_other": bank.stop_other},
            effect_policy=RetryOnce(),
            clock=clock,
            max_inline_backoff=0.0,
        )

    async def live(self) -> None:
        rt = self.rt
        await rt.start(workflow=OTHER, run_id="other", vars={"who": "bystander"})
        if (await rt.get_state("other")).status is RunStatus.RUNNING:
            await rt.tick(workflow=OTHER, run_id="other")
        await rt.start(workflow=EVERYTHING, run_id="main", vars={"given": 1})
        await self._to_the_end()
        await rt.tick(workflow=OTHER, run_id="other")

    async def _to_the_end(self) -> None:
        rt = self.rt
        for _ in range(100):
            state = await rt.tick(workflow=EVERYTHING, run_id="main")
            if state.status in TERMINAL:
                return
            wait = state.waiting
            if wait is None:
                self.clock.advance(1)  # a backoff
            elif state.paused:
                await rt.resume_run("main")
            elif state.current_node in ANSWERS:
                await rt.update_limits("main", {"max_iterations": 7})
                await rt.resume(
                    workflow=EVERYTHING,
                    run_id="main",
                    wait_key=wait.wait_key,
                    payload=ANSWERS[state.current_node],
                    resume_id=f"answer-{state.current_node}",
                    max_steps=0,
                )
                await rt.pause_run("main", reason="lunch")
            else:
                self.clock.advance(3600)
        raise AssertionError("the run never ended")


class RetryOnce(RetryPolicy):
    """Two attempts at everything."""

    def max_attempts(self, effect: Effect) -> int:
        return 2

    def backoff_seconds(self, *, effect: Effect, attempt: int) -> float:
        return 1.0


def chained(runs: Any, ledgers: Any, artifacts: Any) -> tuple[Any, Any]:
    return runs, AsyncHashChainedLedgerStore(ledgers)


def offloaded(runs: Any, ledgers: Any, artifacts: Any) -> tuple[Any, Any]:
    """Nearly everything is large."""
    options = {"artifact_store": artifacts, "max_inline_bytes": 20}
    return AsyncOffloadingRunStore(runs, **options), AsyncOffloadingLedgerStore(ledgers, **options)


def every_layer(runs: Any, ledgers: Any, artifacts: Any) -> tuple[Any, Any]:
    runs, ledgers = offloaded(runs, AsyncObservableLedgerStore(AsyncHashChainedLedgerStore(ledgers)), artifacts)
    return runs, AsyncObservableLedgerStore(ledgers)


STACKS: dict[str, Callable[[Any, Any, Any], tuple[Any, Any]]] = {
    "": lambda runs, ledgers, artifacts: (runs, ledgers),
    "chained": chained,
    "offloaded": offloaded,
    "every layer": every_layer,
}


class World:
    """Stores that outlive processes, of one kind, with the bank beside them."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.path = kind.partition(" ")[0], folder / "runs.db"
        self.decorate = STACKS[kind.partition(" ")[2]]
        self._artifacts = InMemoryArtifactStore()
        self.bank, self.clock = Bank(), StillClock()
        self._memory = (AsyncInMemoryRunStore(), AsyncInMemoryLedgerStore())
        self._databases: list[SqliteDatabase] = []

    def stores(self) -> tuple[Any, Any]:
        if self.kind == "memory":
            return self._memory
        if self.kind == "json":
            folder = self.path.with_suffix("")
            return (
                AsyncJsonFileRunStore(folder, durability="none"),
                AsyncJsonlLedgerStore(folder, durability="none"),
            )
        self._databases.append(SqliteDatabase(self.path, synchronous="NORMAL"))
        return AsyncSqliteRunStore(self._databases[-1]), AsyncSqliteLedgerStore(self._databases[-1])

    async def live(self, *, at: int = 0, mode: str = "die_before") -> FaultyBackend:
        runs, ledgers = self.stores()
        faulty = FaultyRunStore(runs, at=at, mode=mode)
        process = Process(*self.decorate(faulty, ledgers, self._artifacts), self.bank, self.clock)
        try:
            await process.live()
        except ProcessDied:
            assert at
        assert faulty.backend is not None
        return faulty.backend

    async def read(self, run_id: str) -> tuple[RunState, list[dict[str, Any]]]:
        joined = join(*self.decorate(*self.stores(), self._artifacts))
        backend = joined.resolving or joined.stored
        loaded = await backend.load(run_id)
        assert loaded is not None
        ledger = [record_dict(record) for record in await joined.stored.records(run_id)]
        if joined.layers.chain:
            report = verify_ledger_chain(ledger, head=loaded.run.chain_head, count=loaded.run.records)
            assert report["ok"], report
        return loaded.run, [record_dict(record) for record in await backend.records(run_id)]

    async def close(self) -> None:
        for database in self._databases:
            await database.aclose()


def timeless(state: RunState) -> dict[str, Any]:
    """The end state without the instants that depend on how often the clock had to move."""
    silence = {"timed_out": True, "until": "some time"}
    assert state.output["silence"].keys() == silence.keys()
    runtime = {**state.vars["_runtime"], "control": None}
    return {
        "status": state.status,
        "output": {**state.output, "silence": silence},
        "vars": {**state.vars, "_runtime": runtime, "silence": silence},
    }


async def reference(folder: Path) -> tuple[int, dict[str, Any], Any, set[str]]:
    """The same life without a fault: its writes, end state, ledger and keys."""
    world = World("memory", folder)
    backend = await world.live()
    state, ledger = await world.read("main")
    check_ledger(state, ledger)
    assert state.status is RunStatus.COMPLETED
    return backend.writes, timeless(state), shape(ledger), set(world.bank.calls)


#: the last of these has all that the others have
STACKED = ["sqlite chained", "sqlite offloaded", "memory every layer", "json every layer", "sqlite every layer"]
KINDS = ["memory", "sqlite", "json", *STACKED[scaled(-1, 0) :]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", FaultyBackend.MODES)
async def test_every_write_may_fail_and_the_end_is_the_same(kind: str, mode: str, tmp_path: Path) -> None:
    writes, expected, expected_ledger, keys = await reference(tmp_path)
    assert writes > 30
    for at in range(1, writes + 1, scaled(1, 1)):
        folder = tmp_path / f"{at}"
        folder.mkdir()
        world = World(kind, folder)
        backend = await world.live(at=at, mode=mode)
        assert backend.fired, f"write {at} was never reached"
        if mode.startswith("die"):
            await world.live()  # the next process
        state, ledger = await world.read("main")
        other, other_ledger = await world.read("other")
        await world.close()
        where = f"{mode} at write {at}"
        assert timeless(state) == expected, where
        assert shape(ledger) == expected_ledger, where
        check_ledger(state, ledger)
        assert other.status is RunStatus.CANCELLED, where
        assert other.error == "no longer needed"
        check_other(other, other_ledger)
        assert set(world.bank.calls) == keys, f"{where}: an effect got another key"
        assert len(world.bank.charged) == 2, f"{where}: charged {world.bank.charged}"
        limit = 2 if mode.startswith("die") else 1
        performed = {key: calls for key, calls in world.bank.calls.items() if key in world.bank.charged}
        assert max(performed.values()) <= limit, f"{where}: performed {performed}"


def check_other(state: RunState, ledger: list[dict[str, Any]]) -> None:
    assert len(ledger) == state.records
    assert ledger[-1]["result"]["by"] == "main"


async def test_faults_at_random_places_again_and_again_still_reach_the_end(tmp_path: Path, seed: int) -> None:
    import random

    rng = random.Random(seed)
    _, expected, expected_ledger, keys = await reference(tmp_path)
    for round_ in range(scaled(20, 500)):
        folder = tmp_path / f"round{round_}"
        folder.mkdir()
        world = World(rng.choice(KINDS), folder)
        for _ in range(50):
            backend = await world.live(at=rng.randint(1, 20), mode=rng.choice(FaultyBackend.MODES))
            if not backend.fired:
                break
        await world.live()
        state, ledger = await world.read("main")
        await world.close()
        assert timeless(state) == expected
        assert shape(ledger) == expected_ledger
        check_ledger(state, ledger)
        assert set(world.bank.calls) == keys
        assert len(world.bank.charged) == 2
