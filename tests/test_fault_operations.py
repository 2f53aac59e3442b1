"""Walk a fault through every store write and read of every single operation, repair the store, and go on.

What the caller gets is the store's error and nothing else. Then the same runtime, or another one, does it again, and
the run comes to the same end, with the same effects landed, as if nothing had been.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from abstractruntime import (
    AsyncInMemoryLedgerStore,
    AsyncInMemoryRunStore,
    AsyncRuntime,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    DefaultEffectPolicy,
    Effect,
    EffectCall,
    EffectOutcome,
    RunState,
    RunStatus,
    Snapshot,
    SqliteDatabase,
    StaleResumeError,
    StepPlan,
    StoreError,
    StoreUnclear,
    WaitReason,
    WaitState,
)
from abstractruntime.core.models import TERMINAL

from .checks import check_ledger, check_on_the_way, shape
from .clocks import StillClock
from .faults import READ_FAULTS, READS, WRITE_FAULTS, WRITES, BreakableRunStore, Fault, ProcessDied
from .scale import scaled
from .worlds import a_moment, ask, flow, go

RUN = "r"
#: the effects that reach outside
OUTSIDE = ("done", "slow", "flaky", "refused", "asks", "parts")


class Outside:
    """What the effects did, and the trouble that a node has once."""

    def __init__(self) -> None:
        self.performed: Counter[str] = Counter()
        self.entered, self.door = asyncio.Event(), asyncio.Event()
        self.trouble = True

    def done(self, call: EffectCall) -> EffectOutcome:
        self.performed[call.key] += 1
        return EffectOutcome.completed({"by": call.node_id})

    async def slow(self, call: EffectCall) -> EffectOutcome:
        """Waits in its first attempt, until the door opens."""
        self.performed[call.key] += 1
        self.entered.set()
        await self.door.wait()
        return EffectOutcome.completed("at last")

    def flaky(self, call: EffectCall) -> EffectOutcome:
        self.performed[call.key] += 1
        first = "refused" not in call.run.vars and call.attempt == 1
        return EffectOutcome.failed("not now") if first else EffectOutcome.completed("at last")

    def asks(self, call: EffectCall) -> EffectOutcome:
        if call.answer is None:
            return EffectOutcome.asking(WaitState(WaitReason.USER, prompt="May I?"))
        self.performed[call.key] += 1
        return EffectOutcome.completed({"told": call.answer.payload})

    async def parts(self, call: EffectCall) -> EffectOutcome:
        for part in ("one", "two"):
            if part not in call.landed:
                self.performed[f"{call.key}:{part}"] += 1
                await call.land(part, {"part": part})
        return EffectOutcome.completed(call.landed)

    def refused(self, call: EffectCall) -> EffectOutcome:
        self.performed[call.key] += 1
        return EffectOutcome.failed("never", retryable=False)

    def troubled(self, run: RunState, ctx: Any) -> StepPlan:
        run.vars["seen"] = True
        if self.trouble:
            self.trouble = False
            raise LookupError("the node has trouble")
        return StepPlan("troubled", next_node="end")


def several(run: RunState, ctx: Any) -> StepPlan:
    effects = [Effect("done", {"number": number}, f"done.n{number}") for number in range(3)]
    return StepPlan("several", effects=effects, next_node="end", max_parallel=2)


class Host:
    """A program with one run, on stores that can break down."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.path, self.clock, self.outside = kind, folder / "runs.db", StillClock(), Outside()
        #: the run that is brought to its end: RUN, or what was made of it
        self.run_id = RUN
        self.bookmark: Snapshot | None = None
        self._memory = (AsyncInMemoryRunStore(), AsyncInMemoryLedgerStore())
        self._databases: list[SqliteDatabase] = []
        self.workflow = flow(
            "say",
            say=ask("say", "answer_user", {"message": "hello"}, "said", "charge"),
            charge=ask("charge", "done", {}, "charged", "flaky"),
            flaky=ask("flaky", "flaky", {}, "tried", "hop"),
            hop=go("hop", "ask"),
            ask=ask("ask", "ask_user", {"prompt": "Go on?"}, "answer", "later"),
            later=ask("later", "wait_until", {"until": "2026-02-28T09:00:00Z"}, "rang", "last"),
            last=ask("last", "done", {}, "last", "end"),
            slow=ask("slow", "slow", {}, "slow"),
            refused=ask("refused", "refused", {}),
            asks=ask("asks", "asks", {}, "asked"),
            parts=ask("parts", "parts", {}, "parts"),
            troubled=self.outside.troubled,
            several=several,
        )
        self.open()

    def open(self) -> None:
        """As another process would."""
        runs: Any
        ledgers: Any
        if self.kind == "memory":
            runs, ledgers = self._memory
        else:
            self._databases.append(SqliteDatabase(self.path, synchronous="NORMAL"))
            runs, ledgers = AsyncSqliteRunStore(self._databases[-1]), AsyncSqliteLedgerStore(self._databases[-1])
        self.store, self.ledgers = BreakableRunStore(runs), ledgers
        outside = self.outside
        self.rt = AsyncRuntime(
            run_store=self.store,
            ledger_store=ledgers,
            effect_handlers={name: getattr(outside, name) for name in OUTSIDE},
            effect_policy=DefaultEffectPolicy(2, default_backoff_base=600.0, default_backoff_max=600.0),
            clock=self.clock,
        )

    async def close(self) -> None:
        self.store.backend.repair()
        await self.rt.aclose()
        for database in self._databases:
            await database.aclose()

    async def begin(self) -> None:
        await self.rt.start(workflow=self.workflow, run_id=RUN, vars={"given": 1})

    async def tick(self, steps: int = 1) -> RunState:
        return await self.rt.tick(workflow=self.workflow, run_id=self.run_id, max_steps=steps)

    async def go_to(self, node: str) -> RunState:
        """Move the run to this node; one that no other node leads to is reached by a host's save."""
        await self.begin()
        state = await self.rt.get_state(RUN)
        if node in ("slow", "refused", "troubled", "several", "asks", "parts"):
            state.current_node = node
            await self.store.save(state)
            return state
        while state.current_node != node:
            state = await self.tick()
            if state.intent is not None:
                self.clock.advance(600)
            elif state.waiting is not None:
                state = await self.answer(state)
        return state

    async def answer(self, state: RunState, resume_id: str | None = None) -> RunState:
        key = state.waiting.wait_key if state.waiting else None
        return await self.rt.resume(
            workflow=self.workflow, run_id=self.run_id, wait_key=key, payload="yes", max_steps=0, resume_id=resume_id
        )

    async def to_the_end(self) -> RunState:
        await self.begin()
        for _ in range(30):
            state = await self.rt.get_state(self.run_id)
            if state.paused:
                await self.rt.resume_run(self.run_id)
            elif state.waiting is not None and state.waiting.until is None:
                await self.answer(state)
            else:
                self.clock.advance(40 * 86400.0 if state.waiting else 600.0 if state.intent else 0.0)
            state = await self.tick(100)
            if state.status in TERMINAL:
                return state
        raise AssertionError(f"the run never ended: {state}")

    async def attended(self, work: Awaitable[Any]) -> Any:
        """Await it while time passes for whoever waits a little before trying again."""
        task = asyncio.ensure_future(work)
        while not task.done():
            naps = self.clock.naps
            if naps and naps[0] < 1.1:
                self.clock.advance(naps[0] + 1e-3)
            await (asyncio.sleep(0) if self.kind == "memory" else a_moment())
        return task.result()


class Operation(NamedTuple):
    """What is done, and what leads up to it. `after` is what a host does when it failed, if not the same again."""

    before: Callable[[Host], Awaitable[Any]]
    act: Callable[[Host], Awaitable[Any]]
    #: what it raises even though the store is well
    raises: type[Exception] = StoreError
    #: the runtime can go on after it
    reusable: bool = True


def tick_at(node: str, **options: Any) -> Operation:
    return Operation(lambda host: host.go_to(node), lambda host: host.tick(), **options)


async def tick_failing_attempt(host: Host) -> None:
    await host.go_to("flaky")
    await host.tick()
    host.clock.advance(600)


async def waiting(host: Host) -> None:
    await host.go_to("ask")
    await host.tick()


async def asking(host: Host) -> None:
    await host.go_to("asks")
    await host.tick()


async def decided(host: Host) -> None:
    await asking(host)
    await host.answer(await host.rt.get_state(RUN))


async def timer_due(host: Host) -> None:
    await host.go_to("later")
    await host.tick()
    host.clock.advance(40 * 86400)


async def failed(host: Host) -> None:
    await host.go_to("refused")
    await host.tick()


async def held(host: Host) -> None:
    await host.go_to("hop")
    await host.rt.pause_run(RUN)


async def resume(host: Host) -> None:
    """A host that does not know whether its answer arrived gives it again; that it did arrive is then told."""
    state = await host.rt.get_state(RUN)
    if state.current_node == "ask" and state.waiting is not None:
        with suppress(StaleResumeError):
            await host.answer(state)


async def resume_by_id(host: Host) -> None:
    await host.rt.resume(
        workflow=host.workflow, run_id=RUN, wait_key=None, payload="yes", max_steps=0, resume_id="the-answer"
    )


async def save(host: Host) -> None:
    state = await host.store.load(RUN)
    state.vars["by the host"] = True
    await host.store.save(state)


async def close_in_mid_effect(host: Host) -> None:
    host.outside.entered.clear()
    host.outside.door.clear()
    tick = asyncio.create_task(host.tick())
    entered = asyncio.create_task(host.outside.entered.wait())
    try:
        await asyncio.wait((tick, entered), return_when=asyncio.FIRST_COMPLETED)
        if not tick.done():
            await host.rt.aclose()
        with suppress(asyncio.CancelledError):
            await tick
    finally:
        entered.cancel()
        tick.cancel()
        host.outside.door.set()
        await asyncio.wait((tick, entered))


async def answered_wrongly(host: Host) -> None:
    """The run has moved on since it was bookmarked, and done one effect more."""
    await waiting(host)
    host.bookmark = await host.rt.snapshot_run(RUN, name="before the answer")
    await host.answer(await host.rt.get_state(RUN))
    await host.tick()


async def restore(host: Host) -> None:
    assert host.bookmark is not None
    await host.rt.restore(RUN, host.bookmark, reason="wrong")


async def fork(host: Host) -> None:
    """What counts from then on is the fork; its original is left where it stands."""
    host.run_id = await host.rt.fork(RUN, at=host.bookmark, vars={"given": 2}, new_run_id="fork")


async def nothing(host: Host) -> None:
    """A run that does not exist yet."""


OPERATIONS: dict[str, Operation] = {
    "start": Operation(nothing, lambda host: host.begin()),
    "an effect inside": tick_at("say"),
    "an effect outside": tick_at("charge"),
    "an attempt that fails": tick_at("flaky"),
    "the next attempt": Operation(tick_failing_attempt, lambda host: host.tick()),
    "a move": tick_at("hop"),
    "a wait": tick_at("ask"),
    "an answer": Operation(waiting, resume),
    "an answer by id": Operation(waiting, resume_by_id),
    "a question of an effect": tick_at("asks"),
    "a decision": Operation(asking, resume_by_id),
    "an effect that was decided about": Operation(decided, lambda host: host.tick()),
    "parts that land": tick_at("parts"),
    "a timer": Operation(timer_due, lambda host: host.tick()),
    "the end": tick_at("end"),
    "an effect that fails": tick_at("refused"),
    "several effects": tick_at("several"),
    "a retry": Operation(failed, lambda host: host.rt.retry_run(RUN, reason="once more")),
    "a node that raises": tick_at("troubled", raises=LookupError),
    "a cancel": Operation(tick_failing_attempt, lambda host: host.rt.cancel_run(RUN, reason="enough")),
    "a hold": Operation(lambda host: host.go_to("hop"), lambda host: host.rt.pause_run(RUN)),
    "a release": Operation(held, lambda host: host.rt.resume_run(RUN)),
    "new limits": Operation(waiting, lambda host: host.rt.update_limits(RUN, {"max_iterations": 7})),
    "a save": Operation(waiting, save),
    "a restore": Operation(answered_wrongly, restore),
    "a fork": Operation(answered_wrongly, fork),
    "a close in mid effect": Operation(lambda host: host.go_to("slow"), close_in_mid_effect, reusable=False),
}
#: in memory a save is no call of the backend
IN_MEMORY = [name for name in OPERATIONS if name != "a save"]


class End(NamedTuple):
    """How it all ended."""

    state: dict[str, Any]
    ledger: list[tuple[Any, ...]]
    performed: Counter[str]


async def end_of(host: Host) -> End:
    state = await host.attended(host.to_the_end())
    ledger = await host.rt.get_ledger(host.run_id)
    if state.status is not RunStatus.FAILED:
        check_ledger(state, ledger)
    runtime = {name: value for name, value in state.vars["_runtime"].items() if name != "control"}
    shown = {
        "status": state.status,
        "output": state.output,
        "error": state.error,
        "node": state.current_node,
        "vars": {**state.vars, "_runtime": runtime},
    }
    told = shape(ledger)
    told.sort(key=lambda entry: entry[2] if entry[0] == "several" else "")  # these land in any order
    return End(shown, told, host.outside.performed)


async def undisturbed(operation: Operation, folder: Path) -> End:
    host = Host("memory", folder)
    await operation.before(host)
    with suppress(operation.raises):
        await operation.act(host)
    if not operation.reusable:
        host.open()
    end = await end_of(host)
    await host.close()
    return end


async def disturbed(
    operation: Operation, kind: str, folder: Path, calls: frozenset[str], at: int, fault: Fault, *, fresh: bool
) -> End | None:
    """The end of a life whose call number `at` during the operation went wrong; None when there is no such call."""
    host = Host(kind, folder)
    try:
        await operation.before(host)
        host.store.backend.arm(calls, at, fault)
        error = await error_of(host, operation, fault)
        if not host.store.backend.fired:
            return None
        if operation.raises is not StoreError and calls is WRITES:
            assert not isinstance(error, StoreError), "the node's own error was hidden"
        if fault.error is StoreUnclear and not fault.lasting:
            assert not isinstance(error, StoreError) or operation.act is save, "it could have looked"
        if fault.lasting and not fault.landed and isinstance(error, StoreError):  # what lands can be looked for
            assert isinstance(await error_of(host, operation, fault), StoreError), "it does not work while it is down"
        host.store.backend.repair()
        if isinstance(error, ProcessDied) or fresh or not operation.reusable:
            host.open()
        state = await host.store.load(RUN)
        if state is not None:
            state, ledger = await host.rt.get_state(RUN), await host.ledgers.list(RUN)
            check_on_the_way(state, ledger)
            assert state.status not in TERMINAL or ledger[-1]["idempotency_key"].endswith(state.status)
        if operation.reusable and error is not None:
            with suppress(operation.raises):
                await host.attended(operation.act(host))
        return await end_of(host)
    finally:
        await host.close()


async def error_of(host: Host, operation: Operation, fault: Fault) -> BaseException | None:
    """Do it with a store that breaks down: the caller may hear of that, and of nothing else."""
    try:
        await host.attended(operation.act(host))
    except (fault.error, operation.raises) as error:
        return error
    except BaseExceptionGroup:  # several effects meet the end of their process
        assert fault.error is ProcessDied
        return ProcessDied()
    return None


Case = tuple[str, str, bool]


def cases(names: list[str], faults: dict[str, Fault]) -> Iterator[Case]:
    for name in names:
        for fault in faults:
            for fresh in (False, True):
                if not (fresh and faults[fault].error is ProcessDied):
                    yield name, fault, fresh


async def walk(
    case: Case, kind: str, folder: Path, calls: frozenset[str], faults: dict[str, Fault], expected: End
) -> int:
    """Let each call of an operation go wrong in one way, one life each; how many there were."""
    name, kind_of_fault, fresh = case
    operation, fault = OPERATIONS[name], faults[kind_of_fault]
    for at in count(1):
        place = folder / f"{at}"
        place.mkdir(exist_ok=True)
        found = await disturbed(operation, kind, place, calls, at, fault, fresh=fresh)
        if found is None:
            return at - 1
        where = f"{name}: call {at} {kind_of_fault}, {'another' if fresh else 'the same'} runtime goes on"
        assert found.state == expected.state, where
        assert found.ledger == expected.ledger, where
        assert found.performed.keys() == expected.performed.keys(), f"{where}: an effect got another key"
        again = found.performed - expected.performed
        assert again.total() <= (2 if name == "several effects" else 1), f"{where}: performed again {again}"
        assert set(again.values()) <= {1}, f"{where}: performed again {again}"
    raise AssertionError


@pytest.mark.parametrize("name", IN_MEMORY)
async def test_every_write_of_an_operation_may_fail_and_nothing_is_lost_or_done_twice(
    name: str, tmp_path: Path
) -> None:
    expected = await undisturbed(OPERATIONS[name], tmp_path)
    for case in cases([name], WRITE_FAULTS):
        assert await walk(case, "memory", tmp_path, WRITES, WRITE_FAULTS, expected)


@pytest.mark.parametrize("name", [name for name in IN_MEMORY if name != "start"])
async def test_every_read_of_an_operation_may_fail_and_the_caller_hears_of_nothing_else(
    name: str, tmp_path: Path
) -> None:
    expected = await undisturbed(OPERATIONS[name], tmp_path)
    for case in cases([name], READ_FAULTS):
        assert await walk(case, "memory", tmp_path, READS, READ_FAULTS, expected)


async def test_on_sqlite_any_operation_may_fail_and_nothing_is_lost_or_done_twice(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    chosen = rng.sample([*cases(list(OPERATIONS), WRITE_FAULTS)], scaled(12, 340))
    for number, case in enumerate([*cases(["a save"], WRITE_FAULTS), *chosen]):
        folder = tmp_path / f"case{number}"
        folder.mkdir()
        expected = await undisturbed(OPERATIONS[case[0]], folder)
        assert await walk(case, "sqlite", folder, WRITES, WRITE_FAULTS, expected)
