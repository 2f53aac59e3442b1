"""VARS_QUERY: read a path of a run's vars, without ever failing the run."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ..core.errors import StoreError
from ..core.ids import check_id
from ..core.models import RunState
from ..core.outcomes import EffectCall, EffectOutcome
from ..core.vars import NAMESPACES, SCRATCHPAD, parse_vars_path, resolve_vars_path

log = logging.getLogger("abstractruntime")

LoadRun = Callable[[str], Awaitable[RunState | None]]


class VarsQuery:
    """The handler, with the one thing it needs from the host: a way to load another run."""

    def __init__(self, load: LoadRun) -> None:
        self._load = load

    async def __call__(self, call: EffectCall) -> EffectOutcome:
        """Answer a query.

        Payload: `path` (or `var_path`; dotted, or a JSON pointer; default `scratchpad`, empty for all of vars),
        `keys_only`, `target_run_id`, `tool_name`, `call_id`. Result: a tool-result envelope whose `output` is pretty
        JSON text of `{"path", "type", "value"}`, with `keys_only` `keys` of a dict or `length` of a list in place of
        `value`. What is wrong with the query is in its `error`. Nothing is changed; a missing namespace reads as `{}`.
        """
        payload = call.payload
        try:
            path, keys_only = _path(payload), _keys_only(payload)
            root = await self._vars(call, payload.get("target_run_id"))
            value = resolve_vars_path(root, parse_vars_path(path))
            return _envelope(payload, _shown(path, value, keys_only), None)
        except ValueError as error:
            return _envelope(payload, None, str(error))

    async def _vars(self, call: EffectCall, target: Any) -> dict[str, Any]:
        run: RunState | None = call.run
        if target and target != call.run.run_id:
            run = await self._other(target)
        if run is None:
            raise ValueError(f"Unknown target_run_id: {target!r:.200}")
        return {name: {} for name in NAMESPACES} | run.vars

    async def _other(self, target: Any) -> RunState | None:
        run_id = check_id(target, "target_run_id")
        try:
            return await self._load(run_id)
        except StoreError:  # trouble of our own store is no answer: the run stays where it is, and asks again
            raise
        except Exception as error:  # a boundary: a store of the host's may raise anything
            log.warning("Run %r could not be loaded for a query of its vars", run_id, exc_info=error)
            raise ValueError(f"target_run_id {run_id!r} could not be loaded: {error}") from error


def _path(payload: dict[str, Any]) -> str:
    given = next((payload[name] for name in ("path", "var_path") if payload.get(name) is not None), SCRATCHPAD)
    if not isinstance(given, str):
        raise ValueError(f"path must be a text like scratchpad.items[0] or /scratchpad/items/0, found {given!r:.80}")
    return given


def _keys_only(payload: dict[str, Any]) -> bool:
    given = payload.get("keys_only")
    if given not in (None, True, False):  # 1 and 0 are
        raise ValueError(f"keys_only must be true or false, found {given!r:.80}")
    return bool(given)


def _shown(path: str, value: Any, keys_only: bool) -> str:
    shown: dict[str, Any] = {"path": path, "type": type(value).__name__}
    if keys_only and isinstance(value, dict):
        shown["keys"] = sorted(value)
    elif keys_only and isinstance(value, list):
        shown["length"] = len(value)
    else:
        shown["value"] = value
    try:
        return json.dumps(shown, indent=2, sort_keys=True, ensure_ascii=False)
    except RecursionError:
        raise ValueError(f"the value at {path!r:.200} is nested too deeply to be shown; ask for a part of it") from None


def _envelope(payload: dict[str, Any], output: str | None, error: str | None) -> EffectOutcome:
    result = {
        "call_id": str(payload.get("call_id") or "vars"),
        "name": str(payload.get("tool_name") or "inspect_vars"),
        "success": error is None,
        "output": output,
        "error": error,
    }
    return EffectOutcome.completed({"mode": "executed", "results": [result]})
