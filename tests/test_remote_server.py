"""Remote and hybrid mode against the real AbstractCore Server, a process in front of a scripted model."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    Effect,
    EffectCall,
    EffectOutcome,
    EffectType,
    InMemoryArtifactStore,
    RetryPolicy,
    RunState,
    RunStatus,
    SqliteDatabase,
    SqliteLedgerStore,
    StepPlan,
    WorkflowSpec,
    get_artifact_id,
)
from abstractruntime.integrations.abstractcore import create_async_hybrid_runtime, create_async_remote_runtime
from abstractruntime.integrations.abstractcore.protocols import LLMError

from .core_server import CoreServer
from .remote_worker import RUN, WORKFLOW
from .scripted_servers import PIXEL, SOUND, ScriptedServer

ROOT = Path(__file__).parent.parent
TOOL = {
    "name": "add",
    "description": "Add two numbers.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a"],
    },
}


@pytest.fixture(scope="module")
def core() -> Iterator[CoreServer]:
    with CoreServer() as server:
        yield server


@pytest.fixture
def upstream() -> Iterator[ScriptedServer]:
    with ScriptedServer(models=("qwen3-4b", "qwen3:4b", "gpt-4o-mini", "tts-1", "img-1")) as server:
        yield server


async def failure(core: CoreServer, upstream: ScriptedServer, params: dict[str, Any], **given: Any) -> LLMError:
    client = core.client(**given)
    with pytest.raises(LLMError) as caught:
        await client.agenerate(prompt="hi", params={"base_url": upstream.openai_url, **params})
    await client.aclose()
    return caught.value


async def test_a_call_reaches_the_model_with_all_that_it_asks_for(core, upstream):
    client = core.client()
    params = {"base_url": upstream.openai_url, "max_output_tokens": 77, "temperature": 0.1, "seed": 7}
    params |= {"trace_metadata": {"run_id": "r1", "node_id": "ask"}, "provider_api_key": "sk-upstream"}
    result = await client.agenerate(prompt="hi", system_prompt="Be brief.", params=params)
    await client.aclose()
    assert (result["content"], result["finish_reason"]) == ("echo: hi", "stop")
    assert (result["usage"]["input_tokens"], result["usage"]["output_tokens"]) == (3, 2)
    assert result["model"] == "openai-compatible/qwen3-4b"
    assert result["trace_id"]
    seen = upstream.asked[0]
    assert {key: seen.json[key] for key in ("max_tokens", "temperature", "seed")} == {
        "max_tokens": 77,
        "temperature": 0.1,
        "seed": 7,
    }
    assert [message["content"] for message in seen.json["messages"]] == ["Be brief.", "hi"]
    assert seen.headers["authorization"] == "Bearer sk-upstream"
    assert "sk-upstream" not in json.dumps(result)


async def test_provider_and_model_of_the_call_win(core, upstream):
    client = core.client()
    params = {"_provider": "ollama", "_model": "qwen3:4b", "base_url": upstream.url}
    assert (await client.agenerate(prompt="hi", params=params))["model"] == "ollama/qwen3:4b"
    await client.aclose()
    assert upstream.asked[0].path == "/api/chat"


async def test_a_tool_call_without_text_and_an_optional_parameter(core, upstream):
    client = core.client()
    params = {"base_url": upstream.openai_url}
    result = await client.agenerate(prompt='CALL add {"a": 1}', tools=[TOOL], params=params)
    await client.aclose()
    assert result["tool_calls"] == [{"name": "add", "arguments": {"a": 1}, "call_id": "call_1"}]
    assert (result["content"], result["finish_reason"]) == ("", "tool_calls")
    assert upstream.asked[0].json["tools"][0]["function"]["parameters"]["required"] == ["a"]


async def test_a_schema_reaches_a_model_whose_server_does_not_read_it(core, upstream):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    upstream.script.append('{"n": 1}')
    client = core.client()
    params = {"base_url": upstream.openai_url, "response_schema": schema}
    result = await client.agenerate(prompt="Count.", params=params)
    await client.aclose()
    assert json.loads(result["content"]) == {"n": 1}
    assert '"integer"' in upstream.asked[0].json["messages"][0]["content"]


async def test_a_streamed_answer(core, upstream):
    upstream.script.append({"chunks": ["one ", "two ", "three"]})
    client, pieces = core.client(), list[str]()
    params = {"base_url": upstream.openai_url}
    result = await client.agenerate(prompt="Count.", params=params, on_delta=pieces.append)
    await client.aclose()
    assert "".join(pieces) == result["content"] == "one two three"
    assert result["usage"]["output_tokens"] == 3


@pytest.mark.parametrize(
    ("replies", "kind", "retryable", "status"),
    [
        ([{"status": 429, "headers": {"Retry-After": "0"}}] * 3, "rate_limit", True, 429),
        ([{"status": 401}], "auth", False, 401),
        ([{"status": 400}], "invalid_request", False, 400),
        ([{"drop": True}] * 3, "server", True, 500),
    ],
)
async def test_a_failure_behind_the_server_is_told_by_its_own_status(core, upstream, replies, kind, retryable, status):
    upstream.script.extend(replies)
    error = await failure(core, upstream, {"api_key": "sk-upstream"})
    assert (error.kind, error.retryable, error.status) == (kind, retryable, status)
    assert "{'error'" not in str(error)


async def test_what_the_server_itself_refuses(core, upstream):
    error = await failure(core, upstream, {}, headers={"Authorization": "Bearer wrong-token"})
    assert (error.kind, error.retryable) == ("auth", False)
    assert "wrong-token" not in str(error)
    error = await failure(core, upstream, {"base_url": "http://192.0.2.1/v1"})
    assert (error.kind, error.retryable) == ("auth", False)
    error = await failure(core, upstream, {"_provider": "nope"})
    assert (error.kind, error.retryable) == ("not_found", False)
    error = await failure(core, upstream, {"temperature": 9})
    assert (error.kind, error.retryable, error.status) == ("invalid_request", False, 422)


@pytest.mark.parametrize(
    ("reply", "on_delta"), [({"hold": True}, None), ({"chunks": ["x "], "endless": True, "pause": 0.01}, id)]
)
async def test_a_cancel_reaches_the_model_behind_the_server(core, upstream, reply, on_delta):
    upstream.script.append(reply)
    client = core.client()
    params = {"base_url": upstream.openai_url}
    task = asyncio.create_task(client.agenerate(prompt="hi", params=params, on_delta=on_delta))
    await upstream.until(lambda s: len(s.asked) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await upstream.until(lambda s: s.aborted == 1)
    await client.aclose()


async def test_cancelling_the_run_cancels_its_call(core, upstream):
    upstream.script.append({"hold": True})
    async with create_async_remote_runtime(**core.address) as runtime:
        call = {"prompt": "hi", "params": {"base_url": upstream.openai_url}}
        run_id = await runtime.start(workflow=WORKFLOW, vars={"call": call})
        task = asyncio.create_task(runtime.tick(workflow=WORKFLOW, run_id=run_id))
        await upstream.until(lambda s: len(s.asked) == 1)
        await runtime.cancel_run(run_id)
        assert (await task).status is RunStatus.CANCELLED
        await upstream.until(lambda s: s.aborted == 1)


def react(run: RunState, ctx: Any) -> StepPlan:
    """Ask the model until it has no more tool calls."""
    said = run.vars.get("said")
    if said and not said["tool_calls"]:
        return StepPlan("react", complete_output={"said": said["content"]})
    messages = run.vars["messages"]
    payload = {"messages": messages, "tools": [TOOL], "params": run.vars["params"]}
    return StepPlan("react", Effect(EffectType.LLM_CALL, payload, "said"), "tools")


def tools(run: RunState, ctx: Any) -> StepPlan:
    calls = run.vars["said"]["tool_calls"]
    if not calls:
        return StepPlan("tools", next_node="react")
    return StepPlan("tools", Effect(EffectType.TOOL_CALLS, {"tool_calls": calls}, "ran"), "note")


def note(run: RunState, ctx: Any) -> StepPlan:
    run.vars["messages"].append({"role": "assistant", "content": "", "tool_calls": run.vars["said"]["tool_calls"]})
    for result in run.vars["ran"]["results"]:
        message = {"role": "tool", "tool_call_id": result["call_id"], "content": str(result["output"])}
        run.vars["messages"].append(message)
    return StepPlan("note", next_node="react")


async def add(call: EffectCall) -> EffectOutcome:
    """The tool, which runs here."""
    results = [
        {"call_id": asked["call_id"], "output": asked["arguments"]["a"] + asked["arguments"].get("b", 0)}
        for asked in call.payload["tool_calls"]
    ]
    return EffectOutcome.completed({"mode": "executed", "results": results})


async def test_hybrid_the_model_is_there_and_the_tools_are_here(core, upstream, tmp_path):
    upstream.script.append({"tool_calls": [{"name": "add", "arguments": {"a": 1, "b": 2}}]})
    spec: WorkflowSpec[Any] = WorkflowSpec("hybrid", "react", {"react": react, "tools": tools, "note": note})
    db = SqliteDatabase(tmp_path / "runs.db")
    async with create_async_hybrid_runtime(
        **core.address,
        run_store=AsyncSqliteRunStore(db),
        ledger_store=AsyncSqliteLedgerStore(db),
        extra_effect_handlers={EffectType.TOOL_CALLS: add},
        secrets={"upstream": "sk-upstream-12345"},
    ) as runtime:
        params = {"base_url": upstream.openai_url, "api_key": {"$secret": "upstream"}}
        question = {"messages": [{"role": "user", "content": "What is 1 + 2?"}], "params": params}
        run_id = await runtime.start(workflow=spec, vars=question)
        run = await runtime.tick(workflow=spec, run_id=run_id)
    assert (run.status, run.output) == (RunStatus.COMPLETED, {"said": "echo: 3"})
    assert [seen.headers["authorization"] for seen in upstream.asked] == ["Bearer sk-upstream-12345"] * 2
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"What is 1 + 2?" in kept
    assert b"sk-upstream-12345" not in kept
    assert b"server-token-12345" not in kept


def test_a_process_killed_in_a_call_leaves_no_request_behind_and_the_run_goes_on(core, upstream, tmp_path):
    upstream.script.append({"hold": True})
    command = [sys.executable, "-m", "tests.remote_worker", str(tmp_path / "runs.db"), core.url, upstream.openai_url]
    with subprocess.Popen(command, cwd=ROOT) as worker:
        upstream.wait_until(lambda s: len(s.asked) == 1, 60)
        worker.kill()
    upstream.wait_until(lambda s: s.aborted == 1)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == {"said": "echo: Are you there?"}
    assert len(upstream.asked) == 2
    records = SqliteLedgerStore(SqliteDatabase(tmp_path / "runs.db")).list(RUN)
    calls = [record for record in records if (record.get("effect") or {}).get("type") == "llm_call"]
    assert [(record["attempt"], record["status"]) for record in calls] == [
        (1, "started"),
        (1, "failed"),
        (2, "started"),
        (2, "completed"),
    ]
    assert len({record["idempotency_key"] for record in calls}) == 1


async def test_one_layer_retries_three_attempts_are_three_requests():
    with ScriptedServer([{"status": 429, "headers": {"Retry-After": "0"}}, {"status": 503}, "done"]) as server:
        policy = RetryPolicy(llm_max_attempts=3, backoff_base=0.0)
        async with create_async_remote_runtime(
            server_base_url=server.url, model="qwen3-4b", effect_policy=policy
        ) as runtime:
            run_id = await runtime.start(workflow=WORKFLOW, vars={"call": {"prompt": "hi"}})
            run = await runtime.tick(workflow=WORKFLOW, run_id=run_id)
        assert (run.output, len(server.asked)) == ({"said": "done"}, 3)


async def test_pictures_and_speech_become_artifacts(core, upstream):
    store = InMemoryArtifactStore()
    client = core.client(artifact_store=store)
    image = {"modality": "image", "provider": "openai-compatible", "model": "img-1", "size": "auto"}
    voice = {"modality": "voice", "model": "openai-compatible/tts-1", "voice": "alloy", "format": "wav"}
    params = {"base_url": upstream.openai_url, "output": [image, voice], "trace_metadata": {"run_id": "r1"}}
    result = await client.agenerate(prompt="a cat", params=params)
    await client.aclose()
    picture, sound = result["outputs"]["image"][0], result["outputs"]["voice"][0]
    assert (picture["content_type"], sound["content_type"]) == ("image/png", "audio/wav")
    assert [artifact.content for item in (picture, sound) if (artifact := store.load(item["artifact_id"]))] == [
        PIXEL,
        SOUND,
    ]
    assert get_artifact_id(picture["artifact_ref"]) == picture["artifact_id"]
    assert {meta.run_id for meta in store.list_all()} == {"r1"}
    json.dumps(result)
    assert [seen.json.get("prompt", seen.json.get("input")) for seen in upstream.asked] == ["a cat", "a cat"]


async def test_a_document_in_an_artifact_reaches_the_model(core, upstream):
    store = InMemoryArtifactStore()
    meta = store.store_text("The secret word is xyzzy.", tags={"filename": "note.txt"})
    client = core.client(artifact_store=store)
    media = [{"$artifact": meta.artifact_id}]
    result = await client.agenerate(prompt="Read.", media=media, params={"base_url": upstream.openai_url})
    await client.aclose()
    assert "xyzzy" in result["content"]


async def residency(core: CoreServer, **payload: Any) -> RunState:
    """The run of one MODEL_RESIDENCY; its output is the result."""

    def node(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("node", Effect(EffectType.MODEL_RESIDENCY, payload, "told"), "end")

    def end(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("end", complete_output=run.vars["told"])

    spec: WorkflowSpec[Any] = WorkflowSpec("residency", "node", {"node": node, "end": end})
    async with create_async_remote_runtime(**core.address) as runtime:
        return await runtime.tick(workflow=spec, run_id=await runtime.start(workflow=spec))


async def told(core: CoreServer, **payload: Any) -> dict[str, Any]:
    run = await residency(core, **payload)
    assert run.status is RunStatus.COMPLETED
    output: dict[str, Any] = run.output or {}
    return output


async def test_models_are_loaded_locked_and_unloaded_on_the_server(core, upstream):
    model = {"task": "text", "provider": "ollama", "model": "qwen3:4b", "base_url": upstream.url}
    loaded = await told(core, operation="warm", **model)
    assert (loaded["ok"], loaded["operation"], loaded["loaded_new"]) == (True, "load", True)
    which = {"runtime_id": loaded["runtime"]["runtime_id"]}
    assert [name for name in upstream.resident] == ["qwen3:4b"]

    listed = await told(core)
    assert which["runtime_id"] in [found["runtime_id"] for found in listed["models"]]
    assert listed["affected_models"] == listed["models"]

    assert (await told(core, operation="lock", **which))["ok"]
    refused = await told(core, operation="unload", **which)
    assert (refused["ok"], refused["error"], refused["degraded"]) == (False, "model_locked", True)
    failed = await residency(core, operation="unload", required=True, **which)
    assert (failed.status, "model_locked" in str(failed.error)) == (RunStatus.FAILED, True)

    assert (await told(core, operation="unlock", **which))["ok"]
    unloaded = await told(core, operation="evict", **which)
    assert (unloaded["ok"], unloaded["unloaded"], list(upstream.resident)) == (True, True, [])


async def test_what_the_server_does_not_have_is_soft_unless_required(core, upstream):
    gone = {"operation": "unload", "task": "text_generation", "runtime_id": "0" * 16}
    soft = await told(core, **gone)
    assert (soft["ok"], soft["unloaded"], len(soft["warnings"])) == (True, False, 1)
    assert (await residency(core, **gone, required="true")).status is RunStatus.FAILED

    unknown = {"operation": "load", "task": "llm", "provider": "ollama", "model": "nope", "base_url": upstream.url}
    soft = await told(core, **unknown)
    assert (soft["ok"], soft["status_hint"], "not found" in soft["error"]) == (False, "warning", True)
    assert (await residency(core, **unknown, required=True)).status is RunStatus.FAILED

    lock = {"operation": "lock", "provider": "ollama", "model": "qwen3:4b", "base_url": upstream.url}
    assert (await told(core, **lock))["error"] == "model_not_resident"
    other = {"operation": "load", "task": "image_generation", "provider": "x", "model": "y"}
    assert (await told(core, **other))["ok"] is False
