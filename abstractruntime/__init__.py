"""AbstractRuntime: workflow graphs that survive crashes, deploys and long waits.

A node returns a `StepPlan`; the runtime checkpoints the run and journals the step in one atomic commit; a run that
waits is a row in a database, and any process goes on where another stopped.
"""

from .core.config import LimitWarning, RuntimeConfig
from .core.errors import (
    AbstractRuntimeError,
    InvalidAnswer,
    InvalidCursor,
    InvalidId,
    InvalidPlan,
    InvalidState,
    InvalidWorkflow,
    ReentrantTick,
    RevisionConflict,
    RunIdentityConflict,
    RunNotFailed,
    RunPaused,
    RunQuarantined,
    SecretUnavailable,
    StaleResumeError,
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreSchemaTooNew,
    StoreUnclear,
    StoreVanished,
    UnknownNode,
    UnknownRun,
    UnsafeValue,
    WorkflowChanged,
    WorkflowMismatch,
)
from .core.models import (
    Effect,
    EffectType,
    Request,
    RunState,
    RunStatus,
    StepPlan,
    StepRecord,
    StepStatus,
    WaitReason,
    WaitState,
)
from .core.outcomes import CancelSignal, Change, EffectCall, EffectHandler, EffectOutcome
from .core.policy import DefaultEffectPolicy, EffectPolicy, NoRetryPolicy, RetryPolicy, compute_idempotency_key
from .core.spec import RunContext, WorkflowSpec
from .core.typed import TypedRun
from .following import LedgerEntry
from .identity import ActorFingerprint
from .runtime import AsyncRuntime
from .storage.base import DeletableLedgerStore, DeletableRunStore, Page, QueryableRunStore
from .storage.in_memory import (
    AsyncInMemoryLedgerStore,
    AsyncInMemoryRunStore,
    InMemoryLedgerStore,
    InMemoryRunStore,
)
from .storage.sqlite import (
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
)
from .sync import Runtime

__version__ = "1.0.0"

__all__ = [
    "AbstractRuntimeError",
    "ActorFingerprint",
    "AsyncInMemoryLedgerStore",
    "AsyncInMemoryRunStore",
    "AsyncRuntime",
    "AsyncSqliteLedgerStore",
    "AsyncSqliteRunStore",
    "CancelSignal",
    "Change",
    "DefaultEffectPolicy",
    "DeletableLedgerStore",
    "DeletableRunStore",
    "Effect",
    "EffectCall",
    "EffectHandler",
    "EffectOutcome",
    "EffectPolicy",
    "EffectType",
    "InMemoryLedgerStore",
    "InMemoryRunStore",
    "InvalidAnswer",
    "InvalidCursor",
    "InvalidId",
    "InvalidPlan",
    "InvalidState",
    "InvalidWorkflow",
    "LedgerEntry",
    "LimitWarning",
    "NoRetryPolicy",
    "Page",
    "QueryableRunStore",
    "ReentrantTick",
    "Request",
    "RetryPolicy",
    "RevisionConflict",
    "RunContext",
    "RunIdentityConflict",
    "RunNotFailed",
    "RunPaused",
    "RunQuarantined",
    "RunState",
    "RunStatus",
    "Runtime",
    "RuntimeConfig",
    "SecretUnavailable",
    "SqliteDatabase",
    "SqliteLedgerStore",
    "SqliteRunStore",
    "StaleResumeError",
    "StepPlan",
    "StepRecord",
    "StepStatus",
    "StoreBusy",
    "StoreClosed",
    "StoreCorrupt",
    "StoreError",
    "StoreFull",
    "StoreReadOnly",
    "StoreSchemaTooNew",
    "StoreUnclear",
    "StoreVanished",
    "TypedRun",
    "UnknownNode",
    "UnknownRun",
    "UnsafeValue",
    "WaitReason",
    "WaitState",
    "WorkflowChanged",
    "WorkflowMismatch",
    "WorkflowSpec",
    "compute_idempotency_key",
]
