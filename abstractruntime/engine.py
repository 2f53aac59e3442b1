"""The engine: asks the kernel what a run needs next and does it, until the run rests or the steps are used up.

`tick` is one `match` over `next_move`; all that it calls is a straight line that ends in a commit. What was only
computed is dropped on a conflict, and the run is read again.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

from msgspec.structs import replace

from .cascade import Action, Cascade
from .children import Children
from .core import kernel, portal
from .core.capacity import Line, line_of
from .core.clock import Clock, parse_instant
from .core.config import EnforceLimits
from .core.errors import (
    AbstractRuntimeError,
    InvalidPlan,
    ReentrantTick,
    RevisionConflict,
    StoreError,
)
from .core.journal import Journal
from .core.leases import Leases
from .core.models import TERMINAL, Commit, Request, RunState, RunStatus, StepPlan
from .core.secrets import admit
from .core.spec import WorkflowSpec, follow
from .core.typed import typed_view, untyped
from .delivering import Deliveries, FollowUp
from .nests import Family, Gathering, Nest
from .node_errors import NodeErrors
from .performer import Performer
from .plans import checked_plan

log = logging.getLogger("abstractruntime")

#: the ticks that the calls around us are inside of
_inside: ContextVar[tuple[_Tick, ...]] = ContextVar("abstractruntime_inside", default=())
portal.carry(_inside)

#: how many steps in a row a node may spoil by changing its own run from outside
_PATIENCE = 10

_WAITING = RunStatus.WAITING  # every step asks for it, and a member of an enum is looked up far slower

#: of a child, whose steps are part of its parent's
_NO_LIMIT = sys.maxsize


class Engine:
    """Moves runs. One per runtime."""

    def __init__(
        self,
        *,
        journal: Journal,
        leases: Leases,
        performer: Performer,
        children: Children,
        deliveries: Deliveries,
        clock: Clock,
        context: Any,
        max_inline_backoff: float,
        node_errors: NodeErrors,
        attach: dict[str, Any],
        enforce_limits: EnforceLimits = None,
    ) -> None:
        self._journal, self._leases, self._performer, self._clock = journal, leases, performer, clock
        self._deliveries = deliveries
        self._context, self._max_inline_backoff, self._node_errors = context, max_inline_backoff, node_errors
        #: the runs that runs start
        self.children = children
        self.cascade = Cascade(change=self.change, children=children, leases=leases)
        self._gathering = Gathering(
            children=children,
            spare=self.cascade.spare,
            drive=self._visit_child,
            busy=self.is_ticked,
            stamp=performer.stamp,
        )
        #: attributes that nodes find on the run they are given
        self.attach = attach
        self._enforce_limits = enforce_limits
        self._turns: dict[str, _Turn] = {}
        self._ticks: set[_Tick] = set()

    async def tick(self, workflow: WorkflowSpec[Any], run_id: str, max_steps: int) -> RunState:
        """Move the run until it rests or `max_steps` nodes have run; a second tick here waits for the first.

        Runs that it starts and waits for are driven beside it; their steps do not count. Then those are driven whom it,
        or they, spoke to with a number of steps.
        """
        with self._deliveries.outermost() as later:
            state = await self._tick(workflow, run_id, max_steps)
            while later is not None and later.items:
                await self.drive(later.items.popleft())
            return state

    async def drive(self, listener: FollowUp) -> tuple[str, str | None]:
        """Tick a run that somebody spoke to; its status, or `error` and why: what its nodes raise is its own affair."""
        try:
            state = await self.tick(listener.workflow, listener.run_id, listener.max_steps)
        except Exception as error:  # a boundary: whoever spoke to it goes on
            log.warning("Run %s: it took an event in and could not be driven further", listener.run_id, exc_info=error)
            return "error", f"{type(error).__name__}: {error}"
        return str(state.status), None

    async def _tick(self, workflow: WorkflowSpec[Any], run_id: str, max_steps: int) -> RunState:
        family = Family()
        try:
            return await self._visit(workflow, run_id, max_steps, family)
        finally:
            await family.close()

    async def _visit(self, workflow: WorkflowSpec[Any], run_id: str, max_steps: int, family: Family) -> RunState:
        async with self._turn(run_id, family) as tick:
            tick.moving = max_steps > 0
            run = await self._move(workflow, run_id, max_steps, tick)
            if tick.nest is not None and tick.nest.error is not None and kernel.waits_for_children(run):
                raise tick.nest.error
            return run

    def is_ticked(self, run_id: str) -> bool:
        """Whether a tick of the run is under way here, or waits for its turn."""
        return run_id in self._turns

    def ticked(self) -> list[str]:
        """The runs of which a tick is under way, or waits for its turn."""
        return list(self._turns)

    async def _visit_child(self, workflow: WorkflowSpec[Any], run_id: str, family: Family) -> RunState:
        if self.is_ticked(run_id):  # who waits for another's tick may wait for its own
            return (await self._journal.load(run_id)).run
        return await self._visit(workflow, run_id, _NO_LIMIT, family)

    async def _move(self, workflow: WorkflowSpec[Any], run_id: str, max_steps: int, tick: _Tick) -> RunState:
        while True:
            loaded = await self._journal.load(run_id)
            run = loaded.run
            try:
                if not loaded.requests:
                    run = await self._adopt(workflow, run)
                return await self._go(workflow, run, loaded.requests, max_steps, tick)
            except RevisionConflict:
                continue
            except _Moved as moved:
                max_steps = moved.steps_left
                tick.spoiled = tick.spoiled + 1 if tick.disturbed and moved.__cause__ else 0
                if tick.spoiled > _PATIENCE:
                    raise ReentrantTick(
                        f"Node {run.current_node!r} changes its own run {run_id!r} from outside each time it is "
                        "asked, so its step can never land. Return what it wants in the StepPlan instead."
                    ) from moved

    async def change(self, run_id: str, action: Action, workflow: WorkflowSpec[Any] | None = None) -> RunState:
        """Do something to a run from outside; on a conflict the action decides again on what is there then."""
        for tick in _inside.get():
            tick.disturbed = tick.disturbed or tick.run_id == run_id
        while True:
            loaded = await self._journal.load(run_id)
            run = loaded.run
            try:
                if loaded.requests:
                    answer = await self.children.answer(run, loaded.requests, self._performer.stamp())
                    await self._journal.commit(answer)
                    continue
                if workflow is not None:
                    run = await self._adopt(workflow, run)
                made = action(run, self._performer.stamp())
                commit = await made if isinstance(made, Awaitable) else made
                return run if commit is None else await self._journal.commit(commit)
            except RevisionConflict:
                continue

    async def stop(self) -> None:
        """Cancel the ticks under way here; each carries its commit through and hands its effect back."""
        tasks = {tick.task for tick in self._ticks if tick.task is not None} - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _go(
        self,
        workflow: WorkflowSpec[Any],
        run: RunState,
        requests: tuple[Request, ...],
        steps_left: int,
        tick: _Tick,
    ) -> RunState:
        try:
            while (steps_left > 0 or (tick.moving and kernel.has_children(run))) and not tick.is_called_off():
                intent = run.intent
                held = intent is not None and intent.token is not None and await self._leases.is_held(run)
                stamp = self._performer.stamp()
                waits = run.status is _WAITING and not requests
                unread = await self._deliveries.unread(run) if waits else None
                match kernel.next_move(run, now=stamp.at, requests=requests, held=held, unread=unread):
                    case kernel.Ask():
                        if self._enforce_limits and (stop := kernel.at_limit(run, self._enforce_limits, stamp)):
                            run = await self._journal.commit(stop)
                            continue
                        steps_left -= 1
                        tick.disturbed = False
                        run = await self._step(workflow, run, stamp)
                    case kernel.Perform(lost=lost):
                        steps_left -= 1
                        run = await self._performer.recover(run, lost=lost, nodes=workflow.nodes)
                    case kernel.Wake():
                        run = await self._journal.commit(kernel.expire(run, stamp))
                    case kernel.Deliver(found=found):
                        run = await self._journal.commit(kernel.deliver(run, found, stamp))
                    case kernel.Answer(requests=asked):
                        run = await self._journal.commit(await self.children.answer(run, asked, stamp))
                        if run.status is RunStatus.CANCELLED:  # and so are its children
                            await self.cascade.cancel(run.run_id, None, run.run_id)
                        raise _Moved(steps_left)
                    case kernel.Collect():
                        nest = tick.nest = self._gathering.nest(run, tick.nest, tick.family)
                        run, rests = await self._gathering.collect(run, nest)
                        if rests:
                            return run
                    case kernel.Later(due=due):
                        pause = (parse_instant(due) - self._clock.now()).total_seconds()
                        if pause > self._max_inline_backoff:
                            return run
                        await self._clock.sleep(max(0.0, pause))
                        raise _Moved(steps_left)  # it may have been cancelled meanwhile
                    case kernel.Rest() | kernel.Busy():
                        return run
            return run
        except RevisionConflict as conflict:
            raise _Moved(steps_left) from conflict

    async def _step(self, workflow: WorkflowSpec[Any], run: RunState, stamp: kernel.Stamp) -> RunState:
        node_id = run.current_node
        try:
            plan, raws, stamp = await self._ask(workflow, run, stamp)
        except Exception as error:  # a boundary: what a node raises belongs to the caller, the ledger says so too
            failed = await self._node_raised(run, node_id, error)
            if failed is None:
                raise
            return failed
        if plan.complete_output is not None:
            return await self._journal.commit(kernel.complete(run, plan, stamp))
        if raws:
            return await self._performer.start(run, plan, raws, stamp, workflow.nodes)
        return await self._journal.commit(kernel.move(run, plan, stamp))

    async def _ask(
        self, workflow: WorkflowSpec[Any], run: RunState, stamp: kernel.Stamp
    ) -> tuple[StepPlan, list[dict[str, Any]], kernel.Stamp]:
        """Ask the node; what it changed in vars is in `run.vars` then.

        Returns its plan as it may be stored, its effects' payloads as they may not (with secrets), and the stamp.
        """
        node = workflow.get_node(run.current_node)
        view: Any = replace(run) if workflow.state is None else typed_view(workflow, run)
        view.__dict__.update(self.attach, _runtime_run_id=run.run_id, _runtime_session_id=run.session_id)
        seq, here = kernel.seq_of(run.vars), not portal.attended()
        plan: Any = node(view, self._context) if here else await portal.here(node, view, self._context)
        if type(plan) is not StepPlan and inspect.isawaitable(plan):
            plan = await plan
            stamp = self._performer.stamp()  # an async node takes its time
        vars = view.vars if workflow.state is None else untyped(workflow, view)
        if not isinstance(vars, dict):
            raise InvalidPlan(f"Node {run.current_node!r} left run.vars as {type(vars).__name__}; expected a dict.")
        run.vars = kernel.restore_seq(admit(vars, "vars"), seq)
        return *checked_plan(plan, workflow, run.current_node), stamp

    async def _node_raised(self, run: RunState, node_id: str, error: Exception) -> RunState | None:
        """Record it; the failed run where `on_node_error` says that it fails, else None: the error is raised."""
        error.add_note(f"raised at node {node_id!r} of run {run.run_id!r}")
        text = f"{type(error).__name__}: {error}".encode("utf-8", "backslashreplace").decode()
        fails = await self._node_errors.decide(run, error) == "fail"

        def act(run: RunState, stamp: kernel.Stamp) -> Commit | None:
            if run.status in TERMINAL:
                return None
            apart = self._node_errors.reason_to_quarantine(run, node_id)
            stands = run.status is RunStatus.RUNNING and run.current_node == node_id and run.intent is None
            if stands and (fails or apart is not None):
                return kernel.fail_node(run, node_id, text, stamp, quarantine=apart)
            return kernel.node_failed(run, node_id, text, stamp)

        try:
            found = await self.change(run.run_id, act)
        except (StoreError, AbstractRuntimeError):
            log.exception("Run %s: the failure of node %s could not be recorded", run.run_id, node_id)
            return None
        return found if fails and found.status in TERMINAL else None

    async def _adopt(self, workflow: WorkflowSpec[Any], run: RunState) -> RunState:
        """Check that the run can go on with this workflow; a followed change of the graph is committed first."""
        changed = follow(workflow, run)
        if changed is None:
            return run
        stamp = self._performer.stamp()
        return await self._journal.commit(kernel.adopt(run, workflow.fingerprint, workflow.version, stamp))

    @asynccontextmanager
    async def _turn(self, run_id: str, family: Family) -> AsyncIterator[_Tick]:
        inside = tuple(tick for tick in _inside.get() if tick.task is not None)  # a task may outlive its tick
        if any(tick.run_id == run_id for tick in inside):
            raise ReentrantTick(
                f"Run {run_id!r} was ticked from inside itself. Return a StepPlan instead, or tick it from outside."
            )
        turn = self._turns.setdefault(run_id, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                with line_of(run_id, nested=bool(inside)) as line:
                    tick = _Tick(run_id, family, line)
                    token = _inside.set((*inside, tick))
                    self._ticks.add(tick)
                    try:
                        yield tick
                    finally:
                        tick.task = None
                        self._ticks.discard(tick)
                        _inside.reset(token)
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[run_id]


class _Tick:
    """One tick under way."""

    __slots__ = ("_line", "disturbed", "family", "moving", "nest", "run_id", "spoiled", "task")

    def __init__(self, run_id: str, family: Family, line: Line | None) -> None:
        self.run_id, self.family = run_id, family
        #: the children of the effect that it came to last
        self.nest: Nest | None = None
        #: whether it may take steps at all
        self.moving = True
        self.task = asyncio.current_task()
        #: where whoever asked for it, or for the one that it is inside of, says that it is to go no further
        self._line = line
        #: whether the node asked last changed the run from outside, and how many steps in a row that spoiled
        self.disturbed, self.spoiled = False, 0

    def is_called_off(self) -> bool:
        """Whether it is to end before its next step."""
        return self._line is not None and self._line.closed()


class _Turn:
    """The turn of one run in this process, and how many ticks want it."""

    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock, self.users = asyncio.Lock(), 0


class _Moved(Exception):
    """The run is not where this tick thought: read it again."""

    def __init__(self, steps_left: int) -> None:
        self.steps_left = steps_left
