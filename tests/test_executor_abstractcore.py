"""The real AbstractCore: its registry as an executor, its default tools, and life without it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest

from abstractruntime.integrations.abstractcore.default_tools import (
    TOOLSETS,
    build_default_tool_map,
    get_default_tools,
    list_default_tool_specs,
)
from abstractruntime.integrations.abstractcore.tool_executor import (
    AbstractCoreToolExecutor,
    MappingToolExecutor,
    tool_options,
)

from .scripted_mcp import COMMAND


@pytest.fixture
def registry(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ABSTRACTCORE_CONFIG_DIR", str(tmp_path))
    from abstractcore.tools import get_registry

    found = get_registry()
    found.clear()
    yield found
    found.clear()


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments, "call_id": "c", "runtime_call_id": "r"}


async def test_registered_tools_are_executed_and_looked_up_at_each_call(registry):
    from abstractcore.tools import tool

    executor = AbstractCoreToolExecutor(timeout_s=30)
    assert (await executor.aexecute(tool_calls=[call("add", a=1)]))["results"][0]["error"] == "Tool 'add' not found"

    def add(a: int, b: int = 1) -> int:
        return a + b

    async def later(text: str) -> str:
        await asyncio.sleep(0)
        return text

    registry.register(tool(description="Add.")(add))
    registry.register(tool(description="Say it later.")(later))
    answer = await executor.aexecute(tool_calls=[call("add", a="2"), call("later", text="hi")])
    assert [result["output"] for result in answer["results"]] == [3, "hi"]  # a number for a text; no coroutine
    assert [spec["name"] for spec in executor.tool_specs()] == ["add", "later"]
    assert executor.tool_specs()[0]["parameters"]["b"] == {"type": "integer", "default": 1}

    def add_more(a: int) -> int:
        return a + 100

    add_more.__name__ = "add"
    registry.register(add_more)
    assert (await executor.aexecute(tool_calls=[call("add", a=1)]))["results"][0]["output"] == 101
    assert await asyncio.to_thread(executor.execute, tool_calls=[]) == {"mode": "executed", "results": []}


def test_a_definition_that_was_registered_says_what_the_model_is_told(registry):
    from abstractcore.tools import ToolDefinition

    def function(a: int) -> int:
        """Another text."""
        return a

    registry.register(ToolDefinition(name="named", description="Told.", parameters={}, function=function))
    (spec,) = AbstractCoreToolExecutor().tool_specs()
    assert spec == {"name": "named", "description": "Told.", "parameters": {"a": {"type": "integer"}}}


async def test_a_tool_that_raises_a_type_error_is_called_once_and_keeps_its_error(registry):
    """AbstractCore's own registry would call it again with other arguments."""
    calls = []

    def write(path: str, extra: str = "") -> None:
        calls.append(path)
        raise TypeError("inside")

    registry.register(write)
    answer = await AbstractCoreToolExecutor().aexecute(tool_calls=[call("write", path="a", unknown=1)])
    assert answer["results"][0]["error"] == "TypeError: inside"
    assert calls == ["a"]


async def test_declared_and_known_tools_of_the_registry_run_in_parallel(registry):
    now, most = 0, 0

    async def fly() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1

    registry.register(tool_options(parallel_safe=True)(fly))
    await AbstractCoreToolExecutor().aexecute(tool_calls=[call("fly")] * 5)
    assert most == 5


async def test_abstractcores_own_tools_run_in_parallel_when_they_only_look(registry):
    """With the inventory where it can be had, else by the known names."""

    def read_file(file_path: str) -> str:
        return file_path

    def write_file(file_path: str) -> str:
        return file_path

    for function in (read_file, write_file):
        function.__module__ = "abstractcore.tools.common_tools"
        registry.register(function)
    executor = AbstractCoreToolExecutor()
    await executor.aexecute(tool_calls=[call("read_file", path="a")])
    assert executor._runs_beside_others("read_file")
    assert not executor._runs_beside_others("write_file")


def test_default_tools_are_there_or_the_error_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match="Unknown toolsets 'nope'; there are files, web, system"):
        get_default_tools(["nope"])
    if find_spec("requests") is None:  # a light install
        with pytest.raises(ImportError, match=r'need requests, .* pip install "abstractruntime\[multimodal\]"'):
            build_default_tool_map(["files"])
    else:
        assert set(build_default_tool_map(["files"])) == set(TOOLSETS["files"])
        assert {spec["name"] for spec in list_default_tool_specs("files")} == set(TOOLSETS["files"])


def test_without_abstractcore_everything_imports_and_only_what_needs_it_says_so():
    program = """
import sys
from importlib.util import find_spec
sys.modules["abstractcore"] = None
from abstractruntime.integrations.abstractcore.tool_executor import *
from abstractruntime.integrations.abstractcore.default_tools import get_default_tools
assert not any(name.startswith("abstractcore.") for name in sys.modules)
assert MappingToolExecutor({"one": lambda: 1}).execute(tool_calls=[{"name": "one"}])["results"][0]["output"] == 1
for need in (
    lambda: AbstractCoreToolExecutor().tool_specs(),
    lambda: AbstractCoreToolExecutor().execute(tool_calls=[{"name": "one"}]),
    lambda: McpToolExecutor(server_id="s", mcp_url="http://x").tool_specs(),
    get_default_tools,
):
    try:
        need()
    except ImportError as error:
        assert "pip install" in str(error), error
    else:
        raise AssertionError(need)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_abstractcore_tells_a_model_of_our_tools_with_what_is_required(registry):
    from abstractcore.tools import create_handler

    def find(query: str, limit: int | None = None, kinds: list[str] | None = None) -> str:
        """Find things."""
        return query

    specs = MappingToolExecutor.from_tools([find]).tool_specs()
    (native,) = create_handler("qwen3-4b").prepare_tools_for_native(specs)
    parameters = native["function"]["parameters"]
    assert parameters["required"] == ["query"]
    assert parameters["properties"]["limit"]["type"] == "integer"
    assert parameters["properties"]["kinds"]["items"] == {"type": "string"}


def test_a_tool_that_hangs_and_a_server_that_nobody_closed_keep_no_program_alive():
    program = """
import sys, threading
from abstractruntime.integrations.abstractcore.tool_executor import MappingToolExecutor, McpToolExecutor
server = McpToolExecutor(server_id="s", command=[sys.executable, sys.argv[1]])
print(server.execute(tool_calls=[{"name": "pid"}])["results"][0]["output"])
tools = MappingToolExecutor({"hangs": threading.Event().wait}, timeout_s=0.05)
result = tools.execute(tool_calls=[{"name": "hangs"}])["results"][0]
assert result["meta"] == {"outcome": "unknown"}, result
"""
    command = [sys.executable, "-c", program, COMMAND[-1]]
    assert subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout.strip().isdecimal()
