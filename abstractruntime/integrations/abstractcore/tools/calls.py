"""A tool call as executors read it, and the result of one: the same six names everywhere."""

from __future__ import annotations

from typing import Any, TypeAlias

from msgspec import Struct

from ..executing import OnResult as OnResult

Result: TypeAlias = dict[str, Any]


class ToolCall(Struct, frozen=True):
    """One call. `problem` says why it is none that anybody could perform."""

    name: str
    arguments: Any
    call_id: str
    runtime_call_id: str
    problem: str | None = None

    def done(self, output: Any) -> Result:
        """The result of a call that went well."""
        return self._result(True, output, None)

    def failed(self, error: str, *, output: Any = None, outcome: str | None = None) -> Result:
        """The result of a call that failed. `outcome` is `unknown` where nobody can say what the tool did."""
        result = self._result(False, output, error)
        return {**result, "meta": {"outcome": outcome}} if outcome else result

    def not_started(self) -> Result:
        """The result of a call that nobody began because the batch was given up."""
        return self.failed("cancelled", outcome="not_started")

    def _result(self, success: bool, output: Any, error: str | None) -> Result:
        return {
            "call_id": self.call_id,
            "runtime_call_id": self.runtime_call_id,
            "name": self.name,
            "success": success,
            "output": output,
            "error": error,
        }


def tool_call(given: Any) -> ToolCall:
    """A call from the dict of a TOOL_CALLS payload."""
    if not isinstance(given, dict):
        return ToolCall("", None, "", "", "Invalid tool call (expected an object)")
    name = given.get("name")
    name = name.strip() if isinstance(name, str) else ""
    runtime_call_id = str(given.get("runtime_call_id") or "")
    call_id = str(given.get("call_id") or given.get("id") or runtime_call_id)
    problem = None if name else "Invalid tool call (it has no name)"
    return ToolCall(name, given.get("arguments"), call_id, runtime_call_id or call_id, problem)


def executed(results: list[Result]) -> dict[str, Any]:
    """The envelope of results."""
    return {"mode": "executed", "results": results}
