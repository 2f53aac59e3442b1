"""`AsyncRuntime`: starts runs, moves them, and lets the outside world answer, cancel and watch them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from .approving import ApprovesRuns
from .attempts import Attempts
from .children import Children
from .core import kernel
from .core.capacity import Capacity, ConcurrencyKey
from .core.clock import SYSTEM_CLOCK, Clock
from .core.codec import DEEPEST_GIVEN
from .core.config import EnforceLimits, RuntimeConfig, checked_mode
from .core.errors import RevisionConflict, RunIdentityConflict, RunQuarantined, StaleResumeError
from .core.ids import check_optional, check_run_id
from .core.journal import Journal
from .core.leases import Leases
from .core.models import Commit, RunState, RunStatus
from .core.policy import DefaultEffectPolicy, EffectPolicy
from .core.secrets import Secrets, admit
from .core.shielding import call_all
from .core.spec import DefaultRunContext, RunContext, WorkflowSpec
from .core.threads import WorkerThreads
from .core.typed import check_vars
from .deleting import DeletesRuns
from .delivering import Deliveries
from .effects.builtin import builtin_handlers
from .effects.handlers import Handler, adapt
from .effects.memory import memory_handlers
from .emitting import EmitsEvents
from .engine import Engine
from .following import FollowsLedgers
from .given import HasParts
from .holding import HoldsRuns
from .limiting import LimitsRuns
from .managing import ManagesRuns
from .node_errors import NodeErrors, OnNodeError
from .performer import Performer
from .reading import ReadsRuns
from .starting import difference, identity_of, seeded
from .storage.joining import join
from .storage.opening import open_stores
from .subruns import Subruns

#: sync effect handlers that one runtime runs at the same time
MAX_HANDLER_THREADS = 64

#: how far `run()` drives in one tick
_RUN_STEPS = 1000


class AsyncRuntime(
    HasParts, ReadsRuns, ApprovesRuns, FollowsLedgers, HoldsRuns, ManagesRuns, DeletesRuns, EmitsEvents, LimitsRuns
):
    """Runs workflows durably on an event loop.

    Every step of a run is one atomic commit of its state and its ledger; a run that waits costs nothing; any process
    with the same stores goes on where another stopped.

    Args:
        run_store, ledger_store: a pair of stores; async ones and their sync twins are both accepted.
        effect_handlers: handlers of host effects by type, sync or async (see `core.outcomes`); they override ours.
        context: what nodes get as `ctx`; by default an object with `now_iso()`.
        effect_policy: retries, idempotency keys, and what to do with an effect whose performer died.
        config: limits and model facts that new runs are seeded with.
        chat_summarizer: makes the summaries of MEMORY_COMPACT (`summarize_chat_history(messages, ...)`, sync or async).
        secrets: resolves `{"$secret": name}` in payloads when an effect is performed.
        clock: time; give your own in tests.
        lease_seconds: how long a claim on an effect outlives a process that stops responding.
        max_inline_backoff: the longest pause between attempts, in seconds, that `tick` waits out itself.
        effect_limits: how many effects of a type this runtime performs at once, as in `{"llm_call": 8}`.
        concurrency_key: a function of an `Effect` that says what it shares with others, such as its provider or model,
            or None; effects with the same key are counted together. What it raises is logged, and means None.
        key_limit: how many effects of one key this runtime performs at once; or how many per key, as in
            `{"openai": 16, "local": 1}`, where keys that are not named have no limit.
        on_node_error: what a node that raises means: `"raise"` (the caller gets the error, the run stays where it is),
            `"fail"` (the run fails), or a function of run and error that says one of the two.
        quarantine_after: a run is set apart as FAILED, with a reason in `state.quarantined`, when a node of it raises
            so often in a row, or when it fails for the so-manyth time although it was retried.
        snapshot_store: where `snapshot_run` saves, sync or async; `restore` and `fork` find snapshots there by id.
        enforce_limits: what happens before a node of a run is asked that has reached a limit of its iterations, tokens
            or history: nothing (None), the run fails (`"fail"`), or it waits for a person who says whether to raise the
            limit or to stop (`"ask"`); it goes on after `resume`, or when `update_limits` has raised the limit.
        on_close: functions, sync or async, called in order when the runtime is closed.

    >>> async with AsyncRuntime(run_store=runs, ledger_store=ledger) as rt:
    ...     state = await rt.run(workflow, vars={"task": "sum up"})
    """

    def __init__(
        self,
        *,
        run_store: Any,
        ledger_store: Any,
        effect_handlers: Mapping[str, Callable[..., Any]] | None = None,
        context: Any = None,
        workflow_registry: Any = None,
        artifact_store: Any = None,
        effect_policy: EffectPolicy | None = None,
        config: RuntimeConfig | None = None,
        chat_summarizer: Any = None,
        secrets: Secrets | None = None,
        clock: Clock | None = None,
        lease_seconds: float = 30.0,
        max_inline_backoff: float = 1.0,
        effect_limits: Mapping[str, int] | None = None,
        concurrency_key: ConcurrencyKey | None = None,
        key_limit: int | Mapping[str, int] | None = None,
        on_node_error: OnNodeError = "raise",
        quarantine_after: int | None = None,
        snapshot_store: Any = None,
        enforce_limits: EnforceLimits = None,
        on_close: Iterable[Callable[[], Any]] = (),
    ) -> None:
        self._snapshot_store, self._on_close = snapshot_store, tuple(on_close)
        self._run_store, self._ledger_store = run_store, ledger_store
        self._clock = clock or SYSTEM_CLOCK
        self._ctx: RunContext = context if context is not None else DefaultRunContext(self._clock)
        self._workflow_registry, self._config = workflow_registry, config or RuntimeConfig()
        self._attach = {"_runtime_run_store": run_store, "_runtime_artifact_store": artifact_store}
        joined = join(run_store, ledger_store)
        self._backend = joined.resolving or joined.stored
        self._journal = Journal(
            joined.stored,
            self._clock,
            layers=joined.layers,
            resolving=joined.resolving,
            keep=self._config.max_stream_messages,
        )
        self._leases = Leases(self._backend, self._clock, lease_seconds)
        self._attempts = Attempts(
            clock=self._clock,
            handlers=self._handlers(effect_handlers or {}, chat_summarizer),
            policy=effect_policy or DefaultEffectPolicy(),
            secrets=secrets,
            capacity=Capacity(effect_limits, concurrency_key, key_limit),
            whole=self._backend.atomic,
        )
        self._node_errors = NodeErrors(on_node_error, quarantine_after)
        self._assemble(max_inline_backoff, checked_mode(enforce_limits))

    def _handlers(self, given: Mapping[str, Callable[..., Any]], summarizer: Any) -> dict[str, Handler]:
        """The table of effect handlers: ours, and over them those of the host."""
        threads = WorkerThreads(MAX_HANDLER_THREADS)
        listening = self._backend.listening if self._backend.atomic else None
        handlers = builtin_handlers(self._load_other, listening, lambda: self._workflow_registry)
        handlers |= memory_handlers(
            self._load_other, lambda: self.artifact_store, summarizer, handlers, lambda *run: self._subruns(*run)
        )
        handlers |= {str(kind): adapt(handler, threads) for kind, handler in given.items()}
        return handlers

    def _assemble(self, max_inline_backoff: float, enforce_limits: EnforceLimits) -> None:
        """Build what moves runs, on the parts that are there."""
        children = Children(
            journal=self._journal,
            attempts=self._attempts,
            config=self._config,
            registry=lambda: self._workflow_registry,
            run_store=self._run_store,
        )
        self._deliveries = Deliveries(
            journal=self._journal,
            stamp=lambda: self._performer.stamp(),
            answer=children.answer,
            registry=lambda: self._workflow_registry,
        )
        self._performer = Performer(
            journal=self._journal,
            leases=self._leases,
            clock=self._clock,
            attempts=self._attempts,
            children=children,
            max_inline_backoff=max_inline_backoff,
            sent=self._deliveries.after,
        )
        self._engine = Engine(
            journal=self._journal,
            leases=self._leases,
            performer=self._performer,
            children=children,
            deliveries=self._deliveries,
            clock=self._clock,
            context=self._ctx,
            max_inline_backoff=max_inline_backoff,
            node_errors=self._node_errors,
            attach=self._attach,
            enforce_limits=enforce_limits,
        )
        self._subruns = Subruns(engine=self._engine, stamp=self._performer.stamp, clock=self._clock)

    @classmethod
    def open(cls, url: str, **options: Any) -> AsyncRuntime:
        """A runtime with run, ledger, artifact and snapshot stores of one kind, which it closes with itself.

        `"memory:"`; `"sqlite:///runs.db"`, with artifacts in the folder `runs.db.artifacts` beside it; or
        `"files:./data"`, all in one folder. `options` are those of the constructor. Raises ValueError for another URL.

        >>> async with AsyncRuntime.open("sqlite:///runs.db") as rt:
        ...     state = await rt.run(workflow)
        """
        opened = open_stores(url).as_async()
        runtime = cls(**{**opened.given(), **options})
        runtime._on_close += (opened.aclose,)
        return runtime

    async def __aenter__(self) -> AsyncRuntime:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Hand back the effects in flight, give up the lease, end who follows, call `on_close`.

        The stores stay open: they are yours. Those of a runtime that was made by `open` are closed.
        """
        self._following.close()
        await self._engine.stop()
        await self._leases.close()
        await call_all(self._on_close)

    # -- moving runs

    async def start(
        self,
        *,
        workflow: WorkflowSpec[Any],
        vars: dict[str, Any] | None = None,
        actor_id: str | None = None,
        session_id: str | None = None,
        parent_run_id: str | None = None,
        run_id: str | None = None,
    ) -> str:
        """Create a run at the workflow's entry node and return its id. Nothing is executed yet.

        With a `run_id` of your own, starting twice with the same arguments returns the same run, unchanged; other
        arguments raise `RunIdentityConflict`. Raises `UnsafeValue` for vars that JSON cannot carry, `InvalidId`.
        """
        given = {} if vars is None else vars
        if not isinstance(given, dict):
            raise TypeError(f"vars must be a dict, found {type(given).__name__}")
        for name, value in (("actor_id", actor_id), ("session_id", session_id), ("parent_run_id", parent_run_id)):
            check_optional(value, name)
        clean: dict[str, Any] = admit(dict(given), "vars")
        check_vars(workflow, clean)
        run = RunState.new(
            workflow_id=workflow.workflow_id,
            entry_node=workflow.entry_node,
            actor_id=actor_id,
            session_id=session_id,
            parent_run_id=parent_run_id,
            vars=seeded(clean, self._config),
            run_id=None if run_id is None else check_run_id(run_id),
        )
        run.fingerprint, run.workflow_version = workflow.fingerprint, workflow.version
        if run_id is not None:
            run.identity = identity_of(run, clean)
        if parent_run_id:
            parent = await self._load_other(parent_run_id)
            run.root_run_id = parent_run_id if parent is None else parent.root
        try:
            await self._journal.commit(kernel.create(run, self._performer.stamp()))
        except RevisionConflict:
            found = (await self._journal.load(run.run_id)).run
            if found.identity != run.identity:
                raise RunIdentityConflict(run.run_id, difference(found, run)) from None
        return run.run_id

    async def tick(self, *, workflow: WorkflowSpec[Any], run_id: str, max_steps: int = 100) -> RunState:
        """Move the run until it waits, ends, is paused, is busy elsewhere, or `max_steps` nodes have run.

        Raises `UnknownRun` (a KeyError), `WorkflowMismatch` and `WorkflowChanged` (ValueErrors), and whatever a node
        raises: the run then stays where it was and the ledger has a FAILED record. What a node of a run raises that
        this one has started comes up too; this one waits then, and its next tick tries again. Runs that it starts and
        waits for are driven along, whatever their length; their steps do not count. A second tick of the same run in
        this process waits for the first. When the awaiting task is cancelled, a queued commit is carried through, the
        effect in flight is cancelled and handed back.
        """
        return await self._engine.tick(workflow, run_id, max_steps)

    async def run(
        self,
        workflow: WorkflowSpec[Any],
        *,
        vars: dict[str, Any] | None = None,
        actor_id: str | None = None,
        session_id: str | None = None,
        run_id: str | None = None,
    ) -> RunState:
        """Start a run and drive it to a rest: it waits, has ended, or its next attempt is due later."""
        started = await self.start(
            workflow=workflow, vars=vars, actor_id=actor_id, session_id=session_id, run_id=run_id
        )
        before = -1
        while True:
            state = await self.tick(workflow=workflow, run_id=started, max_steps=_RUN_STEPS)
            if state.status is not RunStatus.RUNNING or state.revision == before:
                return state
            before = state.revision

    async def resume(
        self,
        *,
        workflow: WorkflowSpec[Any],
        run_id: str,
        wait_key: str | None,
        payload: Any,
        max_steps: int = 100,
        resume_id: str | None = None,
        actor_id: str | None = None,
    ) -> RunState:
        """Answer what the run waits for and move it on, as `tick` does; `max_steps=0` only commits the answer.

        `wait_key=None` answers whatever waits. With a `resume_id`, the same answer given twice counts once. `actor_id`
        is kept in the record. Raises `StaleResumeError` (a ValueError) when the run does not wait for this,
        `InvalidAnswer` when the answer is none of the allowed choices, or no decision where an effect asks for one,
        `RunPaused`, `UnknownRun`. The result of a subworkflow that the run has taken by itself meanwhile is no error:
        the run moves on as `tick` does.
        """
        answer = admit(payload, "payload", deepest=DEEPEST_GIVEN)
        check_optional(resume_id, "resume_id")
        check_optional(actor_id, "actor_id")
        lookup_key = None if resume_id is None else f"resume:{resume_id}"

        def act(run: RunState, stamp: kernel.Stamp) -> Commit:
            return kernel.answered(run, wait_key, answer, stamp, actor_id=actor_id, lookup_key=lookup_key)

        if lookup_key is None or not await self._answered_before(run_id, lookup_key, wait_key, answer):
            try:
                state = await self._engine.change(run_id, act, workflow)
            except StaleResumeError:
                before = lookup_key is not None and await self._answered_before(run_id, lookup_key, wait_key, answer)
                if not (before or await self._ended_before(run_id, wait_key)):
                    raise
            else:
                if max_steps <= 0:
                    return state
        return await self.tick(workflow=workflow, run_id=run_id, max_steps=max_steps)

    async def retry_run(
        self, run_id: str, *, reason: str | None = None, actor_id: str | None = None, force: bool = False
    ) -> RunState:
        """Let a failed run go on: the node where it stands is asked again, at the next tick, with the vars of now.

        What the node asks for then is a new effect with a new key. A run that runs or waits is returned unchanged.
        Raises `RunNotFailed` for one that ended otherwise, `RunQuarantined` for one that is set apart or, with
        `quarantine_after`, has now failed too often; `force=True` retries it all the same. Raises `UnknownRun`.
        """
        check_optional(reason, "reason")
        check_optional(actor_id, "actor_id")

        def act(run: RunState, stamp: kernel.Stamp) -> Commit | None:
            apart = None if force or run.status is not RunStatus.FAILED else self._node_errors.reason_to_refuse(run)
            if force or (apart is None and run.quarantined is None):
                return kernel.retry_failed(run, reason, actor_id, stamp)
            return kernel.quarantine(run, apart or "", stamp)

        state = await self._engine.change(run_id, act)
        if state.quarantined is not None:
            raise RunQuarantined(
                f"Run {run_id!r} is quarantined: {state.quarantined}. Last error: {state.error}. "
                "Mend what makes it fail, then call retry_run(run_id, force=True)."
            )
        return state

    # -- inside

    async def _load_other(self, run_id: str) -> RunState | None:
        loaded = await self._backend.load(run_id)
        return None if loaded is None else loaded.run

    async def _answered_before(self, run_id: str, lookup_key: str, wait_key: str | None, answer: Any) -> bool:
        for record in await self._backend.find(run_id, lookup_key):
            if record.idempotency_key == lookup_key:
                if kernel.same_answer(record, wait_key, answer):
                    # a pair that cannot commit together may have the record and not the state
                    return self._backend.atomic or await self._is_newer(run_id, record.ended_at or "")
                raise StaleResumeError(
                    f"resume_id {lookup_key.partition(':')[2]!r} of run {run_id!r} has delivered another answer; "
                    "use a fresh resume_id for a fresh answer."
                )
        return False

    async def _ended_before(self, run_id: str, wait_key: str | None) -> bool:
        """Whether this wait for a subworkflow has ended already."""
        if wait_key is None or not wait_key.startswith("subworkflow:"):
            return False
        effects = [record.effect or {} for record in await self._backend.records(run_id)]
        return any(
            effect.get("type") == "resume" and effect["payload"].get("wait_key") == wait_key for effect in effects
        )

    async def _is_newer(self, run_id: str, instant: str) -> bool:
        return (await self.get_state(run_id)).updated_at >= instant
