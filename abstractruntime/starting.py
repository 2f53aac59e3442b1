"""What a run starts with, and what makes two starts the same."""

from __future__ import annotations

from typing import Any

from .core.codec import digest
from .core.config import RuntimeConfig, check_ceiling
from .core.models import RunState
from .core.vars import ensure_limits

#: what makes two starts under one run_id the same, beside their vars
_IDENTITY = ("workflow_id", "actor_id", "session_id", "parent_run_id")


def seeded(vars: dict[str, Any], config: RuntimeConfig) -> dict[str, Any]:
    """Vars as a run starts with them: `_limits` per key, `_runtime` with the model facts of the config.

    Raises ValueError for more iterations than the run's own ceiling.
    """
    new = dict(vars)
    check_ceiling(ensure_limits(new, config.to_limits_dict()))
    runtime = new.get("_runtime")
    runtime = dict(runtime) if isinstance(runtime, dict) else {}
    for name, value in (("provider", config.provider), ("model", config.model)):
        if value:
            runtime.setdefault(name, value)
    support = config.model_capabilities.get("tool_support")
    if support is not None:
        runtime.setdefault("tool_support", support)
        runtime.setdefault("supports_native_tools", support == "native")
    runtime.pop("effect_seq", None)  # the kernel's own counter starts anew
    new["_runtime"] = runtime
    return new


def identity_of(run: RunState, vars: dict[str, Any]) -> str:
    """A digest of what start() was given."""
    return digest({"vars": vars, **{name: getattr(run, name) for name in _IDENTITY}})


def difference(found: RunState, asked: RunState) -> str:
    """What another start under the same id was given that this one was not."""
    for name in _IDENTITY:
        if getattr(found, name) != getattr(asked, name):
            return f"{name} ({getattr(found, name)!r}, not {getattr(asked, name)!r})"
    return "vars"
