"""The handlers of the effects that reach models and tools, as one table for a runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...core.models import EffectType
from .llm_call import Delta, make_llm_call_handler
from .residency import make_model_residency_handler
from .tool_calls import make_tool_calls_handler

__all__ = [
    "Delta",
    "build_effect_handlers",
    "make_llm_call_handler",
    "make_model_residency_handler",
    "make_tool_calls_handler",
]


def build_effect_handlers(
    *,
    llm: Any,
    tools: Any = None,
    artifact_store: Any = None,
    run_store: Any = None,
    on_delta: Callable[[Delta], None] | None = None,
) -> dict[str, Callable[..., Any]]:
    """The handlers of LLM_CALL, MODEL_RESIDENCY and TOOL_CALLS, for `effect_handlers=` of a runtime.

    `llm` is an `AbstractCoreLLMClient` and, where it can, controls models too; `tools` is a `ToolExecutor`. For
    `on_delta` see `make_llm_call_handler`.
    """
    return {
        EffectType.LLM_CALL: make_llm_call_handler(llm=llm, artifact_store=artifact_store, on_delta=on_delta),
        EffectType.MODEL_RESIDENCY: make_model_residency_handler(control=llm),
        EffectType.TOOL_CALLS: make_tool_calls_handler(tools=tools, artifact_store=artifact_store, run_store=run_store),
    }
