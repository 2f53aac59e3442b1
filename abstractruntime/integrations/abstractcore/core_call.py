"""One call of AbstractCore: what its `generate` gets, and a stream of it put together."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from .normalising import wire_messages
from .protocols import LLMError, OnDelta
from .providers import ANSWER_MODEL, Route, sends_schemas
from .severing import CancelEvent
from .structured import answer_model, schema_instruction
from .tool_specs import wire_tools

log = logging.getLogger("abstractruntime.abstractcore")

#: characters after which a stream that does not end is given up
MOST_STREAMED = 20_000_000

#: what is ours among the parameters of a call: never sent
_OWN = {
    "_provider", "_model", "base_url", "api_key", "provider_api_key", "response_model", "response_schema",
    "response_schema_name", "timeout_s", "stream", "keep_raw_response", "max_tokens",
}  # fmt: skip

#: what a call decides itself and no parameter may: above all, who executes tools
_DECIDED = {
    "prompt", "text", "request", "messages", "system_prompt", "system", "tools", "media", "execute_tools",
    "cancel_event", "retry_strategy", "artifact_store", ANSWER_MODEL,
}  # fmt: skip


class Ask(Struct, frozen=True, kw_only=True):
    """One call of a model, as it was asked for."""

    route: Route
    prompt: str
    messages: list[dict[str, Any]] | None
    system_prompt: str | None
    tools: list[Any] | None
    media: Any
    params: dict[str, Any]
    timeout: float
    #: texts that must appear neither in the answer nor in an error
    hidden: list[str]

    @property
    def may_stream(self) -> bool:
        """Whether the answer is a text that may come in pieces."""
        return not (self.tools or "response_schema" in self.params or "output" in self.params)


def arguments_of(ask: Ask, provider: Any, media: list[Any]) -> tuple[dict[str, Any], list[str]]:
    """What AbstractCore's `generate` gets, and what the caller should know.

    Messages are always given as such: a bare prompt takes another way through some providers.
    """
    params = ask.params
    sent = {name: value for name, value in params.items() if name not in _OWN | _DECIDED and value is not None}
    if params.get("max_tokens") is not None:
        sent.setdefault("max_output_tokens", params["max_tokens"])
    messages, prompt, system = wire_messages(ask.messages or ()), "", ask.system_prompt
    if media or "output" in sent:  # AbstractCore puts them beside the prompt
        prompt = ask.prompt
        if not prompt and messages and messages[-1].get("role") == "user":
            prompt = str(messages.pop()["content"])
        sent["media"] = media or None
    elif ask.prompt:
        messages.append({"role": "user", "content": ask.prompt})
    schema, warnings = params.get("response_schema"), []
    if schema is not None:
        if sends_schemas(provider):
            sent[ANSWER_MODEL] = answer_model(schema, params.get("response_schema_name"))
        else:
            system = "\n\n".join(part for part in (system, schema_instruction(schema)) if part)
    if ask.tools:
        sent["tools"] = wire_tools(ask.tools)
        if (getattr(provider, "model_capabilities", None) or {}).get("tool_support") == "none":
            warnings.append(f"{ask.route.model} does not support tools: the model was not told of them")
            log.warning("%s", warnings[-1])
    given = {"prompt": prompt, "messages": messages or None, "system_prompt": system, "execute_tools": False}
    return {**given, **sent}, warnings


class Collected:
    """The pieces of a stream, put together as a response."""

    def __init__(self) -> None:
        self.content, self.metadata = "", dict[str, Any]()
        self.usage: Any = None
        self.model: Any = None
        self.finish_reason: Any = None
        self.tool_calls = self.raw_response = self.gen_time = None


def collected(parts: Iterator[Any], event: CancelEvent, deliver: OnDelta) -> Collected:
    """The whole of a stream, each piece of which is delivered. Raises `LLMError` when it is empty or cancelled."""
    whole, texts, length = Collected(), list[str](), 0
    for part in parts:
        if event.is_set():
            raise LLMError("The call was cancelled", kind="cancelled", retryable=False)
        if isinstance(part.content, str) and part.content:
            texts.append(part.content)
            length += len(part.content)
            deliver(part.content)
        if length > MOST_STREAMED:
            raise LLMError(f"The answer did not end within {MOST_STREAMED:,} characters", kind="malformed")
        whole.usage, whole.model = part.usage or whole.usage, part.model or whole.model
        whole.finish_reason = part.finish_reason or whole.finish_reason
        whole.metadata |= part.metadata or {}
    whole.content = "".join(texts)
    if not (whole.content or whole.metadata.get("reasoning")):
        raise LLMError("The model answered with an empty stream", kind="empty")
    timing = whole.metadata.pop("_timing", None)
    if isinstance(timing, dict) and "ttft_ms" in timing:
        whole.metadata["ttft_ms"] = timing["ttft_ms"]
    whole.metadata.pop("reasoning_delta", None)
    return whole
