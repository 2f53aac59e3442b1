"""Executing tools that are functions: batches, time limits, parallel calls, results, cancellation."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import CancelSignal
from abstractruntime.integrations.abstractcore.tool_executor import (
    CompositeToolExecutor,
    DelegatingMcpToolExecutor,
    MappingToolExecutor,
    PassthroughToolExecutor,
    ToolExecutor,
    tool_options,
)

from . import isolated_tools
from .scale import scaled

LONG = 60.0


def call(name: str, call_id: str = "c1", **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments, "call_id": call_id, "runtime_call_id": f"rt_{call_id}"}


async def one(executor: Any, name: str, **arguments: Any) -> dict[str, Any]:
    answer = await executor.aexecute(tool_calls=[call(name, **arguments)])
    assert answer["mode"] == "executed"
    (result,) = answer["results"]
    assert result.keys() >= {"call_id", "runtime_call_id", "name", "success", "output", "error"}
    return dict(result)


def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    More about it.
    """
    return a + b


async def later(text: str) -> str:
    """Say it later."""
    await asyncio.sleep(0)
    return text


# -- what a result looks like


async def test_sync_and_async_functions_give_the_same_envelope():
    executor = MappingToolExecutor.from_tools([add, later])
    answer = await executor.aexecute(tool_calls=[call("add", "x", a=1), call("later", "y", text="!")])
    assert answer == {
        "mode": "executed",
        "results": [
            {"call_id": "x", "runtime_call_id": "rt_x", "name": "add", "success": True, "output": 2, "error": None},
            {
                "call_id": "y",
                "runtime_call_id": "rt_y",
                "name": "later",
                "success": True,
                "output": "!",
                "error": None,
            },
        ],
    }
    assert isinstance(executor, ToolExecutor)


def test_the_blocking_execute_works_without_a_loop_and_inside_a_tool():
    inner = MappingToolExecutor.from_tools([add, later])

    def outer(n: int) -> Any:
        return inner.execute(tool_calls=[call("add", a=n), call("later", text="x")])["results"]

    answer = MappingToolExecutor.from_tools([outer]).execute(tool_calls=[call("outer", n=4)])
    assert [result["output"] for result in answer["results"][0]["output"]] == [5, "x"]


async def test_an_async_callable_object_and_a_partial_are_awaited_and_never_shown_as_coroutines():
    class Greeter:
        async def __call__(self, who: str) -> str:
            return f"hello {who}"

    def returns_a_coroutine(text: str) -> Any:
        return later(text)

    executor = MappingToolExecutor(
        {"greet": Greeter(), "part": functools.partial(later, "fixed"), "inner": returns_a_coroutine}
    )
    assert (await one(executor, "greet", who="Ann"))["output"] == "hello Ann"
    assert (await one(executor, "part"))["output"] == "fixed"
    assert (await one(executor, "inner", text="t"))["output"] == "t"


async def test_an_exception_keeps_its_type_and_shows_no_address():
    class Odd:
        pass

    def missing() -> None:
        raise KeyError("k")

    def odd() -> None:
        raise RuntimeError(f"bad {Odd()}")

    executor = MappingToolExecutor.from_tools([missing, odd])
    assert (await one(executor, "missing"))["error"] == "KeyError: 'k'"
    found = (await one(executor, "odd"))["error"]
    assert found.startswith("RuntimeError: bad <")
    assert "0x" not in found


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, StopIteration])
async def test_whatever_a_tool_raises_is_its_result_and_the_next_call_runs(kind):
    def sync() -> None:
        raise kind("out")

    async def aio() -> None:
        raise kind("out")

    executor = MappingToolExecutor.from_tools([sync, aio, add], timeout_s=LONG)
    unlimited = MappingToolExecutor.from_tools([sync, aio, add])
    for tools in (executor, unlimited):
        calls = [call("sync"), call("aio"), call("add", a=1)]
        results = (await tools.aexecute(tool_calls=calls))["results"]
        assert [result["success"] for result in results] == [False, False, True]
        assert kind.__name__ in results[0]["error"]
        assert kind.__name__ in results[1]["error"] or "RuntimeError" in results[1]["error"]  # StopIteration in async


async def test_a_tool_that_cancels_its_own_task_has_an_unknown_outcome_and_the_next_call_runs():
    async def suicidal() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    executor = MappingToolExecutor.from_tools([suicidal, add])
    results = (await executor.aexecute(tool_calls=[call("suicidal"), call("add", a=1)]))["results"]
    assert results[0]["meta"] == {"outcome": "unknown"}
    assert results[1]["output"] == 2


async def test_unknown_nameless_and_misshapen_calls_get_errors_and_the_others_run():
    executor = MappingToolExecutor.from_tools([add])
    calls: list[Any] = [call("nope"), {"arguments": {}}, "text", call("add", a=1)]
    results = (await executor.aexecute(tool_calls=calls))["results"]
    assert [result["success"] for result in results] == [False, False, False, True]
    assert results[0]["error"] == "Tool 'nope' not found"
    assert "no name" in results[1]["error"]
    assert results[2]["error"] == "Invalid tool call (expected an object)"


async def test_a_call_id_given_twice_is_two_calls_with_a_result_each():
    seen: list[int] = []

    def note(n: int) -> int:
        seen.append(n)
        return n

    executor = MappingToolExecutor.from_tools([note])
    answer = await executor.aexecute(tool_calls=[call("note", "same", n=1), call("note", "same", n=2)])
    assert [result["output"] for result in answer["results"]] == seen == [1, 2]


@pytest.mark.parametrize(
    ("output", "error", "kept"),
    [
        ("Error: no such file", "no such file", None),
        ("❌ Error: no", "no", None),
        ({"success": False, "error": "x"}, "x", {"success": False, "error": "x"}),
        ({"ok": False, "message": "m"}, "m", {"ok": False, "message": "m"}),
        ({"success": False}, "The tool reported a failure", {"success": False}),
        ({"error": {"message": "deep"}}, "deep", {"error": {"message": "deep"}}),
    ],
)
async def test_an_output_that_says_it_failed_is_a_failure(output, error, kept):
    result = await one(MappingToolExecutor({"tool": lambda: output}), "tool")
    assert (result["success"], result["error"], result["output"]) == (False, error, kept)


@pytest.mark.parametrize(
    "output",
    [
        {"success": True, "message": "Created 3 rows"},
        {"success": True, "error": "was repaired"},
        {"message": "hello"},
        {"error": None, "rows": 2},
        "There was no Error: at all",
        "",
        None,
    ],
)
async def test_a_message_alone_or_a_success_is_no_failure(output):
    result = await one(MappingToolExecutor({"tool": lambda: output}), "tool")
    assert (result["success"], result["error"], result["output"]) == (True, None, output)


def test_tools_without_a_name_or_of_one_name_or_not_callable_are_refused():
    with pytest.raises(ValueError, match="must have a name"):
        MappingToolExecutor.from_tools([lambda: 1])
    with pytest.raises(ValueError, match="Two tools are named 'add'"):
        MappingToolExecutor.from_tools([add, add])
    with pytest.raises(ValueError, match="callable"):
        MappingToolExecutor({"x": 3})  # type: ignore[dict-item]
    renamed = tool_options(name="plus", description="Plus.")(lambda: 1)
    assert MappingToolExecutor.from_tools([renamed]).tool_specs() == [
        {"name": "plus", "description": "Plus.", "parameters": {}}
    ]


# -- time limits


async def test_a_sync_tool_that_takes_too_long_has_an_unknown_outcome_and_is_told(caplog):
    told, done = threading.Event(), threading.Event()

    def blocks(signal: CancelSignal) -> str:
        told.set() if signal.wait(LONG) else None
        done.wait(LONG)
        return "late"

    executor = MappingToolExecutor.from_tools([blocks, add], timeout_s=0.02)
    answer = await executor.aexecute(tool_calls=[call("blocks"), call("add", a=1)])
    first, second = answer["results"]
    done.set()
    assert (first["success"], first["output"]) == (False, None)
    assert first["error"].startswith("Tool execution timed out after 0.02s")
    assert "outcome unknown" in first["error"]
    assert first["meta"] == {"outcome": "unknown"}
    assert second["output"] == 2
    assert await asyncio.to_thread(told.wait, LONG)


async def test_an_async_tool_that_takes_too_long_is_cancelled():
    cancelled = []

    async def sleeps() -> None:
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    result = await one(MappingToolExecutor.from_tools([sleeps], timeout_s=0.02), "sleeps")
    assert result["error"] == "Tool execution timed out after 0.02s and was cancelled"
    assert result["meta"] == {"outcome": "cancelled"}
    assert cancelled == [True]


async def test_an_async_tool_that_ignores_its_cancellation_is_left_behind(monkeypatch):
    monkeypatch.setattr("abstractruntime.integrations.abstractcore.tools.running.GRACE", 0.02)
    end = asyncio.Event()

    async def stubborn() -> None:
        while not end.is_set():
            try:
                await end.wait()
            except asyncio.CancelledError:
                continue

    result = await one(MappingToolExecutor.from_tools([stubborn], timeout_s=0.02), "stubborn")
    end.set()
    assert result["meta"] == {"outcome": "unknown"}
    await asyncio.sleep(0.01)


async def test_a_tools_own_limit_goes_before_the_executors():
    @tool_options(timeout_s=0)
    async def patient() -> str:
        await asyncio.sleep(0.05)
        return "done"

    @tool_options(timeout_s=0.01)
    async def hasty() -> None:
        await asyncio.sleep(LONG)

    executor = MappingToolExecutor.from_tools([patient, hasty], timeout_s=0.01)
    assert (await one(executor, "patient"))["output"] == "done"
    executor.set_timeout_s(None)
    assert "timed out after 0.01s" in (await one(executor, "hasty"))["error"]


async def test_threads_that_hang_take_no_place_from_others():
    end = threading.Event()

    def hangs() -> None:
        end.wait(LONG)

    executor = MappingToolExecutor.from_tools([tool_options(parallel_safe=True)(hangs), add], timeout_s=0.05)
    many = [call("hangs", str(n)) for n in range(40)]  # more than run at once
    answer = await executor.aexecute(tool_calls=[*many, call("add", a=1)])
    end.set()
    assert {result["meta"]["outcome"] for result in answer["results"][:-1]} == {"unknown"}
    assert answer["results"][-1]["output"] == 2


# -- parallel calls


class Flights:
    """Counts how many are in the air."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.order: list[Any] = []

    async def fly(self, n: int) -> int:
        self.order.append(n)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.01)
        self.now -= 1
        return n


async def test_two_hundred_async_calls_are_in_flight_together_and_answer_in_order():
    flights = Flights()

    @tool_options(parallel_safe=True)
    async def fly(n: int) -> int:
        return await flights.fly(n)

    count = scaled(200, 5000)
    executor = MappingToolExecutor.from_tools([fly])
    answer = await executor.aexecute(tool_calls=[call("fly", str(n), n=n) for n in range(count)])
    assert flights.most == count
    assert [result["output"] for result in answer["results"]] == list(range(count))
    assert [result["call_id"] for result in answer["results"]] == [str(n) for n in range(count)]


async def test_sync_read_only_calls_are_in_threads_together():
    barrier = threading.Barrier(8, timeout=LONG)

    def read_file(file_path: str) -> str:  # known to only read
        barrier.wait()
        return file_path

    executor = MappingToolExecutor.from_tools([read_file])
    answer = await executor.aexecute(tool_calls=[call("read_file", file_path=str(n)) for n in range(8)])
    assert [result["output"] for result in answer["results"]] == [str(n) for n in range(8)]


async def test_what_is_not_declared_runs_alone_and_in_order_between_groups():
    flights = Flights()

    @tool_options(read_only=True)
    async def look(n: int) -> int:
        return await flights.fly(n)

    async def change(n: int) -> int:
        assert flights.now == 0
        return await flights.fly(n)

    executor = MappingToolExecutor.from_tools([look, change])
    names = ["look", "look", "change", "change", "look", "look", "look"]
    answer = await executor.aexecute(tool_calls=[call(name, n=n) for n, name in enumerate(names)])
    assert [result["output"] for result in answer["results"]] == list(range(7))
    assert [set(flights.order[:2]), flights.order[2:4], set(flights.order[4:])] == [{0, 1}, [2, 3], {4, 5, 6}]
    assert flights.most == 3


async def test_a_known_name_that_is_declared_otherwise_runs_alone():
    flights = Flights()

    @tool_options(read_only=False)
    async def read_file(n: int) -> int:
        return await flights.fly(n)

    executor = MappingToolExecutor.from_tools([read_file])
    await executor.aexecute(tool_calls=[call("read_file", n=n) for n in range(3)])
    assert flights.most == 1


# -- context, ids, telling, cancellation

COLOUR: ContextVar[str] = ContextVar("colour", default="none")


async def test_each_call_has_its_own_copy_of_the_context():
    async def paint(colour: str) -> str:
        before = COLOUR.get()
        COLOUR.set(colour)
        return before

    def paint_in_thread(colour: str) -> str:
        before = COLOUR.get()
        COLOUR.set(colour)
        return before

    COLOUR.set("white")
    executor = MappingToolExecutor.from_tools([paint, paint_in_thread])
    names = ["paint", "paint", "paint_in_thread", "paint_in_thread"]
    answer = await executor.aexecute(tool_calls=[call(name, colour="red") for name in names])
    assert [result["output"] for result in answer["results"]] == ["white"] * 4
    assert COLOUR.get() == "white"


async def test_a_tool_that_names_runtime_call_id_gets_the_key_and_the_model_cannot_forge_it():
    def pay(amount: int, runtime_call_id: str) -> str:
        return f"{amount} {runtime_call_id}"

    def keyed(runtime_call_id: str, **rest: Any) -> list[Any]:
        return [runtime_call_id, sorted(rest)]

    executor = MappingToolExecutor.from_tools([pay, keyed])
    assert (await one(executor, "pay", amount=3, runtime_call_id="forged"))["output"] == "3 rt_c1"
    assert (await one(executor, "keyed", runtime_call_id="forged", x=1))["output"] == ["rt_c1", ["x"]]
    assert list(executor.tool_specs()[0]["parameters"]) == ["amount"]


async def test_each_result_is_told_as_soon_as_it_is_there():
    gate = asyncio.Event()
    told: list[int] = []

    @tool_options(parallel_safe=True)
    async def wait(n: int) -> int:
        if n == 0:
            await gate.wait()
        return n

    async def on_result(index: int, result: dict[str, Any]) -> None:
        assert result["output"] == index
        told.append(index)
        if len(told) == 2:
            gate.set()

    executor = MappingToolExecutor.from_tools([wait])
    await executor.aexecute(tool_calls=[call("wait", n=n) for n in range(3)], on_result=on_result)
    assert told == [1, 2, 0]


async def test_what_on_result_raises_ends_the_batch_as_it_is():
    class Withdrawn(Exception):
        pass

    ended = []

    @tool_options(parallel_safe=True)
    async def tool(n: int) -> int:
        if n:
            try:
                await asyncio.sleep(LONG)
            finally:
                ended.append(n)
        return n

    async def on_result(index: int, result: dict[str, Any]) -> None:
        raise Withdrawn

    executor = MappingToolExecutor.from_tools([tool])
    with pytest.raises(Withdrawn):
        await executor.aexecute(tool_calls=[call("tool", n=n) for n in range(3)], on_result=on_result)
    assert sorted(ended) == [1, 2]


async def test_after_a_cancel_nothing_further_is_started():
    signal, told = CancelSignal(), []

    def stop() -> str:
        signal.set()
        return "stopped"

    async def on_result(index: int, result: dict[str, Any]) -> None:
        told.append(index)

    executor = MappingToolExecutor.from_tools([stop, add])
    answer = await executor.aexecute(
        tool_calls=[call("stop"), call("add", a=1), call("add", a=2)], on_result=on_result, cancelled=signal
    )
    assert [result["error"] for result in answer["results"]] == [None, "cancelled", "cancelled"]
    assert told == [0]


@pytest.mark.parametrize("limit", [None, LONG])
async def test_a_cancelled_task_cancels_async_tools_and_leaves_threads(limit):
    entered, left = asyncio.Event(), []
    begun, release = threading.Event(), threading.Event()
    signals: list[CancelSignal] = []

    @tool_options(parallel_safe=True)
    async def sleeps() -> None:
        entered.set()
        try:
            await asyncio.sleep(LONG)
        finally:
            left.append(True)

    @tool_options(parallel_safe=True)
    def blocks(signal: CancelSignal) -> None:
        signals.append(signal)
        begun.set()
        release.wait(LONG)

    executor = MappingToolExecutor.from_tools([sleeps, blocks], timeout_s=limit)
    task = asyncio.create_task(executor.aexecute(tool_calls=[call("sleeps"), call("blocks")]))
    await entered.wait()
    assert await asyncio.to_thread(begun.wait, LONG)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()
    assert left == [True]
    assert signals[0].is_set()


async def test_tools_that_call_tools_for_ever_come_to_an_end():
    async def again() -> Any:
        return (await executor.aexecute(tool_calls=[call("again")]))["results"][0]

    executor = MappingToolExecutor.from_tools([again])
    result = await one(executor, "again")
    while isinstance(result["output"], dict):
        result = result["output"]
    assert "deep" in result["error"]


# -- those that perform nothing, and several as one


async def test_passthrough_hands_the_calls_on():
    calls = [call("add", a=1)]
    expected = {"mode": "passthrough", "tool_calls": calls}
    assert PassthroughToolExecutor().execute(tool_calls=calls) == expected
    assert await PassthroughToolExecutor().aexecute(tool_calls=calls) == expected
    assert PassthroughToolExecutor(mode="host").execute(tool_calls=[])["mode"] == "host"
    with pytest.raises(ValueError, match="mode"):
        PassthroughToolExecutor(mode="executed")


def test_delegating_says_which_server_is_meant_under_a_key_that_is_the_same_in_a_replay():
    executor = DelegatingMcpToolExecutor(server_id="srv", mcp_url="http://x/mcp")
    answer = executor.execute(tool_calls=[call("mcp::srv::add", a=1)])
    assert (answer["mode"], answer["wait_reason"]) == ("delegated", "job")
    assert answer["details"] == {
        "protocol": "mcp",
        "transport": "streamable_http",
        "url": "http://x/mcp",
        "server_id": "srv",
    }
    assert answer["wait_key"].startswith("mcp_job:")
    assert executor.execute(tool_calls=[call("mcp::srv::add", a=1)])["wait_key"] == answer["wait_key"]
    assert executor.execute(tool_calls=[call("mcp::srv::add", "c2", a=1)])["wait_key"] != answer["wait_key"]


class Documented:
    """An executor as users write them: sync, no more than `execute`."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def execute(self, *, tool_calls: list[dict[str, Any]]) -> dict[str, Any]:
        self.batches.append([call["name"] for call in tool_calls])
        results = [
            {"call_id": call["call_id"], "name": call["name"], "success": True, "output": "own"} for call in tool_calls
        ]
        return {"mode": "executed", "results": results}


async def test_a_composite_gives_each_call_to_whoever_knows_it_and_keeps_the_order():
    order: list[str] = []

    def first() -> str:
        order.append("first")
        return "1"

    def second() -> str:
        order.append("second")
        return "2"

    own, told = Documented(), []
    tools = CompositeToolExecutor(
        [MappingToolExecutor.from_tools([first]), MappingToolExecutor.from_tools([second]), own]
    )

    async def on_result(index: int, result: dict[str, Any]) -> None:
        told.append((index, result["name"]))

    names = ["first", "second", "other", "more", "first"]
    answer = await tools.aexecute(tool_calls=[call(name) for name in names], on_result=on_result)
    assert [result["name"] for result in answer["results"]] == names
    assert [result["output"] for result in answer["results"]] == ["1", "2", "own", "own", "1"]
    assert told == list(enumerate(names))
    assert order == ["first", "second", "first"]
    assert own.batches == [["other", "more"]]
    assert [spec["name"] for spec in tools.tool_specs()] == ["first", "second"]


async def test_a_composite_without_one_for_the_rest_says_that_a_tool_is_unknown():
    tools = CompositeToolExecutor([MappingToolExecutor.from_tools([add])])
    assert (await one(tools, "nope"))["error"] == "Tool 'nope' not found"
    assert tools.execute(tool_calls=[call("add", a=1)])["results"][0]["output"] == 2
    assert not tools.knows("nope")
    with pytest.raises(ValueError, match="at least one"):
        CompositeToolExecutor([])
    with pytest.raises(ValueError, match="without knows"):
        CompositeToolExecutor([Documented(), Documented()])


async def test_a_composite_passes_a_wait_on_only_for_a_whole_batch():
    tools = CompositeToolExecutor([MappingToolExecutor.from_tools([add]), PassthroughToolExecutor()])
    whole = await tools.aexecute(tool_calls=[call("elsewhere")])
    assert whole["mode"] == "passthrough"
    mixed = await tools.aexecute(tool_calls=[call("add", a=1), call("elsewhere")])
    assert [result["success"] for result in mixed["results"]] == [True, False]
    assert "must be called alone" in mixed["results"][1]["error"]


# -- in processes of their own


async def test_an_isolated_tool_runs_elsewhere_and_gives_the_same_result():
    executor = MappingToolExecutor.from_tools([isolated_tools.double, isolated_tools.later, isolated_tools.raises])
    result = await one(executor, "double", n="4")
    assert result["output"] == {"double": 8, "key": "rt_c1", "pid": result["output"]["pid"]}
    assert result["output"]["pid"] != os.getpid()
    assert (result["call_id"], result["runtime_call_id"], result["success"]) == ("c1", "rt_c1", True)
    assert (await one(executor, "later", n=3))["output"] == 3
    assert (await one(executor, "raises"))["error"] == "KeyError: 'k'"
    assert "n: expected a whole number" in (await one(executor, "double", n="x"))["error"]


async def test_an_isolated_tool_that_takes_too_long_is_killed(tmp_path):
    executor = MappingToolExecutor.from_tools([isolated_tools.hangs])
    file = tmp_path / "pid"
    result = await one(executor, "hangs", file=str(file))
    assert result["error"].startswith("Tool execution timed out after 1.5s and its process was killed")
    assert result["meta"] == {"outcome": "killed"}
    assert_gone(file)


async def test_an_isolated_tool_that_is_cancelled_is_killed(tmp_path):
    executor = MappingToolExecutor({"hangs": isolated_tools.hangs})
    file = tmp_path / "pid"
    task = asyncio.create_task(one(executor, "hangs", file=str(file)))
    for _ in range(1000):
        if await asyncio.to_thread(file.exists):
            break
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert_gone(file)


def assert_gone(file: Path) -> None:
    if file.exists() and (text := file.read_text()):
        with pytest.raises(ProcessLookupError):
            os.kill(int(text), 0)


async def test_an_isolated_tool_takes_only_its_own_process_with_it():
    result = await one(MappingToolExecutor.from_tools([isolated_tools.crashes]), "crashes")
    assert result["error"] == "The tool's process ended with exit code 7"
    assert result["meta"] == {"outcome": "unknown"}


def test_what_no_other_process_could_import_is_refused_at_once():
    @tool_options(isolated=True)
    def local() -> None:
        pass

    with pytest.raises(ValueError, match="cannot run isolated"):
        MappingToolExecutor.from_tools([local])
