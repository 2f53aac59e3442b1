"""The scripted server is what it says, to the real clients of AbstractCore."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from abstractruntime.integrations.abstractcore.extra import needed

from .scripted_servers import ScriptedServer

TOOL = {"name": "add", "description": "Add.", "parameters": {"a": {"type": "integer"}, "b": {"type": "integer"}}}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """AbstractCore keeps its configuration there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ABSTRACTCORE_CONFIG_DIR", str(tmp_path))


@contextmanager
def client(server, kind="openai-compatible", model="qwen3-4b"):
    url = server.url if kind == "ollama" else server.openai_url
    once = needed("abstractcore.core.retry").RetryConfig(max_attempts=1, failure_threshold=10**9)
    llm = needed("abstractcore").create_llm(kind, model=model, base_url=url, retry_config=once)
    yield llm
    llm.client.close()


@pytest.mark.parametrize("kind", ["openai-compatible", "ollama"])
def test_it_answers_by_script_and_then_by_itself(kind):
    with (
        ScriptedServer(["hello", {"content": "cut", "finish_reason": "length"}]) as server,
        client(server, kind) as llm,
    ):
        said = [llm.generate("", messages=[{"role": "user", "content": "hi you"}]) for _ in range(3)]
        assert [answer.content for answer in said] == ["hello", "cut", "echo: hi you"]
        assert said[1].finish_reason == "length"
        assert said[2].usage["input_tokens"] == 2
        assert len(server.asked) == 3


@pytest.mark.parametrize("kind", ["openai-compatible", "ollama"])
def test_it_calls_tools_and_streams(kind):
    with ScriptedServer() as server, client(server, kind) as llm:
        called = llm.generate("", messages=[{"role": "user", "content": 'CALL add {"a":1,"b":2}'}], tools=[TOOL])
        assert [(call["name"], call["arguments"]) for call in called.tool_calls] == [("add", {"a": 1, "b": 2})]
        parts = llm.generate("", messages=[{"role": "user", "content": "a b c"}], stream=True)
        assert "".join(part.content or "" for part in parts) == "echo: a b c"


@pytest.mark.parametrize("reply", [{"status": 500}, {"drop": True}, {"raw": "{no json"}, {"content": ""}])
def test_it_fails_as_told(reply):
    with ScriptedServer([reply]) as server, client(server) as llm:
        with pytest.raises(Exception, match=r".+"):
            llm.generate("", messages=[{"role": "user", "content": "hi"}])
        assert len(server.asked) == 1
