"""What is done to whole runs: bookmark one, put it back where it stood, fork it."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from .core import kernel
from .core.clock import Clock, iso
from .core.codec import digest
from .core.errors import (
    InvalidSnapshot,
    RevisionConflict,
    RunIdentityConflict,
    StoreError,
    UnknownSnapshot,
    WorkflowChanged,
)
from .core.ids import check_optional, check_run_id
from .core.journal import Journal
from .core.leases import Leases
from .core.models import TERMINAL, Request, RunState
from .core.secrets import admit
from .core.spec import WorkflowSpec
from .core.typed import check_vars
from .engine import Engine
from .performer import Performer
from .storage.snapshots.model import Snapshot, admitted
from .storage.user_pair import call


class ManagesRuns:
    """What managing whole runs adds to `AsyncRuntime`."""

    _journal: Journal
    _leases: Leases
    _performer: Performer
    _engine: Engine
    _clock: Clock
    _run_store: Any
    _snapshot_store: Any

    @property
    def snapshot_store(self) -> Any:
        """The snapshot store as given."""
        return self._snapshot_store

    async def snapshot_run(
        self, run_id: str, *, name: str, description: str | None = None, tags: Iterable[str] | None = None
    ) -> Snapshot:
        """Bookmark the run as it is stored now, at any moment, with the position of its ledger.

        It is saved when the runtime has a `snapshot_store`. In the middle of an effect `step_id` names it. Raises
        `UnknownRun`, `UnsafeValue` for a name that is none.
        """
        run = await self._counted(run_id)
        step_id = None if run.intent is None else run.intent.step_id
        made = Snapshot.from_run(run=run, name=name, description=description, tags=tags, step_id=step_id)
        snapshot = admitted(made)
        snapshot.created_at = snapshot.updated_at = iso(self._clock.now())
        if self._snapshot_store is not None:
            await call(self._snapshot_store.save, snapshot)
        return snapshot

    async def restore(
        self, run_id: str, snapshot: Snapshot | str, *, reason: str | None = None, actor_id: str | None = None
    ) -> RunState:
        """Put the run back where it stood in one of its snapshots (or its id), also when it has ended since.

        Status, node, vars, wait, output and error are those of the snapshot, a pause too; the ledger goes on, with a
        record of what was restored, why and by whom. What waits gets a new `wait_key` (beside a key that its author
        chose, a new `details.wait_id`), so a late answer to what was asked before is stale. A step that the snapshot
        was taken inside of is issued again, as a new effect. Runs that this run has started since, and that have not
        ended, are asked to cancel. A run that stands there already is returned unchanged; so restoring twice is
        restoring once.

        Raises `UnknownRun`, `UnknownSnapshot`, `InvalidSnapshot` for one of another run, and `EffectInFlight` while
        somebody alive performs an effect of the run.
        """
        check_optional(reason, "reason")
        check_optional(actor_id, "actor_id")
        saved, origin = await self._stand(run_id, snapshot)
        origin["reason"] = reason
        while True:
            run = await self._engine.change(run_id, lambda run, stamp: None)  # answers requests
            records = await self._journal.stored.records(run_id)
            commit = kernel.restore(
                run,
                saved,
                origin,
                self._performer.stamp(),
                actor_id=actor_id,
                next_seq=kernel.next_seq(run_id, records),
                free=await self._free_claim(run),
                requests=await self._cancels(run, saved),
            )
            try:
                return run if commit is None else await self._journal.commit(commit)
            except RevisionConflict:
                continue

    async def fork(
        self,
        run_id: str,
        *,
        at: Snapshot | str | None = None,
        vars: dict[str, Any] | None = None,
        workflow: WorkflowSpec[Any] | None = None,
        new_run_id: str | None = None,
        reason: str | None = None,
        actor_id: str | None = None,
    ) -> str:
        """Create a run that goes on from where this one stands, or stood in a snapshot (or its id); returns its id.

        The fork has the vars of its original, with `vars` laid over them by name, and begins by asking the node there
        again: what had ended is in its vars and is not repeated; what was in flight or waited for is issued anew,
        under ids of its own. It shares nothing with its original, which is not touched, and has no parent, no pause,
        and the same actor and session. A failed or cancelled original goes on at the node where it ended. With
        `workflow` it goes on with another graph or version, which must have the node. With a `new_run_id`, forking
        twice with the same arguments is forking once. The first record of its ledger says where it comes from.

        Raises `RunCompleted` where the original has completed (fork it at a snapshot from before), `UnknownRun`,
        `UnknownSnapshot`, `InvalidSnapshot`, `RunIdentityConflict`, and for a `workflow` that is given
        `WorkflowChanged` when it lacks the node, `InvalidState` when the vars do not fit it.
        """
        check_optional(reason, "reason")
        check_optional(actor_id, "actor_id")
        over = _checked_vars(vars)
        fork_id = str(uuid.uuid4()) if new_run_id is None else check_run_id(new_run_id)
        asked = {
            "fork_of": run_id,
            "at": at.snapshot_id if isinstance(at, Snapshot) else at,
            "vars": over,
            "workflow": None if workflow is None else [workflow.workflow_id, workflow.version],
        }
        identity = None if new_run_id is None else digest(asked)
        if await self._is_made(fork_id, identity):
            return fork_id
        saved, origin = await self._stand(run_id, at)
        fork = _forked(saved, workflow, over)
        fork.run_id, fork.identity = fork_id, identity
        origin = {"run_id": run_id, **origin, "reason": reason, "vars": sorted(over)}
        try:
            await self._journal.commit(kernel.fork(fork, saved, origin, self._performer.stamp(), actor_id=actor_id))
        except RevisionConflict:
            if not await self._is_made(fork_id, identity):
                raise
        return fork_id

    async def _snapshot(self, snapshot: Snapshot | str) -> Snapshot:
        if isinstance(snapshot, Snapshot):
            return snapshot
        if self._snapshot_store is None:
            raise StoreError(
                f"Snapshot {snapshot!r} was named by its id, but this runtime has no snapshot_store. Give it one, or "
                "give the Snapshot itself."
            )
        found: Snapshot | None = await call(self._snapshot_store.load, snapshot)
        if found is None:
            raise UnknownSnapshot(snapshot)
        return found

    async def _stand(self, run_id: str, at: Snapshot | str | None) -> tuple[RunState, dict[str, Any]]:
        """Where a run stands, or stood, as a value of its own, and what a record says of it."""
        if at is None:
            run = await self._counted(run_id)
            return run, {
                "snapshot_id": None,
                "name": None,
                "position": run.records,
                "chain_head": run.chain_head,
            }
        snapshot = admitted(await self._snapshot(at))
        if snapshot.run_id != run_id:
            raise InvalidSnapshot(
                f"Snapshot {snapshot.snapshot_id!r} is of run {snapshot.run_id!r}, not of run {run_id!r}. To go on "
                f"from it, call fork({snapshot.run_id!r}, at=...)."
            )
        return snapshot.as_run(), {
            "snapshot_id": snapshot.snapshot_id,
            "name": snapshot.name,
            "position": snapshot.position,
            "chain_head": snapshot.chain_head,
        }

    async def _counted(self, run_id: str) -> RunState:
        """The run as stored now, with the number of its records, which not every pair of stores keeps beside it."""
        run = (await self._journal.load(run_id)).run
        if not self._journal.stored.atomic:
            run.records = len(await self._journal.stored.records(run_id))
        return run

    async def _free_claim(self, run: RunState) -> str | None:
        """The token of the run's effect in flight, if whoever claimed it is dead."""
        intent = run.intent
        if intent is None or intent.token is None or await self._leases.is_held(run):
            return None
        return intent.token

    async def _cancels(self, run: RunState, saved: RunState) -> tuple[Request, ...]:
        """What is asked of the runs that this one has started since."""
        list_children = getattr(self._run_store, "list_children", None)
        if list_children is None or not self._journal.stored.atomic:
            return ()
        children: list[RunState] = await call(list_children, parent_run_id=run.run_id)
        of_step = {child.run_id for child in run.intent.children} if run.intent is not None else set()
        at, reason = iso(self._clock.now()), f"Run {run.run_id!r} was put back to before it started this one"
        return tuple(
            Request(run_id=child.run_id, kind="cancel", by="restore", at=at, reason=reason)
            for child in children
            if child.status not in TERMINAL and (child.created_at > saved.updated_at or child.run_id in of_step)
        )

    async def _is_made(self, fork_id: str, identity: str | None) -> bool:
        """Whether this very fork exists. Raises `RunIdentityConflict` where another run has its id."""
        found = None if identity is None else await self._journal.stored.load(fork_id)
        if found is not None and found.run.identity != identity:
            raise RunIdentityConflict(fork_id, "origin or with other arguments")
        return found is not None


def _checked_vars(vars: dict[str, Any] | None) -> dict[str, Any]:
    given = {} if vars is None else vars
    if not isinstance(given, dict):
        raise TypeError(f"vars must be a dict, found {type(given).__name__}")
    clean: dict[str, Any] = admit(dict(given), "vars")
    ours = sorted(name for name in clean if name.startswith("_"))
    if ours:
        raise ValueError(f"vars may not name {', '.join(map(repr, ours))}: names that start with '_' are the engine's.")
    return clean


def _forked(saved: RunState, workflow: WorkflowSpec[Any] | None, over: dict[str, Any]) -> RunState:
    """A fresh run at the node of the saved one, of its workflow or of the one given."""
    fork = RunState.new(
        workflow_id=saved.workflow_id, entry_node=saved.current_node, vars=kernel.forked_vars(saved, over)
    )
    fork.fingerprint, fork.workflow_version = saved.fingerprint, saved.workflow_version
    if workflow is None:
        return fork
    if saved.current_node not in workflow.nodes:
        raise WorkflowChanged(
            f"Run {saved.run_id!r} stands at node {saved.current_node!r}, which workflow {workflow.workflow_id!r} does "
            "not have. Fork it with a graph that has this node, or at another snapshot."
        )
    check_vars(workflow, fork.vars)
    fork.workflow_id, fork.fingerprint = workflow.workflow_id, workflow.fingerprint
    fork.workflow_version = workflow.version
    return fork
