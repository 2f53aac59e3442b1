"""Back to an earlier state of a run, and a new run from one.

A restore takes where the run stood from the snapshot, and what counts on (revision, numbers of effects, ledger) from
the present, so that nothing which was issued or asked since can be confused with what comes now.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from ..codec import canonical
from ..errors import EffectInFlight, InvalidSnapshot, RunCompleted
from ..models import (
    TERMINAL,
    Commit,
    Request,
    RunState,
    RunStatus,
    StepRecord,
    StepStatus,
    WaitReason,
    WaitState,
)
from .attempts import Records, close, is_open, lose, span
from .state import (
    Stamp,
    commit,
    is_pause_wait,
    next_state,
    restore_seq,
    run_record,
    runtime_of,
    seq_of,
    status_record,
)

#: what of a snapshot says where the run stood
_PLACE = ("status", "current_node", "vars", "waiting", "output", "error", "quarantined")


def restore(
    run: RunState,
    saved: RunState,
    origin: dict[str, Any],
    stamp: Stamp,
    *,
    actor_id: str | None = None,
    next_seq: int = 0,
    free: str | None = None,
    requests: tuple[Request, ...] = (),
) -> Commit | None:
    """Put the run back where it stood in `saved`. None when it stands there already.

    A step that `saved` stood inside of is issued again. `origin` goes into the record; `next_seq` is above every effect
    in the ledger (see `next_seq`); `free` is the token of a claim whose holder is known to be dead. Raises
    `EffectInFlight` and `InvalidSnapshot`.
    """
    if (saved.run_id, saved.workflow_id) != (run.run_id, run.workflow_id):
        raise InvalidSnapshot(
            f"The snapshot is of run {saved.run_id!r} of workflow {saved.workflow_id!r}, not of run {run.run_id!r} of "
            f"workflow {run.workflow_id!r}. Only a run's own snapshot can be restored; to go on from another, fork it."
        )
    saved = _at_rest(saved)
    if run.intent is None and _place(run) == _place(saved):
        return None
    seq, closed = _without_intent(run, free, stamp)
    new = next_state(run, stamp, restore_seq(saved.vars, max(seq, next_seq)))
    new.status, new.current_node, new.output, new.error = saved.status, saved.current_node, saved.output, saved.error
    new.quarantined, new.fingerprint, new.workflow_version = (
        saved.quarantined,
        saved.fingerprint,
        saved.workflow_version,
    )
    new.waiting, new.intent, new.node_errors = _renamed(saved, new.revision), None, 0
    restored = run_record(
        run,
        "restored",
        stamp,
        effect={"type": "restore", "payload": origin, "result_key": None},
        result={"restored": True, "status": str(new.status), "node": new.current_node},
        actor_id=actor_id or run.actor_id,
    )
    ended = (status_record(new, stamp),) if new.status in TERMINAL else ()
    return commit(run, new, *closed, restored, *ended, requests=requests)


def fork(run: RunState, saved: RunState, origin: dict[str, Any], stamp: Stamp, *, actor_id: str | None) -> Commit:
    """Create `run`, which stands where `saved` stood and asks the node there.

    Its id, vars, workflow and identity are set; who it works for is taken from `saved`, nothing else is. Raises
    `RunCompleted`.
    """
    if saved.status is RunStatus.COMPLETED:
        raise RunCompleted(
            f"Run {saved.run_id!r} has completed there, so no step is left to go on with. Fork it at a snapshot that "
            "was taken before its end."
        )
    new = replace(run, revision=1, commit_id=stamp.id, created_at=stamp.at, updated_at=stamp.at, records=1)
    new.status, new.current_node = RunStatus.RUNNING, saved.current_node
    new.actor_id, new.session_id = saved.actor_id, saved.session_id
    forked = run_record(
        new,
        "forked",
        stamp,
        effect={"type": "fork", "payload": origin, "result_key": None},
        result={"forked": True},
        actor_id=actor_id or saved.actor_id,
    )
    return Commit(run=new, records=(forked,))


def forked_vars(saved: RunState, over: dict[str, Any]) -> dict[str, Any]:
    """The vars of a fork: those of its original with `over` laid over them, not paused, and no effect counted."""
    vars = {**saved.vars, **over}
    kept = {name: value for name, value in runtime_of(vars).items() if name not in ("effect_seq", "control")}
    return {**vars, "_runtime": kept} if runtime_of(vars) else vars


def next_seq(run_id: str, records: Iterable[StepRecord]) -> int:
    """A number above that of every effect in a ledger. A cancelled run's own counter may not know of its last ones."""
    numbers = (_number(record.step_id, f"{run_id}:") for record in records)
    return max(numbers, default=-1) + 1


def _number(step_id: str, prefix: str) -> int:
    number = step_id.removeprefix(prefix).partition(".")[0]
    return int(number) if step_id.startswith(prefix) and number.isascii() and number.isdigit() else -1


def _at_rest(saved: RunState) -> RunState:
    """The saved state without the effect it stood inside of; a question about that effect's outcome goes with it."""
    if saved.intent is None:
        return saved
    if saved.status is not RunStatus.WAITING or is_pause_wait(saved):
        return replace(saved, intent=None)
    return replace(saved, intent=None, status=RunStatus.RUNNING, waiting=None)


def _without_intent(run: RunState, free: str | None, stamp: Stamp) -> tuple[int, Records]:
    """The next number of an effect when the present intent is dropped, and the records that end its attempts."""
    intent = run.intent
    if intent is None:
        return seq_of(run.vars), ()
    seq = max(seq_of(run.vars), intent.seq + span(intent))
    if intent.children:
        return seq, close(run, intent, StepStatus.CANCELLED, stamp, result={"cancelled": True}) if is_open(run) else ()
    if intent.token is None:  # the next attempt has not begun
        return seq, ()
    if intent.token != free:
        raise EffectInFlight(
            f"Run {run.run_id!r} performs an effect at node {intent.node_id!r} (step {intent.step_id!r}). Wait until "
            "it has landed, or cancel the run, and restore it then."
        )
    return seq, lose(run, intent, stamp)[1]


def _place(run: RunState) -> bytes:
    """Where a run stands, apart from numbers and names that are given anew."""
    place = {name: getattr(run, name) for name in _PLACE}
    place["vars"] = {**run.vars, "_runtime": {**runtime_of(run.vars), "effect_seq": 0}}
    place["waiting"] = None if run.waiting is None else _named(run.waiting, run, None)
    return canonical(place)


def _renamed(saved: RunState, revision: int) -> WaitState | None:
    """The saved wait under an identity of its own, so that an answer to what was asked before does not answer it.

    A key that its author chose stays. The wait of a pause keeps its name, which says what it is.
    """
    if saved.waiting is None or is_pause_wait(saved):
        return saved.waiting
    return _named(saved.waiting, saved, f"{saved.waiting.reason}:{saved.run_id}:{saved.current_node}:r{revision}")


def _named(wait: WaitState, run: RunState, name: str | None) -> WaitState:
    if wait.wait_key is not None and wait.wait_key.startswith(f"{wait.reason}:{run.run_id}:"):
        return replace(wait, wait_key=name)
    if wait.wait_key is None and wait.reason is not WaitReason.UNTIL:
        return replace(wait, wait_key=name)
    details = {key: value for key, value in (wait.details or {}).items() if key != "wait_id"}
    if name is not None:
        details["wait_id"] = name
    return replace(wait, details=details or None)
