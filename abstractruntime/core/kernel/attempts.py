"""Attempts at the effect of an intent, or at its several effects: begun, closed, and made anew.

An intent of one effect is a whole of one; every function here takes either.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from msgspec.structs import replace

from ..models import Effect, Ended, Intent, RunState, RunStatus, StepRecord, StepStatus, WaitReason
from .state import Stamp, step_record

OUTCOME_UNKNOWN = "Outcome unknown: the process that performed this attempt ended before it was recorded"

Records = tuple[StepRecord, ...]


def in_flight(intent: Intent) -> tuple[Intent, ...]:
    """What has begun and not ended: the intent itself, or those of its parts."""
    return tuple(part for part in intent.parts if part.begun and part.ended is None) if intent.parts else (intent,)


def span(intent: Intent) -> int:
    """How many effects it holds, and so by how much the counter of effects goes on behind it."""
    return len(intent.parts) or 1


def waits_for_children(run: RunState) -> bool:
    """Whether the run waits for runs that its effect has started, which it can look at by itself."""
    waits = run.waiting is not None and run.waiting.reason is WaitReason.SUBWORKFLOW
    return waits and run.intent is not None and bool(run.intent.children)


def has_children(run: RunState) -> bool:
    """Whether the effect in flight is to start other runs, and their ends are part of its step."""
    return run.status is RunStatus.RUNNING and run.intent is not None and bool(run.intent.children)


def is_open(run: RunState) -> bool:
    """Whether the ledger has the beginning of the run's effect and not its end."""
    intent = run.intent
    if intent is None or not intent.children:
        return intent is not None and intent.token is not None
    return not waits_for_children(run)


def begin(
    run: RunState, intent: Intent, stamp: Stamp, *, later: Callable[[Effect], bool] | None = None
) -> tuple[Intent, Records]:
    """The intent with its attempts begun, of several as many as may run at a time; their STARTED records.

    Of several, those of which `later` is true begin when they have found a place, which nobody knows yet.
    """
    if not intent.parts:
        intent = replace(intent, started_at=stamp.at, due=None)
        return intent, (step_record(run, intent, StepStatus.STARTED, stamp),)
    parts: list[Intent] = []
    started: list[StepRecord] = []
    free = intent.width - len(in_flight(intent))
    for part in intent.parts:
        waits = part.due is not None and part.due > stamp.at
        if part.ended is None and not part.begun and not waits and free > 0:
            free -= 1
            if later is None or not later(part.effect):
                part = begun(part, stamp)
                started.append(step_record(run, part, StepStatus.STARTED, stamp))
        parts.append(part)
    return replace(intent, parts=tuple(parts), due=None), tuple(started)


def begun(part: Intent, stamp: Stamp) -> Intent:
    """One of several, with its attempt begun."""
    return replace(part, begun=True, started_at=stamp.at, due=None)


def close(run: RunState, intent: Intent, status: StepStatus, stamp: Stamp, **fields: Any) -> Records:
    """The records that end every attempt in flight."""
    return tuple(step_record(run, attempt, status, stamp, **fields) for attempt in in_flight(intent))


def lose(
    run: RunState, intent: Intent, stamp: Stamp, *, give_up: Collection[str] = (), kept: Collection[str] = ()
) -> tuple[Intent, Records]:
    """Attempts in flight end as FAILED, outcome unknown, and the next is made.

    Of several effects, those with a step id in `give_up` get no other attempt, and of those in `kept` the outcome is
    known after all: their attempt goes on.
    """
    lost = [attempt for attempt in in_flight(intent) if not (intent.parts and attempt.step_id in kept)]
    records = tuple(
        step_record(run, attempt, StepStatus.FAILED, stamp, result={"outcome": "unknown"}, error=OUTCOME_UNKNOWN)
        for attempt in lost
    )
    if not intent.parts:
        return _next(run, intent), records
    given_up = Ended(error=OUTCOME_UNKNOWN)
    after = {
        part.step_id: replace(part, ended=given_up) if part.step_id in give_up else _next(run, part) for part in lost
    }
    return replace(intent, parts=tuple(after.get(part.step_id, part) for part in intent.parts)), records


def next_attempt(run: RunState, intent: Intent) -> Intent:
    """The same effects, those in flight one attempt on, under step ids of their own."""
    if not intent.parts:
        return _next(run, intent)
    after = {part.step_id: _next(run, part) for part in in_flight(intent)}
    return replace(intent, parts=tuple(after.get(part.step_id, part) for part in intent.parts))


def failed_attempt(run: RunState, intent: Intent, due: str) -> Intent:
    """One effect whose attempt failed: another is due then."""
    return replace(_next(run, intent), due=due, failures=intent.failures + 1)


def _next(run: RunState, intent: Intent) -> Intent:
    attempt = intent.attempt + 1
    return replace(intent, attempt=attempt, step_id=f"{run.run_id}:{intent.seq}.{attempt}", begun=False)
