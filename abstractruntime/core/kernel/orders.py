"""START_SUBWORKFLOW: what its payload asks for, read once, with its spellings and defaults.

Payload of one child: `workflow_id` (required; found in the runtime's `workflow_registry`), `vars` (a dict),
`session_id` (also `sessionId`; the parent's by default) and `run_id` (an id of your own: the same one again is the same
child). It works for the parent's actor and takes over the workspace of the parent's vars (`INHERITED`).

* With nothing more the child is driven inside the parent's step. Result: `{"sub_run_id", "output"}`.
* `async`: it is started and left alone. Result: `{"sub_run_id", "async": True}`.
* `async` and `wait`: it is started, others drive it, and the parent waits for its end.

A child that waits lets its parent wait, with `resume_to_node` (the plan's next node by default) as the way on. One that
fails fails the effect, a cancelled one gives `{"success": False, "cancelled": True, "error"}` as output.
`include_traces` adds its `node_traces`. `wrap_as_tool_result` makes the result that of a tool, also when it failed;
`tool_name` and `call_id` (also `toolName`, `callId`) name it.

Several: `children`, a list of such dicts, at most `max_parallel` (16) of them open at a time. `join` says what their
ends mean: `all` (the default: fails with the first that fails), `collect` (never fails; `{"ok": False, "error",
"sub_run_id"}` stands for one that did not complete), `any` (the first that completes) or `first` (the first that ends).
Who is not waited for any more is cancelled. Result: `{"results": [...]}` in declared order; of `any` and `first` that
of the one, with its `index`. With `async` and no `wait` all are started: `{"sub_run_ids", "async": True}`.
"""

from __future__ import annotations

from collections.abc import Collection
from hashlib import sha256
from typing import Any

from msgspec import Struct

from ..codec import canonical
from ..ids import check_run_id
from ..models import RunState

#: how the ends of several children become the end of the effect
JOINS = ("all", "collect", "any", "first")

#: children at a time, unless `max_parallel` says otherwise
_WIDTH = 16

#: what a child takes over from its parent's vars where it has none of its own
INHERITED = ("workspace_root", "workspace_access_mode", "workspace_allowed_paths", "workspace_ignored_paths")


class Wanted(Struct, frozen=True, kw_only=True, gc=False):
    """One child."""

    workflow_id: str
    vars: dict[str, Any]
    session_id: str | None = None
    run_id: str | None = None
    tool_name: str = "start_subworkflow"
    call_id: str = "subworkflow"


class Order(Struct, frozen=True, kw_only=True, gc=False):
    """What is asked for: the children, whether the run waits for them, and whether its own ticks drive them."""

    children: tuple[Wanted, ...]
    many: bool
    waits: bool
    drives: bool
    join: str
    width: int
    traces: bool
    tool: bool
    resume_to_node: str | None


def order_of(payload: dict[str, Any], nodes: Collection[str] | None = None) -> Order:
    """The order in a payload. Raises ValueError saying what is wrong with it; `nodes` are those it may resume to."""
    apart, listed = bool(payload.get("async")), payload.get("children")
    many = listed is not None
    if many and (not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed)):
        raise ValueError("start_subworkflow: payload.children must be a list of dicts, at least one")
    wanted = [_wanted(one, payload, place) for place, one in enumerate(listed or ())]
    join, width, node = payload.get("join", "all"), payload.get("max_parallel", _WIDTH), payload.get("resume_to_node")
    if join not in JOINS:
        raise ValueError(f"start_subworkflow: join must be one of {', '.join(JOINS)}, found {join!r:.80}")
    if type(width) is not int or width < 1:
        raise ValueError(f"start_subworkflow: max_parallel must be a number of at least 1, found {width!r:.80}")
    if nodes is not None and node and node not in nodes:
        raise ValueError(f"start_subworkflow: resume_to_node {node!r:.80} is no node of the workflow")
    return Order(
        children=tuple(wanted) if many else (_wanted(payload, payload, None),),
        many=many,
        waits=not apart or bool(payload.get("wait")),
        drives=not apart,
        join=join if many else "all",
        width=width,
        traces=bool(payload.get("include_traces")),
        tool=bool(payload.get("wrap_as_tool_result")),
        resume_to_node=node or None,
    )


def _wanted(one: dict[str, Any], payload: dict[str, Any], place: int | None) -> Wanted:
    where = "payload" if place is None else f"payload.children[{place}]"
    workflow_id, vars = one.get("workflow_id"), one.get("vars")
    if not isinstance(workflow_id, str) or not workflow_id:
        raise ValueError(f"start_subworkflow requires {where}.workflow_id")
    if vars is not None and not isinstance(vars, dict):
        raise ValueError(f"start_subworkflow: {where}.vars must be a dict, found a {type(vars).__name__}")
    session_id = one.get("session_id") or one.get("sessionId") or payload.get("session_id") or payload.get("sessionId")
    if session_id is not None and not isinstance(session_id, str):
        raise ValueError(f"start_subworkflow: {where}.session_id must be a text, found {session_id!r:.80}")
    run_id = one.get("run_id")
    tool_name, call_id = tool_names(payload)
    if place is not None:
        tool_name, call_id = tool_names(one, tool_name, f"{call_id}:{place}")
    return Wanted(
        workflow_id=workflow_id,
        vars=vars or {},
        session_id=session_id or None,
        run_id=None if run_id is None else check_run_id(run_id),
        tool_name=tool_name,
        call_id=call_id,
    )


def tool_names(
    payload: dict[str, Any], name: str = "start_subworkflow", call_id: str = "subworkflow"
) -> tuple[str, str]:
    """Tool name and call id for a result in the shape of a tool's; those given where the payload has none."""
    name = payload.get("tool_name") or payload.get("toolName") or name
    call_id = payload.get("call_id") or payload.get("callId") or call_id
    return str(name), str(call_id)


def child_id(run: RunState, seq: int, place: int) -> str:
    """The id of a child that was not given one: the same for the same effect of the same run, and of no other."""
    return "sub_" + sha256(canonical([run.run_id, run.created_at, seq, place])).hexdigest()[:32]
