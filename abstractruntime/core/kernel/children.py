"""Runs that a run starts: begun with its commit, looked at when it moves, and collected when they have ended.

A child tells its parent nothing. The parent's own commit takes the result at its next move, so no crash between the
two can lose one. What it has under way is in its intent, which nobody claims: to look is not to perform.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from ..models import (
    TERMINAL,
    Child,
    Commit,
    Intent,
    Request,
    RunState,
    RunStatus,
    StepStatus,
    WaitReason,
    WaitState,
)
from ..outcomes import EffectOutcome
from .attempts import waits_for_children
from .joins import End, joined
from .orders import Order, child_id
from .outputs import failure, refusal, result_of
from .state import Stamp, commit, next_state, run_record, status_record, step_record
from .steps import inside, settle
from .waits import conclude


class Done(Struct, frozen=True, gc=False):
    """The effect ends like this, and the children in `spare` have not ended."""

    outcome: EffectOutcome
    spare: tuple[str, ...] = ()


class Begin(Struct, frozen=True, gc=False):
    """There is room for the children at these places."""

    places: tuple[int, ...]


#: children as they are found: None for one that is gone. Those that are left out are taken as their parent knows them.
Found = Mapping[str, RunState | None]


def children_of(run: RunState, seq: int, order: Order) -> tuple[Child, ...]:
    """The children of an order, under their ids, with those begun that begin at once."""
    first = order.width if order.waits else len(order.children)
    return tuple(
        Child(run_id=wanted.run_id or child_id(run, seq, place), workflow_id=wanted.workflow_id, begun=place < first)
        for place, wanted in enumerate(order.children)
    )


def refused(payload: dict[str, Any], error: str) -> EffectOutcome:
    """The outcome of an order that cannot be followed."""
    if payload.get("wrap_as_tool_result"):
        return EffectOutcome.completed(refusal(payload, error))
    return EffectOutcome.failed(error, retryable=False)


def begin_children(run: RunState, intent: Intent, order: Order, stamp: Stamp) -> Commit:
    """The commit that takes the effect; the children, which are in the intent, are to be created with it."""
    if not order.waits:
        ids = [child.run_id for child in intent.children]
        begun = {"sub_run_ids": ids} if order.many else {"sub_run_id": ids[0]}
        return inside(run, intent, EffectOutcome.completed({**begun, "async": True}), stamp)
    if not order.drives:
        waiting = EffectOutcome.waiting(_wait(intent, order, {}))
        return _keep(inside(run, intent, waiting, stamp), intent)
    new = next_state(run, stamp)
    new.intent, new.node_errors = intent, 0
    return commit(run, new, step_record(run, intent, StepStatus.STARTED, stamp))


def begin_more(run: RunState, places: Collection[int], found: Found, stamp: Stamp) -> Commit:
    """Note who has ended, or goes on after all, and that those at these places begin: they are created with it."""
    assert run.intent is not None
    noted = (
        replace(child, begun=child.begun or place in places, ended=_ended_now(child, found))
        for place, child in enumerate(run.intent.children)
    )
    new = next_state(run, stamp)
    new.intent = replace(run.intent, children=tuple(noted))
    return commit(run, new)


def wait_for_children(run: RunState, order: Order, found: Found, stamp: Stamp) -> Commit | None:
    """The run waits for what has not ended. None when it does already, for the same."""
    intent = run.intent
    assert intent is not None
    wait = _wait(intent, order, found)
    if not waits_for_children(run):
        return _keep(settle(run, EffectOutcome.waiting(wait), stamp), intent)
    assert run.waiting is not None
    details = {**(run.waiting.details or {}), **(wait.details or {})}
    if details == run.waiting.details:
        return None
    new = next_state(run, stamp)
    new.waiting = replace(run.waiting, details=details)
    return commit(run, new)


def collected(
    run: RunState, outcome: EffectOutcome, stamp: Stamp, *, lookup_key: str | None = None, spare: tuple[Request, ...]
) -> Commit:
    """The effect ends: its result lands, or fails the run. `spare` asks children that are not waited for to stop."""
    wait = run.waiting
    if not waits_for_children(run):
        made = settle(run, outcome, stamp, lookup_key=lookup_key)
    elif outcome.status == "completed":
        assert wait is not None
        made = conclude(run, wait, outcome.result, stamp, {"resumed": True, "by": "child"})
    else:
        assert wait is not None
        made = _failed(run, wait, outcome.error or "", stamp)
    return replace(made, requests=spare)


def verdict(run: RunState, order: Order, found: Found, traces: Mapping[str, Any]) -> Done | Begin | None:
    """What the children's states mean for the effect; None where nothing follows from them."""
    assert run.intent is not None
    children = run.intent.children
    ends = [_end(child, run, found, traces) for child in children]
    spare = tuple(child.run_id for child in children if child.begun and not _ended_now(child, found))
    outcome = joined(order, ends)
    if outcome is not None:
        return Done(outcome, spare)
    waiting = [place for place, child in enumerate(children) if not child.begun]
    room = order.width - len(spare)
    return Begin(tuple(waiting[:room])) if waiting and room > 0 else None


def all_ended(run: RunState, found: Found) -> bool:
    """Whether no child is open, so that the states of all of them are needed."""
    assert run.intent is not None
    return all(_ended_now(child, found) for child in run.intent.children)


def _ended_now(child: Child, found: Found) -> bool:
    return _has_ended(child, found) if child.run_id in found else child.ended


def _has_ended(child: Child, found: Found) -> bool:
    if child.run_id not in found:
        return False
    state = found[child.run_id]
    return state is None or state.status in TERMINAL


def _end(child: Child, run: RunState, found: Found, traces: Mapping[str, Any]) -> End | None:
    if not child.begun or not _has_ended(child, found):
        return None
    state = found[child.run_id]
    if state is None:
        return End(child, f"Subworkflow {child.workflow_id!r} is gone: run {child.run_id!r} was deleted")
    if (state.parent_run_id, state.workflow_id) != (run.run_id, child.workflow_id):
        return End(child, foreign(run, child, state))
    if state.status is RunStatus.FAILED:
        return End(child, failure(child.workflow_id, state.error))
    error = state.error or "Cancelled" if state.status is RunStatus.CANCELLED else None
    return End(child, error, result_of(state, traces.get(child.run_id)))


def foreign(run: RunState, child: Child, found: RunState) -> str:
    """The text for a run of that id which is not the child that is meant."""
    return (
        f"Run {child.run_id!r} exists already, of workflow {found.workflow_id!r} and started by "
        f"{found.parent_run_id!r}; it is no child of run {run.run_id!r} of workflow {child.workflow_id!r}. "
        "Give each child a run_id of its own, or none."
    )


def _wait(intent: Intent, order: Order, found: Found) -> WaitState:
    children = intent.children
    details: dict[str, Any]
    if order.many:
        details = {"sub_run_ids": [child.run_id for child in children], "join": order.join}
        waits = [_waits(child, found) for child in children]
        details["sub_waiting"] = [wait for wait in waits if wait is not None]
    else:
        details = {"sub_run_id": children[0].run_id, "sub_workflow_id": children[0].workflow_id}
        wait = _waits(children[0], found)
        if wait is not None:
            details["sub_waiting"] = {name: wait[name] for name in ("reason", "wait_key")}
    details["include_traces"] = order.traces
    if not order.drives:
        details["async"] = True
        details.pop("sub_waiting", None)
    if order.tool:
        one = order.children[0]
        details |= {"wrap_as_tool_result": True, "tool_name": one.tool_name, "call_id": one.call_id}
    return WaitState(
        reason=WaitReason.SUBWORKFLOW,
        wait_key=None if order.many else f"subworkflow:{children[0].run_id}",
        resume_to_node=order.resume_to_node or intent.next_node,
        result_key=intent.effect.result_key,
        details=details,
    )


def _waits(child: Child, found: Found) -> dict[str, Any] | None:
    """What a child that has not ended waits for."""
    state = found.get(child.run_id)
    if state is None or state.status in TERMINAL:
        return None
    wait = state.waiting
    reason, key = (str(state.status), None) if wait is None else (str(wait.reason), wait.wait_key)
    return {"sub_run_id": child.run_id, "reason": reason, "wait_key": key}


def _keep(made: Commit, intent: Intent) -> Commit:
    """The commit of a wait, with the children that are waited for kept in the run."""
    if made.run.status is RunStatus.WAITING:
        made.run.intent = intent
    return made


def _failed(run: RunState, wait: WaitState, error: str, stamp: Stamp) -> Commit:
    """A run that waits for a child fails with it."""
    new = next_state(run, stamp)
    new.status, new.waiting, new.intent, new.error = RunStatus.FAILED, None, None, error
    delivered = {"wait_reason": str(wait.reason), "wait_key": wait.wait_key, "result_key": wait.result_key}
    record = run_record(
        run,
        "resume",
        stamp,
        effect={"type": "resume", "payload": delivered, "result_key": None},
        result={"resumed": False, "by": "child"},
        status=StepStatus.FAILED,
        error=error,
    )
    return commit(run, new, record, status_record(new, stamp))
