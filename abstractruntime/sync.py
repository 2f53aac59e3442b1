"""`Runtime`: the blocking twin of `AsyncRuntime`, one line per method."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from types import TracebackType
from typing import Any

from .core.capacity import ConcurrencyKey
from .core.clock import Clock
from .core.config import EnforceLimits, LimitWarning, RuntimeConfig
from .core.layers import LedgerCallback
from .core.models import RunState
from .core.policy import EffectPolicy
from .core.portal import drive, twin
from .core.secrets import Secrets
from .core.spec import RunContext, WorkflowSpec
from .following import Follower, LedgerEntry, blocking_entries
from .node_errors import OnNodeError
from .runtime import AsyncRuntime
from .storage.opening import open_stores


class Runtime:
    """Runs workflows durably, for programs without an event loop.

    Every method blocks its thread until its work is durable, and is safe to call from any thread, from nodes and from
    ledger callbacks. The work itself runs on one loop thread of the process, but nodes, policies and ledger callbacks
    run in the thread that called, in order, before the method returns. Sync effect handlers run in worker threads.
    Ctrl-C cancels the call in progress and hands its effect back. Under a running loop a method blocks that loop; code
    with a loop of its own is better served by `AsyncRuntime`.

    The arguments are those of `AsyncRuntime`, which this one keeps as `aio`. Only `max_inline_backoff` has another
    default: a blocking `tick` waits out pauses between attempts of up to a minute itself.

    >>> with Runtime(run_store=InMemoryRunStore(), ledger_store=InMemoryLedgerStore()) as rt:
    ...     run_id = rt.start(workflow=workflow)
    ...     state = rt.tick(workflow=workflow, run_id=run_id)
    ...     if state.waiting:
    ...         answer = {"text": "yes"}
    ...         state = rt.resume(
    ...             workflow=workflow, run_id=run_id, wait_key=state.waiting.wait_key, payload=answer
    ...         )
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
        max_inline_backoff: float = 60.0,
        effect_limits: Mapping[str, int] | None = None,
        concurrency_key: ConcurrencyKey | None = None,
        key_limit: int | Mapping[str, int] | None = None,
        on_node_error: OnNodeError = "raise",
        quarantine_after: int | None = None,
        snapshot_store: Any = None,
        enforce_limits: EnforceLimits = None,
    ) -> None:
        self.aio = AsyncRuntime(
            run_store=run_store,
            ledger_store=ledger_store,
            effect_handlers=effect_handlers,
            context=context,
            workflow_registry=workflow_registry,
            artifact_store=artifact_store,
            effect_policy=effect_policy,
            config=config,
            chat_summarizer=chat_summarizer,
            secrets=secrets,
            clock=clock,
            lease_seconds=lease_seconds,
            max_inline_backoff=max_inline_backoff,
            effect_limits=effect_limits,
            concurrency_key=concurrency_key,
            key_limit=key_limit,
            on_node_error=on_node_error,
            quarantine_after=quarantine_after,
            snapshot_store=snapshot_store,
            enforce_limits=enforce_limits,
        )

    @classmethod
    def open(cls, url: str, **options: Any) -> Runtime:
        """See `AsyncRuntime.open`; its stores are the blocking ones."""
        opened = open_stores(url)
        runtime = cls(**{**opened.given(), **options})
        runtime.aio._opened = opened
        return runtime

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hand back the effects in flight, give up the lease, end who follows. The stores stay open: they are yours.
        Those of a runtime that was made by `open` are closed.

        A program that forgets it still exits; others then learn that its runs are free when they notice that its
        process is gone, or when its lease has run out.
        """
        drive(self.aio.aclose)

    # -- what it was built from

    @property
    def run_store(self) -> Any:
        """The run store as given."""
        return self.aio.run_store

    @property
    def ledger_store(self) -> Any:
        """The ledger store as given."""
        return self.aio.ledger_store

    @property
    def workflow_registry(self) -> Any:
        """The registry as given; anything with `get(workflow_id)`."""
        return self.aio.workflow_registry

    @property
    def artifact_store(self) -> Any:
        """The artifact store as given; nodes find it as `run._runtime_artifact_store`."""
        return self.aio.artifact_store

    @property
    def effect_policy(self) -> EffectPolicy:
        """The policy in force."""
        return self.aio.effect_policy

    @property
    def config(self) -> RuntimeConfig:
        """The configuration that new runs are seeded with."""
        return self.aio.config

    @property
    def snapshot_store(self) -> Any:
        """The snapshot store as given."""
        return self.aio.snapshot_store

    @property
    def _run_store(self) -> Any:  # programs in the field read this name
        return self.aio.run_store

    @property
    def _ctx(self) -> RunContext:  # and this one
        return self.aio._ctx

    def set_workflow_registry(self, registry: Any) -> None:
        """Replace the registry."""
        self.aio.set_workflow_registry(registry)

    def set_artifact_store(self, store: Any) -> None:
        """Replace the artifact store."""
        self.aio.set_artifact_store(store)

    def set_effect_policy(self, policy: EffectPolicy) -> None:
        """Replace the policy, from the next effect on."""
        self.aio.set_effect_policy(policy)

    # -- moving runs

    def start(
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
        return drive(
            self.aio.start,
            workflow=workflow,
            vars=vars,
            actor_id=actor_id,
            session_id=session_id,
            parent_run_id=parent_run_id,
            run_id=run_id,
        )

    def tick(self, *, workflow: WorkflowSpec[Any], run_id: str, max_steps: int = 100) -> RunState:
        """Move the run until it waits, ends, is paused, is busy elsewhere, or `max_steps` nodes have run.

        Raises `UnknownRun` (a KeyError), `WorkflowMismatch` and `WorkflowChanged` (ValueErrors), and whatever a node
        raises: the run then stays where it was and the ledger has a FAILED record. What a node of a run raises that
        this one has started comes up too; this one waits then, and its next tick tries again. Runs that it starts and
        waits for are driven along, whatever their length; their steps do not count. A second tick of the same run in
        this process waits for the first; one from inside a node of the run itself raises `ReentrantTick`.
        """
        return drive(self.aio.tick, workflow=workflow, run_id=run_id, max_steps=max_steps)

    def run(
        self,
        workflow: WorkflowSpec[Any],
        *,
        vars: dict[str, Any] | None = None,
        actor_id: str | None = None,
        session_id: str | None = None,
        run_id: str | None = None,
    ) -> RunState:
        """Start a run and drive it to a rest: it waits, has ended, or its next attempt is due later."""
        return drive(self.aio.run, workflow, vars=vars, actor_id=actor_id, session_id=session_id, run_id=run_id)

    def resume(
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
        `InvalidAnswer` when the answer is none of the allowed choices, `RunPaused`, `UnknownRun`. The result of a
        subworkflow that the run has taken by itself meanwhile is no error: the run moves on as `tick` does.
        """
        return drive(
            self.aio.resume,
            workflow=workflow,
            run_id=run_id,
            wait_key=wait_key,
            payload=payload,
            max_steps=max_steps,
            resume_id=resume_id,
            actor_id=actor_id,
        )

    cancel_run = twin(AsyncRuntime.cancel_run)
    pause_run = twin(AsyncRuntime.pause_run)
    resume_run = twin(AsyncRuntime.resume_run)
    resume_subworkflow_parent = twin(AsyncRuntime.resume_subworkflow_parent)

    def retry_run(
        self, run_id: str, *, reason: str | None = None, actor_id: str | None = None, force: bool = False
    ) -> RunState:
        """Let a failed run go on: the node where it stands is asked again, at the next tick, with the vars of now.

        What the node asks for then is a new effect with a new key. A run that runs or waits is returned unchanged.
        Raises `RunNotFailed` for one that ended otherwise, `RunQuarantined` for one that is set apart or, with
        `quarantine_after`, has now failed too often; `force=True` retries it all the same. Raises `UnknownRun`.
        """
        return drive(self.aio.retry_run, run_id, reason=reason, actor_id=actor_id, force=force)

    emit_event = twin(AsyncRuntime.emit_event)

    # -- managing whole runs

    snapshot_run = twin(AsyncRuntime.snapshot_run)
    restore = twin(AsyncRuntime.restore)
    fork = twin(AsyncRuntime.fork)
    delete_run = twin(AsyncRuntime.delete_run)

    # -- looking at runs

    def get_state(self, run_id: str, *, resolve: bool = False) -> RunState:
        """A fresh copy of the run as stored. Raises `UnknownRun` (a KeyError)."""
        return drive(self.aio.get_state, run_id, resolve=resolve)

    def get_ledger(self, run_id: str, *, resolve: bool = False) -> list[dict[str, Any]]:
        """The run's records as dicts, oldest first; `[]` for an unknown run."""
        return drive(self.aio.get_ledger, run_id, resolve=resolve)

    def verify_ledger(self, run_id: str) -> dict[str, Any]:
        """See `AsyncRuntime.verify_ledger`."""
        return drive(self.aio.verify_ledger, run_id)

    def subscribe_ledger(self, callback: LedgerCallback, *, run_id: str | None = None) -> Callable[[], None]:
        """Call `callback(record)` for every record this runtime makes durable; returns an idempotent unsubscribe.

        It runs in the thread whose call made the record, in order, before that call returns. What it raises is
        logged. Raises TypeError for an async callback.
        """
        return self.aio.subscribe_ledger(callback, run_id=run_id)

    def follow_ledger(
        self, run_id: str, *, after: int = 0, follow: bool = True, poll_seconds: float = 0.5
    ) -> Generator[LedgerEntry, None, None]:
        """The run's records behind number `after`, each as a `LedgerEntry`: what is stored, then what comes.

        A generator that blocks until there is one. It ends behind the last record of a run that has ended, and when
        the runtime is closed, by any thread; with `follow=False` at the end of what is stored. To go on later, give
        the `offset` of the last entry as `after`. Commits of this runtime come at once, those of other processes after
        at most `poll_seconds`. Raises `UnknownRun`.
        """
        following = self.aio._following
        return blocking_entries(Follower(following, run_id, after=after, follow=follow, poll_seconds=poll_seconds))

    def stop_following(self) -> None:
        """End every `follow_ledger`, those that are under way and those to come; all else goes on until `close`.

        May be called from any thread, and twice.
        """
        self.aio.stop_following()

    find_runs = twin(AsyncRuntime.find_runs)
    find_waits = twin(AsyncRuntime.find_waits)

    def get_node_traces(self, run_id: str) -> dict[str, Any]:
        """The run's effects per node, `{node_id: {"node_id", "steps", "updated_at"}}`; `{}` for an unknown run."""
        return drive(self.aio.get_node_traces, run_id)

    def get_node_trace(self, run_id: str, node_id: str) -> dict[str, Any]:
        """The trace of one node; `{"node_id", "steps": []}` where there is none."""
        return drive(self.aio.get_node_trace, run_id, node_id)

    list_evidence = twin(AsyncRuntime.list_evidence)
    load_evidence = twin(AsyncRuntime.load_evidence)

    # -- limits

    def get_limit_status(self, run_id: str) -> dict[str, Any]:
        """Iterations, tokens and history beside their limits. Raises `UnknownRun`."""
        return drive(self.aio.get_limit_status, run_id)

    def get_token_usage(self, run_id: str) -> dict[str, int]:
        """Tokens in and out of all LLM calls so far: `run` of this run, `tree` of the whole tree that it belongs to.

        The tree is that of the run at its top: of all that it started, and that those started, as far as they are
        stored. Tokens of calls in parallel count for the run when their step has ended. Raises `UnknownRun`,
        and StoreCorrupt where a run of a folder cannot be read.
        """
        return drive(self.aio.get_token_usage, run_id)

    def check_limits(self, run_state: RunState) -> list[LimitWarning]:
        """The limits that this state has come near to or exceeded."""
        return self.aio.check_limits(run_state)

    def update_limits(self, run_id: str, updates: dict[str, Any]) -> None:
        """Write the documented limits among `updates`; others are ignored. Raises `UnknownRun`, `UnsafeValue`."""
        drive(self.aio.update_limits, run_id, updates)
