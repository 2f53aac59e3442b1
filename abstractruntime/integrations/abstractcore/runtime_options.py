"""The arguments of a runtime that the factories hand on as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from ...core.capacity import ConcurrencyKey
from ...core.clock import Clock
from ...core.config import EnforceLimits
from ...core.secrets import Secrets
from ...node_errors import OnNodeError


class RuntimeOptions(TypedDict, total=False):
    """What `AsyncRuntime` takes beside what a factory decides; see there."""

    workflow_registry: Any
    chat_summarizer: Any
    secrets: Secrets | None
    clock: Clock | None
    lease_seconds: float
    max_inline_backoff: float
    effect_limits: Mapping[str, int] | None
    concurrency_key: ConcurrencyKey | None
    key_limit: int | Mapping[str, int] | None
    on_node_error: OnNodeError
    quarantine_after: int | None
    snapshot_store: Any
    enforce_limits: EnforceLimits
    on_close: tuple[Callable[[], Any], ...]
