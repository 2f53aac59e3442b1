"""What is closed with a runtime: whoever asked to be called, in order, whatever one of them does."""

from __future__ import annotations

from typing import Any

import pytest

from abstractruntime import AsyncRuntime, InMemoryArtifactStore, InMemoryLedgerStore, InMemoryRunStore, Runtime
from abstractruntime.integrations.abstractcore import (
    MultiLocalAbstractCoreLLMClient,
    RemoteAbstractCoreLLMClient,
    build_effect_handlers,
)


def stores() -> dict[str, Any]:
    return {"run_store": InMemoryRunStore(), "ledger_store": InMemoryLedgerStore()}


async def test_functions_sync_and_async_are_called_in_order_when_a_runtime_is_closed():
    called: list[str] = []

    async def later() -> None:
        called.append("async")

    async with AsyncRuntime(**stores(), on_close=[lambda: called.append("sync"), later]):
        assert called == []
    assert called == ["sync", "async"]


def test_one_that_raises_keeps_none_of_the_others_from_it():
    called: list[str] = []

    def broken() -> None:
        raise OSError("no")

    rt = Runtime(**stores(), on_close=[broken, lambda: called.append("other")])
    with pytest.raises(OSError, match="no"):
        rt.close()
    assert called == ["other"]


@pytest.mark.parametrize(
    "client",
    [
        MultiLocalAbstractCoreLLMClient(provider="ollama", model="m"),
        RemoteAbstractCoreLLMClient(server_base_url="http://127.0.0.1:1", model="ollama/m"),
    ],
)
def test_a_client_without_an_artifact_store_gets_that_of_its_handlers(client):
    store = InMemoryArtifactStore()
    build_effect_handlers(llm=client, artifact_store=store)
    assert client.artifact_store is store
    build_effect_handlers(llm=client, artifact_store=InMemoryArtifactStore())
    assert client.artifact_store is store
