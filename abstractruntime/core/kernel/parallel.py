"""Several effects of one step: each lands by itself, and all of them end the step together.

A landing adds records and leaves the stored state as it is; what has landed since is read from them (`known_by`). So
the state is written twice per step, however many effects it has.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from ..changes import changed
from ..models import (
    Commit,
    Effect,
    EffectType,
    Ended,
    Intent,
    Request,
    RunState,
    RunStatus,
    StepPlan,
    StepRecord,
    StepStatus,
)
from ..outcomes import EffectOutcome
from ..tokens import tokens_of
from ..vars import put_path
from .attempts import begun, close, failed_attempt, next_attempt, span
from .landed import landing_of, with_landed
from .state import (
    Stamp,
    commit,
    finished,
    go_on,
    next_state,
    note_window,
    seq_of,
    set_runtime,
    status_record,
    step_record,
    with_runtime,
)
from .steps import intent_of

PARALLEL = "parallel"


def intents_of(run: RunState, plan: StepPlan, keys: Iterable[str], stamp: Stamp) -> Intent:
    """The promise of a plan's effects, each in its first attempt."""
    parts = (
        intent_of(run, plan, effect, key, stamp, further=place)
        for place, (effect, key) in enumerate(zip(plan.effects, keys, strict=True))
    )
    return replace(
        intent_of(run, plan, Effect(PARALLEL), "", stamp),
        parts=tuple(parts),
        width=plan.max_parallel,
        collect=plan.on_failure == "collect",
    )


def at_seq(run: RunState, further: int) -> RunState:
    """The run as a policy sees it when it is asked for the key of an effect so much further on."""
    return replace(run, vars=with_runtime(run.vars, effect_seq=seq_of(run.vars) + further)) if further else run


def reuse(run: RunState, intent: Intent, seq: int, found: StepRecord, stamp: Stamp) -> tuple[Intent, StepRecord]:
    """The intent with one part ended by the result of an earlier use of its key, and the record that says so."""
    part = intent.parts[seq - intent.seq]
    record = step_record(run, part, StepStatus.COMPLETED, stamp, result=found.result, reused_from=found.step_id)
    return known_by(run, intent, (record,)), record


def begun_record(run: RunState, part: Intent, stamp: Stamp) -> StepRecord:
    """The record that a part's attempt begins."""
    return step_record(run, begun(part, stamp), StepStatus.STARTED, stamp)


def ended_record(
    run: RunState, part: Intent, outcome: EffectOutcome, stamp: Stamp, *, retry_at: str | None = None
) -> StepRecord:
    """The record that a part's attempt ended; with `retry_at` another is due then."""
    if outcome.status == "completed":
        record = step_record(run, part, StepStatus.COMPLETED, stamp, result=outcome.result)
        record.changes = outcome.changes
        return record
    error = outcome.error or "Effect failed without saying why"
    result = outcome.result if retry_at is None else {"retry_at": retry_at}
    return step_record(run, part, StepStatus.FAILED, stamp, result=result, error=error)


def landing(
    run: RunState,
    records: tuple[StepRecord, ...],
    requests: tuple[Request, ...],
    stamp: Stamp,
    *,
    lookup_key: str | None = None,
) -> Commit:
    """Add the records of parts that began or ended. The run is where it was, and knows of them."""
    assert run.intent is not None
    known = known_by(run, run.intent, records)
    new = replace(run, intent=known, records=run.records + len(records))
    return Commit(run=new, before=run, records=records, requests=requests, landing=stamp.id, lookup_key=lookup_key)


def known_by(run: RunState, intent: Intent, records: Iterable[StepRecord]) -> Intent:
    """The intent with what these records say has landed. Records that it knows already change nothing."""
    if not intent.parts:
        return with_landed(intent, records)
    parts = list(intent.parts)
    places = {part.seq: place for place, part in enumerate(parts)}
    for record in records:
        landing = landing_of(record)
        if landing is not None:
            place = places.get(landing[0])
            if place is not None:
                parts[place] = with_landed(parts[place], (record,))
            continue
        place = places.get(_seq_of_step(record.step_id))
        if place is not None and record.attempt == parts[place].attempt and parts[place].ended is None:
            parts[place] = _after(run, parts[place], record)
    return replace(intent, parts=tuple(parts))


def park(run: RunState, due: str, stamp: Stamp) -> Commit:
    """Nothing is in flight and some parts are to be tried again later; anyone may then."""
    assert run.intent is not None
    new = next_state(run, stamp)
    new.intent = replace(run.intent, token=None, due=due)
    return commit(run, new)


def settle_all(run: RunState, stamp: Stamp, *, failure: str | None = None) -> Commit:
    """The step ends: every part has ended, or one failed and the others are not waited for.

    With `failure` it fails for that reason although all have ended.
    """
    intent = run.intent
    assert intent is not None
    new = next_state(run, stamp, run.vars.copy())
    new.intent, new.node_errors = None, 0
    failed = failure or failure_of(intent)
    if failed is not None:
        new.status, new.waiting, new.error = RunStatus.FAILED, None, failed
        cancelled = {"cancelled": True, "outcome": "unknown"}
        records = (*close(run, intent, StepStatus.CANCELLED, stamp, result=cancelled), status_record(new, stamp))
    else:
        records = _go_on(run, new, intent, stamp)
    set_runtime(new.vars, effect_seq=intent.seq + span(intent))
    return commit(run, new, *records)


def failure_of(intent: Intent) -> str | None:
    """Why the step fails, if it does."""
    if intent.collect:
        return None
    for place, part in enumerate(intent.parts):
        if part.ended is not None and part.ended.error is not None:
            which = f"Effect {place + 1} of {len(intent.parts)} ({part.effect.type})"
            tries = f" after {part.failures + 1} attempts" if part.failures else ""
            return f"{which} failed{tries}: {part.ended.error}"
    return None


def _go_on(run: RunState, new: RunState, intent: Intent, stamp: Stamp) -> tuple[StepRecord, ...]:
    results: list[Any] = []
    for part in intent.parts:
        assert part.ended is not None
        if part.ended.changes:
            new.vars = changed(new.vars, part.ended.changes).copy()
        failed = part.ended.error is not None
        result = {"ok": False, "error": part.ended.error} if failed else part.ended.result
        if part.effect.result_key and result is not None:
            put_path(new.vars, part.effect.result_key, result)
        if part.effect.type is EffectType.LLM_CALL:
            note_window(new.vars, part.ended.result)
        results.append(result)
    if not intent.next_node:
        return finished(new, intent.node_id, {"success": True, "results": results}, stamp)
    go_on(run, new, intent.node_id, intent.next_node)
    return ()


def _after(run: RunState, part: Intent, record: StepRecord) -> Intent:
    if record.status is StepStatus.STARTED:
        return replace(part, begun=True, started_at=record.started_at, due=None)
    tokens = tokens_of(record.result) if part.effect.type is EffectType.LLM_CALL and not record.reused_from else 0
    if record.status is StepStatus.COMPLETED:
        return replace(part, ended=Ended(result=record.result, changes=record.changes, tokens=tokens))
    if record.status is StepStatus.FAILED:
        result = record.result if isinstance(record.result, dict) else {}
        if "retry_at" in result:
            return failed_attempt(run, part, result["retry_at"])
        if result != {"outcome": "unknown"}:
            return replace(part, ended=Ended(error=record.error, tokens=tokens))
    return next_attempt(run, part)  # lost or handed back


def _seq_of_step(step_id: str) -> int:
    """The number in `<run id>:<number>.<attempt>`; -1 for the id of another kind of record."""
    number = step_id.rpartition(":")[2].partition(".")[0]
    return int(number) if number.isascii() and number.isdigit() else -1
