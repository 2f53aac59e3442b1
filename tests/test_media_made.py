"""Pictures and speech through the whole of a local runtime.

The light AbstractCore has no backend for them, so these run under `make test-latest`.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest

from abstractruntime import InMemoryArtifactStore, RunStatus
from abstractruntime.integrations.abstractcore import create_local_runtime

from . import bridge_fixtures
from .bridge_fixtures import asking
from .scripted_servers import PIXEL, SOUND, ScriptedServer

home = bridge_fixtures.home

pytestmark = pytest.mark.skipif(
    tuple(map(int, version("abstractcore").split(".")[:2])) < (2, 19), reason="it has no backends for media"
)


def answer(payload: dict[str, Any], store: InMemoryArtifactStore, server: ScriptedServer) -> dict[str, Any]:
    urls = dict.fromkeys(("base_url", "vision_base_url", "voice_remote_base_url"), server.openai_url)
    runtime = create_local_runtime(
        provider="openai-compatible", model="gpt-4o-mini", llm_kwargs={**urls, "api_key": "k"}, artifact_store=store
    )
    with runtime as rt:
        state = rt.run(asking(payload))
        assert state.status is RunStatus.COMPLETED, state.error
        assert b"iVBOR" not in str(rt.get_ledger(state.run_id)).encode(), "no content in the ledger"
        found: dict[str, Any] = state.output["answer"]
        return found


@pytest.mark.parametrize(
    ("modality", "model", "content"), [("image", "img-1", PIXEL), ("voice", "tts-1", SOUND)], ids=["image", "voice"]
)
def test_what_is_made_becomes_an_artifact(modality, model, content):
    store = InMemoryArtifactStore()
    output = {"modality": modality, "provider": "openai-compatible", "model": model, "voice": "alloy"}
    with ScriptedServer(models=("gpt-4o-mini", "img-1", "tts-1")) as server:
        found = answer({"prompt": "a cat", "output": output}, store, server)
    ((made,),) = found["outputs"].values()
    kept = store.load(made["artifact_id"])
    assert kept is not None
    assert kept.content == content


def test_a_picture_from_an_artifact_reaches_the_model():
    store = InMemoryArtifactStore()
    picture = store.store(PIXEL, content_type="image/png", run_id="r")
    payload = {"prompt": "what is it?", "media": [{"$artifact": picture.artifact_id}]}
    with ScriptedServer(models=("gpt-4o-mini",)) as server:
        found = answer(payload, store, server)
        sent = server.asked[-1].json["messages"][-1]["content"]
    assert found["content"].startswith("echo: what is it?")
    assert [part["type"] for part in sent] == ["text", "image_url"]
