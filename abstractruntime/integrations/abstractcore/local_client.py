"""Clients that run AbstractCore in this process: one model, or whichever a call names.

A call runs in a worker thread of the client's own, because AbstractCore's sync calls do more than its async ones: they
read tool calls of every kind, notice empty answers, type their errors and can be cut off. Threads are few against what
a model costs, and hundreds of calls may be under way.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

from ...core.outcomes import CancelSignal
from ...core.secrets import scrub
from ...core.threads import WorkerThreads
from .core_call import Ask, arguments_of, collected
from .extra import needed
from .failures import as_llm_error
from .local_residency import local_residency
from .log_scrubbing import unlogged
from .media import media_files
from .media_outputs import kept, made_by_core
from .normalising import text_result
from .protocols import LLMError, OnDelta
from .providers import Providers, Route, is_secret_name
from .severing import CancelEvent, can_cancel

#: calls that one client has under way at once; further ones wait for a thread
MAX_CALLS = 256

#: characters that a real key has at least
_KEY_LENGTH = 16

#: seconds that a call may take in all
DEFAULT_TIMEOUT = 7200.0


class MultiLocalAbstractCoreLLMClient:
    """Models of AbstractCore in this process; a call may name another provider and model than the client does.

    `params._provider`, `_model`, `base_url` and `api_key` say which; a provider is made at the first call that needs
    it and kept for the next. A cancelled `agenerate` closes its connection to the server; providers whose SDK cannot
    be cut off (openai, anthropic) go on in their thread, and the answer is dropped.

    Args:
        provider, model: what is called unless a call says otherwise.
        llm_kwargs: arguments of AbstractCore's `create_llm`, such as `base_url`, `api_key`, `temperature`.
        artifact_store: where media come from and go to.
        max_calls: calls under way at once.
        timeout_s: seconds that a call may take in all; `params.timeout_s` overrides it.

    >>> client = MultiLocalAbstractCoreLLMClient(provider="ollama", model="qwen3:4b")
    >>> client.generate(prompt="Say hello")["content"]  # doctest: +SKIP
    'Hello!'
    """

    def __init__(
        self,
        *,
        provider: str,
        model: str,
        llm_kwargs: dict[str, Any] | None = None,
        artifact_store: Any = None,
        max_calls: int = MAX_CALLS,
        timeout_s: float | None = None,
    ) -> None:
        self._provider, self._model = provider, model
        self._kwargs = dict(llm_kwargs or {})
        self.artifact_store = artifact_store
        self._providers = Providers(provider, self._kwargs)
        self._threads = WorkerThreads(max_calls)
        #: ids of models that are not to be unloaded
        self._locks: set[str] = set()
        self._timeout = DEFAULT_TIMEOUT if timeout_s is None else timeout_s

    def generate(
        self,
        *,
        prompt: str,
        messages: list[dict[str, Any]] | None = None,
        system_prompt: str | None = None,
        tools: list[dict[str, Any]] | None = None,
        media: Any = None,
        params: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Ask the model and return its answer; blocks this thread. Raises `LLMError`."""
        ask = self._ask(prompt, messages, system_prompt, tools, media, params)
        return self._answer(ask, CancelEvent(), None)

    async def agenerate(
        self,
        *,
        prompt: str,
        messages: list[dict[str, Any]] | None = None,
        system_prompt: str | None = None,
        tools: list[dict[str, Any]] | None = None,
        media: Any = None,
        params: dict[str, Any] | None = None,
        cancelled: CancelSignal | None = None,
        on_delta: OnDelta | None = None,
    ) -> dict[str, Any]:
        """Ask the model. With `on_delta`, and neither tools nor a schema, the text comes in pieces, on this loop.

        Raises `LLMError`; of kind `timeout` when the call takes longer than it may.
        """
        ask = self._ask(prompt, messages, system_prompt, tools, media, params)
        if cancelled is not None and cancelled.is_set():
            raise LLMError("The call was cancelled before it began", kind="cancelled", retryable=False)
        event = CancelEvent()
        deliver = None if on_delta is None else _on_loop(on_delta)
        try:
            async with asyncio.timeout(ask.timeout):
                answer: dict[str, Any] = await self._threads.run(self._answer, ask, event, deliver)
        except TimeoutError:
            text = f"{ask.route.provider}/{ask.route.model} did not answer within {ask.timeout:g} seconds"
            raise LLMError(text, kind="timeout") from None
        finally:
            event.set()  # of a call that has ended it stops nothing
        return answer

    async def aclose(self) -> None:
        """Close the connections of all providers."""
        await self._threads.run(self._providers.close)

    def get_model_capabilities(self, model_name: str | None = None) -> dict[str, Any]:
        """What AbstractCore knows of a model: `max_tokens`, `max_output_tokens`, `tool_support`, ... Asks no server."""
        return dict(needed("abstractcore.architectures").get_model_capabilities(model_name or self._model) or {})

    def list_loaded_clients(self) -> list[dict[str, Any]]:
        """The providers made so far, `{"provider", "model", "base_url"}` each."""
        return self._providers.loaded()

    def list_model_residency(self, **request: Any) -> dict[str, Any]:
        """The models that the provider has in memory; blocks. This and its siblings: see `local_residency`."""
        return self._residency("list", request)

    def load_model_residency(self, **request: Any) -> dict[str, Any]:
        """Load a model into the memory of its server."""
        return self._residency("load", request)

    def unload_model_residency(self, **request: Any) -> dict[str, Any]:
        """Take a model out of memory."""
        return self._residency("unload", request)

    def lock_model_residency(self, **request: Any) -> dict[str, Any]:
        """Keep a loaded model from being unloaded by this client."""
        return self._residency("lock", request)

    def unlock_model_residency(self, **request: Any) -> dict[str, Any]:
        """Allow it again."""
        return self._residency("unlock", request)

    # -- inside

    def _route(self, params: dict[str, Any]) -> Route:
        key = params.get("api_key") or params.get("provider_api_key")
        parts = (params.get("_provider") or self._provider, params.get("_model") or self._model)
        for name, value in zip(
            ("provider", "model", "base_url", "api_key"), (*parts, params.get("base_url"), key), strict=True
        ):
            if not isinstance(value, str | None):
                raise _refused(f"{name} must be a text, found a {type(value).__name__}")
        return Route(*parts, params.get("base_url"), key)

    def _ask(self, prompt: str, messages: Any, system_prompt: str | None, tools: Any, media: Any, params: Any) -> Ask:
        params = dict(params or {})
        route = self._route(params)
        hidden = [value for value in (route.api_key, *_secrets_in(self._kwargs)) if isinstance(value, str)]
        return Ask(
            route=route,
            prompt=prompt,
            messages=messages,
            system_prompt=system_prompt,
            tools=tools or None,
            media=media or None,
            params=params,
            timeout=_seconds(params.get("timeout_s")) or self._timeout,
            hidden=[text for text in hidden if len(text) >= 4],
        )

    def _answer(self, ask: Ask, event: CancelEvent, deliver: OnDelta | None) -> dict[str, Any]:
        hidden = list(ask.hidden)
        try:
            with (
                unlogged(hidden),
                self._providers.take(ask.route) as provider,
                media_files(ask.media, self.artifact_store) as media,
            ):
                hidden += _own_key(provider)
                arguments, warnings = arguments_of(ask, provider, media)
                if can_cancel(provider):
                    arguments["cancel_event"] = event
                if deliver is not None and ask.may_stream:
                    response = collected(provider.generate(**arguments, stream=True), event, deliver)
                else:
                    response = provider.generate(**arguments)
            answer = self._result(ask, response)
        except Exception as error:  # a boundary: whatever AbstractCore raises becomes an error of ours
            failure = as_llm_error(error)
            failure.args = (scrub(str(failure), hidden),)
            raise failure from None
        if warnings:
            answer["metadata"]["warnings"] = warnings
        found: dict[str, Any] = scrub(answer, hidden)
        return found

    def _result(self, ask: Ask, response: Any) -> dict[str, Any]:
        if not hasattr(response, "outputs"):
            return text_result(response, keep_raw=bool(ask.params.get("keep_raw_response")))
        return kept(
            made_by_core(response),
            store=self.artifact_store,
            trace=ask.params.get("trace_metadata"),
            text=None if getattr(response, "text", None) is None else text_result(response.text),
            response=response,
            runtime_provider=ask.route.provider,
            runtime_model=ask.route.model,
        )

    def _residency(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        named = {"_provider": request.get("provider"), "_model": request.get("model"), **request}
        route = self._route(named)
        facts = {name: value for name, value in request.items() if name not in ("provider", "model")}
        with self._providers.take(route) as llm:
            return local_residency(
                llm, operation, provider=route.provider, model=route.model, locks=self._locks, **facts
            )


class LocalAbstractCoreLLMClient(MultiLocalAbstractCoreLLMClient):
    """One model of AbstractCore in this process.

    As `MultiLocalAbstractCoreLLMClient`, but a call that names another provider or model fails.
    """

    def _route(self, params: dict[str, Any]) -> Route:
        route = super()._route(params)
        if (route.provider, route.model) != (self._provider, self._model):
            raise LLMError(
                f"This client calls {self._provider}/{self._model} alone, and the call names {route.provider}/"
                f"{route.model}. Use MultiLocalAbstractCoreLLMClient for calls that choose.",
                kind="configuration",
                retryable=False,
            )
        return route


def _seconds(value: Any) -> float | None:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf):
        return value
    raise _refused(f"timeout_s must be a number of seconds, found {value!r:.80}")


def _refused(why: str) -> LLMError:
    return LLMError(f"The call cannot be made: {why}", kind="invalid_request", retryable=False)


def _own_key(provider: Any) -> list[str]:
    """A key that the provider found in the environment; short ones are placeholders, such as `EMPTY`."""
    key = getattr(provider, "api_key", None)
    return [key] if isinstance(key, str) and len(key) >= _KEY_LENGTH else []


def _on_loop(on_delta: OnDelta) -> Callable[[str], None]:
    loop = asyncio.get_running_loop()

    def deliver(text: str) -> None:
        loop.call_soon_threadsafe(on_delta, text)

    return deliver


def _secrets_in(kwargs: dict[str, Any]) -> list[Any]:
    return [value for name, value in kwargs.items() if is_secret_name(name)]
