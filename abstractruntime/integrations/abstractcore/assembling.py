"""The parts of the runtimes that the factories make: client, handlers, stores, policy, and what is closed with them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from msgspec.structs import replace

from ...core.capacity import ConcurrencyKey
from ...core.clock import Clock
from ...core.config import EnforceLimits, RuntimeConfig
from ...core.policy import EffectPolicy, RetryPolicy
from ...core.secrets import Secrets
from ...node_errors import OnNodeError
from ...storage.artifacts import InMemoryArtifactStore
from ...storage.in_memory import InMemoryLedgerStore, InMemoryRunStore
from ...storage.observable import ObservableLedgerStore, ObservableLedgerStoreProtocol
from .effect_handlers import build_effect_handlers
from .llm_call import Delta
from .local_client import DEFAULT_TIMEOUT, MultiLocalAbstractCoreLLMClient
from .remote_client import RemoteAbstractCoreLLMClient
from .tool_executor import AbstractCoreToolExecutor, PassthroughToolExecutor

log = logging.getLogger("abstractruntime.abstractcore")


class BridgeOptions(TypedDict, total=False):
    """What every factory takes: see the module of the factories, and `AsyncRuntime` for what is only handed on."""

    run_store: Any
    ledger_store: Any
    artifact_store: Any
    tool_executor: Any
    tool_timeout_s: float | None
    extra_effect_handlers: Mapping[str, Callable[..., Any]] | None
    on_delta: Callable[[Delta], None] | None
    effect_policy: EffectPolicy | None
    config: RuntimeConfig | None
    context: Any
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


def local_parts(
    provider: str, model: str, llm_kwargs: dict[str, Any] | None, unused: list[str], options: BridgeOptions
) -> dict[str, Any]:
    """The arguments of a runtime whose models run here."""
    if unused:
        log.warning("%s: AbstractCore has settings of its own for this; ignored here", ", ".join(unused))
    given: dict[str, Any] = dict(options)
    store = given.setdefault("artifact_store", None) or InMemoryArtifactStore()
    llm = MultiLocalAbstractCoreLLMClient(provider=provider, model=model, llm_kwargs=llm_kwargs, artifact_store=store)
    known = llm.get_model_capabilities(model)
    given["config"] = _informed(given.get("config") or RuntimeConfig(), provider, model, known)
    return _parts(llm, given, store, given.pop("tool_executor", None) or AbstractCoreToolExecutor())


def remote_parts(
    server_base_url: str,
    model: str,
    headers: Mapping[str, str] | None,
    timeout_s: float | None,
    options: BridgeOptions,
    *,
    tools_here: bool = False,
) -> dict[str, Any]:
    """The arguments of a runtime whose models run on a server."""
    given: dict[str, Any] = dict(options)
    store = given.setdefault("artifact_store", None) or InMemoryArtifactStore()
    llm = RemoteAbstractCoreLLMClient(
        server_base_url=server_base_url, model=model, timeout_s=timeout_s, headers=headers, artifact_store=store
    )
    config = given.get("config") or RuntimeConfig()
    given["config"] = replace(config, model=config.model or model)
    default = AbstractCoreToolExecutor if tools_here else PassthroughToolExecutor
    return _parts(llm, given, store, given.pop("tool_executor", None) or default())


def _parts(llm: Any, given: dict[str, Any], store: Any, tools: Any) -> dict[str, Any]:
    runs, ledger = given.pop("run_store", None), given.pop("ledger_store", None)
    if runs is None or ledger is None:
        runs, ledger = InMemoryRunStore(), InMemoryLedgerStore()
    if not isinstance(ledger, ObservableLedgerStoreProtocol):
        ledger = ObservableLedgerStore(ledger)
    timeout = given.pop("tool_timeout_s", None)
    if callable(getattr(tools, "set_timeout_s", None)):
        tools.set_timeout_s(DEFAULT_TIMEOUT if timeout is None else timeout)
    extra = given.pop("extra_effect_handlers", None)
    handlers = build_effect_handlers(
        llm=llm, tools=tools, artifact_store=store, run_store=runs, on_delta=given.pop("on_delta", None)
    )
    return {
        **given,
        "run_store": runs,
        "ledger_store": ledger,
        "artifact_store": store,
        "effect_handlers": {**handlers, **(extra or {})},
        "effect_policy": given.get("effect_policy") or RetryPolicy(llm_max_attempts=3, tool_max_attempts=1),
        "on_close": (llm.aclose, *given.get("on_close", ())),
    }


def _informed(config: RuntimeConfig, provider: str, model: str, known: dict[str, Any]) -> RuntimeConfig:
    """The config with what is known about the model; what it says itself counts more."""
    return replace(
        config,
        provider=config.provider or provider,
        model=config.model or model,
        model_capabilities={**known, **config.model_capabilities},
    )
