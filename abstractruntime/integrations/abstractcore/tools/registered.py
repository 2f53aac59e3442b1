"""Tools in AbstractCore's global registry."""

from __future__ import annotations

import asyncio
from typing import Any

from ....core.outcomes import CancelSignal
from ....core.threads import WorkerThreads
from ..extra import needed
from .batches import BatchExecutor
from .calls import OnResult, Result, ToolCall, tool_call
from .mapping import Tool, tool_of
from .options import READ_ONLY

#: facts of AbstractCore's inventory that each forbid to run a tool beside others
_ACTS = ("mutating", "remote_write_capable", "comms_send", "standing_effect", "destructive_capable")

_THREAD = WorkerThreads(1)


class AbstractCoreToolExecutor(BatchExecutor):
    """Executes the tools that were registered with AbstractCore (`abstractcore.tools.register_tool`), by name.

    It looks them up at each call, so what is registered later counts. Everything else is as for
    `MappingToolExecutor`. Of AbstractCore's own tools those run in parallel that its inventory calls harmless, where
    this install has the inventory, else those known to only look. Raises ImportError naming the extra when
    AbstractCore is not installed.
    """

    def __init__(self, *, timeout_s: float | None = None) -> None:
        super().__init__(timeout_s=timeout_s)
        self._tools: dict[str, tuple[Any, Tool]] = {}
        self._harmless: frozenset[str] | None = None

    async def aexecute(
        self,
        *,
        tool_calls: list[dict[str, Any]],
        on_result: OnResult | None = None,
        cancelled: CancelSignal | None = None,
    ) -> dict[str, Any]:
        """Perform the calls: as `MappingToolExecutor.aexecute`."""
        if self._harmless is None:
            await _THREAD.run(self._look, [tool_call(given).name for given in tool_calls])
        return await super().aexecute(tool_calls=tool_calls, on_result=on_result, cancelled=cancelled)

    def knows(self, name: str) -> bool:
        """Whether a tool of this name is registered."""
        return self._tool(name) is not None

    def tool_specs(self) -> list[dict[str, Any]]:
        """Every registered tool as LLM_CALL takes it in `tools`."""
        names = [definition.name for definition in _registry().list_tools()]
        return [tool.spec for tool in map(self._tool, names) if tool is not None]

    def _runs_beside_others(self, name: str) -> bool:
        tool = self._tool(name)
        if tool is None:
            return True
        if self._harmless is not None and _is_abstractcores(tool):
            return name in self._harmless
        return tool.options.runs_beside_others(name)

    async def _perform(self, call: ToolCall, threads: asyncio.Semaphore) -> Result:
        tool = self._tool(call.name)
        if tool is None:
            return call.failed(f"Tool '{call.name}' not found")
        return await tool.perform(call, self._timeout_s, threads)

    def _tool(self, name: str) -> Tool | None:
        definition = _registry().get_tool(name)
        if definition is None or definition.function is None:
            return None
        known = self._tools.get(name)
        if known is None or known[0] is not definition:
            known = self._tools[name] = (definition, tool_of(definition.function, name))
        return known[1]

    def _look(self, names: list[str]) -> None:
        """Learn which of AbstractCore's own tools are harmless, in a thread: its inventory imports all of them."""
        if any(_is_abstractcores(tool) for tool in map(self._tool, names) if tool is not None):
            try:
                rows = needed("abstractcore.tools").builtin_tool_inventory_as_dicts()
            except ImportError:  # a light install, which lacks what some of the tools need
                self._harmless = READ_ONLY
                return
            self._harmless = frozenset(row["name"] for row in rows if not any(row.get(fact) for fact in _ACTS))


def _is_abstractcores(tool: Tool) -> bool:
    return str(getattr(tool.function, "__module__", "")).startswith("abstractcore.tools.")


def _registry() -> Any:
    return needed("abstractcore.tools").get_registry()
