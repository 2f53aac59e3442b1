"""The values of the runtime: what a run is, what a step asks for, and what a commit writes.

Two kinds. The documented models (`RunState`, `WaitState`, `StepRecord`) are mutable, positional and take unsaved
attributes. Values of ours (`Intent`, `Request`, `Message`, `Commit`) are frozen and keyword-only. The garbage
collector is not asked to look at those (`gc=False`): they hold JSON and each other, in no cycle, and a fleet makes
many. Engine fields trail the documented ones with defaults, so that hosts can build a `RunState` as they always did.
"""

from __future__ import annotations

import uuid
from typing import Any, Literal

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from .clock import utc_now_iso
from .kinds import TERMINAL as TERMINAL  # an address that users import these from
from .kinds import EffectType as EffectType
from .kinds import RunStatus as RunStatus
from .kinds import StepStatus as StepStatus
from .kinds import WaitReason as WaitReason
from .questions import Decision, Question
from .step_plan import Effect as Effect
from .step_plan import StepPlan as StepPlan


class WaitState(Struct, dict=True, omit_defaults=True):
    """What a run waits for, and where it goes then. `until` is UTC text; with another reason it is a deadline."""

    reason: WaitReason
    wait_key: str | None = None
    until: str | None = None
    resume_to_node: str | None = None
    result_key: str | None = None
    prompt: str | None = None
    choices: list[Any] | None = None
    allow_free_text: bool = True
    details: dict[str, Any] | None = None


class Change(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One write to `run.vars` that lands together with the effect.

    `set` writes a dotted path, `append` adds to the list there. For lists of dicts that several may write to, `match`
    names a field and its value: `append_once` adds `value` unless an item matches, `merge` writes the entries of
    `value` (a dict) into the items that do, those of dicts in it into dicts there. `revise` is an edit of a list that
    others may change meanwhile: see `changes.revision`, which makes one.

    >>> Change(path="notes", op="append_once", match=("id", "n1"), value={"id": "n1", "text": "hello"}).op
    'append_once'
    """

    path: str
    value: Any
    op: Literal["set", "append", "append_once", "merge", "revise"] = "set"
    match: tuple[str, Any] | None = None

    def __post_init__(self) -> None:
        if (self.match is not None) != (self.op in ("append_once", "merge", "revise")):
            raise ValueError(f"a change with op={self.op!r} {'needs a' if self.match is None else 'takes no'} match")
        if self.op == "merge" and not isinstance(self.value, dict):
            raise ValueError(f"a change with op='merge' needs a dict as value, found {type(self.value).__name__}")


class Ended(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """How one of several effects of a step ended, until all have."""

    error: str | None = None
    result: Any = None
    changes: tuple[Change, ...] = ()
    #: what its model used
    tokens: int = 0


class Child(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A run that START_SUBWORKFLOW starts: whether it was created, and whether its parent knows that it has ended."""

    run_id: str
    workflow_id: str
    begun: bool = False
    ended: bool = False


class Intent(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An effect that was promised and has not ended: all that recovery needs, so that it recomputes nothing.

    `token` names the claim under which somebody performs it now; None means nobody does. `due` is the earliest
    instant of the next attempt. The intent of several effects has them as `parts`, numbered from its own `seq` on.
    """

    step_id: str
    seq: int
    node_id: str
    effect: Effect
    key: str
    started_at: str
    attempt: int = 1
    failures: int = 0
    next_node: str | None = None
    token: str | None = None
    due: str | None = None
    parts: tuple[Intent, ...] = ()
    #: of several: how many of them at a time, and whether failures are results
    width: int = 1
    collect: bool = False
    #: how many ledger records this state knows; what landed since stands in the later ones
    known: int = 0
    #: of a part: whether this attempt has begun, and how the part ended
    begun: bool = False
    ended: Ended | None = None
    #: of START_SUBWORKFLOW, until it ends: the runs it starts, in declared order; nobody claims it
    children: tuple[Child, ...] = ()
    #: while it waits for a decision: what is asked; nobody claims it. Then, until it ends: what was decided
    question: Question | None = None
    answer: Decision | None = None
    #: what its handler has landed of it, by part: see `EffectCall.land`
    landed: dict[str, Any] = {}


class RunState(Struct, dict=True, omit_defaults=True):
    """The checkpoint of a run.

    The first thirteen fields are the documented ones; `vars` is the author's own JSON dict. The rest belongs to the
    engine: hosts may read it and leave it alone.
    """

    run_id: str
    workflow_id: str
    status: RunStatus
    current_node: str
    vars: dict[str, Any] = {}
    waiting: WaitState | None = None
    output: Any = None
    error: str | None = None
    created_at: str = field(default_factory=utc_now_iso)
    updated_at: str = field(default_factory=utc_now_iso)
    actor_id: str | None = None
    session_id: str | None = None
    parent_run_id: str | None = None
    #: raised by one by every commit; a commit is refused unless it was computed from the stored one
    revision: int = 0
    #: the id of the commit that wrote this state
    commit_id: str | None = None
    #: how many ledger records the run has
    records: int = 0
    #: the effect in flight
    intent: Intent | None = None
    #: the runtime that last claimed an effect of this run; cleared when the run comes to rest
    owner: str | None = None
    #: how often nodes raised since the last step that landed
    node_errors: int = 0
    #: of the graph and the version that wrote this state
    fingerprint: str | None = None
    workflow_version: str | None = None
    #: digest of what start(run_id=...) was called with
    identity: str | None = None
    #: how often `retry_run` let the failed run go on
    retries: int = 0
    #: why the run was set apart: it failed again and again
    quarantined: str | None = None
    #: the `record_hash` of the last record, of a ledger that is hash-chained
    chain_head: str | None = None
    #: what it has read, per stream: under "" all up to this position, above it the last position of each name
    read: dict[str, dict[str, int]] = {}
    #: tokens in and out of all its LLM calls so far; those of a fan-out are counted when its step ends
    tokens: int = 0
    #: the run at the top of the tree it belongs to; None for that one
    root_run_id: str | None = None
    #: the limits that are near (`warning`) or reached (`exceeded`), as its ledger says
    warned: dict[str, str] = {}

    @property
    def root(self) -> str:
        """The id of the run at the top of its tree."""
        return self.root_run_id or self.run_id

    @property
    def paused(self) -> bool:
        """Whether `pause_run` holds the run."""
        runtime = self.vars.get("_runtime")
        control = runtime.get("control") if isinstance(runtime, dict) else None
        return isinstance(control, dict) and control.get("paused") is True

    @property
    def due(self) -> str | None:
        """When time alone moves the run on: its next attempt, its timer or its deadline, as UTC text."""
        if self.status is RunStatus.WAITING:
            return self.waiting.until if self.waiting is not None else None
        return self.intent.due if self.intent is not None else None

    @classmethod
    def new(
        cls,
        *,
        workflow_id: str,
        entry_node: str,
        actor_id: str | None = None,
        session_id: str | None = None,
        vars: dict[str, Any] | None = None,
        parent_run_id: str | None = None,
        run_id: str | None = None,
    ) -> RunState:
        """A running run at its entry node, with a fresh id unless one is given."""
        return cls(
            run_id=run_id or str(uuid.uuid4()),
            workflow_id=workflow_id,
            status=RunStatus.RUNNING,
            current_node=entry_node,
            vars=vars or {},
            actor_id=actor_id,
            session_id=session_id,
            parent_run_id=parent_run_id,
        )


class StepRecord(Struct, dict=True, omit_defaults=True):
    """One entry of the append-only ledger. The STARTED and the final record of a step share `step_id`."""

    run_id: str
    step_id: str
    node_id: str
    status: StepStatus
    effect: dict[str, Any] | None = None
    result: Any = None
    error: str | None = None
    started_at: str = field(default_factory=utc_now_iso)
    ended_at: str | None = None
    actor_id: str | None = None
    session_id: str | None = None
    attempt: int = 1
    idempotency_key: str | None = None
    prev_hash: str | None = None
    record_hash: str | None = None
    signature: str | None = None
    #: the commit that wrote it
    commit_id: str | None = None
    #: the step whose recorded result was taken instead of calling the handler again
    reused_from: str | None = None
    #: of one of several effects: the writes to vars that come with its result when the step ends
    changes: tuple[Change, ...] = ()
    #: as stored: stands for its STARTED record too, which the same commit wrote; readers get the two
    folded: bool = False
    #: as stored: its effect is that of the STARTED record of the same step; readers get it filled in
    slim: bool = False

    @classmethod
    def start(
        cls,
        *,
        run: RunState,
        node_id: str,
        effect: Effect | None,
        attempt: int = 1,
        idempotency_key: str | None = None,
    ) -> StepRecord:
        """A STARTED record with a fresh step id."""
        return cls(
            run_id=run.run_id,
            step_id=str(uuid.uuid4()),
            node_id=node_id,
            status=StepStatus.STARTED,
            effect=None if effect is None else effect.as_record(),
            actor_id=run.actor_id,
            session_id=run.session_id,
            attempt=attempt,
            idempotency_key=idempotency_key,
        )

    def finish_success(self, result: Any = None) -> StepRecord:
        """Mark it COMPLETED now, in place."""
        return self._finish(StepStatus.COMPLETED, result)

    def finish_waiting(self, wait_state: WaitState) -> StepRecord:
        """Mark it WAITING now, in place; `result["wait"]` holds the nine fields of the wait."""
        return self._finish(StepStatus.WAITING, {"wait": wait_record(wait_state)})

    def finish_failure(self, error: str) -> StepRecord:
        """Mark it FAILED now, in place."""
        self.error = error
        return self._finish(StepStatus.FAILED, self.result)

    def finish_cancelled(self, details: dict[str, Any] | None = None) -> StepRecord:
        """Mark it CANCELLED now, in place."""
        return self._finish(StepStatus.CANCELLED, {"cancelled": True, **(details or {})})

    def unfolded(self) -> tuple[StepRecord, ...]:
        """The record as readers get it, behind its STARTED record where it stands for that too."""
        if not self.folded:
            return (self,)
        started = replace(self, status=StepStatus.STARTED, result=None, error=None, ended_at=None, folded=False)
        return started, replace(self, folded=False)

    def _finish(self, status: StepStatus, result: Any) -> StepRecord:
        self.status, self.result, self.ended_at = status, result, utc_now_iso()
        return self


def wait_record(wait: WaitState) -> dict[str, Any]:
    """The nine fields of a wait as plain JSON."""
    return {**msgspec.structs.asdict(wait), "reason": str(wait.reason)}


class Request(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What another asks of a run: `cancel` or `pause`. The run's next commit answers it."""

    run_id: str
    kind: Literal["cancel", "pause"]
    by: str
    at: str
    reason: str | None = None


class Elsewhere(Struct, frozen=True, kw_only=True, gc=False):
    """Changes to the vars of another run that land together with the effect.

    `create` is inserted first where there is no such run. The other run stays where it is: its status, node and wait do
    not change.
    """

    run_id: str
    changes: tuple[Change, ...] = ()
    create: RunState | None = None


class Message(Struct, frozen=True, kw_only=True, gc=False):
    """Something said on a stream, for every run that reads there.

    `stream` is `<scope>:<scope id>` with one of the scopes session, workflow, run and global. The same `message_id` on
    a stream is the same message. `at` is UTC text, `data` the JSON that a reader gets.

    >>> Message(stream="session:s1", name="paid", message_id="m1", at="2026-01-31T09:00:00.000000+00:00").data
    {}
    """

    stream: str
    name: str
    message_id: str
    at: str
    data: dict[str, Any] = {}


class Commit(Struct, frozen=True, kw_only=True, gc=False):
    """All that one step writes, in one atomic write.

    `before` is the state it was computed from (None creates the run); it lands only while the stored revision is
    still that one and no request stands but those in `answers`.
    """

    run: RunState
    before: RunState | None = None
    #: the id of a landing, which adds records to an effect in flight and leaves the stored state as it is
    landing: str | None = None
    records: tuple[StepRecord, ...] = ()
    requests: tuple[Request, ...] = ()
    answers: tuple[Request, ...] = ()
    #: of records that must be found again by key: a user's EffectPolicy, a resume_id
    lookup_key: str | None = None
    #: other runs: those without `before` are created, of the others only vars change
    also: tuple[Commit, ...] = ()
    #: of a run that is one of `also` and created: whether it may exist already, and then stays as it is
    if_absent: bool = False
    #: how many requests stand at a run that is one of `also`; they go on standing
    standing: int = 0
    #: put on their streams, behind what is there
    messages: tuple[Message, ...] = ()
