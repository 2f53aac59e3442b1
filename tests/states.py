"""Runs in every state that the kernel meets, and what holds for each of its verbs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from abstractruntime.core import kernel
from abstractruntime.core.codec import decode_run, encode_run
from abstractruntime.core.kernel import Stamp
from abstractruntime.core.models import (
    Commit,
    Effect,
    Intent,
    Request,
    RunState,
    RunStatus,
    StepPlan,
    WaitReason,
    WaitState,
)

BEFORE = "2026-01-31T08:00:00.000000+00:00"
NOW = "2026-01-31T09:00:00.000000+00:00"
AFTER = "2026-01-31T10:00:00.000000+00:00"
STAMP = Stamp(NOW, "owner.7")

CANCEL = Request(run_id="r", kind="cancel", by="boss", at=NOW, reason="enough")
PAUSE = Request(run_id="r", kind="pause", by="boss", at=NOW, reason="lunch")
OTHERS = Request(run_id="other", kind="cancel", by="r", at=NOW)


def running(**fields: Any) -> RunState:
    """A run in the middle of its life: three commits, five records, two effects landed."""
    run = RunState(
        run_id="r",
        workflow_id="w",
        status=RunStatus.RUNNING,
        current_node="here",
        vars={"kept": {"deep": [1, {"x": 2}]}, "_runtime": {"effect_seq": 2, "model": "m"}, "_temp": {"mine": 1}},
        created_at=BEFORE,
        updated_at=BEFORE,
        actor_id="ann",
        session_id="s",
        revision=3,
        commit_id="owner.6",
        records=5,
        owner="owner",
        node_errors=2,
        fingerprint="old",
        workflow_version="1",
    )
    return replace(run, **fields)


def flying(*, paused: bool = False, **fields: Any) -> RunState:
    """The run with an effect in flight, claimed under the token `t`."""
    intent = Intent(
        step_id="r:2.1",
        seq=2,
        node_id="here",
        effect=Effect("pay", {"amount": 5}, "paid.amount"),
        key="k",
        started_at=BEFORE,
        next_node="next",
        token="t",
    )
    run = running(intent=replace(intent, **fields))
    return kernel_commit(kernel.pause(run, "lunch", STAMP)).run if paused else run


def waiting(wait: WaitState, **fields: Any) -> RunState:
    return running(status=RunStatus.WAITING, waiting=wait, owner=None, **fields)


def ended(status: RunStatus = RunStatus.COMPLETED) -> RunState:
    return running(status=status, owner=None)


def question(**fields: Any) -> WaitState:
    wait = WaitState(WaitReason.USER, "user:r:here:1", None, "next", "answer", "Well?")
    return replace(wait, **fields)


def timer(**fields: Any) -> WaitState:
    wait = WaitState(WaitReason.UNTIL, None, NOW, "next", "rang", details={"wait_id": "until:r:here:1"})
    return replace(wait, **fields)


def kernel_commit(commit: Commit | None) -> Commit:
    assert commit is not None
    return commit


def unfolded(commit: Commit) -> Commit:
    """The commit with its records as readers get them."""
    return replace(commit, records=tuple(record for stored in commit.records for record in stored.unfolded()))


def do(verb: Callable[..., Commit | None], run: RunState, *args: Any, **options: Any) -> Commit:
    """Call a verb and check what holds for each: it is pure, one revision on, and its records carry its id."""
    was, vars = copy.deepcopy(run), run.vars
    commit = unfolded(kernel_commit(verb(run, *args, **options)))
    new = commit.run
    assert run == was, "the verb changed the run it was given"
    assert run.vars is vars
    assert commit.before is run
    assert new is not run
    assert (new.revision, new.commit_id) == (run.revision + 1, STAMP.id)
    assert new.records == run.records + len(commit.records)
    assert all((record.run_id, record.commit_id) == (run.run_id, STAMP.id) for record in commit.records)
    assert all(record.session_id == run.session_id for record in commit.records)
    assert decode_run(encode_run(new), "r") == new, "memory and a reload differ"
    return commit


def brief(commit: Commit) -> list[tuple[str, str, str | None]]:
    """Of each record the step id, the status and the idempotency key."""
    return [(record.step_id, str(record.status), record.idempotency_key) for record in commit.records]


def seq(run: RunState) -> int:
    found = run.vars["_runtime"]["effect_seq"]
    assert isinstance(found, int)
    return found


def plan(result_key: str | None = "paid.amount", next_node: str | None = "next") -> StepPlan:
    return StepPlan("here", Effect("pay", {"amount": 5}, result_key), next_node)


def intent(result_key: str | None = "paid.amount", next_node: str | None = "next", kind: str = "pay") -> Intent:
    effect = Effect(kind, {"amount": 5}, result_key)
    return kernel.intent_of(running(), plan(result_key, next_node), effect, "k", STAMP)


#: a question with binding choices
CHOICES = question(choices=["yes", "no"], allow_free_text=False)
