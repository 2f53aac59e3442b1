"""What went wrong in a remote call, as an `LLMError` that says whether another attempt can help.

The server answers a provider's failure with 500 and writes the provider's status into the text, wrapped twice; that
inner status decides.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ...core.classify import retry_after
from ...core.clock import SYSTEM_CLOCK
from ...core.codec import REFUSALS, decode
from ...core.secrets import scrub
from .normalising import without_data_urls
from .protocols import LLMError

#: statuses below 500 after which another attempt may succeed
_PASSING = {408, 409, 425, 429}
_KINDS = {
    401: "auth",
    403: "auth",
    404: "not_found",
    408: "timeout",
    409: "server",
    425: "server",
    429: "rate_limit",
    499: "cancelled",
}
_INNER_STATUS = re.compile(r"\((4\d\d|5\d\d)\)")
#: texts of failures for which the server has no status of its own
_TEXTS = (
    (re.compile(r"unknown provider|model '[^']*' not found", re.IGNORECASE), "not_found", False),
    (re.compile(r"empty completion", re.IGNORECASE), "empty", True),
    (re.compile(r"timed out", re.IGNORECASE), "timeout", True),
)
#: characters of an error text that are kept
_LONGEST = 2000


def failure_of(status: int, headers: Mapping[str, str], content: bytes) -> LLMError:
    """The error of an answer that is none."""
    return said_failure(reason_in(content), status=status, wait=_retry_after(headers))


def said_failure(text: str, *, status: int = 500, wait: float | None = None) -> LLMError:
    """The error that a text of the server tells, which may come in a stream that began well."""
    inner = _INNER_STATUS.search(text) if status in (500, 502) else None
    actual = int(inner[1]) if inner else status
    kind, retryable = _KINDS.get(actual, "server" if actual >= 500 else "invalid_request"), _helps(actual)
    if inner is None and status >= 500:
        kind, retryable = next(
            ((kind, again) for pattern, kind, again in _TEXTS if pattern.search(text)), (kind, retryable)
        )
    message = f"The AbstractCore server answered {status}: {text}"
    return LLMError(message, kind=kind, retryable=retryable, retry_after=wait, status=actual)


def unreachable(error: BaseException, root: str) -> LLMError:
    """The error of a connection that could not be made or that broke."""
    why = f"{type(error).__name__}: {str(error) or 'no reason given'}"
    return LLMError(f"The AbstractCore server at {root} did not answer ({why}).", kind="connection")


def too_slow(root: str, seconds: float) -> LLMError:
    """The error of an answer that was not complete in time."""
    return LLMError(f"The AbstractCore server at {root} did not answer in full within {seconds:g} s.", kind="timeout")


def unreadable(what: str) -> LLMError:
    """The error of an answer that says yes and nothing that can be used."""
    return LLMError(f"The AbstractCore server gave an answer that cannot be read: {what}.", kind="malformed")


def clean(text: str, hidden: Sequence[str]) -> str:
    """`text` without secrets and contents of files, as it may stand in an error and be journaled."""
    shown: str = scrub(without_data_urls(text), list(hidden))
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]} ..."


def parsed(content: bytes) -> dict[str, Any]:
    """The object in the body of a success."""
    try:
        body = decode(content)
    except REFUSALS as error:
        raise unreadable(f"it is no JSON ({error})") from error
    if not isinstance(body, dict):
        raise unreadable(f"expected a JSON object, found {type(body).__name__}")
    return body


def _helps(status: int) -> bool:
    """Whether another attempt after this status may succeed."""
    return status in _PASSING or status >= 500


def reason_in(content: bytes) -> str:
    """The reason in the body of an error, unwrapped."""
    try:
        body = decode(content)
    except REFUSALS:
        return content[:_LONGEST].decode("utf-8", "replace").strip() or "no reason given"
    error = body.get("error", body.get("detail", body)) if isinstance(body, dict) else body
    for _ in range(3):  # an error in the text of an error
        inner = _literal(error.get("message") if isinstance(error, dict) else error)
        if not isinstance(inner, dict):
            break
        error = inner.get("error", inner)
    if not isinstance(error, dict):
        return str(error)
    text, details = str(error.get("message") or error), error.get("details")
    return f"{text}: {details}" if details else text


def _literal(text: Any) -> Any:
    """The dict that a text writes down as Python does, or None."""
    if not isinstance(text, str) or not text.startswith("{") or len(text) > 100_000:
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, as the header says; a day at most."""
    seconds = retry_after(_Refused(headers), SYSTEM_CLOCK.now())
    return None if seconds is None else min(seconds, 86_400.0)


class _Refused(Exception):
    """An answer as `core.classify` reads errors."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.response = SimpleNamespace(headers=headers)
