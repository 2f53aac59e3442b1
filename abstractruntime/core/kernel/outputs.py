"""How the ends of children read in their parent's vars: outputs in the documented shapes, and as results of tools."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ..models import RunState, RunStatus, WaitReason, WaitState
from .orders import Wanted, tool_names

_MOST_REPORT = 4000


def result_of(child: RunState, traces: Any = None) -> dict[str, Any]:
    """What a child that completed or was cancelled gives: `{"sub_run_id", "output"}`, with its traces if asked for."""
    output = child.output
    if child.status is RunStatus.CANCELLED:
        output = {"success": False, "cancelled": True, "error": child.error}
    result = {"sub_run_id": child.run_id, "output": output}
    return result if traces is None else {**result, "node_traces": traces}


def failure(workflow_id: str, error: str | None) -> str:
    """The text for a child that failed."""
    return f"Subworkflow {workflow_id!r} failed: {error or 'without saying why'}"


def tool_result(wanted: Wanted, result: dict[str, Any]) -> dict[str, Any]:
    """A child's result in the shape of a tool's."""
    return _tool_result(wanted.tool_name, wanted.call_id, result)


def tool_failure(wanted: Wanted, error: str) -> dict[str, Any]:
    """A child's failure in the shape of a tool's."""
    return _entry(wanted.tool_name, wanted.call_id, None, error)


def envelope(results: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Results of tools as they are delivered."""
    return {"mode": "executed", "results": list(results)}


def refusal(payload: dict[str, Any], error: str) -> dict[str, Any]:
    """An order that could not be read or begun, in the shape of a tool's failure."""
    return envelope([_entry(*tool_names(payload), None, error)])


def tool_answer(wait: WaitState, payload: Any) -> Any:
    """A host's answer to a wait for a child, in the shape of a tool's result where that was asked for."""
    details = wait.details or {}
    if wait.reason is not WaitReason.SUBWORKFLOW or not details.get("wrap_as_tool_result"):
        return payload
    if not isinstance(payload, dict) or {"mode", "results"} <= payload.keys():
        return payload
    return envelope([_tool_result(*tool_names(details), payload)])


def _tool_result(name: str, call_id: str, result: dict[str, Any]) -> dict[str, Any]:
    output = result.get("output")
    if isinstance(output, dict) and output.get("success") is False:
        return _entry(name, call_id, None, str(output.get("error") or "Subworkflow failed"))
    answer = output.get("answer") if isinstance(output, dict) else output
    if not isinstance(answer, str) or not answer.strip():
        answer = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False, sort_keys=True)
    shown = {"rendered": answer, "answer": answer, "sub_run_id": result.get("sub_run_id")}
    report = output.get("report") if isinstance(output, dict) else None
    if isinstance(report, str) and report.strip() and len(report) <= _MOST_REPORT:
        shown["report"] = report
    return _entry(name, call_id, shown, None)


def _entry(name: str, call_id: str, output: Any, error: str | None) -> dict[str, Any]:
    return {"call_id": call_id, "name": name, "success": error is None, "output": output, "error": error}
