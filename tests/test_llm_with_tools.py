"""A model that calls tools, media that go into a call, and models in memory, through the local factory."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any

from abstractruntime import Effect, InMemoryArtifactStore, StepPlan, WorkflowSpec
from abstractruntime.integrations.abstractcore import MappingToolExecutor, create_async_local_runtime

from .bridge_fixtures import asking
from .bridge_fixtures import home as home
from .scripted_servers import ScriptedServer


def add(a: int, b: int = 0) -> int:
    """Add two numbers."""
    return a + b


TOOLS = MappingToolExecutor.from_tools([add])


def think(run: Any, ctx: Any) -> StepPlan:
    payload = {"messages": run.vars["messages"], "tools": TOOLS.tool_specs()}
    return StepPlan("think", Effect("llm_call", payload, "thought"), "act")


def act(run: Any, ctx: Any) -> StepPlan:
    thought = run.vars["thought"]
    if not thought["tool_calls"]:
        return StepPlan("act", complete_output={"text": thought["content"]})
    said = {"role": "assistant", "content": thought["content"], "tool_calls": thought["tool_calls"]}
    run.vars["messages"].append(said)
    return StepPlan("act", Effect("tool_calls", {"tool_calls": thought["tool_calls"]}, "done"), "tell")


def tell(run: Any, ctx: Any) -> StepPlan:
    for result in run.vars["done"]["results"]:
        message = {"role": "tool", "tool_call_id": result["call_id"], "content": str(result["output"])}
        run.vars["messages"].append(message)
    return StepPlan("tell", next_node="think")


AGENT: WorkflowSpec[Any] = WorkflowSpec("agent", "think", {"think": think, "act": act, "tell": tell})


@asynccontextmanager
async def local(server: ScriptedServer, kind: str = "openai-compatible", **options: Any):
    url = server.url if kind == "ollama" else server.openai_url
    where: dict[str, Any] = {"provider": kind, "model": "qwen3:4b", "llm_kwargs": {"base_url": url}}
    async with await asyncio.to_thread(create_async_local_runtime, **where, **options) as rt:  # it imports AbstractCore
        yield rt


async def test_a_model_calls_a_tool_and_goes_on_with_its_result():
    with ScriptedServer() as server:
        async with local(server, tool_executor=TOOLS) as rt:
            question = {"role": "user", "content": 'CALL add {"a": 1, "b": 2}'}
            state = await rt.run(AGENT, vars={"messages": [question]})
        assert state.output == {"text": "echo: 3"}, state.error
        first, second = (seen.json for seen in server.asked)
        assert first["tools"][0]["function"]["parameters"]["required"] == ["a"]
        asked, answered = second["messages"][-2:]
        assert asked["tool_calls"][0]["function"]["name"] == "add"
        assert answered["tool_call_id"] == asked["tool_calls"][0]["id"]


async def test_a_note_in_the_artifact_store_goes_into_a_call_and_not_into_the_run():
    store = InMemoryArtifactStore()
    note = store.store(b"the secret number is 42", content_type="text/plain", run_id="notes")
    with ScriptedServer(["42"]) as server:
        async with local(server, artifact_store=store) as rt:
            payload = {"prompt": "Which number?", "media": [{"$artifact": note.artifact_id}]}
            state = await rt.run(asking(payload))
        assert state.output["answer"]["content"] == "42"
        assert "number is 42" in server.asked[0].json["messages"][-1]["content"]
        assert "number is 42" not in str(state)


async def test_media_that_are_not_there_fail_the_effect_at_once():
    with ScriptedServer() as server:
        async with local(server) as rt:
            state = await rt.run(asking({"prompt": "x", "media": [{"$artifact": "a" * 32}]}))
        assert state.status.value == "failed"
        assert "not in the artifact store" in state.error
        assert server.asked == []


async def test_a_model_is_loaded_listed_and_unloaded_by_its_own_client():
    def manage(run: Any, ctx: Any) -> StepPlan:
        steps = run.vars["steps"]
        if not steps:
            return StepPlan("manage", complete_output=run.vars["found"])
        operation = steps.pop(0)
        payload = {"operation": operation, "task": "text", "provider": "ollama", "model": "qwen3:4b"}
        return StepPlan("manage", Effect("model_residency", payload, f"found.{operation}"), "manage")

    with ScriptedServer() as server:
        async with local(server, "ollama") as rt:
            workflow = WorkflowSpec("manage", "manage", {"manage": manage})
            state = await rt.run(workflow, vars={"steps": ["load", "list", "unload"], "found": {}})
        found = state.output
        assert [found[name]["ok"] for name in ("load", "list", "unload")] == [True, True, True], found
        assert found["list"]["models"][0]["model"] == "qwen3:4b"
        assert server.resident == {}
