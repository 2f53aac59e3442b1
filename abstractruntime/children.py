"""Runs that runs start: created with the commit of their parent, found, collected, and asked to stop with it.

What their states mean is the kernel's; here it gets them, and the workflows by name. Who drives them is the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

from msgspec.structs import replace

from .attempts import Attempts
from .core import kernel
from .core.config import RuntimeConfig
from .core.errors import RevisionConflict, StoreTooLarge, UnknownRun
from .core.journal import Journal
from .core.models import TERMINAL, Child, Commit, Intent, Request, RunState, RunStatus
from .core.outcomes import EffectOutcome
from .core.spec import WorkflowSpec
from .core.traces import node_traces
from .core.typed import check_vars
from .starting import seeded
from .storage.user_pair import call

#: why a child is cancelled
PARENT_CANCELLED, NOT_WAITED_FOR = "The parent run was cancelled", "The parent run does not wait for it any more"


class Children:
    """The children of one runtime's runs. `registry` gives what finds a workflow by its id, as it is now."""

    def __init__(
        self,
        *,
        journal: Journal,
        attempts: Attempts,
        config: RuntimeConfig,
        registry: Callable[[], Any],
        run_store: Any,
    ) -> None:
        self._journal, self._attempts, self._config = journal, attempts, config
        self._registry, self._run_store = registry, run_store

    async def start(
        self, run: RunState, intent: Intent, stamp: kernel.Stamp, nodes: Collection[str], lookup_key: str | None
    ) -> RunState:
        """Take an effect START_SUBWORKFLOW: one commit creates the children that begin at once."""
        payload = intent.effect.payload
        try:
            order = kernel.order_of(payload, nodes)
            intent = replace(intent, children=kernel.children_of(run, intent.seq, order))
            made = await self._created(run, order, intent.children, range(len(intent.children)), stamp)
        except ValueError as error:
            return await self._journal.commit(kernel.inside(run, intent, kernel.refused(payload, str(error)), stamp))
        first = tuple(new for place, new in made.items() if intent.children[place].begun)
        commit = kernel.begin_children(run, intent, order, stamp)
        if commit.run.intent is None:
            commit = replace(commit, lookup_key=lookup_key)
        try:
            return await self._journal.commit(replace(commit, also=first))
        except StoreTooLarge as error:
            refused = kernel.refused(payload, f"The subworkflows cannot be stored: {error}")
            return await self._journal.commit(kernel.inside(run, replace(intent, children=()), refused, stamp))

    async def collect(
        self, run: RunState, order: kernel.Order, seen: dict[str, RunState | None], stamp: kernel.Stamp
    ) -> tuple[RunState | None, tuple[str, ...]]:
        """Take what the children's states mean: the run as it is then, and who was told to stop.

        None for the run where nothing is decided. `seen` are the children as this tick knows them; more are added.
        """
        intent = run.intent
        assert intent is not None
        if kernel.all_ended(run, seen):
            noted = [child.run_id for child in intent.children if child.run_id not in seen]
            found = {run_id: await self.state(run_id) for run_id in noted}
            if any(state is not None and state.status not in TERMINAL for state in found.values()):  # retried since
                return await self._journal.commit(kernel.begin_more(run, (), {**seen, **found}, stamp)), ()
            seen.update(found)
        verdict = kernel.verdict(run, order, seen, {})
        if order.traces and isinstance(verdict, kernel.Done):
            verdict = kernel.verdict(run, order, seen, await self._traces(seen))
        match verdict:
            case kernel.Begin(places=places):
                commit = kernel.begin_more(run, places, seen, stamp)
                try:
                    also = await self._created(run, order, intent.children, places, stamp)
                except ValueError as error:  # its workflow, say, is not registered any more
                    spare = tuple(c.run_id for c in intent.children if c.begun and not c.ended)
                    return await self._end(run, kernel.refused(intent.effect.payload, str(error)), spare, stamp)
                return await self._journal.commit(replace(commit, also=tuple(also.values()))), ()
            case kernel.Done(outcome=outcome, spare=spare):
                return await self._end(run, outcome, spare, stamp)
        return None, ()

    async def rest(
        self, run: RunState, order: kernel.Order, seen: Mapping[str, RunState | None], stamp: kernel.Stamp
    ) -> RunState:
        """Let the run wait for children that nothing moves now."""
        commit = kernel.wait_for_children(run, order, seen, stamp)
        return run if commit is None else await self._journal.commit(commit)

    async def answer(self, run: RunState, requests: tuple[Request, ...], stamp: kernel.Stamp) -> Commit:
        """What answers requests to this run; a cancel goes on to its children in the same commit."""
        return await self.passed_on(run, kernel.answer(run, requests, stamp), stamp)

    async def passed_on(self, run: RunState, commit: Commit, stamp: kernel.Stamp) -> Commit:
        """The commit that ends a run as CANCELLED, with the same asked of its children; any other as it is."""
        if commit.run.status is not RunStatus.CANCELLED or not self._journal.stored.atomic:
            return commit
        return replace(commit, requests=_cancels(await self.below(run), run.run_id, PARENT_CANCELLED, stamp))

    async def below(self, run: RunState) -> list[str]:
        """The children of this run that have not ended, as far as the store can tell."""
        known = () if run.intent is None else run.intent.children
        found = {child.run_id for child in known if child.begun and not child.ended}
        list_children = getattr(self._run_store, "list_children", None)
        if list_children is not None:
            children: list[RunState] = await call(list_children, parent_run_id=run.run_id)
            found |= {child.run_id for child in children if child.status not in TERMINAL}
        return sorted(found)

    async def state(self, run_id: str) -> RunState | None:
        """A run as it is now, or None for one that is gone."""
        try:
            return (await self._journal.load(run_id)).run
        except UnknownRun:
            return None

    def workflow(self, workflow_id: str) -> WorkflowSpec[Any]:
        """The workflow of this id. Raises ValueError where there is no registry, or it does not have it."""
        registry = self._registry()
        if registry is None:
            raise ValueError(
                f"Workflow {workflow_id!r} is not known here: the runtime has no workflow_registry. "
                "Give it one, or call set_workflow_registry()."
            )
        found: WorkflowSpec[Any] | None = registry.get(workflow_id)
        if found is None:
            raise ValueError(
                f"Workflow {workflow_id!r} is not known here: the workflow_registry has no such workflow. "
                "Register it under this id."
            )
        return found

    async def begin(
        self, run: RunState, workflow: WorkflowSpec[Any], vars: dict[str, Any], run_id: str, stamp: kernel.Stamp
    ) -> None:
        """Create a run below this one, of a workflow of our own, unless somebody has created it meanwhile."""
        with suppress(RevisionConflict):
            await self._journal.commit(kernel.create(self._new(run, workflow, run_id, vars, None), stamp))

    async def _end(
        self, run: RunState, outcome: EffectOutcome, spare: tuple[str, ...], stamp: kernel.Stamp
    ) -> tuple[RunState, tuple[str, ...]]:
        intent = run.intent
        assert intent is not None
        whole, running = self._journal.stored.atomic, run.status is RunStatus.RUNNING
        if not whole and running:  # the end may be in the ledger although the state never heard of it
            found = await self._journal.settled(run.run_id, intent.key)
            if found is not None:
                return await self._journal.commit(kernel.reused(run, intent, found, stamp)), spare
        looked_up = self._attempts.may_repeat and running and outcome.status == "completed"
        requests = _cancels(spare, run.run_id, NOT_WAITED_FOR, stamp) if whole else ()
        lookup_key = intent.key if looked_up else None
        try:
            commit = kernel.collected(run, outcome, stamp, lookup_key=lookup_key, spare=requests)
            return await self._journal.commit(commit), spare
        except StoreTooLarge as error:
            failed = EffectOutcome.failed(f"The result cannot be stored: {error}", retryable=False)
            return await self._journal.commit(kernel.collected(run, failed, stamp, spare=requests)), spare

    async def _created(
        self,
        run: RunState,
        order: kernel.Order,
        children: tuple[Child, ...],
        places: Collection[int],
        stamp: kernel.Stamp,
    ) -> dict[int, Commit]:
        """Per place the commit that creates the child, if there is one to create. Raises ValueError."""
        made = {}
        for place in places:
            child, wanted = children[place], order.children[place]
            created = kernel.create(
                self._new(run, self.workflow(child.workflow_id), child.run_id, wanted.vars, wanted.session_id), stamp
            )
            if wanted.run_id is None:  # there is none, unless stores that do not commit together were interrupted
                made[place] = replace(created, if_absent=True)
                continue
            found = await self.state(child.run_id)
            if found is None:  # if another comes first, the commit is refused
                made[place] = created
            elif (found.parent_run_id, found.workflow_id) != (run.run_id, child.workflow_id):
                raise ValueError(kernel.foreign(run, child, found))
        ids = [child.run_id for child in children]
        if len(set(ids)) != len(ids):
            raise ValueError("start_subworkflow: two children have the same run_id; give each its own, or none")
        return made

    def _new(
        self, run: RunState, workflow: WorkflowSpec[Any], run_id: str, vars: dict[str, Any], session_id: str | None
    ) -> RunState:
        inherited = {name: run.vars[name] for name in kernel.INHERITED if _is_set(run.vars.get(name))}
        given = vars | {name: value for name, value in inherited.items() if not _is_set(vars.get(name))}
        check_vars(workflow, given)
        new = RunState.new(
            workflow_id=workflow.workflow_id,
            entry_node=workflow.entry_node,
            actor_id=run.actor_id,
            session_id=session_id or run.session_id,
            parent_run_id=run.run_id,
            vars=seeded(given, self._config),
            run_id=run_id,
        )
        new.root_run_id = run.root
        new.fingerprint, new.workflow_version = workflow.fingerprint, workflow.version
        return new

    async def _traces(self, seen: Mapping[str, RunState | None]) -> dict[str, Any]:
        ended = [state.run_id for state in seen.values() if state is not None and state.status in TERMINAL]
        return {run_id: node_traces(await self._journal.backend.records(run_id)) for run_id in ended}


def _cancels(run_ids: Collection[str], parent: str, reason: str, stamp: kernel.Stamp) -> tuple[Request, ...]:
    return tuple(Request(run_id=run_id, kind="cancel", by=parent, at=stamp.at, reason=reason) for run_id in run_ids)


def _is_set(value: Any) -> bool:
    return value is not None and not (isinstance(value, str) and not value.strip())
