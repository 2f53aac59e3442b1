"""What a runtime was built from, and what of it may be replaced while it lives."""

from __future__ import annotations

from typing import Any

from .attempts import Attempts
from .core.config import RuntimeConfig
from .core.models import EffectType
from .core.policy import EffectPolicy


class HasParts:
    """The parts of `AsyncRuntime` that its host gave it."""

    _run_store: Any
    _ledger_store: Any
    _workflow_registry: Any
    _config: RuntimeConfig
    _attempts: Attempts
    _attach: dict[str, Any]

    @property
    def run_store(self) -> Any:
        """The run store as given."""
        return self._run_store

    @property
    def ledger_store(self) -> Any:
        """The ledger store as given."""
        return self._ledger_store

    @property
    def workflow_registry(self) -> Any:
        """The registry as given; anything with `get(workflow_id)`."""
        return self._workflow_registry

    @property
    def artifact_store(self) -> Any:
        """The artifact store as given; nodes find it as `run._runtime_artifact_store`."""
        return self._attach["_runtime_artifact_store"]

    @property
    def effect_policy(self) -> EffectPolicy:
        """The policy in force."""
        return self._attempts.policy

    @property
    def config(self) -> RuntimeConfig:
        """The configuration that new runs are seeded with."""
        return self._config

    def set_workflow_registry(self, registry: Any) -> None:
        """Replace the registry."""
        self._workflow_registry = registry

    def set_artifact_store(self, store: Any) -> None:
        """Replace the artifact store."""
        self._attach["_runtime_artifact_store"] = store

    def set_effect_policy(self, policy: EffectPolicy) -> None:
        """Replace the policy, from the next effect on."""
        self._attempts.set_policy(policy)

    def set_tool_executor_for_resume(self, executor: Any) -> None:
        """Let this executor perform the tool calls that are approved; without it, the one that asked does.

        Raises TypeError when the handler of TOOL_CALLS is none of `make_tool_calls_handler`: approved calls are
        performed by that handler, as part of its effect, and never inside `resume()`.
        """
        handler = self._attempts.handler(EffectType.TOOL_CALLS)
        use = getattr(handler.function, "set_executor_for_resume", None) if handler is not None else None
        if use is None:
            raise TypeError("Give the runtime a handler of TOOL_CALLS that make_tool_calls_handler() has made first.")
        use(executor)
