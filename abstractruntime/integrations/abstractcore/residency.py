"""The handler of MODEL_RESIDENCY: which models are in memory, and putting them there and out again.

A failure is an answer with `ok` False, and the run goes on: a model that is not warm answers all the same. With
`required` in the payload the effect fails instead.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ...core.outcomes import EffectCall, EffectOutcome
from ...core.secrets import scrub
from ...core.threads import WorkerThreads
from .local_residency import local_residency as local_residency  # where the local client takes it from
from .protocols import LLMError

log = logging.getLogger("abstractruntime")

_OPERATIONS = {
    "list": "list", "loaded": "list", "list_loaded": "list", "list_models": "list", "list_loaded_models": "list",
    "load": "load", "warm": "load", "preload": "load", "load_model": "load",
    "unload": "unload", "release": "unload", "evict": "unload", "unload_model": "unload",
    "lock": "lock", "lock_model": "lock",
    "unlock": "unlock", "unlock_model": "unlock",
}  # fmt: skip
_TASKS = {"text": "text_generation", "llm": "text_generation", "chat": "text_generation"}
#: what of the payload goes to the controller
_FIELDS = (
    "task", "provider", "model", "runtime_id", "base_url", "timeout_s", "provider_api_key", "api_key", "options",
    "pin", "lock", "force", "ttl_s",
)  # fmt: skip
_TRUE = {"true", "yes", "on", "1"}
_FLAGS = ("pin", "lock", "force")


def make_model_residency_handler(*, control: Any) -> Callable[[EffectCall], Awaitable[EffectOutcome]]:
    """A handler of MODEL_RESIDENCY that asks `control`.

    `control` has `list_model_residency`, `load_model_residency`, `unload_model_residency` and perhaps
    `lock_model_residency` and `unlock_model_residency`, each taking the payload's fields by name and returning a dict;
    they may be async, and sync ones run in a thread. One with `async aresidency(operation, request)` is asked there.

    The payload is `{"operation": "list_loaded" | "load" | "unload" | "lock" | "unlock", "task", "provider", "model",
    "runtime_id", "base_url", "timeout_s", "options", "pin", "force", "required", "provider_api_key"}`; a load needs
    `task`. The result always has `ok`, `success`, `operation` and `affected_models`; a list has `models`, a load
    `runtime` and `loaded_new`, an unload `unloaded`. What was not done has `ok` False, `error`, `warnings`,
    `status_hint` and `degraded`, or fails the effect if the payload says `required`. A load counts as done only when
    the model is seen in memory.
    """
    threads = WorkerThreads(16)

    async def handle(call: EffectCall) -> EffectOutcome:
        payload = call.payload
        required = _flag(payload.get("required"))
        given = str(payload.get("operation") or "list_loaded").strip().lower()
        operation = _OPERATIONS.get(given)
        hidden = [text for key in ("provider_api_key", "api_key") if isinstance(text := payload.get(key), str)]
        retryable, wait = False, None
        try:
            if operation is None:
                raise _unusable(f"Unknown operation {given!r:.80}: expected list_loaded, load, unload, lock or unlock.")
            request = _request(operation, payload)
            answer = await _ask(control, operation, request, threads)
            result = _result(operation, request, answer, required=required)
        except LLMError as error:
            result, retryable, wait = _soft(operation or given, str(error)), error.retryable, error.retry_after
        except Exception as error:  # a boundary: whatever a controller raises is its answer
            log.warning("A model residency controller failed: %s", scrub(repr(error), hidden))
            result, retryable = _soft(operation or given, f"{type(error).__name__}: {error}"), True
        told: dict[str, Any] = scrub(result, hidden)
        if required and not told["ok"]:
            return EffectOutcome.failed(str(told["error"]), retryable=retryable, retry_after=wait)
        return EffectOutcome.completed(told)

    return handle


def _request(operation: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    request = {name: payload[name] for name in _FIELDS if payload.get(name) is not None}
    task = request.get("task")
    if task is not None:
        name = str(task).strip().lower()
        request["task"] = _TASKS.get(name, name)
    elif operation == "load":
        raise _unusable('A load needs payload.task, for example "text_generation".')
    for name in _FLAGS:
        if name in request:
            request[name] = _flag(request[name])
    if not isinstance(request.get("options", {}), Mapping):
        raise _unusable("payload.options must be a dict.")
    if operation == "load":
        request.setdefault("pin", True)
    return request


async def _ask(control: Any, operation: str, request: dict[str, Any], threads: WorkerThreads) -> dict[str, Any]:
    ask = getattr(control, "aresidency", None)
    if ask is not None:
        answer = await ask(operation, request)
    else:
        method = getattr(control, f"{operation}_model_residency", None)
        if method is None:
            raise _unusable(f"{type(control).__name__} has no {operation}_model_residency.")
        if inspect.iscoroutinefunction(method):
            answer = await method(**request)
        else:
            answer = await threads.run(lambda: method(**request))
            if inspect.isawaitable(answer):
                answer = await answer
    if not isinstance(answer, Mapping):
        raise _unusable(f"{type(control).__name__} answered with {type(answer).__name__}, expected a dict.")
    return dict(answer)


def _result(operation: str, request: Mapping[str, Any], answer: dict[str, Any], *, required: bool) -> dict[str, Any]:
    ok = answer.get("ok", answer.get("success", True)) is True
    result = {**answer, "operation": _told(operation), "ok": ok, "success": ok}
    if operation == "list":
        result["models"] = _models(answer.get("models", answer.get("data")))
        result.pop("data", None)
        result["affected_models"] = result["models"]
    else:
        result["affected_models"] = _models(answer.get("affected_models")) or _models([answer.get("runtime")])
    if operation == "unload" and not ok and answer.get("status") == 404 and not required:
        warning = f"Nothing to unload: {answer.get('error')}"
        result |= {"ok": True, "success": True, "unloaded": False, "affected_models": [], "warnings": [warning]}
        result.pop("error", None)
        return result
    if operation == "load" and ok and not any(_is_resident(model) for model in result["affected_models"]):
        name = request.get("model", "the model")
        result["error"] = f"The load of {name!r} could not be verified: nothing tells that it is in memory."
        ok = False
    if ok and (failed := _failed(answer.get("runtime"))):  # a server may call done what its own backend refused
        result |= {"error": failed} | ({"unloaded": False} if operation == "unload" else {})
        ok = False
    if operation == "unload" and required and ok and answer.get("unloaded") is False:
        result["error"] = "; ".join(map(str, answer.get("warnings") or ())) or "Nothing was unloaded."
        ok = False
    return result if ok else {**result, **_soft(operation, str(result.get("error") or "no reason given"), result)}


def _failed(runtime: Any) -> str | None:
    """Why the model is in the state of failure; None where it is not."""
    if not isinstance(runtime, Mapping) or runtime.get("state") != "failed":
        return None
    error = runtime.get("error")
    return str(error.get("message", error) if isinstance(error, Mapping) else error or "the model failed")


def _soft(operation: str, error: str, result: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The answer that says what was not done."""
    found = result or {}
    return {
        "ok": False,
        "success": False,
        "operation": _told(operation),
        "error": error,
        "warnings": [*map(str, found.get("warnings") or ()), str(found.get("detail") or error)],
        "status_hint": "warning",
        "degraded": True,
        "affected_models": _models(found.get("affected_models")),
    }


def _told(operation: str) -> str:
    return "list_loaded" if operation == "list" else operation


def _models(found: Any) -> list[dict[str, Any]]:
    return [dict(model) for model in found if isinstance(model, Mapping)] if isinstance(found, list) else []


def _is_resident(model: Mapping[str, Any]) -> bool:
    return model.get("loaded") is True or model.get("resident") is True


def _flag(value: Any) -> bool:
    return (
        value is True
        or (isinstance(value, str) and value.strip().lower() in _TRUE)
        or (type(value) is int and value == 1)
    )


def _unusable(text: str) -> LLMError:
    return LLMError(text, kind="invalid_request", retryable=False)
