"""What tests of the bridge share: a home for AbstractCore, clients that are closed, and a workflow of one LLM_CALL."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

import pytest

from abstractruntime import Effect, EffectType, StepPlan, WorkflowSpec
from abstractruntime.integrations.abstractcore import MultiLocalAbstractCoreLLMClient

from .scripted_servers import ScriptedServer


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """AbstractCore keeps its configuration there."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ABSTRACTCORE_CONFIG_DIR", str(tmp_path / "home"))


@asynccontextmanager
async def client_of(server: ScriptedServer, kind: str = "openai-compatible", model: str = "qwen3-4b", **kwargs: Any):
    """A client of the scripted server, closed at the end."""
    url = server.url if kind == "ollama" else server.openai_url
    llm_kwargs = {"base_url": url, **kwargs.pop("llm_kwargs", {})}
    client = MultiLocalAbstractCoreLLMClient(provider=kind, model=model, llm_kwargs=llm_kwargs, **kwargs)
    try:
        yield client
    finally:
        await client.aclose()


def asking(payload: dict[str, Any], workflow_id: str = "asking") -> WorkflowSpec[Any]:
    """A workflow that makes one LLM_CALL and returns what it found at `answer`."""

    def ask(run: Any, ctx: Any) -> StepPlan:
        return StepPlan("ask", Effect(EffectType.LLM_CALL, payload, "answer"), "end")

    def end(run: Any, ctx: Any) -> StepPlan:
        return StepPlan("end", complete_output={"answer": run.vars.get("answer")})

    return WorkflowSpec(workflow_id, "ask", {"ask": ask, "end": end})
