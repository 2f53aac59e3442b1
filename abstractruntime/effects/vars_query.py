"""VARS_QUERY: read a path of a run's vars, without ever failing the run."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from ..core.models import RunState
from ..core.outcomes import EffectCall, EffectOutcome
from ..core.vars import ensure_namespaces, parse_vars_path, resolve_vars_path

LoadRun = Callable[[str], Awaitable[RunState | None]]


class VarsQuery:
    """The handler, with the one thing it needs from the host: a way to load another run."""

    def __init__(self, load: LoadRun) -> None:
        self._load = load

    async def __call__(self, call: EffectCall) -> EffectOutcome:
        """Answer a query.

        Payload: `path` (also `var_path`; dotted, or a JSON pointer; default `scratchpad`), `keys_only`,
        `target_run_id`, `tool_name`, `call_id`. Result: a tool-result envelope whose `output` is pretty JSON text of
        `{"path", "type", "value"}`; what is wrong with the query is in its `error`.
        """
        payload = call.payload
        path = payload.get("path", payload.get("var_path"))
        text = "scratchpad" if path is None else str(path)
        try:
            root = await self._vars(call, payload.get("target_run_id"))
            value = resolve_vars_path(root, parse_vars_path(text))
            return _envelope(payload, _described(text, value, keys_only=bool(payload.get("keys_only"))), None)
        except ValueError as error:
            return _envelope(payload, None, str(error))

    async def _vars(self, call: EffectCall, target: Any) -> dict[str, Any]:
        run: RunState | None = call.run
        if target and str(target) != call.run.run_id:
            run = await self._load(str(target))
        if run is None:
            raise ValueError(f"Unknown target_run_id: {target!r}")
        root = dict(run.vars)
        ensure_namespaces(root)
        return root


def _described(path: str, value: Any, *, keys_only: bool) -> dict[str, Any]:
    described: dict[str, Any] = {"path": path, "type": type(value).__name__}
    if keys_only and isinstance(value, dict):
        described["keys"] = sorted(value)
    elif keys_only and isinstance(value, list):
        described["length"] = len(value)
    else:
        described["value"] = value
    return described


def _envelope(payload: dict[str, Any], described: dict[str, Any] | None, error: str | None) -> EffectOutcome:
    output = None
    if described is not None:
        output = json.dumps(described, indent=2, sort_keys=True, ensure_ascii=False)
    result = {
        "call_id": str(payload.get("call_id") or "vars"),
        "name": str(payload.get("tool_name") or "inspect_vars"),
        "success": error is None,
        "output": output,
        "error": error,
    }
    return EffectOutcome.completed({"mode": "executed", "results": [result]})
