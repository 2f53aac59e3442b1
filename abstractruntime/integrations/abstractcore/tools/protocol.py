"""What TOOL_CALLS needs of an executor."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class ToolExecutor(Protocol):
    """Performs tool calls; `execute` may be async.

    Ours also have `aexecute(*, tool_calls, on_result=None, cancelled=None)`, which tells every result as soon as it is
    there, so that each call of a batch can be kept by itself.
    """

    def execute(self, *, tool_calls: list[dict[str, Any]]) -> Any:
        """`{"mode": "executed", "results": [...]}` with one result per call in their order, of `call_id`,
        `runtime_call_id`, `name`, `success`, `output` and `error`; or another mode, and the run waits."""
