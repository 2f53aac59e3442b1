"""MODEL_RESIDENCY: what the handler makes of payloads and controllers, and the models of Ollama and LM Studio."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from abstractruntime import (
    AsyncRuntime,
    Effect,
    EffectType,
    InMemoryLedgerStore,
    InMemoryRunStore,
    RunState,
    RunStatus,
    StepPlan,
    WorkflowSpec,
)
from abstractruntime.integrations.abstractcore.extra import needed
from abstractruntime.integrations.abstractcore.protocols import LLMError
from abstractruntime.integrations.abstractcore.residency import local_residency, make_model_residency_handler

from .scripted_servers import ScriptedServer

LOADED = {"model": "m", "loaded": True}
FAILED = {"state": "failed", "loaded": False, "error": {"code": "invalid", "message": "name a voice"}}


class Control:
    """A controller that answers what it is told to."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def _answer(self, operation: str, request: dict[str, Any]) -> Any:
        self.asked.append((operation, request))
        answer = self.answers[operation]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def list_model_residency(self, **request: Any) -> Any:
        return self._answer("list", request)

    def load_model_residency(self, **request: Any) -> Any:
        return self._answer("load", request)

    async def unload_model_residency(self, **request: Any) -> Any:
        return self._answer("unload", request)

    def lock_model_residency(self, **request: Any) -> Any:
        return self._answer("lock", request)


async def perform(control: Any, **payload: Any) -> RunState:
    """A run of one MODEL_RESIDENCY; its output is the result."""

    def node(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("node", Effect(EffectType.MODEL_RESIDENCY, payload, "told"), "end")

    def end(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("end", complete_output=run.vars["told"])

    spec: WorkflowSpec[Any] = WorkflowSpec("residency", "node", {"node": node, "end": end})
    handlers: dict[str, Any] = {EffectType.MODEL_RESIDENCY: make_model_residency_handler(control=control)}
    ledger = InMemoryLedgerStore()
    async with AsyncRuntime(run_store=InMemoryRunStore(), ledger_store=ledger, effect_handlers=handlers) as runtime:
        run = await runtime.tick(workflow=spec, run_id=await runtime.start(workflow=spec))
        assert "sk-12345" not in json.dumps(await runtime.get_ledger(run.run_id))
        return run


async def told(control: Any, **payload: Any) -> dict[str, Any]:
    run = await perform(control, **payload)
    assert run.status is RunStatus.COMPLETED
    output: dict[str, Any] = run.output or {}
    return output


@pytest.mark.parametrize(
    ("operation", "asked", "named"),
    [
        (None, "list", "list_loaded"),
        ("list", "list", "list_loaded"),
        ("loaded", "list", "list_loaded"),
        ("list_models", "list", "list_loaded"),
        ("LOAD ", "load", "load"),
        ("warm", "load", "load"),
        ("preload", "load", "load"),
        ("release", "unload", "unload"),
        ("evict", "unload", "unload"),
        ("lock", "lock", "lock"),
    ],
)
async def test_operations_and_their_other_names(operation, asked, named):
    control = Control(
        list={"models": [LOADED]},
        load={"runtime": LOADED},
        unload={"unloaded": True},
        lock={"ok": True, "locked": True},
    )
    result = await told(control, operation=operation, task="chat", model="m")
    assert (control.asked[0][0], result["operation"]) == (asked, named)
    assert (result["ok"], result["success"]) == (True, True)
    assert isinstance(result["affected_models"], list)


async def test_what_of_the_payload_reaches_the_controller():
    control = Control(load={"runtime": LOADED, "loaded_new": True})
    given = {"provider": "p", "model": "m", "base_url": "u", "timeout_s": 5, "options": {"ttl": 1}, "pin": "false"}
    await told(control, operation="load", task="llm", note="mine", required=False, **given)
    expected = {**given, "task": "text_generation", "pin": False}
    assert control.asked == [("load", expected)]
    await told(control, operation="load", task="tts")
    assert control.asked[1] == ("load", {"task": "tts", "pin": True})


async def test_a_key_reaches_the_controller_and_nothing_else():
    control = Control(list={"models": [{"model": "m", "note": "key is sk-12345"}]})
    result = await told(control, provider_api_key="sk-12345")
    assert control.asked == [("list", {"provider_api_key": "sk-12345"})]
    assert result["models"] == [{"model": "m", "note": "key is [redacted]"}]


@pytest.mark.parametrize(
    ("payload", "answers", "says"),
    [
        ({"operation": "explode"}, {}, "explode"),
        ({"operation": 7}, {}, "7"),
        ({"operation": "load", "model": "m"}, {}, "payload.task"),
        ({"operation": "load", "task": "text", "options": [1]}, {}, "payload.options"),
        ({"operation": "unlock", "model": "m"}, {}, "unlock_model_residency"),
        ({"operation": "list"}, {"list": RuntimeError("no server, key sk-12345")}, "RuntimeError: no server"),
        ({"operation": "list"}, {"list": "yes"}, "dict"),
        ({"operation": "list"}, {"list": LLMError("slow down", retry_after=1.0)}, "slow down"),
        ({"operation": "load", "task": "text"}, {"load": {"ok": True}}, "could not be verified"),
        ({"operation": "load", "task": "text"}, {"load": {"runtime": {"loaded": False}}}, "could not be verified"),
        ({"operation": "load", "task": "text"}, {"load": {"ok": False, "error": "no room"}}, "no room"),
        ({"operation": "load", "task": "text"}, {"load": {"ok": "yes", "runtime": LOADED}}, "no reason"),
        ({"operation": "unload"}, {"unload": {"ok": False, "error": "model_locked", "status": 409}}, "model_locked"),
        ({"operation": "lock"}, {"lock": {"success": False, "error": "model_not_resident"}}, "model_not_resident"),
        ({"operation": "unload"}, {"unload": {"ok": True, "unloaded": True, "runtime": FAILED}}, "name a voice"),
    ],
)
async def test_what_was_not_done_is_soft_unless_it_is_required(payload, answers, says):
    payload = {**payload, "api_key": "sk-12345"}
    result = await told(Control(**answers), **payload)
    assert (result["ok"], result["success"], result["status_hint"], result["degraded"]) == (
        False,
        False,
        "warning",
        True,
    )
    assert says in result["error"]
    assert result["warnings"]
    assert "sk-12345" not in json.dumps(result)
    for required in (True, "true", "YES", 1):
        run = await perform(Control(**answers), **payload, required=required)
        assert run.status is RunStatus.FAILED
        assert says in str(run.error)
        assert "sk-12345" not in str(run.error)
    assert (await perform(Control(**answers), **payload, required="false")).status is RunStatus.COMPLETED


async def test_an_unload_of_what_is_not_there_is_done_unless_it_is_required():
    control = Control(unload={"ok": False, "error": "not found", "status": 404})
    result = await told(control, operation="unload", model="m")
    assert (result["ok"], result["unloaded"], result["warnings"]) == (True, False, ["Nothing to unload: not found"])
    assert (await perform(control, operation="unload", required=True)).status is RunStatus.FAILED
    control = Control(unload={"ok": True, "unloaded": False, "warnings": ["not there"]})
    assert (await told(control, operation="unload"))["ok"] is True
    run = await perform(control, operation="unload", required=True)
    assert (run.status, "not there" in str(run.error)) == (RunStatus.FAILED, True)


async def test_a_cancelled_residency_is_left():
    begun = threading.Event()
    go_on = threading.Event()

    class Slow(Control):
        def list_model_residency(self, **request: Any) -> Any:
            begun.set()
            go_on.wait(30)
            return {"models": []}

    task = asyncio.create_task(perform(Slow()))
    await asyncio.to_thread(begun.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()


# -- providers of this process


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    for name in ("HOME", "ABSTRACTCORE_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as started:
        yield started


@pytest.fixture
def created() -> Iterator[Callable[..., Any]]:
    """AbstractCore's `create_llm`, whose connections are closed in the end."""
    made: list[Any] = []

    def create(provider: str, **given: Any) -> Any:
        made.append(needed("abstractcore").create_llm(provider, **given))
        return made[-1]

    yield create
    for llm in made:
        llm.client.close()


@pytest.fixture
def ollama(server, created) -> Any:
    return created("ollama", model="qwen3:4b", base_url=server.url)


def test_ollama_loads_locks_and_unloads(server, ollama):
    llm, locks = ollama, set[str]()
    model: dict[str, Any] = {"provider": "ollama", "model": "qwen3:4b", "locks": locks}
    assert local_residency(llm, "list", **model) == {"ok": True, "models": [], "affected_models": []}
    gone = local_residency(llm, "unload", **model)
    assert (gone["ok"], gone["unloaded"], len(gone["warnings"])) == (True, False, 1)
    assert local_residency(llm, "lock", **model)["error"] == "model_not_resident"

    loaded = local_residency(llm, "load", **model, task="text_generation")
    assert (loaded["ok"], loaded["loaded_new"], server.resident) == (True, True, {"qwen3:4b": -1})
    record = loaded["runtime"]
    assert loaded["affected_models"] == [record]
    assert {key: record[key] for key in ("task", "provider", "model", "runtime_id", "state", "size_bytes")} == {
        "task": "text_generation",
        "provider": "ollama",
        "model": "qwen3:4b",
        "runtime_id": "local:text_generation:ollama:qwen3:4b",
        "state": "provider_loaded",
        "size_bytes": 1,
    }
    assert record["resident"] is record["loaded"] is record["provider_residency_verified"] is True
    assert local_residency(llm, "load", **model)["loaded_new"] is False
    assert local_residency(llm, "list", **model)["models"][0]["runtime_id"] == record["runtime_id"]

    assert local_residency(llm, "lock", **model)["runtime"]["locked"] is True
    assert local_residency(llm, "list", **model)["models"][0]["locked"] is True
    refused = local_residency(llm, "unload", **model)
    assert (refused["ok"], refused["error"], list(server.resident)) == (False, "model_locked", ["qwen3:4b"])
    assert local_residency(llm, "unlock", **model)["locked"] is False
    assert server.resident == {"qwen3:4b": "5m"}
    local_residency(llm, "lock", **model)
    assert local_residency(llm, "unload", **model, force=True)["unloaded"] is True
    assert (server.resident, locks) == ({}, set())


def test_how_long_ollama_keeps_a_model(server, ollama):
    llm = ollama
    model: dict[str, Any] = {"provider": "ollama", "model": "qwen3:4b"}
    local_residency(llm, "load", **model, pin=False, ttl_s=90)
    assert server.resident == {"qwen3:4b": "90s"}
    local_residency(llm, "unload", **model)
    assert local_residency(llm, "load", **model, lock=True, locks=(locks := set[str]()))["runtime"]["locked"] is True
    assert len(locks) == 1


def test_a_model_that_ollama_does_not_have(ollama):
    with pytest.raises(Exception, match="not found"):
        local_residency(ollama, "load", provider="ollama", model="nope")


def test_a_load_and_an_unload_that_did_nothing_are_told():
    class Stubborn:
        loaded = False

        def get_model_residency(self, **_: Any) -> dict[str, Any]:
            return {"loaded": self.loaded, "provider_residency_verified": True}

        def load_model(self, model: str, **_: Any) -> None: ...

        def unload_model(self, model: str) -> None: ...

    llm = Stubborn()
    model: dict[str, Any] = {"provider": "ollama", "model": "m"}
    assert local_residency(llm, "load", **model, lock=True, locks=(locks := set[str]()))["ok"] is False
    assert locks == set()
    llm.loaded = True
    assert "still holds" in local_residency(llm, "unload", **model)["error"]


def test_a_provider_that_only_tells(server, created):
    llm = created("openai-compatible", model="qwen3-4b", base_url=server.openai_url)
    model: dict[str, Any] = {"provider": "openai-compatible", "model": "qwen3-4b"}
    refused = local_residency(llm, "load", **model)
    assert (refused["ok"], refused["runtime"]["state"]) == (False, "provider_residency_unknown")
    unloaded = local_residency(llm, "unload", **model)
    assert (unloaded["ok"], unloaded["unloaded"], len(unloaded["warnings"])) == (True, False, 1)
    assert local_residency(llm, "list", **model)["models"] == []
    assert local_residency(llm, "load", **model, task="tts")["ok"] is False


class LMStudio(BaseHTTPRequestHandler):
    """The REST of LM Studio, as far as models in memory go."""

    loaded: ClassVar[set[str]]

    def do_GET(self) -> None:
        models = [{"key": "qwen3-4b", "loaded_instances": [{"id": name} for name in sorted(self.loaded)]}]
        self._say({"models": models, "data": [{"id": "qwen3-4b"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/load"):
            self.loaded.add(body["model"])
        elif body["instance_id"] in self.loaded:
            self.loaded.discard(body["instance_id"])
        else:
            return self._say({"error": "no such instance"})
        return self._say({"ok": True})

    def _say(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None: ...


def test_lm_studio_loads_and_unloads(created):
    class Fresh(LMStudio):
        loaded: ClassVar = set[str]()

    with ThreadingHTTPServer(("127.0.0.1", 0), Fresh) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        llm = created("lmstudio", model="qwen3-4b", base_url=url)
        model: dict[str, Any] = {"provider": "lmstudio", "model": "qwen3-4b", "locks": set()}
        loaded = local_residency(llm, "load", **model)
        assert (loaded["ok"], loaded["loaded_new"], Fresh.loaded) == (True, True, {"qwen3-4b"})
        assert local_residency(llm, "list", **model)["models"][0]["state"] == "provider_loaded"
        assert local_residency(llm, "lock", **model)["ok"] is True
        assert local_residency(llm, "unload", **model)["error"] == "model_locked"
        assert local_residency(llm, "unload", **model, force=True)["unloaded"] is True
        assert Fresh.loaded == set()
        http.shutdown()
