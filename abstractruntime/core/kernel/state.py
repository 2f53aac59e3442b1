"""The small moves that every verb of the kernel is made of: the next state, its vars, its records."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, force_setattr, replace

from ..config import is_far_from_limits, limit_warnings
from ..models import (
    TERMINAL,
    Commit,
    Intent,
    Message,
    Request,
    RunState,
    RunStatus,
    StepRecord,
    StepStatus,
)
from ..tokens import added, window_used
from ..vars import effect_seq, put_path

#: every step asks for these, and a member of an enum is looked up far slower
_RUNNING, _STARTED = RunStatus.RUNNING, StepStatus.STARTED

#: the documented issuance counter
seq_of = effect_seq


class Stamp(Struct, frozen=True, gc=False):
    """What a commit takes from outside the kernel: the instant (UTC text) and a fresh id."""

    at: str
    id: str


def runtime_of(vars: dict[str, Any]) -> dict[str, Any]:
    """The engine's namespace in vars; `{}` where there is none."""
    runtime = vars.get("_runtime")
    return runtime if isinstance(runtime, dict) else {}


def with_runtime(vars: dict[str, Any], **entries: Any) -> dict[str, Any]:
    """Vars with these entries of `_runtime` replaced; the input stays as it is."""
    new = vars.copy()
    set_runtime(new, **entries)
    return new


def restore_seq(vars: dict[str, Any], seq: int) -> dict[str, Any]:
    """Vars with the issuance counter as it was before the node ran, whatever the node did to it."""
    return vars if seq_of(vars) == seq else with_runtime(vars, effect_seq=seq)


def set_runtime(vars: dict[str, Any], **entries: Any) -> None:
    """The same in a copy of vars that the caller has made: of each level that changes, a new dict."""
    vars["_runtime"] = runtime_of(vars) | entries


def set_previous(vars: dict[str, Any], node_id: str, next_node: str | None) -> None:
    """Note where the run came from, as documented, in a copy of vars that the caller has made."""
    temp = vars.get("_temp")
    noted = {"prev_node_id": node_id, "prev_next_node": next_node}
    vars["_temp"] = temp | noted if isinstance(temp, dict) else noted


def go_on(run: RunState, new: RunState, node_id: str, next_node: str) -> None:
    """Move the given new state, whose vars are its own copy, behind the step of this node."""
    set_previous(new.vars, node_id, next_node)
    new.current_node = next_node
    if new.waiting is not None and run.paused:  # the pause stays; resume_run goes on behind the step
        new.waiting = replace(new.waiting, resume_to_node=next_node)


def control_of(run: RunState) -> dict[str, Any]:
    """The pause flag and what belongs to it."""
    control = runtime_of(run.vars).get("control")
    return control if isinstance(control, dict) else {}


def is_pause_wait(run: RunState) -> bool:
    """Whether the wait is the stand-in that pausing a running run makes."""
    wait = run.waiting
    return bool(wait and wait.wait_key == f"pause:{run.run_id}" and (wait.details or {}).get("kind") == "pause")


def unpaused_vars(run: RunState, **notes: Any) -> dict[str, Any]:
    """Vars without the pause flag."""
    control = {k: v for k, v in control_of(run).items() if k not in ("paused", "pause_reason", "paused_by")}
    return with_runtime(run.vars, control={**control, **notes})


def next_state(run: RunState, stamp: Stamp, vars: dict[str, Any] | None = None) -> RunState:
    """A copy of the run at the next revision, for the caller to finish."""
    new = replace(run, revision=run.revision + 1, commit_id=stamp.id, updated_at=stamp.at)
    if vars is not None:
        new.vars = vars
    return new


def commit(
    before: RunState,
    run: RunState,
    *records: StepRecord,
    requests: tuple[Request, ...] = (),
    answers: tuple[Request, ...] = (),
    messages: tuple[Message, ...] = (),
    lookup_key: str | None = None,
    warns: bool = True,
) -> Commit:
    """A commit whose state counts its records and tokens, and keeps an owner only while it runs.

    If it `warns`, a record is added for each limit that it brings the run near to, or to.
    """
    if warns and (run.warned or not is_far_from_limits(run.vars.get("_limits"))):
        records = _with_warnings(run, records)
    run.records = before.records + len(records)
    if records and records[0].folded:
        run.records += 1
    if run.intent is None:
        if run.status is not _RUNNING:
            run.owner = None
        if before.intent is not None and before.intent.parts:
            run.tokens = added(run.tokens, *(part.ended.tokens for part in before.intent.parts if part.ended))
    elif not run.intent.children:
        if run.intent is before.intent:
            run.intent = replace(run.intent, known=run.records)
        else:  # it was made for this commit, and nobody else has it; every promise comes this way
            force_setattr(run.intent, "known", run.records)
    return Commit(
        run=run,
        before=before,
        records=records,
        requests=requests,
        answers=answers,
        messages=messages,
        lookup_key=lookup_key,
    )


def _with_warnings(run: RunState, records: tuple[StepRecord, ...]) -> tuple[StepRecord, ...]:
    """The records, with one for each limit that the given new state is nearer to than its ledger says so far.

    What is written there is remembered in the state, so that each crossing is told once, by the commit that makes it.
    """
    found = {warning.limit_type: warning for warning in limit_warnings(run.vars.get("_limits"))}
    known, run.warned = run.warned, {name: warning.status for name, warning in found.items()}
    stamp = Stamp((records[0].ended_at if records else None) or run.updated_at, run.commit_id or "")
    told = []
    for name, warning in found.items():
        if warning.status != known.get(name) and known.get(name) != "exceeded":
            effect = {"type": "limit_warning", "payload": asdict(warning), "result_key": None}
            told.append(run_record(run, f"limit_warning:{name}", stamp, effect=effect, result={"warned": True}))
    last = len(records) - 1 if run.status in TERMINAL else len(records)  # the end of a run stays the last record
    return (*records[:last], *told, *records[last:]) if told else records


def note_window(vars: dict[str, Any], result: Any) -> None:
    """Note how much of its window an LLM call used, as documented, in a copy of vars that the caller has made."""
    used = window_used(result)
    if used is not None:
        put_path(vars, "_limits.estimated_tokens_used", used)


def step_record(
    run: RunState,
    intent: Intent,
    status: StepStatus,
    stamp: Stamp,
    *,
    result: Any = None,
    error: str | None = None,
    reused_from: str | None = None,
    folded: bool = False,
) -> StepRecord:
    """A record of one attempt at an effect; the STARTED and the final one share the step id.

    `folded` makes it stand for both; it is the first of its commit.
    """
    return StepRecord(  # by position, in the order of its fields: every step makes one, and names cost thrice as much
        run.run_id,
        intent.step_id,
        intent.node_id,
        status,
        intent.effect.as_record(),
        result,
        error,
        intent.started_at,
        None if status is _STARTED else stamp.at,
        run.actor_id,
        run.session_id,
        intent.attempt,
        intent.key,
        None,
        None,
        None,
        stamp.id,
        reused_from,
        (),
        folded,
    )


def run_record(run: RunState, label: str, stamp: Stamp, **fields: Any) -> StepRecord:
    """A record that belongs to the run and to no effect: its end, a resume, a node that raised."""
    fields.setdefault("status", StepStatus.COMPLETED)
    fields.setdefault("node_id", run.current_node)
    fields.setdefault("actor_id", run.actor_id)
    return StepRecord(
        run_id=run.run_id,
        step_id=f"{stamp.id}:{label}",
        started_at=stamp.at,
        ended_at=stamp.at,
        session_id=run.session_id,
        commit_id=stamp.id,
        **fields,
    )


def status_record(run: RunState, stamp: Stamp, **details: Any) -> StepRecord:
    """The documented `abstract.status` record that every end of a run writes."""
    payload = {"text": str(run.status)}
    return run_record(
        run,
        "status",
        stamp,
        effect={
            "type": "emit_event",
            "payload": {"name": "abstract.status", "scope": "session", "payload": payload},
            "result_key": None,
        },
        result={"emitted": True, "name": "abstract.status", "payload": payload, **details},
        idempotency_key=f"system:terminal_status:{run.status}",
    )


def finished(run: RunState, node_id: str, output: Any, stamp: Stamp, **via: Any) -> tuple[StepRecord, StepRecord]:
    """Complete the given new state in place; returns its completion and status records."""
    run.status, run.output, run.error, run.waiting, run.intent = RunStatus.COMPLETED, output, None, None, None
    completed = run_record(
        run,
        "completed",
        stamp,
        node_id=node_id,
        result={"completed": True, **via, "output": output},
        idempotency_key=f"system:completion:{node_id}",
    )
    return completed, status_record(run, stamp)
