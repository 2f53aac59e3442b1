"""The life of a step: a node's plan, the promise of its effect, and how the effect lands.

`move` and `complete` are steps without an effect. `inside` is an effect that touches nothing outside: one commit.
`promise`, `claim` and `settle` are an effect that does: the intent is durable before anybody performs it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from msgspec.structs import replace

from ..changes import changed
from ..models import (
    Commit,
    Effect,
    EffectType,
    Intent,
    RunState,
    RunStatus,
    StepPlan,
    StepRecord,
    StepStatus,
    wait_record,
)
from ..outcomes import EffectOutcome
from ..tokens import added, tokens_of
from ..vars import put_path
from .attempts import OUTCOME_UNKNOWN, Records, begin, close, failed_attempt, lose, next_attempt
from .decisions import ask
from .state import (
    Stamp,
    commit,
    finished,
    go_on,
    next_state,
    note_window,
    run_record,
    seq_of,
    set_previous,
    set_runtime,
    status_record,
    step_record,
)
from .waits import bind_wait

#: what every step asks for: a member of an enum is looked up far slower than a name of ours
_COMPLETED, _LLM_CALL = StepStatus.COMPLETED, EffectType.LLM_CALL


def move(run: RunState, plan: StepPlan, stamp: Stamp) -> Commit:
    """A plan without an effect: on to the next node. Writes no record."""
    assert plan.next_node is not None
    new = next_state(run, stamp, run.vars.copy())
    set_previous(new.vars, plan.node_id, plan.next_node)
    new.current_node, new.node_errors = plan.next_node, 0
    return commit(run, new)


def complete(run: RunState, plan: StepPlan, stamp: Stamp) -> Commit:
    """A plan with `complete_output`: the run ends."""
    new = next_state(run, stamp)
    new.node_errors = 0
    return commit(run, new, *finished(new, plan.node_id, plan.complete_output, stamp))


def intent_of(run: RunState, plan: StepPlan, effect: Effect, key: str, stamp: Stamp, *, further: int = 0) -> Intent:
    """The promise of a plan's effect, in its first attempt; of several, the one so much further on."""
    seq = seq_of(run.vars) + further
    return Intent(
        step_id=f"{run.run_id}:{seq}.1",
        seq=seq,
        node_id=plan.node_id,
        effect=effect,
        key=key,
        started_at=stamp.at,
        next_node=plan.next_node,
    )


def inside(
    run: RunState, intent: Intent, outcome: EffectOutcome, stamp: Stamp, *, lookup_key: str | None = None
) -> Commit:
    """An effect that touches nothing outside the store: promise and landing in one commit, and in one record."""
    return _land(run, intent, outcome, stamp, lookup_key=lookup_key, folded=True)


def reused(run: RunState, intent: Intent, found: StepRecord, stamp: Stamp) -> Commit:
    """An effect whose key was settled before: its recorded result lands and no handler is called."""
    outcome = EffectOutcome.completed(found.result)
    return _land(run, intent, outcome, stamp, reused_from=found.step_id)


def promise(
    run: RunState,
    intent: Intent,
    owner: str,
    stamp: Stamp,
    *,
    records: Records = (),
    later: Callable[[Effect], bool] | None = None,
) -> Commit:
    """Make the intent durable, claimed by `owner`; the commit's id is the token of the claim.

    `records` are those of parts that ended before anything began, by an earlier use of their keys. For `later` see
    `attempts.begin`.
    """
    new = next_state(run, stamp)
    intent, started = begin(run, intent, stamp, later=later)
    new.intent, new.owner, new.node_errors = replace(intent, token=stamp.id), owner, 0
    return commit(run, new, *records, *started)


def claim(
    run: RunState,
    owner: str,
    stamp: Stamp,
    *,
    give_up: Collection[str] = (),
    kept: Collection[str] = (),
    later: Callable[[Effect], bool] | None = None,
) -> Commit:
    """Take over an intent that nobody performs. An attempt whose performer died ends as FAILED, outcome unknown.

    For `give_up` and `kept`, of several effects, see `attempts.lose`, for `later` `attempts.begin`.
    """
    intent = run.intent
    assert intent is not None
    lost: Records = ()
    if intent.token is not None:
        intent, lost = lose(run, intent, stamp, give_up=give_up, kept=kept)
    intent, started = begin(run, intent, stamp, later=later)
    new = next_state(run, stamp)
    new.intent, new.owner = replace(intent, token=stamp.id), owner
    return commit(run, new, *lost, *started)


def hand_back(run: RunState, stamp: Stamp) -> Commit:
    """Give up the claim so that anyone may perform the effect at once, with the same key."""
    intent = run.intent
    assert intent is not None
    result = {"cancelled": True, "outcome": "unknown", "handed_back": True}
    ended = close(run, intent, StepStatus.CANCELLED, stamp, result=result)
    new = next_state(run, stamp)
    new.intent = replace(next_attempt(run, intent), token=None)
    return commit(run, new, *ended)


def retry(run: RunState, outcome: EffectOutcome, due: str, stamp: Stamp) -> Commit:
    """The attempt failed and another is due later; anyone may perform it then."""
    intent = run.intent
    assert intent is not None
    failed = step_record(run, intent, StepStatus.FAILED, stamp, result={"retry_at": due}, error=outcome.error)
    new = next_state(run, stamp)
    if intent.effect.type is EffectType.LLM_CALL:
        new.tokens = added(run.tokens, tokens_of(outcome.result))
    new.intent = replace(failed_attempt(run, intent, due), token=None)
    return commit(run, new, failed)


def settle(run: RunState, outcome: EffectOutcome, stamp: Stamp, *, lookup_key: str | None = None) -> Commit:
    """The effect in flight ended: its result lands and the run goes on. Or it asks, and the run waits with it."""
    assert run.intent is not None
    if outcome.question is not None:
        return ask(run, outcome, stamp)
    return _land(run, run.intent, outcome, stamp, lookup_key=lookup_key)


def late(run: RunState, intent: Intent, outcome: EffectOutcome, stamp: Stamp) -> Commit:
    """An outcome that arrived after its intent was withdrawn: journaled, and nothing else changes."""
    new = next_state(run, stamp)
    new.updated_at = run.updated_at
    if intent.effect.type is EffectType.LLM_CALL:
        new.tokens = added(run.tokens, tokens_of(outcome.result))
    record = step_record(
        run,
        intent,
        StepStatus.CANCELLED,
        stamp,
        result={"late": True, "status": outcome.status, "result": outcome.result},
        error=outcome.error,
    )
    return commit(run, new, record)


def lost(run: RunState, stamp: Stamp) -> Commit:
    """The performer died and the policy says that nobody may repeat it: the effect fails."""
    assert run.intent is not None
    return _land(run, run.intent, EffectOutcome.failed(OUTCOME_UNKNOWN, retryable=False), stamp)


def node_failed(run: RunState, node_id: str, error: str, stamp: Stamp) -> Commit:
    """A node raised: the run stays where it is, and the ledger says so."""
    new = next_state(run, stamp)
    new.updated_at, new.node_errors = run.updated_at, run.node_errors + 1
    return commit(
        run, new, run_record(run, "node_failed", stamp, node_id=node_id, status=StepStatus.FAILED, error=error)
    )


def fail_node(run: RunState, node_id: str, error: str, stamp: Stamp, *, quarantine: str | None = None) -> Commit:
    """A node raised and the run fails for it; with `quarantine` it is also set apart, for that reason."""
    new = next_state(run, stamp)
    new.node_errors, new.status, new.error, new.quarantined = run.node_errors + 1, RunStatus.FAILED, error, quarantine
    failed = run_record(run, "node_failed", stamp, node_id=node_id, status=StepStatus.FAILED, error=error)
    return commit(run, new, failed, status_record(new, stamp))


def _land(
    run: RunState,
    intent: Intent,
    outcome: EffectOutcome,
    stamp: Stamp,
    *,
    lookup_key: str | None = None,
    reused_from: str | None = None,
    folded: bool = False,
) -> Commit:
    new = next_state(run, stamp, run.vars.copy())
    new.intent, new.node_errors = None, 0
    if intent.effect.type is _LLM_CALL and reused_from is None:
        new.tokens = added(run.tokens, tokens_of(outcome.result))
    records: tuple[StepRecord, ...]
    if outcome.status == "completed":
        ended = step_record(
            run, intent, _COMPLETED, stamp, result=outcome.result, reused_from=reused_from, folded=folded
        )
        records = (ended, *_go_on(run, new, intent, outcome, stamp))
    elif outcome.status == "waiting":
        records = (_wait(run, new, intent, outcome, stamp, folded),)
    else:
        records = _fail(run, new, intent, outcome, stamp, folded)
    set_runtime(new.vars, effect_seq=intent.seq + 1)  # last, whatever a result wrote there
    return commit(run, new, *records, requests=outcome.requests, messages=outcome.messages, lookup_key=lookup_key)


def _go_on(
    run: RunState, new: RunState, intent: Intent, outcome: EffectOutcome, stamp: Stamp
) -> tuple[StepRecord, ...]:
    effect = intent.effect
    if outcome.changes:
        new.vars = changed(new.vars, outcome.changes).copy()
    if effect.result_key and outcome.result is not None:
        put_path(new.vars, effect.result_key, outcome.result)
    if effect.type is _LLM_CALL:
        note_window(new.vars, outcome.result)
    if not intent.next_node:
        return finished(new, intent.node_id, {"success": True, "result": outcome.result}, stamp)
    go_on(run, new, intent.node_id, intent.next_node)
    return ()


def _wait(
    run: RunState, new: RunState, intent: Intent, outcome: EffectOutcome, stamp: Stamp, folded: bool
) -> StepRecord:
    assert outcome.wait is not None
    new.status = RunStatus.WAITING
    new.waiting = bind_wait(outcome.wait, run, intent)
    set_previous(new.vars, intent.node_id, intent.next_node)
    return step_record(run, intent, StepStatus.WAITING, stamp, result={"wait": wait_record(new.waiting)}, folded=folded)


def _fail(
    run: RunState, new: RunState, intent: Intent, outcome: EffectOutcome, stamp: Stamp, folded: bool
) -> tuple[StepRecord, ...]:
    error = outcome.error or "Effect failed without saying why"
    failed = step_record(run, intent, StepStatus.FAILED, stamp, result=outcome.result, error=error, folded=folded)
    new.status, new.waiting = RunStatus.FAILED, None
    new.error = error if not intent.failures else f"Effect failed after {intent.failures + 1} attempts: {error}"
    return failed, status_record(new, stamp)
