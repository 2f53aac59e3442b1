"""What the server's answer means: the documented result of a call, from a whole answer or from a stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...core.codec import REFUSALS, decode
from .normalising import plain, tool_calls_of, usage_of
from .protocols import LLMError
from .remote_failures import said_failure, unreadable

#: ends of an answer that leave it incomplete, and perhaps empty, through no fault
_CUT_OFF = {"length", "max_tokens", "max_output_tokens"}


def result_of(body: Mapping[str, Any], headers: Mapping[str, str], gen_time: float) -> dict[str, Any]:
    """The result of a whole answer. Raises `LLMError` for one that is empty, says that it failed or makes no sense."""
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
        raise unreadable("it has no choices")
    message = choice["message"]
    return _result(
        content=_content(message.get("content")),
        reasoning=message.get("reasoning_content") or message.get("reasoning"),
        tool_calls=message.get("tool_calls"),
        finish_reason=choice.get("finish_reason"),
        body=body,
        trace_id=trace_id_of(headers),
        gen_time=gen_time,
    )


class Stream:
    """A streamed answer as it comes: `feed` its lines, until that says that it has ended."""

    def __init__(self, on_delta: Callable[[str], None]) -> None:
        self._on_delta = on_delta
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._body: dict[str, Any] = {}
        self._finish_reason: str | None = None

    def feed(self, line: str) -> bool:
        """Take a line; whether it was the last. Raises `LLMError` for an error that the server sends in between."""
        field, _, value = line.partition(":")
        if field != "data" or not (text := value.strip()):
            return False
        if text == "[DONE]":
            return True
        try:
            chunk = decode(text)
        except REFUSALS as error:
            raise unreadable(f"a piece of the stream is no JSON ({error})") from error
        if not isinstance(chunk, dict):
            raise unreadable("a piece of the stream is no object")
        if chunk.get("error"):
            told = chunk["error"]
            raise said_failure(str(told.get("message") if isinstance(told, dict) else told))
        self._take(chunk)
        return False

    def result(self, headers: Mapping[str, str], gen_time: float) -> dict[str, Any]:
        """The result of the whole. Raises `LLMError` when the stream broke off."""
        if self._finish_reason is None:
            raise LLMError("The stream of the AbstractCore server broke off before its end.", kind="connection")
        return _result(
            content="".join(self._content),
            reasoning="".join(self._reasoning) or None,
            tool_calls=None,
            finish_reason=self._finish_reason,
            body=self._body,
            trace_id=trace_id_of(headers),
            gen_time=gen_time,
        )

    def _take(self, chunk: dict[str, Any]) -> None:
        self._body |= {key: chunk[key] for key in ("model", "usage", "abstractcore") if chunk.get(key)}
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            if isinstance(delta.get("reasoning_content"), str):
                self._reasoning.append(delta["reasoning_content"])
            if isinstance(delta.get("content"), str) and delta["content"]:
                self._content.append(delta["content"])
                self._on_delta(delta["content"])


def trace_id_of(headers: Mapping[str, str]) -> str | None:
    """The id under which the server traced the call."""
    low = {name.lower(): value for name, value in headers.items()}
    return low.get("x-abstractcore-trace-id") or low.get("x-trace-id")


def _result(
    *,
    content: str,
    reasoning: Any,
    tool_calls: Any,
    finish_reason: Any,
    body: Mapping[str, Any],
    trace_id: str | None,
    gen_time: float,
) -> dict[str, Any]:
    if finish_reason == "error":
        raise LLMError(f"The model failed: {content or 'no reason given'}", kind="server")
    calls, malformed = tool_calls_of(tool_calls)
    if finish_reason not in _CUT_OFF:
        if malformed:
            named = ", ".join(repr(call["name"]) for call in malformed)
            raise LLMError(f"The model called {named} with arguments that are no JSON object.", kind="malformed")
        if not content.strip() and not calls:
            raise LLMError("The model gave an empty answer: no text and no tool call.", kind="empty")
    metadata = plain(body.get("abstractcore") or {})
    if malformed:
        metadata["malformed_tool_calls"] = malformed
    usage = usage_of(body.get("usage"))
    return {
        "content": content,
        "reasoning": reasoning if isinstance(reasoning, str) else None,
        "data": None,
        "raw_response": None,
        "tool_calls": calls or None,
        "usage": usage if usage and any(usage.values()) else None,  # what the server does not know it tells as zeros
        "model": body.get("model"),
        "finish_reason": finish_reason,
        "metadata": metadata,
        "trace_id": trace_id,
        "gen_time": gen_time,
    }


def _content(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
