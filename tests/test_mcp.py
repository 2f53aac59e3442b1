"""Tools of MCP servers: real servers over stdio and HTTP, through AbstractCore's real clients."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from abstractruntime.integrations.abstractcore.tool_executor import (
    CompositeToolExecutor,
    MappingToolExecutor,
    McpServerError,
    McpToolExecutor,
)

from .scripted_mcp import COMMAND, HttpMcp, http_mcp


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ABSTRACTCORE_CONFIG_DIR", str(tmp_path))


@asynccontextmanager
async def stdio(**options: Any) -> AsyncIterator[McpToolExecutor]:
    executor = McpToolExecutor(server_id="srv", command=COMMAND, **options)
    try:
        yield executor
    finally:
        await executor.aclose()


def call(name: str, call_id: str = "c1", **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments, "call_id": call_id, "runtime_call_id": f"rt_{call_id}"}


async def one(executor: Any, name: str, **arguments: Any) -> dict[str, Any]:
    (result,) = (await executor.aexecute(tool_calls=[call(name, **arguments)]))["results"]
    return dict(result)


async def test_a_stdio_server_is_greeted_and_its_tools_are_called():
    async with stdio() as executor:
        result = await one(executor, "mcp::srv::add", a=2, b=3)
        assert result == {
            "call_id": "c1",
            "runtime_call_id": "rt_c1",
            "name": "mcp::srv::add",
            "success": True,
            "output": {"sum": 5},
            "error": None,
        }
        assert (await one(executor, "add", a=2))["output"] == {"sum": 2}
        assert (await one(executor, "mcp::srv::echo", text="é"))["output"] == "é"
        json_text = {**call("mcp::srv::add"), "arguments": '{"a": 1, "b": 1}'}
        assert (await executor.aexecute(tool_calls=[json_text]))["results"][0]["output"] == {"sum": 2}


async def test_tool_specs_of_all_pages_have_the_servers_prefix_and_optional_arguments_a_default():
    async with stdio() as executor:
        specs = {spec["name"]: spec for spec in await executor.atool_specs()}
        assert len(specs) == 9
        assert specs["mcp::srv::add"]["description"] == "Add two numbers."
        assert specs["mcp::srv::add"]["parameters"] == {
            "a": {"type": "integer"},
            "b": {"type": "integer", "default": None},
        }


async def test_failures_of_the_tool_and_of_the_protocol_are_told_and_the_server_stays():
    async with stdio() as executor:
        pid = (await one(executor, "pid"))["output"]
        failed = await one(executor, "fail")
        assert (failed["success"], failed["error"]) == (False, "no such row")
        boom = await one(executor, "boom")
        assert "boom" in boom["error"]
        assert "meta" not in boom  # it answered, so nothing is unclear
        assert "not found" in (await one(executor, "mcp::other::add", a=1))["error"]
        assert (
            "expected a JSON object"
            in (await executor.aexecute(tool_calls=[{"name": "add", "arguments": 3}]))["results"][0]["error"]
        )
        assert (await one(executor, "pid"))["output"] == pid


async def test_a_server_that_dies_in_a_call_leaves_its_outcome_unknown_and_is_started_again():
    async with stdio() as executor:
        first = (await one(executor, "pid"))["output"]
        answer = await executor.aexecute(tool_calls=[call("die"), call("add", a=1)])
        died, added = answer["results"]
        assert died["success"] is False
        assert "outcome unknown" in died["error"]
        assert died["meta"] == {"outcome": "unknown"}
        assert added["output"] == {"sum": 1}
        assert (await one(executor, "pid"))["output"] != first


async def test_a_server_that_was_killed_between_calls_costs_no_call():
    async with stdio() as executor:
        pid = int((await one(executor, "pid"))["output"])
        os.kill(pid, signal.SIGKILL)
        assert (await one(executor, "add", a=1))["output"] == {"sum": 1}


@pytest.mark.parametrize("tool", ["sleep", "junk"])
async def test_a_server_that_stays_silent_is_given_up_and_ended(tool):
    async with stdio(timeout_s=0.5) as executor:
        pid = int((await one(executor, "pid"))["output"])
        result = await one(executor, tool, seconds=60)
        assert "timed out after 0.5s" in result["error"]
        assert result["meta"] == {"outcome": "unknown"}
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert (await one(executor, "add", a=1))["output"] == {"sum": 1}


async def test_calls_of_many_batches_wait_for_one_another():
    async with stdio() as executor:
        answers = await asyncio.gather(*(one(executor, "add", a=n) for n in range(20)))
        assert [answer["output"]["sum"] for answer in answers] == list(range(20))
        assert (await one(executor, "calls"))["output"] == "20"


async def test_close_ends_the_server_and_the_next_call_begins_anew():
    async with stdio() as executor:
        pid = int((await one(executor, "pid"))["output"])
        await executor.aclose()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert (await one(executor, "add", a=1))["output"] == {"sum": 1}


async def test_a_new_time_limit_counts_from_the_next_call():
    async with stdio() as executor:
        await one(executor, "add", a=1)
        executor.set_timeout_s(0.3)
        assert "timed out after 0.3s" in (await one(executor, "sleep", seconds=60))["error"]


async def test_a_command_that_is_none_is_told_clearly():
    executor = McpToolExecutor(server_id="srv", command=["/no/such/program"])
    result = await one(executor, "add", a=1)
    assert result["error"].startswith("MCP server 'srv' cannot be reached: ")
    assert result["meta"] == {"outcome": "not_started"}
    with pytest.raises(McpServerError, match="cannot be reached"):
        await executor.atool_specs()


async def test_http_with_sessions_is_greeted_and_survives_a_restart_of_the_server():
    with http_mcp() as server:
        executor = McpToolExecutor(server_id="web", mcp_url=server.url)
        assert (await one(executor, "mcp::web::add", a=2, b=2))["output"] == {"sum": 4}
        methods = server.script.methods  # newer clients greet by themselves, too
        assert (methods[:2], methods[-1]) == (["initialize", "notifications/initialized"], "tools/call")
        server.sessions.clear()  # what a restart does
        assert (await one(executor, "add", a=1))["output"] == {"sum": 1}
        assert server.script.adds == 2
        assert len(await executor.atool_specs()) == 9
        junk = await one(executor, "junk")
        assert "not valid JSON" in junk["error"]
        assert junk["meta"] == {"outcome": "unknown"}
        await executor.aclose()


async def test_an_http_server_that_refuses_says_so_and_did_nothing():
    with http_mcp() as server:
        executor = McpToolExecutor(server_id="web", mcp_url=server.url)
        server.handle = lambda request, message: server._send(request, 401, b"who are you", None)  # type: ignore[method-assign]
        result = await one(executor, "add", a=1)
        assert result["error"] == "MCP server 'web' refused: MCP HTTP 401: who are you"
        assert result["meta"] == {"outcome": "not_started"}
        await executor.aclose()


async def test_an_http_server_that_is_away_did_nothing_and_is_found_again():
    server = HttpMcp()
    executor = McpToolExecutor(server_id="web", mcp_url=server.url, timeout_s=5)
    await one(executor, "add", a=1)
    await asyncio.to_thread(server.close)
    for _ in range(2):
        away = await one(executor, "add", a=1)
        assert away["success"] is False
        assert away["meta"] == {"outcome": "not_started"}
    again = HttpMcp(port=int(server.url.rpartition(":")[2].partition("/")[0]))
    try:
        assert (await one(executor, "add", a=1))["output"] == {"sum": 1}
    finally:
        await executor.aclose()
        await asyncio.to_thread(again.close)


async def test_a_client_of_ones_own_is_used_and_never_closed():
    class Client:
        def call_tool(self, *, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
            if name == "raise":
                raise RuntimeError("mine")
            return {"content": [{"type": "image", "data": "x"}]}

        def list_tools(self, *, cursor: str | None = None) -> list[dict[str, Any]]:
            return [{"name": "draw", "description": "Draw."}]

    executor = McpToolExecutor(server_id="own", mcp_client=Client())
    assert (await one(executor, "draw"))["output"] == {"content": [{"type": "image", "data": "x"}]}
    assert (await one(executor, "raise"))["error"] == "RuntimeError: mine"
    assert [spec["name"] for spec in await executor.atool_specs()] == ["mcp::own::draw"]
    await executor.aclose()


def test_a_composite_routes_by_the_servers_prefix_and_everything_has_a_blocking_form():
    def add(a: int) -> str:
        return f"local {a}"

    tools = CompositeToolExecutor(
        [MappingToolExecutor.from_tools([add]), McpToolExecutor(server_id="srv", command=COMMAND)]
    )
    try:
        answer = tools.execute(tool_calls=[call("mcp::srv::add", a=1), call("add", a=1), call("mcp::else::add", a=1)])
        assert [result["output"] for result in answer["results"]] == [{"sum": 1}, "local 1", None]
        assert answer["results"][2]["error"] == "Tool 'mcp::else::add' not found"
        assert len(tools.tool_specs()) == 10
    finally:
        tools.close()


@pytest.mark.parametrize(
    "options",
    [{}, {"mcp_url": "http://x", "command": ["x"]}, {"command": "x"}, {"mcp_url": "http://x", "server_id": "a::b"}],
)
def test_what_does_not_say_which_server_is_refused(options):
    with pytest.raises(ValueError, match=r"Give one of|server_id"):
        McpToolExecutor(**{"server_id": "srv", **options})
