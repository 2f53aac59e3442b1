"""The local client against a real AbstractCore and a scripted server: answers, tools, streams, faults, cancels."""

from __future__ import annotations

import asyncio
import json

import pytest

from abstractruntime.integrations.abstractcore import LLMError, LocalAbstractCoreLLMClient

from .bridge_fixtures import client_of
from .bridge_fixtures import home as home
from .scripted_servers import ScriptedServer

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a"],
        },
    },
}
KINDS = pytest.mark.parametrize("kind", ["openai-compatible", "ollama"])


@KINDS
async def test_an_answer_has_the_documented_shape_and_a_prompt_goes_as_a_message(kind):
    with ScriptedServer() as server:
        async with client_of(server, kind) as client:
            found = await client.agenerate(prompt="two words", system_prompt="be short")
            assert found["content"] == "echo: two words"
            assert found["usage"]["input_tokens"] == 4
            assert found["finish_reason"] == "stop"
            assert found["trace_id"]
            assert set(found) == {
                "content", "reasoning", "data", "raw_response", "tool_calls", "usage", "model", "finish_reason",
                "metadata", "trace_id", "gen_time",
            }  # fmt: skip
            json.dumps(found)
            assert client.list_loaded_clients()[0]["provider"] == kind
        seen = server.asked[0]
        assert seen.path in ("/v1/chat/completions", "/api/chat")
        assert [message["role"] for message in seen.json["messages"]] == ["system", "user"]


@KINDS
async def test_calls_of_tools_have_one_shape_and_optional_parameters_stay_optional(kind):
    with ScriptedServer() as server:
        async with client_of(server, kind) as client:
            found = await client.agenerate(prompt='CALL add {"a": 1}', tools=[TOOL])
            assert [(call["name"], call["arguments"]) for call in found["tool_calls"]] == [("add", {"a": 1})]
            unknown = await client.agenerate(prompt='CALL other {"x": 1}', tools=[TOOL])
            if kind != "ollama":
                assert unknown["tool_calls"][0]["name"] == "other"
                told = server.asked[0].json["tools"][0]["function"]["parameters"]
                assert told["required"] == ["a"]


async def test_parameters_change_neither_what_is_said_nor_who_executes_tools():
    params = {"prompt": "other", "messages": [], "execute_tools": True, "tools": [], "temperature": 0.1, "seed": 3}
    with ScriptedServer() as server:
        async with client_of(server) as client:
            found = await client.agenerate(prompt='CALL add {"a": 1}', tools=[TOOL], params=params)
    assert found["tool_calls"][0]["name"] == "add"
    sent = server.asked[0].json
    assert [message["content"] for message in sent["messages"]] == ['CALL add {"a": 1}']
    assert (sent["temperature"], sent["seed"]) == (0.1, 3)


async def test_malformed_arguments_are_noticed():
    script = [{"tool_calls": [{"name": "add", "arguments": '{"a": 1'}]}]
    with ScriptedServer(script) as server:
        async with client_of(server) as client:
            found = await client.agenerate(prompt="add", tools=[TOOL])
    assert found["tool_calls"] is None
    assert found["metadata"]["malformed_tool_calls"][0]["arguments"] == '{"a": 1'


async def test_a_model_without_tools_says_so():
    with ScriptedServer() as server:
        async with client_of(server, "ollama", "llama3.2:1b") as client:
            found = await client.agenerate(prompt="hi", tools=[TOOL])
    assert "does not support tools" in found["metadata"]["warnings"][0]


@KINDS
async def test_text_comes_in_pieces_in_order_before_the_answer(kind):
    with ScriptedServer([{"chunks": ["one ", "two ", "three"]}] * 2) as server:
        async with client_of(server, kind, "scripted-model") as client:
            pieces: list[str] = []
            found = await client.agenerate(prompt="count", on_delta=pieces.append)
            assert pieces == ["one ", "two ", "three"]
            assert found["content"] == "one two three"
            assert found["metadata"]["ttft_ms"] > 0


SLOW = {"chunks": ["a "], "pause": 0.01, "endless": True}
FAULTS = [
    ({"status": 429, "headers": {"Retry-After": "7"}}, "rate_limit", True, 429),
    ({"status": 500}, "server", True, 500),
    ({"status": 401}, "auth", False, 401),
    ({"status": 400}, "invalid_request", False, 400),
    ({"status": 422}, "invalid_request", False, 422),
    ({"drop": True}, "connection", True, None),
    ({"raw": "{no json"}, "malformed", True, None),
    ({"content": ""}, "empty", True, None),
]


@KINDS
@pytest.mark.parametrize(
    ("reply", "kind_of_error", "retryable", "status"), FAULTS, ids=[f[1] + str(f[3]) for f in FAULTS]
)
async def test_faults_on_the_wire_are_typed_and_asked_once(kind, reply, kind_of_error, retryable, status):
    with ScriptedServer([reply]) as server:
        async with client_of(server, kind) as client:
            with pytest.raises(LLMError) as caught:
                await client.agenerate(prompt="hi")
            error = caught.value
            assert (error.kind, error.retryable, error.status) == (kind_of_error, retryable, status), str(error)
            assert error.retry_after == (7.0 if status == 429 else None)
            assert len(server.asked) == 1


@pytest.mark.parametrize("reply", [SLOW, {"hold": True}], ids=["endless stream", "no answer"])
async def test_what_does_not_end_is_ended_by_the_timeout_and_its_connection_closed(reply):
    with ScriptedServer([reply]) as server:
        async with client_of(server, model="scripted-model") as client:
            with pytest.raises(LLMError) as caught:
                await client.agenerate(prompt="hi", params={"timeout_s": 0.3}, on_delta=lambda text: None)
            assert caught.value.kind == "timeout"
            await server.until(lambda s: s.aborted == 1)


@pytest.mark.parametrize("reply", [{"chunks": ["a ", "b "], "drop": 1}, {"chunks": [""]}], ids=["dropped", "empty"])
async def test_a_stream_that_breaks_or_is_empty_is_no_answer(reply):
    with ScriptedServer([reply]) as server:
        async with client_of(server, model="scripted-model") as client:
            with pytest.raises(LLMError) as caught:
                await client.agenerate(prompt="hi", on_delta=lambda text: None)
            assert caught.value.retryable


@KINDS
@pytest.mark.parametrize("streaming", [False, True])
async def test_a_cancelled_call_closes_its_socket(kind, streaming):
    reply = {"chunks": ["a "], "pause": 0.05, "endless": True} if streaming else {"hold": True}
    with ScriptedServer([reply]) as server:
        async with client_of(server, kind) as client:
            task = asyncio.create_task(
                client.agenerate(prompt="hi", on_delta=(lambda text: None) if streaming else None)
            )
            await server.until(lambda s: len(s.asked) == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await server.until(lambda s: s.aborted == 1 and s.inflight == 0)


async def test_two_hundred_calls_are_under_way_at_once():
    with ScriptedServer(gate=200) as server:
        async with client_of(server) as client:
            found = await asyncio.gather(*(client.agenerate(prompt=f"call {n}") for n in range(200)))
            assert sorted(answer["content"] for answer in found) == sorted(f"echo: call {n}" for n in range(200))
            assert server.max_inflight == 200
            assert len(client.list_loaded_clients()) == 1


async def test_a_client_serves_several_loops_and_blocking_callers():
    with ScriptedServer() as server:
        async with client_of(server) as client:
            ask = asyncio.to_thread(lambda: asyncio.run(client.agenerate(prompt="hi")))
            assert (await ask)["content"] == "echo: hi"
            assert (await client.agenerate(prompt="hi"))["content"] == "echo: hi"
            assert (await asyncio.to_thread(client.generate, prompt="hi"))["content"] == "echo: hi"


async def test_a_call_may_choose_its_model_address_and_key_where_the_client_lets_it():
    with ScriptedServer() as server, ScriptedServer(["from there"]) as other:
        async with client_of(server) as client:
            params = {"_model": "scripted-model", "base_url": other.openai_url, "api_key": "sk-other-key"}
            assert (await client.agenerate(prompt="hi", params=params))["content"] == "from there"
            assert other.asked[0].headers["authorization"] == "Bearer sk-other-key"
            assert other.asked[0].json["model"] == "scripted-model"
    single = LocalAbstractCoreLLMClient(provider="ollama", model="qwen3:4b")
    with pytest.raises(LLMError, match="MultiLocal"):
        single.generate(prompt="hi", params={"_model": "another"})


async def test_the_key_of_a_client_goes_to_its_own_provider_and_address_alone(monkeypatch):
    with ScriptedServer() as server, ScriptedServer() as other:
        monkeypatch.setenv("OLLAMA_BASE_URL", other.url)
        async with client_of(server, llm_kwargs={"api_key": "sk-of-the-client"}) as client:
            for params in ({}, {"base_url": other.openai_url}, {"_provider": "ollama", "_model": "qwen3:4b"}):
                await client.agenerate(prompt="hi", params=params)
    assert server.asked[0].headers["authorization"] == "Bearer sk-of-the-client"
    assert len(other.asked) == 2
    assert "sk-of-the-client" not in str(other.requests)


async def test_a_key_from_the_environment_is_hidden_too(monkeypatch, caplog):
    key = "sk-from-the-environment"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with ScriptedServer([{"status": 401, "body": {"error": {"message": f"bad key {key}"}}}]) as server:
        async with client_of(server) as client:
            with pytest.raises(LLMError) as caught:
                await client.agenerate(prompt="hi")
    assert server.asked[0].headers["authorization"] == f"Bearer {key}"
    assert key not in str(caught.value) + caplog.text


async def test_keys_are_in_no_error_and_no_answer():
    script = [{"status": 401, "body": {"error": {"message": "bad key sk-secret-1"}}}, "you sent sk-secret-1"]
    with ScriptedServer(script) as server:
        async with client_of(server, llm_kwargs={"api_key": "sk-secret-1"}) as client:
            with pytest.raises(LLMError) as caught:
                await client.agenerate(prompt="hi")
            assert "sk-secret-1" not in str(caught.value)
            assert "sk-secret-1" not in json.dumps(await client.agenerate(prompt="hi"))


async def test_without_abstractcore_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "abstractcore.core.retry", None)
    single = LocalAbstractCoreLLMClient(provider="ollama", model="qwen3:4b")
    with pytest.raises(LLMError, match=r"abstractruntime\[abstractcore\]"):
        single.generate(prompt="hi")
