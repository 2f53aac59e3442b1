"""The core: values, borders, contracts, the pure kernel and the journal."""

from .config import LimitWarning, RuntimeConfig
from .models import (
    Effect,
    EffectType,
    RunState,
    RunStatus,
    StepPlan,
    StepRecord,
    StepStatus,
    WaitReason,
    WaitState,
)
from .policy import DefaultEffectPolicy, EffectPolicy, NoRetryPolicy, RetryPolicy, compute_idempotency_key
from .spec import RunContext, WorkflowSpec
from .vars import LIMITS, ensure_limits, get_limits

__all__ = [
    "LIMITS",
    "DefaultEffectPolicy",
    "Effect",
    "EffectPolicy",
    "EffectType",
    "LimitWarning",
    "NoRetryPolicy",
    "RetryPolicy",
    "RunContext",
    "RunState",
    "RunStatus",
    "RuntimeConfig",
    "StepPlan",
    "StepRecord",
    "StepStatus",
    "WaitReason",
    "WaitState",
    "WorkflowSpec",
    "compute_idempotency_key",
    "ensure_limits",
    "get_limits",
]
