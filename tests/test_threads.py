"""Worker threads: how many, in which order, what they see, and what becomes of a caller that went away."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

from abstractruntime.core.threads import WorkerThreads

from .scale import scaled

#: a bound for every wait of a test, so that a defect fails instead of hanging
PATIENCE = 30

COLOUR: ContextVar[str] = ContextVar("colour", default="none")


class Gate:
    """Functions that block their threads until the test opens the gate, and count themselves meanwhile."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self.inside = self.most = self.passed = 0
        self.order: list[Any] = []

    def __call__(self, name: Any = None) -> Any:
        with self._changed:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.order.append(name)
            self._changed.notify_all()
        assert self._open.wait(PATIENCE)
        with self._changed:
            self.inside -= 1
            self.passed += 1
            self._changed.notify_all()
        return name

    def open(self) -> None:
        self._open.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when the condition holds; it is looked at whenever a function comes or goes."""

        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(condition, PATIENCE)

        assert await asyncio.to_thread(wait)


async def settled(count: int = 20) -> None:
    """Let the tasks of this loop go as far as they can without a thread."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_function_runs_in_a_daemon_thread_of_its_own_and_its_result_comes_back():
    def where(a: int, b: int) -> tuple[threading.Thread, int]:
        return threading.current_thread(), a + b

    thread, total = await WorkerThreads(1).run(where, 1, 2)
    assert total == 3
    assert thread is not threading.current_thread()
    assert thread.daemon


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyError("k"), KeyboardInterrupt("stop"), asyncio.CancelledError("x")]
)
async def test_what_a_function_raises_is_raised_where_it_is_awaited(error: BaseException):
    def fails() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await WorkerThreads(1).run(fails)
    assert caught.value.args == error.args


async def test_a_stop_iteration_which_no_future_can_carry_becomes_a_runtime_error():
    def fails() -> Any:
        return next(iter(()))

    with pytest.raises(RuntimeError, match="StopIteration left a handler"):
        await WorkerThreads(1).run(fails)


async def test_an_error_does_not_cost_the_pool_its_thread():
    pool = WorkerThreads(1)

    def fails() -> None:
        raise ValueError("no")

    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            await pool.run(fails)
    assert await pool.run(lambda: 5) == 5


@pytest.mark.parametrize("limit", [1, 3])
async def test_never_more_than_the_limit_run_at_once_and_always_as_many_as_it_allows(limit: int):
    pool, gate = WorkerThreads(limit), Gate()
    calls = [asyncio.create_task(pool.run(gate, number)) for number in range(10)]
    await gate.until(lambda: gate.inside == limit)
    await settled()
    assert gate.inside == limit
    gate.open()
    assert await asyncio.gather(*calls) == list(range(10))
    assert gate.most == limit


async def test_calls_beyond_the_limit_wait_their_turn_in_order():
    pool, gate = WorkerThreads(1), Gate()
    calls = [asyncio.create_task(pool.run(gate, number)) for number in range(20)]
    gate.open()
    await asyncio.gather(*calls)
    assert gate.order == list(range(20))


async def test_threads_that_are_idle_are_used_again():
    pool = WorkerThreads(2)
    threads = {await pool.run(threading.current_thread) for _ in range(50)}
    assert len(threads) <= 2


async def test_threads_are_made_only_as_they_are_needed():
    pool, gate = WorkerThreads(64), Gate()
    before = threading.active_count()
    calls = [asyncio.create_task(pool.run(gate)) for _ in range(3)]
    await gate.until(lambda: gate.inside == 3)
    named = [thread for thread in threading.enumerate() if thread.name == "abstractruntime-worker"]
    assert len(named) >= 3
    assert threading.active_count() - before <= 3 + 1  # ours, and the one that waits at the gate
    gate.open()
    await asyncio.gather(*calls)


async def test_a_cancelled_caller_is_let_go_at_once_and_the_thread_ends_by_itself():
    pool, gate = WorkerThreads(1), Gate()
    call = asyncio.create_task(pool.run(gate))
    await gate.until(lambda: gate.inside == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (gate.inside, gate.passed) == (1, 0)
    gate.open()
    await gate.until(lambda: gate.passed == 1)
    assert await pool.run(lambda: "still works") == "still works"


async def test_a_call_that_is_cancelled_while_it_waits_its_turn_never_runs():
    pool, gate = WorkerThreads(1), Gate()
    first = asyncio.create_task(pool.run(gate, "first"))
    await gate.until(lambda: gate.inside == 1)
    waits = asyncio.create_task(pool.run(gate, "never"))
    after = asyncio.create_task(pool.run(gate, "after"))
    await settled()
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    gate.open()
    assert [await first, await after] == ["first", "after"]
    assert gate.order == ["first", "after"]


async def test_an_error_that_comes_after_the_caller_was_cancelled_is_dropped():
    pool, gate = WorkerThreads(1), Gate()

    def fails() -> None:
        gate()
        raise ValueError("nobody wants to know")

    call = asyncio.create_task(pool.run(fails))
    await gate.until(lambda: gate.inside == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    gate.open()
    assert await pool.run(lambda: 1) == 1


async def test_a_function_sees_the_callers_context_and_cannot_change_it():
    def repaint() -> str:
        seen = COLOUR.get()
        COLOUR.set("painted in the thread")
        return seen

    pool = WorkerThreads(1)
    COLOUR.set("red")
    assert await pool.run(repaint) == "red"
    assert COLOUR.get() == "red"
    COLOUR.set("blue")
    assert await pool.run(repaint) == "blue"


async def test_each_of_many_callers_gets_its_own_result():
    pool, many = WorkerThreads(8), scaled(300, 10_000)

    async def ask(number: int) -> None:
        COLOUR.set(str(number))
        assert await pool.run(lambda: (number, COLOUR.get())) == (number, str(number))

    await asyncio.gather(*(ask(number) for number in range(many)))


def test_a_loop_that_was_closed_meanwhile_gets_nothing_and_the_pool_goes_on():
    pool, gate = WorkerThreads(1), Gate()

    async def leaves() -> None:
        call = asyncio.create_task(pool.run(gate))
        await gate.until(lambda: gate.inside == 1)
        call.cancel()

    asyncio.run(leaves())
    gate.open()
    assert asyncio.run(pool.run(lambda: "another loop")) == "another loop"


def test_one_pool_serves_several_loops_at_once():
    pool = WorkerThreads(2)
    results: list[int] = []

    def in_a_loop(number: int) -> None:
        async def many() -> None:
            results.extend([await pool.run(lambda: number) for _ in range(50)])

        asyncio.run(many())

    loops = [threading.Thread(target=in_a_loop, args=(number,)) for number in range(4)]
    for loop in loops:
        loop.start()
    for loop in loops:
        loop.join(PATIENCE)
    assert sorted(results) == sorted([0, 1, 2, 3] * 50)


async def test_an_idle_thread_keeps_nothing_of_what_it_did():
    class Result:
        pass

    pool, result = WorkerThreads(1), Result()
    gone = weakref.ref(result)
    await pool.run(lambda given: given, result)
    del result
    async with asyncio.timeout(10):
        while gone() is not None:
            gc.collect()
            await asyncio.sleep(0.001)
