"""The portal: blocking calls into the one loop thread, and the way back into the thread that called."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from contextvars import ContextVar
from pathlib import Path

import pytest

from abstractruntime.core import portal
from abstractruntime.core.portal import call, carry, drive, here, twin

from .scale import scaled

ROOT = Path(__file__).parent.parent
COLOUR: ContextVar[str] = ContextVar("colour", default="none")
CHAIN: ContextVar[tuple[str, ...]] = carry(ContextVar("chain", default=()))


async def add(a: int, b: int = 0) -> int:
    await asyncio.sleep(0)
    return a + b


async def thread_of_here() -> threading.Thread:
    return await here(threading.current_thread)


@pytest.mark.parametrize("blocking", [call, drive])
def test_a_call_returns_what_the_coroutine_returns(blocking):
    assert blocking(add, 1, b=2) == 3


@pytest.mark.parametrize("blocking", [call, drive])
def test_a_call_raises_what_the_coroutine_raises_with_its_traceback(blocking):
    async def fails() -> None:
        raise LookupError("nothing here")

    with pytest.raises(LookupError, match="nothing here") as caught:
        blocking(fails)
    assert "fails" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_coroutine_that_raises_no_exception_proper_leaves_the_loop_alive(error):
    async def fails() -> None:
        raise error

    with pytest.raises(type(error)):
        drive(fails)
    assert drive(add, 1) == 1


def test_a_coroutine_cancelled_from_elsewhere_does_not_look_like_a_cancelled_caller():
    async def cancelled() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    with pytest.raises(concurrent.futures.CancelledError, match="cancelled was cancelled"):
        drive(cancelled)


def test_all_calls_run_on_one_daemon_thread_that_is_not_the_callers():
    async def thread() -> threading.Thread:
        return threading.current_thread()

    loop_thread = call(thread)
    assert loop_thread is drive(thread)
    assert loop_thread is not threading.current_thread()
    assert loop_thread.daemon


def test_under_drive_here_runs_in_the_callers_thread():
    assert drive(thread_of_here) is threading.current_thread()


def test_under_call_here_runs_inline():
    assert call(thread_of_here).name == "abstractruntime-portal"


async def test_without_the_portal_here_runs_inline():
    assert await here(threading.current_thread) is threading.current_thread()


def test_here_takes_arguments_of_both_kinds():
    async def join() -> str:
        return await here("{} {b}".format, "a", b="b")

    assert drive(join) == "a b"


def test_an_error_in_a_served_function_reaches_the_coroutine_and_shows_both_stacks():
    def served() -> None:
        raise ValueError("from the node")

    async def catches() -> str:
        with pytest.raises(ValueError, match="from the node"):
            await here(served)
        return "caught"

    async def lets_pass() -> None:
        await here(served)

    assert drive(catches) == "caught"
    with pytest.raises(ValueError, match="from the node") as caught:
        drive(lets_pass)
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert {"served", "lets_pass"} <= set(frames)


def test_stop_iteration_in_a_served_function_does_not_strand_the_coroutine():
    async def asks() -> None:
        await here(next, iter(()))

    with pytest.raises(RuntimeError, match="StopIteration"):
        drive(asks)


def test_an_error_that_crossed_leaves_no_reference_cycle_behind():
    class Witness:
        pass

    async def asks() -> weakref.ref[Witness]:
        witness = Witness()

        def served() -> None:
            raise ValueError(witness)

        try:
            await here(served)
        except ValueError as error:
            raise LookupError(weakref.ref(witness)) from error
        raise AssertionError

    gc.collect()
    gc.disable()
    try:
        try:
            drive(asks)
        except LookupError as error:
            reference = error.args[0]
        drive(add, 1)  # the loop lets go of the task at its next turn
        assert reference() is None
    finally:
        gc.enable()


def test_served_functions_run_in_the_order_they_were_asked_for_and_before_drive_returns():
    seen: list[int] = []

    async def background(number: int) -> None:
        await here(seen.append, number)

    async def many() -> None:
        tasks = [asyncio.create_task(background(number)) for number in range(20)]
        await asyncio.sleep(0)  # all have asked; none is awaited
        assert len(tasks) == 20

    drive(many)
    assert seen == list(range(20))


def test_a_served_function_may_call_again_to_any_depth():
    async def descend(depth: int) -> list[threading.Thread]:
        me = await here(threading.current_thread)
        below = await here(drive, descend, depth - 1) if depth else []
        return [me, *below, *([await here(call, current)] if depth == 2 else [])]

    async def current() -> threading.Thread:
        return threading.current_thread()

    threads = drive(descend, 5)
    assert [thread for thread in threads if thread is threading.current_thread()] == [threading.current_thread()] * 6
    assert len(threads) == 7


def test_coroutine_and_served_function_see_the_callers_context_variables():
    async def look() -> list[str]:
        inside = COLOUR.get()
        COLOUR.set("blue")  # of the coroutine alone
        return [inside, await here(COLOUR.get)]

    token = COLOUR.set("red")
    try:
        assert drive(look) == ["red", "red"]
        assert COLOUR.get() == "red"
    finally:
        COLOUR.reset(token)


def test_a_carried_variable_reaches_served_functions_and_the_calls_they_make():
    async def enter(name: str, then: tuple[str, ...]) -> tuple[str, ...]:
        CHAIN.set((*CHAIN.get(), name))
        if then:
            return await here(drive, enter, then[0], then[1:])
        return await here(CHAIN.get)

    assert drive(enter, "a", ("b", "c")) == ("a", "b", "c")
    assert CHAIN.get() == ()


def test_a_carried_variable_is_set_back_when_the_served_function_fails():
    async def fails() -> None:
        CHAIN.set(("inside",))
        await here(int, "no number")

    with pytest.raises(ValueError, match="no number"):
        drive(fails)
    assert CHAIN.get() == ()


def test_a_task_that_outlives_its_drive_runs_here_inline():
    async def later(go: asyncio.Event) -> threading.Thread:
        await go.wait()
        return await here(threading.current_thread)

    async def leave_behind() -> tuple[asyncio.Event, asyncio.Task[threading.Thread]]:
        go = asyncio.Event()
        return go, asyncio.create_task(later(go))

    async def collect(go: asyncio.Event, task: asyncio.Task[threading.Thread]) -> threading.Thread:
        go.set()
        return await task

    assert drive(collect, *drive(leave_behind)).name == "abstractruntime-portal"


def test_a_cancelled_here_withdraws_a_function_that_has_not_begun():
    seen: list[str] = []

    async def cancels() -> None:
        first = asyncio.create_task(here(started.wait, 60))
        second = asyncio.create_task(here(seen.append, "second"))
        await asyncio.sleep(0)
        second.cancel()
        started.set()
        assert await first

    started = threading.Event()
    drive(cancels)
    assert seen == []


def test_a_served_function_whose_call_was_cancelled_is_left_to_end_and_its_error_is_logged(caplog):
    running, go = threading.Event(), threading.Event()

    def served() -> None:
        running.set()
        assert go.wait(60)
        raise ValueError("too late")

    async def cancels() -> None:
        task = asyncio.create_task(here(served))
        assert await asyncio.to_thread(running.wait, 60)
        task.cancel()
        await asyncio.wait({task})
        go.set()
        await here(lambda: None)  # served after it, in order

    drive(cancels)
    assert "served failed after the call was cancelled" in caplog.text


def test_calling_from_the_loop_thread_is_refused_by_name():
    async def inside() -> None:
        call(add, 1)

    with pytest.raises(RuntimeError, match=r"add was called through the blocking API from the loop thread"):
        drive(inside)


async def test_a_call_under_a_running_loop_blocks_that_loop_and_works(blockbuster):
    blockbuster.deactivate()  # what it guards against is what this test is about
    assert drive(add, 1, b=1) == 2
    assert drive(thread_of_here) is threading.current_thread()


def test_many_threads_call_at_once_and_each_serves_its_own():
    count = scaled(32, 256)
    barrier = threading.Barrier(count)

    async def work(number: int) -> list[object]:
        out: list[object] = [number]
        for _ in range(10):
            out.append(await here(threading.get_ident))
            out.append(await here(drive, thread_of_here))
        return out

    def caller(number: int) -> bool:
        barrier.wait(60)
        me = threading.current_thread()
        return drive(work, number) == [number, *[me.ident, me] * 10]

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        assert all(pool.map(caller, range(count)))


def test_threads_that_call_first_at_the_same_time_share_one_loop():
    program = """
import asyncio, concurrent.futures, threading
from abstractruntime.core.portal import call

async def loop():
    return id(asyncio.get_running_loop())

barrier = threading.Barrier(16)

def first(_):
    barrier.wait()
    return call(loop)

with concurrent.futures.ThreadPoolExecutor(16) as pool:
    print(len(set(pool.map(first, range(16)))), sum("portal" in thread.name for thread in threading.enumerate()))
"""
    assert run(program).stdout == "1 1\n"


def test_a_task_or_a_callback_that_exits_ends_whoever_awaits_it_and_not_the_calls_of_others(caplog):
    begun, go = threading.Event(), []

    async def other() -> str:
        go.append(asyncio.Event())
        begun.set()
        await go[0].wait()
        return "still here"

    async def exits() -> None:
        asyncio.get_running_loop().call_soon(sys.exit)
        await asyncio.sleep(0)
        await asyncio.create_task(exit_task())

    async def exit_task() -> None:
        raise SystemExit(5)

    async def release() -> None:
        go[0].set()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(drive, other)
        assert begun.wait(60)
        with pytest.raises(SystemExit, match="5"):
            drive(exits)
        drive(release)
        assert answer.result(60) == "still here"
    assert "it goes on" in caplog.text


def test_a_task_that_cancels_every_other_leaves_the_loop_alive():
    async def cancel_all() -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    drive(cancel_all)
    assert drive(add, 1) == 1


def test_a_twin_has_the_signature_of_its_async_method_and_blocks():
    class AsyncCounter:
        async def up(self, by: int = 1) -> int:
            """Count up."""
            return await add(by)

    class Counter:
        up = twin(AsyncCounter.up)

        def __init__(self) -> None:
            self.aio = AsyncCounter()

    assert Counter().up(by=2) == 2
    assert Counter.up.__doc__ == "Count up."
    assert not asyncio.iscoroutinefunction(Counter.up)


def test_after_a_fork_the_child_has_a_loop_of_its_own_and_the_parents_goes_on():
    program = """
import os, warnings
from abstractruntime.core import portal

warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forking with threads

async def pid():
    return os.getpid(), await portal.here(os.getpid)

def fork(check):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if check() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

mine = (os.getpid(),) * 2
assert portal.drive(pid) == mine
for _ in range(3):
    assert fork(lambda: portal.drive(pid) == (os.getpid(),) * 2) == 0
    assert portal.drive(pid) == mine

async def forks():
    return await portal.here(fork, lambda: portal.drive(pid) == (os.getpid(),) * 2)

assert portal.drive(forks) == 0
print("ok")
"""
    assert run(program).stdout == "ok\n"


def run(program: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def interrupt(program: str, *, signals: int = 1) -> tuple[str, str]:
    """Run a program, press Ctrl-C each time it says `ready`, and return the rest of its output and its errors."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED + program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        for _ in range(signals):
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
        # Not communicate(): it would pass over what readline() has buffered.
        assert process.stderr is not None
        out, errors = process.stdout.read(), process.stderr.read()
    assert process.returncode == 0, errors
    return out, errors


INTERRUPTED = """
import asyncio, signal, threading, anyio
from abstractruntime.core import portal
from abstractruntime.core.portal import call, drive, here

pressed = threading.Event()

def ctrl_c(*_):
    pressed.set()
    raise KeyboardInterrupt

signal.signal(signal.SIGINT, ctrl_c)

def say(text):
    print(text, flush=True)

async def for_ever():
    try:
        say("ready")
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            await here(say, f"cleaned up in {await here(lambda: threading.current_thread().name)}")
        say("cancelled")
        raise
"""


@pytest.mark.parametrize(("name", "thread"), [("drive", "MainThread"), ("call", "abstractruntime-portal")])
def test_ctrl_c_cancels_the_coroutine_waits_for_its_end_and_is_raised(name, thread):
    out, _ = interrupt(f"""
try:
    {name}(for_ever)
except KeyboardInterrupt:
    say("interrupted")
say(call(anyio.sleep, 0))
""")
    assert out == f"cleaned up in {thread}\ncancelled\ninterrupted\nNone\n"


def test_ctrl_c_in_a_served_function_cancels_the_coroutine_and_every_call_around_it():
    out, _ = interrupt("""
def node():
    say("ready")
    threading.Event().wait()

async def steps(depth):
    try:
        await here(drive, steps, depth - 1) if depth else await here(node)
    except asyncio.CancelledError:
        say(f"cancelled {depth}")
        raise

try:
    drive(steps, 2)
except KeyboardInterrupt:
    say("interrupted")
""")
    assert out == "cancelled 0\ncancelled 1\ncancelled 2\ninterrupted\n"


def test_ctrl_c_leaves_what_the_coroutine_shields_to_end():
    out, _ = interrupt("""
async def commits():
    with anyio.CancelScope(shield=True):
        say("ready")
        while not pressed.is_set():
            await anyio.sleep(0)
        for _ in range(1000):
            await anyio.sleep(0)
        say("committed")
    await anyio.sleep_forever()

try:
    drive(commits)
except KeyboardInterrupt:
    say("interrupted")
""")
    assert out == "committed\ninterrupted\n"


def test_after_ctrl_c_an_error_of_the_clean_up_is_noted_on_the_interrupt():
    out, _ = interrupt("""
async def fails():
    try:
        say("ready")
        await asyncio.Event().wait()
    finally:
        raise OSError("disk full")

try:
    drive(fails)
except KeyboardInterrupt as error:
    say(error.__notes__)
""")
    assert "the call failed: OSError('disk full')" in out


def test_a_coroutine_that_does_not_end_after_ctrl_c_is_left_behind_and_told_so():
    out, _ = interrupt("""
portal.GRACE = 0.05
release = []

async def deaf():
    with anyio.CancelScope(shield=True):
        release.append(asyncio.Event())
        say("ready")
        await release[0].wait()
        say(await here(lambda: threading.current_thread().name))

try:
    drive(deaf)
except KeyboardInterrupt as error:
    say(error.__notes__)

async def free():
    release[0].set()
    for _ in range(10):
        await asyncio.sleep(0)

call(free)
""")
    assert out == (
        "['The call did not end within 0.05 s of its cancellation and was left behind.']\nabstractruntime-portal\n"
    )


def test_a_second_ctrl_c_leaves_at_once():
    out, _ = interrupt(
        """
portal.GRACE = 3600.0

async def deaf():
    try:
        say("ready")
        await asyncio.Event().wait()
    finally:
        with anyio.CancelScope(shield=True):
            say("ready")
            await asyncio.Event().wait()

try:
    drive(deaf)
except KeyboardInterrupt:
    say("interrupted")
""",
        signals=2,
    )
    assert out == "interrupted\n"


def test_system_exit_in_a_served_function_ends_the_call_and_not_the_loop():
    async def exits() -> None:
        await here(sys.exit, 4)

    with pytest.raises(SystemExit) as caught:
        drive(exits)
    assert caught.value.code == 4
    assert drive(add, 1) == 1


def test_the_grace_after_an_interrupt_is_bounded():
    assert 0 < portal.GRACE <= 10


@pytest.mark.parametrize("there", [True, False])
def test_a_call_works_with_sniffio_and_without(there):
    """anyio asks it for the loop where it is installed, and it knows none outside of tasks: every call hung."""
    program = (
        f"import sys\nif not {there}: sys.modules['sniffio'] = None\n"
        "from abstractruntime.core.portal import drive\n"
        "import anyio\n"
        "async def add(a, b):\n    await anyio.sleep(0)\n    return a + b\n"
        "assert drive(add, 1, 2) == 3\n"
        f"assert (sys.modules.get('sniffio') is not None) == {there}\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_an_interrupt_before_the_coroutine_came_to_run_cancels_it(monkeypatch):
    """Its task was made, and its first step had not been taken."""
    begin, ran = portal._Call._begin, []

    def begun_and_cancelled(self):
        begin(self)
        self._cancel()

    async def work():
        await asyncio.sleep(0)
        ran.append(1)

    monkeypatch.setattr(portal._Call, "_begin", begun_and_cancelled)
    portal.call(work)
    assert ran == []
