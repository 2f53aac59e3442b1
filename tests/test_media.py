"""Media that go into calls, from artifacts and files, and media that models make, into artifacts."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from abstractruntime import (
    AsyncJsonFileRunStore,
    AsyncJsonlLedgerStore,
    Effect,
    EffectType,
    FileArtifactStore,
    InMemoryArtifactStore,
    StepPlan,
    WorkflowSpec,
    get_artifact_id,
)
from abstractruntime.integrations.abstractcore import create_async_remote_runtime, media
from abstractruntime.integrations.abstractcore.extra import needed
from abstractruntime.integrations.abstractcore.media import content_part, media_files, media_list, read_medium
from abstractruntime.integrations.abstractcore.media_outputs import kept, made_by_core
from abstractruntime.integrations.abstractcore.protocols import LLMError
from abstractruntime.integrations.abstractcore.remote_client import RemoteAbstractCoreLLMClient

from .scripted_servers import PIXEL, SOUND, ScriptedServer

TEXT_URL = f"data:text/plain;base64,{base64.b64encode(b'hello').decode()}"


@pytest.fixture
def store() -> InMemoryArtifactStore:
    return InMemoryArtifactStore()


def part(item: Any, store: Any = None) -> dict[str, Any]:
    return content_part(read_medium(item, store))


@pytest.mark.parametrize(
    ("given", "count"), [(None, 0), ("", 0), ([], 0), ("a.txt", 1), ({"path": "a"}, 1), (["a", "b"], 2)]
)
def test_one_item_or_several(given, count):
    assert len(media_list(given)) == count


def test_a_text_and_a_picture_become_parts_of_a_message(store, tmp_path):
    (tmp_path / "note.txt").write_text("hello")
    expected = {"type": "file", "file_url": {"url": TEXT_URL}}
    assert part(str(tmp_path / "note.txt")) == expected
    assert part({"path": str(tmp_path / "note.txt")}) == expected
    assert part({"content": "hello"}) == expected
    encoded = base64.b64encode(b"hello").decode()
    assert part({"content": encoded, "content_format": "base64", "mime_type": "text/plain"}) == expected
    meta = store.store(PIXEL, content_type="image/png")
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(PIXEL).decode()}"}}
    assert part({"$artifact": meta.artifact_id}, store) == picture
    assert part({"artifact_id": meta.artifact_id}, store) == picture


def test_what_is_a_part_already_goes_as_it_is():
    own = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
    assert part(own) == own
    assert part({"url": "https://example.com/cat.png"}) == own
    assert part({"url": "https://example.com/cat", "content_type": "image/png"})["type"] == "image_url"
    assert part({"url": TEXT_URL}) == {"type": "file", "file_url": {"url": TEXT_URL}}


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ("/no/such/file.txt", "/no/such/file.txt"),
        ("nul\0byte", "cannot be read"),
        ({"path": "/no/such/file"}, "/no/such/file"),
        ({"$artifact": "0" * 32}, "not in the artifact store"),
        ({"$artifact": "../../etc/passwd"}, "artifact_id"),
        ({"$artifact": 7}, "not in the artifact store"),
        (7, "int"),
        ({}, "needs"),
        ({"content": 7}, "int"),
        ({"content": "%%%", "content_format": "base64"}, "base64"),
    ],
)
def test_what_cannot_be_had_is_named_and_not_tried_again(store, item, says):
    with pytest.raises(LLMError, match="media") as caught:
        read_medium(item, store)
    assert says in str(caught.value)
    assert (caught.value.kind, caught.value.retryable) == ("invalid_request", False)


def test_what_is_too_large_or_no_file_is_not_read(store, tmp_path, monkeypatch):
    monkeypatch.setattr(media, "LARGEST", 4)
    (tmp_path / "big.txt").write_text("hello")
    os.mkfifo(tmp_path / "pipe")
    meta = store.store_text("hello")
    for item in (str(tmp_path / "big.txt"), {"$artifact": meta.artifact_id}):
        with pytest.raises(LLMError, match="5 bytes"):
            read_medium(item, store)
    for item in (str(tmp_path / "pipe"), str(tmp_path)):
        with pytest.raises(LLMError, match="no file"):
            read_medium(item, store)
    with pytest.raises(LLMError, match="cannot be read"):
        read_medium("~nobody-of-this-name/x", store)


def test_an_artifact_without_a_store_is_named():
    with pytest.raises(LLMError, match="no artifact store"):
        read_medium({"$artifact": "a"}, None)


def test_artifacts_become_files_and_are_gone_afterwards(tmp_path):
    store = FileArtifactStore(tmp_path)
    named = store.store_text("one", tags={"filename": "../../note.txt"})
    twin = store.store_text("two", content_type="text/markdown")
    with media_files([{"$artifact": named.artifact_id}, "b.txt", {"$artifact": twin.artifact_id}], store) as files:
        first, second, third = files
        assert (Path(first).read_text(), second, Path(third).read_text()) == ("one", "b.txt", "two")
        assert (Path(first).name, Path(third).suffix) == ("_.._note.txt", ".md")
        assert {Path(first).parent.parent, Path(third).parent.parent} == {Path(first).parent.parent}
    assert not Path(first).parent.parent.exists()


def test_files_are_gone_after_an_error_too(store):
    meta = store.store_text("one")
    seen: list[str] = []

    def use() -> None:
        with media_files({"$artifact": meta.artifact_id}, store) as files:
            seen.extend(files)
            raise RuntimeError("the call failed")

    with pytest.raises(RuntimeError, match="the call failed"):
        use()
    assert not Path(seen[0]).parent.parent.exists()


@pytest.mark.skipif(importlib.util.find_spec("PIL") is not None, reason="says what holds without Pillow")
def test_a_picture_that_abstractcore_would_drop_is_refused(store):
    meta = store.store(PIXEL, content_type="image/png")
    for item in (
        {"$artifact": meta.artifact_id},
        "cat.png",
        {"path": "cat.jpg"},
        {"content": "", "mime_type": "image/png"},
    ):
        with pytest.raises(LLMError, match=r"abstractruntime\[multimodal\]"), media_files(item, store):
            pass


def test_a_document_reaches_a_model_of_this_process(store, monkeypatch, tmp_path):
    for name in ("HOME", "ABSTRACTCORE_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    meta = store.store_text("The secret word is xyzzy.")
    with ScriptedServer() as server, media_files({"$artifact": meta.artifact_id}, store) as files:
        llm = needed("abstractcore").create_llm("openai-compatible", model="qwen3-4b", base_url=server.openai_url)
        assert "xyzzy" in llm.generate("Read.", media=files).content
        llm.client.close()


# -- what models make


def response(*items: Any, **given: Any) -> Any:
    return SimpleNamespace(outputs={"image": list(items)}, **{"resources": {}, "warnings": [], "errors": [], **given})


def item(data: bytes | None = PIXEL, **facts: Any) -> Any:
    return needed("abstractcore.core.multimodal_generation").GeneratedItem(
        **{"modality": "image", "task": "image_generation", "data": data, "content_type": "image/png", **facts}
    )


def test_what_a_model_made_is_kept_as_an_artifact_with_its_origin(store):
    made = item(provider="p", model="img-1", format="png", metadata={"seed": 7, "raw": PIXEL, "b64_json": "aaaa"})
    trace = {"run_id": "r1", "workflow_id": "w", "node_id": "n", "session_id": "s"}
    text = {"content": "Here it is.", "usage": {"total_tokens": 5}, "trace_id": "t", "finish_reason": "stop"}
    answer = response(made, warnings=[SimpleNamespace(message="slow", type="warning")])
    result = kept(made_by_core(answer), store=store, trace=trace, text=text, response=answer, runtime_model="m")
    json.dumps(result)
    assert set(result) == {
        "content", "reasoning", "data", "text", "outputs", "resources", "warnings", "errors", "usage", "provider",
        "model", "runtime_provider", "runtime_model", "media_provider", "media_model", "finish_reason", "metadata",
        "trace_id", "gen_time",
    }  # fmt: skip
    (found,) = result["outputs"]["image"]
    assert set(found) == {
        "modality", "task", "content_type", "format", "backend_id", "provider", "model", "artifact_ref", "artifact_id",
        "size_bytes", "metadata",
    }  # fmt: skip
    assert (result["content"], result["media_model"], result["runtime_model"]) == ("Here it is.", "img-1", "m")
    assert result["warnings"] == [{"message": "slow", "type": "warning"}]
    assert found["metadata"] == {"seed": 7}
    artifact = store.load(get_artifact_id(found["artifact_ref"]))
    assert artifact is not None
    assert artifact.content == PIXEL
    origin = artifact.metadata.descriptor
    assert (artifact.metadata.run_id, origin.workflow_id, origin.node_id, origin.session_id) == ("r1", "w", "n", "s")
    assert (origin.modality, origin.generation) == ("image", {"provider": "p", "model": "img-1"})


def test_the_same_again_is_the_same_artifact(store):
    first, second = [kept(made_by_core(response(item())), store=store, trace={"run_id": "r"}) for _ in range(2)]
    assert first["outputs"] == second["outputs"]
    assert len(store.list_all()) == 1


def test_without_an_artifact_store_the_call_fails():
    with pytest.raises(LLMError, match="artifact store") as caught:
        kept(made_by_core(response(item())), store=None)
    assert not caught.value.retryable


@pytest.mark.parametrize("data", [None, b""])
def test_nothing_made_is_a_failure_that_says_why(store, data):
    answer = response(item(data), errors=[SimpleNamespace(message="no backend", type="error")])
    with pytest.raises(LLMError, match="no backend") as caught:
        kept(made_by_core(answer), store=store, response=answer)
    assert caught.value.retryable


# -- the server's endpoints, spoken by the scripted server itself


async def made(server: ScriptedServer, store: Any, output: Any, **params: Any) -> dict[str, Any]:
    client = RemoteAbstractCoreLLMClient(server_base_url=server.url, model="p/m", artifact_store=store)
    try:
        return await client.agenerate(prompt="a cat", params={"output": output, **params})
    finally:
        await client.aclose()


async def test_selectors_of_every_form(store):
    with ScriptedServer() as server:
        for output in ("image", "t2i", {"type": "image"}, {"task": "image_generation"}, [{"output": "image"}]):
            assert (await made(server, store, output))["outputs"]["image"][0]["content_type"] == "image/png"
        result = await made(server, store, ["text", {"modality": "speech", "text": "meow", "voice": "alloy"}])
        assert (result["content"], result["text"]["content"]) == ("echo: a cat", "echo: a cat")
        assert result["outputs"]["voice"][0]["size_bytes"] == len(SOUND)
        speech = next(seen for seen in server.asked if seen.path == "/v1/audio/speech")
        assert speech.json == {"input": "meow", "voice": "alloy"}
        assert (await made(server, store, "text"))["content"] == "echo: a cat"


@pytest.mark.parametrize(
    "output", ["video", {"modality": "music"}, {"modality": "image", "task": "image_edit"}, {"modality": 7}, [None], 7]
)
async def test_what_a_server_cannot_be_asked_for_is_refused_before_anything_is_made(store, output):
    with ScriptedServer() as server:
        with pytest.raises(LLMError, match="selector") as caught:
            await made(server, store, output)
        assert (caught.value.retryable, server.requests) == (False, [])


async def test_media_cannot_be_made_of_media_on_a_server(store):
    with ScriptedServer() as server:
        client = RemoteAbstractCoreLLMClient(server_base_url=server.url, model="p/m", artifact_store=store)
        with pytest.raises(LLMError, match="text alone") as caught:
            await client.agenerate(prompt="bluer", media={"url": TEXT_URL}, params={"output": "image"})
        assert (caught.value.retryable, server.requests) == (False, [])


async def test_a_run_keeps_a_ref_and_neither_state_nor_ledger_the_picture(tmp_path):
    effect = Effect(EffectType.LLM_CALL, {"prompt": "a cat", "output": "image"}, "made")
    nodes = {
        "draw": lambda run, ctx: StepPlan("draw", effect, "end"),
        "end": lambda run, ctx: StepPlan("end", complete_output={"made": run.vars["made"]}),
    }
    spec: WorkflowSpec[Any] = WorkflowSpec("draws", "draw", nodes)
    files, kept_files = tmp_path / "runs", FileArtifactStore(tmp_path / "artifacts")
    with ScriptedServer() as server:
        async with create_async_remote_runtime(
            server_base_url=server.url,
            model="p/m",
            run_store=AsyncJsonFileRunStore(files),
            ledger_store=AsyncJsonlLedgerStore(files),
            artifact_store=kept_files,
        ) as runtime:
            run = await runtime.tick(workflow=spec, run_id=await runtime.start(workflow=spec))
    assert run.output is not None
    (picture,) = run.output["made"]["outputs"]["image"]
    artifact = await kept_files.aio.load(picture["artifact_id"])
    assert artifact is not None
    assert (artifact.content, artifact.metadata.run_id) == (PIXEL, run.run_id)
    stored = b"".join(path.read_bytes() for path in files.rglob("*") if path.is_file())
    assert picture["artifact_id"].encode() in stored
    assert base64.b64encode(PIXEL) not in stored


async def test_remote_media_without_a_store_are_refused_before_they_are_paid_for():
    with ScriptedServer() as server:
        with pytest.raises(LLMError, match="artifact_store") as caught:
            await made(server, None, "image")
        assert (caught.value.retryable, server.requests) == (False, [])


@pytest.mark.parametrize(
    "raw", ['{"data": []}', "{}", '{"data": [{"b64_json": "%%"}]}', '{"data": [{}]}', '{"data": [7]}', "{nope"]
)
async def test_an_answer_without_a_picture_is_none(store, raw):
    with ScriptedServer([{"raw": raw}]) as server:
        with pytest.raises(LLMError) as caught:
            await made(server, store, "image")
        assert (caught.value.kind, caught.value.retryable) == ("malformed", True)
    assert store.list_all() == []


async def test_a_picture_that_the_server_fails_to_make(store):
    with ScriptedServer([{"status": 429, "headers": {"Retry-After": "4"}}]) as server:
        with pytest.raises(LLMError) as caught:
            await made(server, store, "image")
        assert (caught.value.kind, caught.value.retry_after) == ("rate_limit", 4.0)
