"""The client of an AbstractCore Server: the model runs there, the workflow here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...core import portal
from ...core.clock import SYSTEM_CLOCK, Clock
from ...core.outcomes import CancelSignal
from ...core.secrets import scrub
from ...core.threads import WorkerThreads
from .extra import needed
from .media import content_part, media_list, read_medium
from .protocols import LLMError, OnDelta
from .remote_failures import clean, failure_of, parsed
from .remote_media import RemoteMedia
from .remote_reply import Stream, result_of
from .remote_request import (
    chat_body,
    chat_messages,
    headers_of,
    model_of,
    provider_key,
    schema_of,
    server_root,
    timeout_of,
)
from .remote_residency import residency
from .remote_transport import HttpTransport, SenderTransport, Transport

CHAT = "/v1/chat/completions"
#: what the name of a header that carries a secret has in it
_SECRET = re.compile(r"auth|cookie|key|secret|token|password", re.IGNORECASE)


class RemoteAbstractCoreLLMClient:
    """Asks the models of an AbstractCore Server over HTTP.

    `server_base_url` is its root, with or without `/v1`; `model` is `provider/model`; `headers` go with every request
    (`{"Authorization": "Bearer ..."}`); `timeout_s` bounds a whole call, two hours by default, 0 for no bound. Outputs
    like pictures are kept in `artifact_store`, which is also where media come from. A `request_sender` replaces the
    HTTP: see `SenderTransport`.

    One client may be used from any number of event loops and threads; each loop has a pool of connections of its own.
    A cancelled call closes its connection, which the server passes on to the provider. Nothing is tried again here:
    what may be is told by `LLMError.retryable` and `retry_after`. (The server itself tries a provider up to three times
    within one call, and cannot be told otherwise.)

    >>> client = RemoteAbstractCoreLLMClient(server_base_url="http://127.0.0.1:8000", model="ollama/qwen3:4b")
    ... # doctest: +SKIP
    >>> client.generate(prompt="Say hello.")["content"]  # doctest: +SKIP
    'Hello!'
    """

    def __init__(
        self,
        *,
        server_base_url: str,
        model: str,
        timeout_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        request_sender: Any = None,
        artifact_store: Any = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._root, self._model = server_root(server_base_url), model
        self._timeout_s, self._headers = timeout_s, dict(headers or {})
        self.artifact_store, self._clock = artifact_store, clock
        self._threads = WorkerThreads(16)
        self._http = HttpTransport(self._root) if request_sender is None else None
        self._transport: Transport = self._http or SenderTransport(self._root, request_sender)
        self._media = RemoteMedia(self._transport, self._threads)

    async def agenerate(
        self,
        *,
        prompt: str = "",
        messages: list[dict[str, Any]] | None = None,
        system_prompt: str | None = None,
        tools: list[dict[str, Any]] | None = None,
        media: Any = None,
        params: dict[str, Any] | None = None,
        cancelled: CancelSignal | None = None,
        on_delta: OnDelta | None = None,
    ) -> dict[str, Any]:
        """Ask the model and return its answer: see `AbstractCoreLLMClient`.

        `on_delta` gets the text as it comes. With tools, a schema or media to make it is not called, because the server
        does not stream those faithfully. With `params["output"]` naming pictures or speech the result is that of media.
        Raises `LLMError`, in whose text no secret stands.
        """
        given = params or {}
        hidden = self._secrets(given)
        try:
            if cancelled is not None and cancelled.is_set():
                raise LLMError("The call was cancelled before it began.", kind="cancelled", retryable=False)
            makes = self._media.wanted(given)
            if makes:
                self._media.check(given, media, self.artifact_store)
            conversation = await self._conversation(prompt, messages, system_prompt, media, given)
            if makes:
                result = await self._make(prompt, conversation, given)
            else:
                result = await self._chat(conversation, tools, given, on_delta)
        except LLMError as error:
            error.args = (clean(str(error), hidden),)
            raise
        safe: dict[str, Any] = scrub(result, hidden)
        return safe

    def generate(
        self,
        *,
        prompt: str = "",
        messages: list[dict[str, Any]] | None = None,
        system_prompt: str | None = None,
        tools: list[dict[str, Any]] | None = None,
        media: Any = None,
        params: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The same, blocking. Raises RuntimeError on the loop of the blocking API, where it would wait for itself."""
        return portal.call(
            self.agenerate,
            prompt=prompt,
            messages=messages,
            system_prompt=system_prompt,
            tools=tools,
            media=media,
            params=params,
        )

    async def aresidency(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Ask the server to `list`, `load`, `unload`, `lock` or `unlock` models, with the fields of MODEL_RESIDENCY.

        An answer of the server is returned whatever it says; `LLMError` is raised where there is none.
        """
        hidden = self._secrets(request)
        timeout_s = timeout_of(self._timeout_s, request)
        try:
            answer = await residency(self._transport, operation, request, headers_of(self._headers, request), timeout_s)
        except LLMError as error:
            error.args = (clean(str(error), hidden),)
            raise
        safe: dict[str, Any] = scrub(answer, hidden)
        return safe

    def list_model_residency(self, **request: Any) -> dict[str, Any]:
        """The models that the server holds, blocking: see `aresidency`."""
        return portal.call(self.aresidency, "list", request)

    def load_model_residency(self, **request: Any) -> dict[str, Any]:
        """Load a model there, blocking: see `aresidency`."""
        return portal.call(self.aresidency, "load", request)

    def unload_model_residency(self, **request: Any) -> dict[str, Any]:
        """Unload a model there, blocking: see `aresidency`."""
        return portal.call(self.aresidency, "unload", request)

    def lock_model_residency(self, **request: Any) -> dict[str, Any]:
        """Keep a model there from being unloaded, blocking: see `aresidency`."""
        return portal.call(self.aresidency, "lock", request)

    def unlock_model_residency(self, **request: Any) -> dict[str, Any]:
        """Allow that again, blocking: see `aresidency`."""
        return portal.call(self.aresidency, "unlock", request)

    def get_model_capabilities(self, model_name: str | None = None) -> dict[str, Any]:
        """What AbstractCore knows of a model by its name, without asking anybody."""
        name = model_name or self._model
        facts = needed("abstractcore.architectures").get_model_capabilities(name.partition("/")[2] or name)
        return dict(facts)

    async def aclose(self) -> None:
        """Close the connections. The client can be used again."""
        await self._transport.aclose()

    def close(self) -> None:
        """The same, blocking."""
        portal.call(self.aclose)

    async def _conversation(
        self,
        prompt: str,
        messages: Sequence[Mapping[str, Any]] | None,
        system_prompt: str | None,
        media: Any,
        params: Mapping[str, Any],
    ) -> list[dict[str, Any]]:
        parts = [
            content_part(await self._threads.run(read_medium, item, self.artifact_store)) for item in media_list(media)
        ]
        return chat_messages(
            prompt=prompt, messages=messages, system_prompt=system_prompt, media=parts, schema=schema_of(params)
        )

    async def _chat(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        params: Mapping[str, Any],
        on_delta: OnDelta | None,
    ) -> dict[str, Any]:
        timeout_s = timeout_of(self._timeout_s, params)
        structured = schema_of(params) is not None or params.get("response_format") is not None
        streams = self._http is not None and on_delta is not None and not tools and not structured
        model, headers = model_of(self._model, params), headers_of(self._headers, params)
        body = chat_body(
            model=model, messages=messages, tools=tools, params=params, timeout_s=timeout_s, stream=streams
        )
        began = self._clock.monotonic()
        if streams and self._http is not None and on_delta is not None:
            stream = Stream(on_delta)
            answer = await self._http.stream(CHAT, headers=headers, body=body, timeout_s=timeout_s, on_line=stream.feed)
        else:
            stream = None
            answer = await self._transport.send("POST", CHAT, headers=headers, body=body, timeout_s=timeout_s)
        took = (self._clock.monotonic() - began) * 1000.0
        if not 200 <= answer.status < 300:
            raise failure_of(answer.status, answer.headers, answer.content)
        if stream is not None:
            return stream.result(answer.headers, took)
        return result_of(parsed(answer.content), answer.headers, took)

    async def _make(self, prompt: str, conversation: list[dict[str, Any]], params: Mapping[str, Any]) -> dict[str, Any]:
        """Text first, where it is asked for too: it is what costs less, should the other fail."""
        text: dict[str, Any] = {}
        if self._media.wants_text(params):
            text = await self._chat(conversation, None, params, None)
        return await self._media.make(
            prompt or _last_text(conversation),
            params,
            default_model=model_of(self._model, params),
            headers=headers_of(self._headers, params),
            timeout_s=timeout_of(self._timeout_s, params),
            store=self.artifact_store,
            text=text,
        )

    def _secrets(self, params: Mapping[str, Any]) -> list[str]:
        """The texts that must not leave: in no result and no error."""
        own = [value for name, value in self._headers.items() if _SECRET.search(name)]
        bare = [value.partition(" ")[2] for value in own if " " in value]
        given = [provider_key(params)]
        return [text for text in (*own, *bare, *given) if text and len(text) >= 4]


def _last_text(conversation: list[dict[str, Any]]) -> str:
    """What the user said last."""
    for message in reversed(conversation):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                return " ".join(part["text"] for part in content if part.get("type") == "text")
            return str(content or "")
    return ""
