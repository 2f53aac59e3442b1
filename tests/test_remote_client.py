"""What the client of an AbstractCore Server sends and what it makes of an answer, seen by a sender in its place."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from abstractruntime.core import portal
from abstractruntime.core.outcomes import CancelSignal
from abstractruntime.integrations.abstractcore.protocols import (
    AbstractCoreControlClient,
    AbstractCoreLLMClient,
    AsyncLLMClient,
    LLMError,
)
from abstractruntime.integrations.abstractcore.remote_client import RemoteAbstractCoreLLMClient
from abstractruntime.integrations.abstractcore.remote_failures import failure_of
from abstractruntime.integrations.abstractcore.remote_request import server_root

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a"],
        },
    },
}


def reply(content: Any = "hello", **choice: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, **choice.pop("message", {})}
    usage = choice.pop("usage", {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5})
    return {
        "model": "ollama/qwen3:4b",
        "choices": [{"message": message, "finish_reason": "stop", **choice}],
        "usage": usage,
    }


class Sender:
    """Keeps what it is asked to send, and answers with what it was given."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = reply() if answer is None else answer
        self.sent: list[SimpleNamespace] = []

    def post(self, url: str, *, headers: dict[str, str], json: Any, timeout: float | None) -> Any:
        self.sent.append(SimpleNamespace(url=url, headers=headers, json=json, timeout=timeout))
        return self.answer

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = self.sent[-1].json
        return body


def asked(params: dict[str, Any] | None = None, *, answer: Any = None, headers: Any = None, **call: Any) -> Sender:
    """What is sent for a call."""
    sender = Sender(answer)
    client = RemoteAbstractCoreLLMClient(
        server_base_url="http://h:1/v1", model="ollama/qwen3:4b", headers=headers, request_sender=sender
    )
    client.generate(**{"prompt": "hi", "params": params, **call})
    return sender


def answered(answer: Any, **call: Any) -> dict[str, Any]:
    """What is made of an answer."""
    client = RemoteAbstractCoreLLMClient(server_base_url="http://h:1", model="m", request_sender=Sender(answer))
    return client.generate(**{"prompt": "hi", **call})


def refused(status: int, message: Any, headers: dict[str, str] | None = None) -> LLMError:
    body = {"error": {"message": message, "type": "http_error"}}
    return failure_of(status, headers or {}, json.dumps(body).encode())


def test_the_client_is_what_the_handler_asks_for():
    client = RemoteAbstractCoreLLMClient(server_base_url="http://h:1", model="m", request_sender=Sender())
    assert isinstance(client, AbstractCoreLLMClient)
    assert isinstance(client, AsyncLLMClient)


def test_the_least_that_is_sent():
    sent = asked().sent[0]
    assert sent.url == "http://h:1/v1/chat/completions"
    assert sent.timeout == 7200.0
    assert sent.json == {
        "model": "ollama/qwen3:4b",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": False,
        "agent_format": "passthrough",
        "timeout_s": 7200.0,
    }
    assert sent.headers == {"Accept": "application/json"}


@pytest.mark.parametrize(
    ("params", "fields"),
    [
        ({"temperature": 0.1}, {"temperature": 0.1}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"max_output_tokens": 77}, {"max_tokens": 77}),
        ({"max_output_tokens": 77, "max_tokens": 7}, {"max_tokens": 77}),
        ({"max_out_tokens": 5}, {"max_tokens": 5}),
        ({"stop": "END"}, {"stop": ["END"]}),
        ({"stop": ["A", "B"]}, {"stop": ["A", "B"]}),
        ({"stop": []}, {}),
        ({"seed": 0}, {"seed": 0}),
        ({"seed": -1}, {}),
        ({"seed": True}, {}),
        ({"frequency_penalty": 0.5, "presence_penalty": -0.5}, {"frequency_penalty": 0.5, "presence_penalty": -0.5}),
        ({"base_url": "http://127.0.0.1:1"}, {"base_url": "http://127.0.0.1:1"}),
        ({"prompt_cache_key": "k"}, {"prompt_cache_key": "k"}),
        ({"thinking": False}, {"thinking": False}),
        ({"timeout_s": 5}, {"timeout_s": 5.0}),
        ({"timeout_s": 0}, {"timeout_s": 0}),
        ({"_provider": "lmstudio", "_model": "phi"}, {"model": "lmstudio/phi"}),
        ({"_provider": "lmstudio", "_model": "lmstudio/phi"}, {"model": "lmstudio/phi"}),
        ({"_provider": "lmstudio"}, {"model": "lmstudio/qwen3:4b"}),
        ({"_model": "mlx/phi"}, {"model": "mlx/phi"}),
        ({"tool_choice": "auto"}, {}),
        ({"trace_metadata": {}, "api_key": "sk-1", "response_model": None, "unknown": object()}, {}),
        ({"temperature": None, "seed": None}, {}),
    ],
)
def test_each_parameter_that_is_sent(params, fields):
    least = asked().body
    assert asked(params).body == {**least, **fields}


def test_the_trace_goes_in_headers_and_none_of_them_breaks_the_request():
    trace = {"run_id": "r1", "session_id": "Gänge", "actor_id": "a\nX-Other: b", "parent_run_id": "p", "node_id": "n😀"}
    headers = asked({"trace_metadata": trace}).sent[0].headers
    assert json.loads(headers["X-AbstractCore-Trace-Metadata"]) == trace
    assert headers["X-AbstractCore-Trace-Metadata"].isascii()
    assert headers["X-AbstractCore-Run-Id"] == "r1"
    assert headers["X-AbstractCore-Parent-Run-Id"] == "p"
    assert not {"X-AbstractCore-Session-Id", "X-AbstractCore-Actor-Id"} & headers.keys()
    assert asked({"trace_metadata": {"actor_id": "a"}}).sent[0].headers["X-AbstractCore-Actor-Id"] == "a"


def test_keys_are_headers_and_never_in_the_body():
    sender = asked({"provider_api_key": "sk-provider"}, headers={"Authorization": "Bearer server-token"})
    assert sender.sent[0].headers["X-AbstractCore-Provider-API-Key"] == "sk-provider"
    assert sender.sent[0].headers["Authorization"] == "Bearer server-token"
    assert "sk-provider" not in json.dumps(sender.body)
    assert asked({"api_key": "sk-other"}).sent[0].headers["X-AbstractCore-Provider-API-Key"] == "sk-other"


def test_a_secret_in_the_trace_is_not_sent():
    headers = asked({"trace_metadata": {"run_id": "r", "api_key": "sk-12345"}}).sent[0].headers
    assert "sk-12345" not in str(headers)


def test_a_header_that_cannot_be_sent_is_refused_without_its_value():
    with pytest.raises(LLMError, match="X-AbstractCore-Provider-API-Key") as caught:
        asked({"api_key": "sk-12345\r\nX: y"})
    assert not caught.value.retryable
    assert "sk-12345" not in str(caught.value)


def test_system_prompt_messages_and_prompt_are_one_conversation():
    messages = [
        {"role": "user", "content": "add", "metadata": {"kind": "llm_turn"}},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {"a": 1}, "call_id": "c1"}]},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
    ]
    sent = asked(system_prompt="Be brief.", messages=messages, prompt="and?").body["messages"]
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    assert sent == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "add"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
        {"role": "user", "content": "and?"},
    ]


def test_an_optional_parameter_of_a_tool_stays_optional():
    body = asked({"tool_choice": "auto"}, tools=[TOOL]).body
    properties = {"a": {"type": "integer"}, "b": {"type": "integer", "default": None}}
    assert body["tools"] == [{"name": "add", "parameters": properties}]
    assert body["tool_choice"] == "auto"
    assert "default" not in json.dumps(TOOL)


def test_a_schema_is_sent_as_response_format_and_in_the_system_prompt():
    body = asked({"response_schema": SCHEMA, "response_schema_name": "Count"}, system_prompt="Be brief.").body
    assert body["response_format"] == {"type": "json_schema", "json_schema": {"name": "Count", "schema": SCHEMA}}
    system = body["messages"][0]["content"]
    assert system.startswith("Be brief.\n\n")
    assert json.loads(system.partition(":\n")[2]) == SCHEMA


def test_with_tools_a_schema_is_only_in_the_system_prompt():
    body = asked({"response_schema": SCHEMA}, tools=[TOOL]).body
    assert "response_format" not in body
    assert '"integer"' in body["messages"][0]["content"]


def test_nothing_is_added_to_the_prompts_otherwise():
    assert asked(system_prompt="S", prompt="P").body["messages"] == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "P"},
    ]


@pytest.mark.parametrize("value", [float("nan"), "\ud800", {1, 2}, b"x"])
def test_a_request_that_json_cannot_carry_is_refused(value):
    with pytest.raises(LLMError, match="JSON") as caught:
        asked({"temperature": value} if not isinstance(value, str) else None, prompt=value)
    assert (caught.value.kind, caught.value.retryable) == ("invalid_request", False)


def test_the_result_has_every_documented_key():
    answer = SimpleNamespace(
        body={**reply(message={"reasoning_content": "hm"}), "abstractcore": {"performance": {"tps": 9}}},
        headers={"X-AbstractCore-Trace-Id": "t1"},
    )
    result = answered(answer)
    assert result.pop("gen_time") >= 0
    assert result == {
        "content": "hello",
        "reasoning": "hm",
        "data": None,
        "raw_response": None,
        "tool_calls": None,
        "usage": {
            "input_tokens": 3,
            "output_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens": 3,
            "completion_tokens": 2,
        },
        "model": "ollama/qwen3:4b",
        "finish_reason": "stop",
        "metadata": {"performance": {"tps": 9}},
        "trace_id": "t1",
    }


def test_tool_calls_are_normalised():
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
        {"name": "now", "arguments": None},
    ]
    result = answered(reply(None, message={"tool_calls": calls}, finish_reason="tool_calls"))
    assert result["content"] == ""
    assert result["tool_calls"] == [
        {"name": "add", "arguments": {"a": 1}, "call_id": "c1"},
        {"name": "now", "arguments": {}, "call_id": None},
    ]


@pytest.mark.parametrize("arguments", ["{nope", "[1]", '"x"', 7])
def test_arguments_that_cannot_be_read_are_never_taken_for_none(arguments):
    call = {"id": "c1", "function": {"name": "delete", "arguments": arguments}}
    with pytest.raises(LLMError, match="'delete'") as caught:
        answered(reply(None, message={"tool_calls": [call]}))
    assert (caught.value.kind, caught.value.retryable) == ("malformed", True)


def test_a_call_that_was_cut_off_in_its_arguments_is_left_to_the_handler():
    call = {"id": "c1", "function": {"name": "add", "arguments": '{"a": 1'}}
    result = answered(reply(None, message={"tool_calls": [call]}, finish_reason="length"))
    assert (result["tool_calls"], result["metadata"]["malformed_tool_calls"][0]["name"]) == (None, "add")


def test_usage_that_the_server_does_not_know_is_none():
    nothing = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert answered(reply(usage=nothing))["usage"] is None
    assert answered(reply(usage=None))["usage"] is None


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (reply(""), "empty"),
        (reply(None), "empty"),
        (reply("  \n"), "empty"),
        (reply("Error: timed out", finish_reason="error"), "server"),
        ({"choices": []}, "malformed"),
        ({}, "malformed"),
        ({"choices": [{"message": None}]}, "malformed"),
        ([1], "malformed"),
        (b"{nope", "malformed"),
        (SimpleNamespace(status_code=429, body={"error": "slow down"}, headers={"retry-after": "2"}), "rate_limit"),
    ],
)
def test_an_answer_that_is_none_fails_and_may_be_tried_again(answer, kind):
    with pytest.raises(LLMError) as caught:
        answered(answer)
    assert (caught.value.kind, caught.value.retryable) == (kind, True)


def test_an_answer_cut_off_before_its_first_word_is_left_to_the_handler():
    assert answered(reply("", finish_reason="length"))["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("status", "message", "kind", "retryable", "actual"),
    [
        (400, "bad", "invalid_request", False, 400),
        (401, "no token", "auth", False, 401),
        (403, "forbidden", "auth", False, 403),
        (404, "gone", "not_found", False, 404),
        (408, "slow", "timeout", True, 408),
        (409, "busy", "server", True, 409),
        (422, "validation", "invalid_request", False, 422),
        (425, "early", "server", True, 425),
        (429, "too many", "rate_limit", True, 429),
        (500, "oops", "server", True, 500),
        (503, "down", "server", True, 503),
        (500, "{'error': {'message': 'API error (429): slow', 'type': 'server_error'}}", "rate_limit", True, 429),
        (500, "{'error': {'message': 'API error (401): key', 'type': 'server_error'}}", "auth", False, 401),
        (500, "{'error': {'message': 'API error (400): bad', 'type': 'server_error'}}", "invalid_request", False, 400),
        (500, "API error (503): down", "server", True, 503),
        (500, "{'error': {'message': 'Unknown provider: nope. Available', 'type': 'x'}}", "not_found", False, 500),
        (500, "openai-compatible API error: timed out after 0.3s", "timeout", True, 500),
        (500, "openai-compatible returned an empty completion", "empty", True, 500),
        (400, "the text says (429)", "invalid_request", False, 400),
    ],
)
def test_failures_are_classified_by_the_status_that_matters(status, message, kind, retryable, actual):
    error = refused(status, message)
    assert (error.kind, error.retryable, error.status) == (kind, retryable, actual)
    assert "{'error'" not in str(error)


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"<html>", b"[]", b"null", b'"x"', b'{"error": null}', b"{" * 5000])
def test_any_body_of_a_failure_makes_an_error(body):
    assert failure_of(503, {}, body).retryable


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("2", 2.0), ("0", 0.0), ("-1", None), ("nan", None), ("soon", None), ("9" * 99, 86_400.0), ("", None)],
)
def test_retry_after_in_seconds(given, seconds):
    assert refused(429, "slow", {"Retry-After": given}).retry_after == seconds


def test_retry_after_as_a_date():
    assert refused(429, "slow", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}).retry_after == 0.0
    far = refused(429, "slow", {"Retry-After": "Wed, 21 Oct 2065 07:28:00 GMT"}).retry_after
    assert far == 86_400.0


def test_no_secret_and_no_content_of_a_file_stands_in_an_error_or_a_result():
    text = f"key sk-provider, token server-token, my-token-1, data:image/png;base64,{'QUJD' * 30} and so on"
    answer = SimpleNamespace(status_code=429, body={"error": {"message": text}}, headers={})
    given: dict[str, Any] = {"server_base_url": "http://h:1", "model": "m"}
    given["headers"] = {"X-My-Token": "my-token-1", "Authorization": "Bearer server-token"}
    client = RemoteAbstractCoreLLMClient(**given, request_sender=Sender(answer))
    with pytest.raises(LLMError) as caught:
        client.generate(prompt="hi", params={"api_key": "sk-provider"})
    with pytest.raises(LLMError) as of_residency:
        client.lock_model_residency(provider_api_key="sk-provider")
    assert "sk-provider" not in str(of_residency.value)
    assert str(caught.value).endswith(
        "key [redacted], token [redacted], [redacted], data:image/png;base64,[120 characters] and so on"
    )
    client = RemoteAbstractCoreLLMClient(**given, request_sender=Sender(reply("it is sk-provider")))
    assert client.generate(prompt="hi", params={"api_key": "sk-provider"})["content"] == "it is [redacted]"


def test_a_long_error_is_cut():
    answer = SimpleNamespace(status_code=400, body={"error": "x" * 1_000_000}, headers={})
    with pytest.raises(LLMError) as caught:
        answered(answer)
    assert len(str(caught.value)) < 3_000


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://h", "http://h"),
        ("http://h/", "http://h"),
        ("http://h:8/v1", "http://h:8"),
        ("https://h/api/v1/", "https://h/api"),
        (" http://[::1]:8/v1 ", "http://[::1]:8"),
    ],
)
def test_the_root_of_a_server(url, root):
    assert server_root(url) == root


@pytest.mark.parametrize(
    "url", ["", "h:8", "ftp://h", "http://", "http://u:secret@h", "http://h?x=1", "http://[::1", "http://h:x"]
)
def test_what_is_no_address_of_a_server(url):
    with pytest.raises(ValueError, match="server_base_url") as caught:
        server_root(url)
    assert "secret" not in str(caught.value)


def test_an_address_that_no_request_could_go_to_is_told_at_once():
    with pytest.raises(ValueError, match="server_base_url"):
        RemoteAbstractCoreLLMClient(server_base_url="http://a\x01b", model="m")


@pytest.mark.parametrize("timeout_s", ["5", float("nan"), True])
def test_a_timeout_that_is_no_number_is_refused(timeout_s):
    with pytest.raises(LLMError, match="timeout_s"):
        asked({"timeout_s": timeout_s})


async def test_a_sender_may_be_async_and_a_sync_one_does_not_block_the_loop(blockbuster):
    class Async(Sender):
        async def post(self, url: str, **given: Any) -> Any:
            await asyncio.sleep(0)
            return super().post(url, **given)

    for sender in (Async(), Sender()):
        client = RemoteAbstractCoreLLMClient(server_base_url="http://h", model="m", request_sender=sender)
        assert (await client.agenerate(prompt="hi"))["content"] == "hello"
        await client.aclose()


async def test_a_client_of_httpx_is_a_sender():
    def answer(request: httpx.Request) -> httpx.Response:
        headers = {"X-Trace-Id": "t1", "Retry-After": "3"}
        if request.url.path.endswith("/loaded"):
            return httpx.Response(200, json={"models": [], "asked": str(request.url.query, "ascii")})
        said = json.loads(request.content)["messages"][-1]["content"]
        return httpx.Response(429 if said == "busy" else 200, json=reply(said), headers=headers)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as sender:
        client = RemoteAbstractCoreLLMClient(server_base_url="http://h", model="m", request_sender=sender)
        result = await client.agenerate(prompt="hi")
        assert (result["content"], result["trace_id"]) == ("hi", "t1")
        with pytest.raises(LLMError) as caught:
            await client.agenerate(prompt="busy")
        assert (caught.value.kind, caught.value.retry_after) == ("rate_limit", 3.0)
        listed = await client.aresidency("list", {"task": "tts", "provider": "a b", "provider_api_key": "sk-12345"})
        assert listed == {"models": [], "asked": "task=tts&provider=a+b"}


def test_the_documented_methods_of_residency_block():
    class Answers(Sender):
        def get(self, url: str, *, headers: dict[str, str], timeout: float | None) -> Any:
            return {"ok": True, "url": url}

    sender = Answers({"ok": True})
    client = RemoteAbstractCoreLLMClient(server_base_url="http://h", model="m", request_sender=sender)
    assert isinstance(client, AbstractCoreControlClient)
    assert client.list_model_residency() == {"ok": True, "url": "http://h/acore/models/loaded"}
    given = {"provider": "p", "model": "m", "provider_api_key": "sk-12345", "task": "tts", "pin": True}
    for method in (
        client.load_model_residency,
        client.unload_model_residency,
        client.lock_model_residency,
        client.unlock_model_residency,
    ):
        assert method(**given)["ok"] is True
    assert [sent.url.rpartition("/")[2] for sent in sender.sent] == ["load", "unload", "lock", "unlock"]
    assert sender.sent[0].json == {"task": "tts", "provider": "p", "model": "m", "pin": True}
    assert sender.sent[2].json == {"provider": "p", "model": "m"}
    assert {sent.headers["X-AbstractCore-Provider-API-Key"] for sent in sender.sent} == {"sk-12345"}


async def test_a_call_that_was_cancelled_before_it_began_is_not_made():
    sender, signal = Sender(), CancelSignal()
    signal.set()
    client = RemoteAbstractCoreLLMClient(server_base_url="http://h", model="m", request_sender=sender)
    with pytest.raises(LLMError, match="cancelled") as caught:
        await client.agenerate(prompt="hi", cancelled=signal)
    assert (caught.value.kind, caught.value.retryable, sender.sent) == ("cancelled", False, [])


def test_the_blocking_call_refuses_the_loop_that_would_run_it():
    client = RemoteAbstractCoreLLMClient(server_base_url="http://h", model="m", request_sender=Sender())

    async def inside() -> None:
        client.generate(prompt="hi")

    with pytest.raises(RuntimeError, match="async"):
        portal.call(inside)


def test_a_sender_that_returns_nonsense_is_told():
    with pytest.raises(TypeError, match="request_sender"):
        answered(SimpleNamespace(nothing=1))


def test_capabilities_come_from_the_name_of_the_model(monkeypatch, tmp_path):
    monkeypatch.setenv("ABSTRACTCORE_CONFIG_DIR", str(tmp_path))
    client = RemoteAbstractCoreLLMClient(server_base_url="http://h", model="ollama/qwen3:4b", request_sender=Sender())
    facts = client.get_model_capabilities()
    assert facts["max_output_tokens"] > 0
    assert facts == client.get_model_capabilities("openai/qwen3:4b")
