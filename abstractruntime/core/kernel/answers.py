"""An answer from outside, or the deadline that passed without one, by what was asked.

It is a question of the runtime's own, one that an effect asks, or what a node waits for.
"""

from __future__ import annotations

from typing import Any

from ..models import Commit, RunState
from .control import UNKNOWN_OUTCOME, decide_unknown
from .decisions import decide, is_asking, lapse
from .limits import decide_limit, is_limit_wait
from .state import Stamp
from .waits import check_answer, resume, timed_out, wait_of


def answered(
    run: RunState, wait_key: str | None, payload: Any, stamp: Stamp, *, actor_id: str | None, lookup_key: str | None
) -> Commit:
    """What the answer does to the run. Raises as `wait_of`, `check_answer` and `decide` do."""
    wait = wait_of(run, wait_key)
    check_answer(wait, payload)
    if is_asking(run):
        return decide(run, wait, payload, stamp, actor_id=actor_id, lookup_key=lookup_key)
    if run.intent is not None and (wait.details or {}).get("kind") == UNKNOWN_OUTCOME:
        return decide_unknown(run, payload, stamp, actor_id=actor_id, lookup_key=lookup_key)
    if is_limit_wait(run):
        return decide_limit(run, payload, stamp, actor_id=actor_id, lookup_key=lookup_key)
    return resume(run, wait_key, payload, stamp, actor_id=actor_id, lookup_key=lookup_key)


def expire(run: RunState, stamp: Stamp) -> Commit:
    """The timer or the deadline of the wait has passed."""
    assert run.waiting is not None
    return lapse(run, run.waiting, stamp) if is_asking(run) else timed_out(run, stamp)
