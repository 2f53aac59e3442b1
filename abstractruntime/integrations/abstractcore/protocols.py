"""What the bridge asks of an LLM client and of a controller of models, and the error that a client raises.

A client of your own needs `generate` alone, sync or async. Ours also have `agenerate`, which can be cancelled and can
stream, and `aclose`; the handler of LLM_CALL takes them where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from ...core.errors import AbstractRuntimeError
from ...core.outcomes import CancelSignal

#: takes each piece of a text as it comes, in order, on the event loop
OnDelta = Callable[[str], None]


class LLMError(AbstractRuntimeError):
    """A call of a model failed.

    `kind` is one of `rate_limit`, `auth`, `not_found`, `invalid_request`, `server`, `connection`, `timeout`, `empty`
    (an answer without content), `malformed` (an answer that cannot be read), `cancelled`, `configuration`, `error`.
    `retryable` says whether another attempt can help, `retry_after` how many seconds it must wait at least, where the
    server said so. `status` is the HTTP status, where there was one.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str = "error",
        retryable: bool = True,
        retry_after: float | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.kind, self.retryable, self.retry_after, self.status = kind, retryable, retry_after, status


@runtime_checkable
class AbstractCoreLLMClient(Protocol):
    """A client of a model, as the handler of LLM_CALL uses it.

    `params` are the model's own parameters (`temperature`, `max_output_tokens`, ...) and what the handler adds:
    `trace_metadata` (ids of run and step), `_provider` and `_model` (the call's own, instead of the client's),
    `response_schema` and `response_schema_name` (a JSON schema that the answer must fit; the handler validates it).

    The result is a dict of `content`, `reasoning`, `data`, `raw_response`, `tool_calls` (dicts of `name`, `arguments`
    and `call_id`, or None), `usage`, `model`, `finish_reason`, `metadata`, `trace_id`, `gen_time`. Only what is there
    is read. Ours also have

        async agenerate(*, the same, cancelled: CancelSignal | None, on_delta: OnDelta | None) -> dict
        async aclose()
    """

    def generate(
        self,
        *,
        prompt: str,
        messages: list[dict[str, Any]] | None = None,
        system_prompt: str | None = None,
        tools: list[dict[str, Any]] | None = None,
        media: Any = None,
        params: dict[str, Any] | None = None,
    ) -> Any:
        """Ask the model and return its answer, or an awaitable of it. Raises `LLMError`, or whatever it likes."""

    def get_model_capabilities(self, model_name: str | None = None) -> dict[str, Any]:
        """Facts about a model: `max_tokens`, `max_output_tokens`, `tool_support`, ..."""


@runtime_checkable
class AbstractCoreControlClient(Protocol):
    """Whoever loads models into memory and unloads them; each method may be async."""

    def list_model_residency(self, **filters: Any) -> Any:
        """The models that are loaded."""

    def load_model_residency(self, **request: Any) -> Any:
        """Load a model."""

    def unload_model_residency(self, **request: Any) -> Any:
        """Unload a model."""


@runtime_checkable
class AsyncLLMClient(Protocol):
    """A client whose calls can be cancelled and streamed."""

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
        """Ask the model. `on_delta` gets the text as it comes; a cancelled task leaves no request behind."""
