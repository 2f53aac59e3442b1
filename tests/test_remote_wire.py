"""The client of an AbstractCore Server on real sockets: pools, cancels, streams, and everything a wire can do wrong.

The scripted model server speaks the same protocol here, so its faults reach the client as they are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from abstractruntime.integrations.abstractcore import remote_pools, remote_transport
from abstractruntime.integrations.abstractcore.protocols import LLMError
from abstractruntime.integrations.abstractcore.remote_client import RemoteAbstractCoreLLMClient

from .scale import scaled
from .scripted_servers import ScriptedServer

TOOL = {"name": "add", "description": "Add.", "parameters": {"a": {"type": "integer"}}}


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as started:
        yield started


def client_of(server: ScriptedServer, **given: Any) -> RemoteAbstractCoreLLMClient:
    return RemoteAbstractCoreLLMClient(server_base_url=server.openai_url, model="qwen3-4b", **given)


async def failure(client: RemoteAbstractCoreLLMClient, **call: Any) -> LLMError:
    """The error that a call ends with."""
    with pytest.raises(LLMError) as caught:
        await client.agenerate(**{"prompt": "hi", **call})
    return caught.value


async def test_a_call_and_the_next_over_the_same_connection(server):
    client = client_of(server)
    for _ in range(3):
        assert (await client.agenerate(prompt="hi"))["content"] == "echo: hi"
    assert server.connections == 1
    await client.aclose()
    assert (await client.agenerate(prompt="again"))["content"] == "echo: again"
    await client.aclose()


async def test_hundreds_of_calls_are_in_flight_at_once_and_all_can_be_cancelled(server):
    count = scaled(200, 1000)
    server.script.extend([{"hold": True}] * count)
    client = client_of(server)
    tasks = [asyncio.create_task(client.agenerate(prompt=str(n))) for n in range(count)]
    await server.until(lambda s: s.inflight == count, 60)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(task.cancelled() for task in tasks)
    await server.until(lambda s: s.aborted == count, 60)
    answers = await asyncio.gather(*(client.agenerate(prompt=str(n)) for n in range(count)))
    assert [answer["content"] for answer in answers] == [f"echo: {n}" for n in range(count)]
    await client.aclose()


async def test_calls_share_connections_and_those_of_a_busy_time_are_closed(server):
    client = client_of(server)
    for _ in range(3):
        await asyncio.gather(*(client.agenerate(prompt="hi") for _ in range(remote_pools.SHARED)))
    assert server.connections == remote_pools.SHARED
    await asyncio.gather(*(client.agenerate(prompt="hi") for _ in range(5 * remote_pools.SHARED)))
    await server.until(lambda s: s.connections - s.closed <= remote_pools.SHARED)
    await client.aclose()
    await server.until(lambda s: s.connections == s.closed)


def test_one_client_serves_blocking_callers_and_one_loop_after_another(server):
    client = client_of(server)
    assert client.generate(prompt="one")["content"] == "echo: one"

    async def use() -> str:
        answer = await client.agenerate(prompt="two")
        await client.aclose()
        return str(answer["content"])

    assert [asyncio.run(use()) for _ in range(2)] == ["echo: two"] * 2
    assert client.generate(prompt="three")["content"] == "echo: three"
    client.close()


async def test_a_cancelled_call_closes_its_socket(server):
    server.script.append({"hold": True})
    client = client_of(server)
    task = asyncio.create_task(client.agenerate(prompt="hi"))
    await server.until(lambda s: s.inflight == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.until(lambda s: s.aborted == 1)
    assert (await client.agenerate(prompt="on"))["content"] == "echo: on"
    await client.aclose()


async def test_a_call_that_takes_too_long_is_ended_and_its_socket_closed(server):
    server.script.append({"hold": True})
    client = client_of(server, timeout_s=0.2)
    error = await failure(client)
    assert (error.kind, error.retryable) == ("timeout", True)
    await server.until(lambda s: s.aborted == 1)
    await client.aclose()


@pytest.mark.parametrize(
    ("reply", "kind", "retryable", "status", "wait"),
    [
        ({"status": 429, "headers": {"Retry-After": "7"}}, "rate_limit", True, 429, 7.0),
        ({"status": 500}, "server", True, 500, None),
        ({"status": 401}, "auth", False, 401, None),
        ({"status": 302, "headers": {"Location": "http://127.0.0.1:1/"}}, "invalid_request", False, 302, None),
        ({"status": 503, "body": "<html>down</html>"}, "server", True, 503, None),
        ({"drop": True}, "connection", True, None, None),
        ({"raw": "{nope"}, "malformed", True, None, None),
        ({"raw": ""}, "malformed", True, None, None),
        ({"content": ""}, "empty", True, None, None),
        ({"tool_calls": [{"name": "add", "arguments": "{nope"}]}, "malformed", True, None, None),
    ],
)
async def test_a_fault_on_the_wire_is_told_and_not_tried_again(server, reply, kind, retryable, status, wait):
    server.script.append(reply)
    client = client_of(server)
    error = await failure(client, tools=[TOOL])
    assert (error.kind, error.retryable, error.status, error.retry_after) == (kind, retryable, status, wait)
    assert len(server.asked) == 1
    assert (await client.agenerate(prompt="on"))["content"] == "echo: on"
    await client.aclose()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "https://127.0.0.1:1"])
async def test_a_server_that_is_not_there(url):
    client = RemoteAbstractCoreLLMClient(server_base_url=url, model="m")
    error = await failure(client)
    assert (error.kind, error.retryable) == ("connection", True)
    assert url in str(error)
    await client.aclose()


async def test_nothing_secret_is_logged(server, caplog):
    caplog.set_level(logging.DEBUG)
    server.script.extend([{"status": 401}, "fine"])
    client = client_of(server, headers={"Authorization": "Bearer server-token"})
    call: dict[str, Any] = {
        "media": {"content": "QUJDREVGR0hJ", "mime_type": "image/png"},
        "params": {"api_key": "sk-provider"},
    }
    await failure(client, **call)
    await client.agenerate(prompt="hi", **call)
    await client.aclose()
    assert server.asked[0].headers["authorization"] == "Bearer server-token"
    assert caplog.text
    for secret in ("server-token", "sk-provider", "base64", "QUJDREVGR0hJ"):
        assert secret not in caplog.text


async def test_an_answer_larger_than_any_is_refused(server, monkeypatch):
    monkeypatch.setattr(remote_transport, "LARGEST", 10_000)
    server.script.append("x" * 20_000)
    client = client_of(server)
    error = await failure(client)
    assert (error.kind, error.retryable) == ("malformed", False)
    await client.aclose()


async def test_the_text_comes_in_pieces_and_the_result_is_the_whole(server):
    server.script.append({"chunks": ["Hel", "lo ", "wörld"], "usage": {"prompt_tokens": 1, "completion_tokens": 3}})
    client, pieces = client_of(server), list[str]()
    result = await client.agenerate(prompt="hi", on_delta=pieces.append)
    assert pieces == ["Hel", "lo ", "wörld"]
    assert (result["content"], result["finish_reason"], result["tool_calls"]) == ("Hello wörld", "stop", None)
    assert result["usage"]["output_tokens"] == 3
    assert server.asked[0].json["stream"] is True
    await client.aclose()


@pytest.mark.parametrize(
    "call",
    [
        {"tools": [TOOL]},
        {"params": {"response_schema": {"type": "object", "properties": {}}}},
        {"params": {"response_format": {"type": "json_object"}}},
    ],
)
async def test_with_tools_or_a_schema_nothing_is_streamed(server, call):
    server.script.append("whole")
    client, pieces = client_of(server), list[str]()
    assert (await client.agenerate(prompt="hi", on_delta=pieces.append, **call))["content"] == "whole"
    assert (pieces, server.asked[0].json["stream"]) == ([], False)
    await client.aclose()


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ({"chunks": ["a ", "b "], "drop": 1}, "connection"),
        ({"status": 429, "headers": {"Retry-After": "3"}}, "rate_limit"),
        ({"status": 500, "body": "one\nAPI error (429): two\n"}, "rate_limit"),
        ({"raw": 'data: {"error": {"message": "API error (429): slow"}}\n\n'}, "rate_limit"),
        ({"raw": 'data: {"choices": [{"delta": {"content": "half"}}]}\n\n'}, "connection"),
        ({"raw": "data: {nope\n\n"}, "malformed"),
        ({"raw": "data: [1]\n\n"}, "malformed"),
        ({"raw": ""}, "connection"),
        ({"raw": "<html>"}, "connection"),
        ({"content": ""}, "empty"),
    ],
)
async def test_a_stream_that_goes_wrong_is_no_answer(server, reply, kind):
    server.script.append(reply)
    client = client_of(server)
    error = await failure(client, on_delta=lambda text: None)
    assert (error.kind, error.retryable) == (kind, True)
    await client.aclose()


async def test_comments_and_line_ends_of_any_kind_are_read(server):
    lines = [
        ": keep alive",
        "event: x",
        'data: {"choices":[{"delta":{"content":"a\\u2028"}}]}',
        "",
        'data: {"choices":[{"delta":{"reasoning_content":"hm"},"finish_reason":"stop"}]}',
        "data: [DONE]",
    ]
    server.script.append({"raw": "\r\n".join(lines) + "\r\n"})
    client = client_of(server)
    result = await client.agenerate(prompt="hi", on_delta=lambda text: None)
    assert (result["content"], result["reasoning"]) == ("a\u2028", "hm")
    await client.aclose()


@pytest.mark.parametrize(
    "reply", [{"chunks": ["x "], "endless": True, "pause": 0.01}, {"chunks": ["x "] * 9, "pause": 9}]
)
async def test_a_stream_that_is_endless_or_slow_is_ended_in_time(server, reply):
    server.script.append(reply)
    client, pieces = client_of(server, timeout_s=0.3), list[str]()
    error = await failure(client, on_delta=pieces.append)
    assert (error.kind, error.retryable) == ("timeout", True)
    assert pieces
    await server.until(lambda s: s.aborted == 1)
    await client.aclose()


async def test_a_cancelled_stream_closes_its_socket(server):
    server.script.append({"chunks": ["x "], "endless": True, "pause": 0.01})
    client, first = client_of(server), asyncio.Event()
    task = asyncio.create_task(client.agenerate(prompt="hi", on_delta=lambda text: first.set()))
    await first.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.until(lambda s: s.aborted == 1)
    await client.aclose()
