"""What the memory effects share: whose memory is meant, the artifacts it is kept in, and the shape of an answer."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Struct

from ...core.errors import AbstractRuntimeError
from ...core.ids import check_id
from ...core.models import Change, Elsewhere, RunState, RunStatus
from ...core.outcomes import EffectCall, EffectOutcome
from ...core.vars import ensure_namespaces
from ...memory.active_context import loader
from ...storage.user_pair import in_thread

LoadRun = Callable[[str], Awaitable[RunState | None]]

_SAFE = re.compile(r"[A-Za-z0-9_-]+")
_GLOBAL = "ABSTRACTRUNTIME_GLOBAL_MEMORY_RUN_ID"

#: a session's id of more characters is hashed, or the run's id would be too long
_LONGEST = 150

#: ancestors that are followed to the root of a run
_DEEPEST = 10_000


class Refused(ValueError):
    """The payload cannot be followed: the effect fails with this text."""


class Owner(Struct, frozen=True, kw_only=True):
    """A run that remembers: its id, its vars as they are, and how it is made if it is not there."""

    run_id: str
    vars: dict[str, Any]
    create: RunState | None = None


class Desk:
    """What handlers have of the host: other runs, and the artifact store as it is now (None: there is none)."""

    def __init__(self, load: LoadRun, artifact_store: Callable[[], Any]) -> None:
        self.load, self._artifact_store = load, artifact_store

    def artifacts(self, kind: str) -> Any:
        """The blocking artifact store, for `in_thread`."""
        store = self._artifact_store()
        if store is None:
            raise Refused(f"{kind} requires an ArtifactStore: give the runtime artifact_store=")
        return getattr(store, "sync", store)

    async def content(self, store: Any, artifact_id: str) -> Any:
        """What an artifact holds, or None."""
        return await in_thread(loader(store), artifact_id)

    async def owners(self, call: EffectCall, payload: dict[str, Any], *, many: bool = False) -> list[Owner]:
        """Whose memory the payload means by `scope` and `target_run_id`; more than one only with `many`."""
        scope = str(payload.get("scope") or "run").strip().lower()
        if scope == "all" and many:
            found = [await self._owner(call, payload, one) for one in ("run", "session", "global")]
            return list({owner.run_id: owner for owner in reversed(found)}.values())[::-1]
        if scope not in ("run", "session", "global"):
            expected = "run, session, global" + (" or all" if many else "")
            raise Refused(f"unknown scope {payload.get('scope')!r:.80}; expected {expected}")
        return [await self._owner(call, payload, scope)]

    async def target(self, call: EffectCall, payload: dict[str, Any]) -> Owner:
        """The run that `target_run_id` names, or the run itself."""
        return await self._owner(call, payload, "run")

    async def _owner(self, call: EffectCall, payload: dict[str, Any], scope: str) -> Owner:
        run = call.run
        if scope == "run":
            target = payload.get("target_run_id")
            if not target or target == run.run_id:
                return Owner(run_id=run.run_id, vars=run.vars)
            found = await self.load(_checked(target))
            if found is None:
                raise Refused(f"unknown target_run_id: {target!r:.80}")
            return Owner(run_id=found.run_id, vars=found.vars)
        if scope == "session" and not run.session_id:
            root = await self._root(run)
            return Owner(run_id=root.run_id, vars=root.vars)
        run_id = global_memory_owner_run_id() if scope == "global" else session_memory_owner_run_id(str(run.session_id))
        found = await self.load(run_id)
        if found is not None:
            return Owner(run_id=run_id, vars=found.vars)
        return Owner(run_id=run_id, vars={}, create=_owner_run(run_id, scope, run))

    async def _root(self, run: RunState) -> RunState:
        for _ in range(_DEEPEST):
            above = await self.load(run.parent_run_id) if run.parent_run_id else None
            if above is None:
                return run
            run = above
        return run


def session_memory_owner_run_id(session_id: str) -> str:
    """The id of the run that keeps the memory of a session."""
    if _SAFE.fullmatch(session_id) and len(session_id) <= _LONGEST:
        return f"session_memory_{session_id}"
    return f"session_memory_sha_{hashlib.sha256(session_id.encode()).hexdigest()[:32]}"


def global_memory_owner_run_id() -> str:
    """The id of the run that keeps the memory of all. Raises Refused for an environment that names none."""
    given = os.environ.get(_GLOBAL) or "global_memory"
    if not _SAFE.fullmatch(given):
        raise Refused(f"{_GLOBAL} must hold letters, digits, _ and - only, found {given!r:.80}")
    return given


def payload_of(call: EffectCall) -> dict[str, Any]:
    """The payload as it is stored: what it names as a secret must not come into an artifact."""
    intent = call.run.intent
    promised = () if intent is None else intent.parts or (intent,)  # a whole shares the step id of its first part
    return next((one.effect.payload for one in promised if one.step_id == call.step_id), call.payload)


def written(call: EffectCall, owner: Owner, *changes: Change) -> dict[str, Any]:
    """The arguments of an outcome that writes to an owner."""
    if owner.run_id == call.run.run_id:
        return {"changes": changes}
    return {"elsewhere": (Elsewhere(run_id=owner.run_id, create=owner.create, changes=changes),)}


def artifact_id(prefix: str, call: EffectCall) -> str:
    """The id of what an effect keeps: the same in every attempt at it, and that of no other effect."""
    return f"{prefix}_{hashlib.sha256(f'{call.run.run_id}:{call.key}'.encode()).hexdigest()[:32]}"


def answer(
    payload: dict[str, Any],
    output: str,
    meta: dict[str, Any] | None,
    *,
    name: str,
    call_id: str = "memory",
    **writes: Any,
) -> EffectOutcome:
    """A tool-result envelope."""
    entry: dict[str, Any] = {
        "call_id": str(payload.get("call_id") or "memory"),
        "name": str(payload.get("tool_name") or name),
        "success": True,
        "output": output,
        "error": None,
        "meta": meta,
    }
    return EffectOutcome.completed({"mode": "executed", "results": [entry]}, **writes)


def guarded(
    kind: str, handler: Callable[[EffectCall, dict[str, Any]], Awaitable[EffectOutcome]]
) -> Callable[[EffectCall], Awaitable[EffectOutcome]]:
    """A handler that fails its effect with the text of what is wrong with the payload, once."""

    async def handle(call: EffectCall) -> EffectOutcome:
        try:
            return await handler(call, payload_of(call))
        except ValueError as error:
            if isinstance(error, AbstractRuntimeError):
                raise
            text = str(error)
            return EffectOutcome.failed(text if text.startswith(kind) else f"{kind}: {text}", retryable=False)

    return handle


def _checked(target: Any) -> str:
    try:
        return check_id(target, "target_run_id")
    except ValueError as error:
        raise Refused(str(error)) from error


def _owner_run(run_id: str, scope: str, run: RunState) -> RunState:
    vars: dict[str, Any] = {}
    ensure_namespaces(vars)
    return RunState(
        run_id=run_id,
        workflow_id=f"__{scope}_memory__",
        status=RunStatus.COMPLETED,
        current_node="done",
        vars=vars,
        output={"messages": []},
        session_id=run.session_id if scope == "session" else None,
    )
