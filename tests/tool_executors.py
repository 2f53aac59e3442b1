"""Tool executors for tests, of the documented kinds: they do nothing and say what they did."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from abstractruntime import CancelSignal, Effect, EffectType, StepPlan

from .worlds import Gate, flow


class Tools:
    """Runs functions by name, all of a batch together, and tells each result as it comes."""

    def __init__(self, **tools: Callable[..., Any]) -> None:
        self.tools = tools
        self.ran: Counter[str] = Counter()
        self.batches: list[list[dict[str, Any]]] = []
        self.gates: dict[str, Gate] = {}

    async def aexecute(
        self, *, tool_calls: list[dict[str, Any]], on_result: Any = None, cancelled: CancelSignal | None = None
    ) -> dict[str, Any]:
        self.batches.append(tool_calls)

        async def one(place: int, call: dict[str, Any]) -> dict[str, Any]:
            if call["name"] in self.gates:
                await self.gates[call["name"]].passed()
            result = self._result(call)
            if on_result is not None:
                await on_result(place, result)
            return result

        return {"mode": "executed", "results": await asyncio.gather(*map(one, range(len(tool_calls)), tool_calls))}

    def execute(self, *, tool_calls: list[dict[str, Any]]) -> dict[str, Any]:
        self.batches.append(tool_calls)
        return {"mode": "executed", "results": [self._result(call) for call in tool_calls]}

    def _result(self, call: dict[str, Any]) -> dict[str, Any]:
        self.ran[call["runtime_call_id"]] += 1
        ids = {"call_id": call["call_id"], "runtime_call_id": call["runtime_call_id"], "name": call["name"]}
        tool = self.tools.get(call["name"])
        if tool is None:
            return {**ids, "success": False, "output": None, "error": f"Tool '{call['name']}' not found"}
        try:
            return {**ids, "success": True, "output": tool(**call["arguments"]), "error": None}
        except Exception as error:
            return {**ids, "success": False, "output": None, "error": str(error)}


class SyncTools:
    """The same with nothing but the documented method."""

    def __init__(self, **tools: Callable[..., Any]) -> None:
        self.inner = Tools(**tools)

    def execute(self, *, tool_calls: list[dict[str, Any]]) -> dict[str, Any]:
        return self.inner.execute(tool_calls=tool_calls)


class Passing:
    """Performs nothing."""

    def __init__(self, mode: str = "passthrough", **more: Any) -> None:
        self.mode, self.more = mode, more

    def execute(self, *, tool_calls: list[dict[str, Any]]) -> dict[str, Any]:
        return {"mode": self.mode, "tool_calls": tool_calls, **self.more}


def call(name: str, call_id: str | None = None, **arguments: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name, "arguments": arguments}
    return made if call_id is None else {**made, "call_id": call_id}


def calling(*calls: Any, result_key: str | None = "result", then: str | None = "end", **payload: Any) -> Any:
    """A workflow of one batch, and `end`."""
    effect = Effect(EffectType.TOOL_CALLS, {"tool_calls": list(calls), **payload}, result_key)
    return flow("act", act=lambda run, ctx: StepPlan("act", effect, then))


def brief(result: Any) -> list[tuple[str, bool, Any]]:
    """Name, success, and output or error of each result."""
    assert result["mode"] == "executed"
    return [
        (one["name"], one["success"], one["output"] if one["success"] else one["error"]) for one in result["results"]
    ]
