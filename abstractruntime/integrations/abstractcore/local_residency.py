"""Models in memory of a provider in this process: Ollama and LM Studio load, lock and unload; others only tell.

All functions block: a provider asks its model server over HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableSet
from typing import Any

from .normalising import plain

TEXT = "text_generation"
_STATES = {
    (True, True): "provider_loaded",
    (True, False): "not_loaded",
    (False, True): "provider_residency_unknown",
    (False, False): "provider_residency_unknown",
}
#: what Ollama keeps a model for when nobody says otherwise
_OLLAMA_DEFAULT = "5m"


def local_residency(
    llm: Any,
    operation: str,
    *,
    provider: str,
    model: str,
    task: str | None = None,
    options: Mapping[str, Any] | None = None,
    pin: bool = True,
    lock: bool = False,
    force: bool = False,
    ttl_s: float | None = None,
    locks: MutableSet[str] | None = None,
    **_: Any,
) -> dict[str, Any]:
    """Ask a provider of AbstractCore (what `create_llm` gives) to `list`, `load`, `unload`, `lock` or `unlock`.

    `locks` holds the ids of locked models between calls: a locked one is not unloaded without `force`. A refusal is an
    answer with `ok` False. Raises what the provider raises.

    >>> local_residency(llm, "load", provider="ollama", model="qwen3:4b")["loaded_new"]  # doctest: +SKIP
    True
    """
    if task not in (None, TEXT):
        return _refused(f"Models for the task {task!r} cannot be {operation}ed in this process, only {TEXT!r}.")
    locked: MutableSet[str] = set() if locks is None else locks
    if operation == "list":
        return _list(llm, provider, locked)
    if operation == "load":
        given = {**(options or {}), "pin": pin, **({} if ttl_s is None else {"ttl_s": ttl_s})}
        return _load(llm, provider, model, given, locked, lock=lock)
    if operation == "unload":
        return _unload(llm, provider, model, locked, force=force)
    return _lock(llm, provider, model, locked, on=operation == "lock")


def runtime_id(provider: str, model: str) -> str:
    """The id of a model in this process.

    >>> runtime_id("ollama", "qwen3:4b")
    'local:text_generation:ollama:qwen3:4b'
    """
    return f"local:{TEXT}:{provider}:{model}"


def record(llm: Any, provider: str, model: str, locks: MutableSet[str]) -> dict[str, Any]:
    """What is known of a model: `resident` and `loaded` only where the provider's own list says so."""
    return _record(plain(llm.get_model_residency(task=TEXT, model=model)), provider, model, locks)


def _record(facts: dict[str, Any], provider: str, model: str, locks: MutableSet[str]) -> dict[str, Any]:
    identity = runtime_id(provider, model)
    loaded = facts.get("loaded") is True
    verified = facts.get("provider_residency_verified") is True
    told = {
        "task": TEXT,
        "provider": provider,
        "model": model,
        "runtime_id": identity,
        "resident": loaded,
        "loaded": loaded,
        "state": _STATES[verified, loaded],
        "provider_residency_verified": verified,
        "expires_at": facts.get("expires_at"),
        "size_bytes": facts.get("size_bytes", facts.get("size")),
        "locked": identity in locks,
    }
    kept = ("size_vram", "size_vram_bytes", "context_length", "provider_instance_ids", "source", "warnings")
    return told | {key: facts[key] for key in kept if key in facts}


def _list(llm: Any, provider: str, locks: MutableSet[str]) -> dict[str, Any]:
    found = [plain(facts) for facts in llm.list_loaded_models()]
    models = [
        _record({"provider_residency_verified": True, **facts}, provider, str(facts.get("model") or ""), locks)
        for facts in found
    ]
    return {"ok": True, "models": models, "affected_models": models}


def _load(
    llm: Any, provider: str, model: str, options: dict[str, Any], locks: MutableSet[str], *, lock: bool
) -> dict[str, Any]:
    before = record(llm, provider, model, locks)
    if not before["loaded"]:
        if not hasattr(llm, "load_model"):
            return _refused(f"The provider {provider!r} cannot load models; Ollama and LM Studio can.", before)
        llm.load_model(model, **options)
    if lock:
        locks.add(runtime_id(provider, model))
    after = record(llm, provider, model, locks)
    if not after["loaded"]:
        locks.discard(runtime_id(provider, model))
        return _refused(f"{provider} was asked to load {model!r} and does not tell that it did.", after)
    new = not before["loaded"]
    return {"ok": True, "loaded_new": new, "provider_loaded_new": new, "runtime": after, "affected_models": [after]}


def _unload(llm: Any, provider: str, model: str, locks: MutableSet[str], *, force: bool) -> dict[str, Any]:
    before = record(llm, provider, model, locks)
    if before["locked"] and not force:
        return _refused("model_locked", before, detail=f"{model!r} is locked: unlock it, or pass force.")
    known = before["provider_residency_verified"]
    if known and not before["loaded"]:
        locks.discard(runtime_id(provider, model))
        told = f"{model!r} is not in the memory of {provider}."
        return {"ok": True, "unloaded": False, "runtime": before, "affected_models": [], "warnings": [told]}
    llm.unload_model(model)
    after = record(llm, provider, model, locks)
    if after["loaded"]:
        return _refused(f"{provider} was asked to unload {model!r} and still holds it.", after)
    locks.discard(runtime_id(provider, model))
    after["locked"] = False
    result = {"ok": True, "unloaded": known, "runtime": after, "affected_models": [after] if known else []}
    if not known:
        result["warnings"] = [f"{provider} does not tell what it holds: its connections were closed, no more."]
    return result


def _lock(llm: Any, provider: str, model: str, locks: MutableSet[str], *, on: bool) -> dict[str, Any]:
    before = record(llm, provider, model, locks)
    if on and not before["loaded"]:
        return _refused("model_not_resident", before, detail=f"{model!r} is not in memory: load it before you lock it.")
    (locks.add if on else locks.discard)(before["runtime_id"])
    if provider == "ollama" and before["loaded"]:  # Ollama forgets a model by itself after a while
        llm.load_model(model, keep_alive=-1 if on else _OLLAMA_DEFAULT)
    after = record(llm, provider, model, locks)
    return {"ok": True, "locked": on, "runtime_id": after["runtime_id"], "runtime": after, "affected_models": [after]}


def _refused(error: str, about: dict[str, Any] | None = None, *, detail: str | None = None) -> dict[str, Any]:
    told: dict[str, Any] = {"ok": False, "error": error}
    if detail is not None:
        told["detail"] = detail
    return told if about is None else {**told, "runtime": about, "runtime_id": about["runtime_id"]}
