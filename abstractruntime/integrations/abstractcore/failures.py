"""What a failure of AbstractCore, an SDK below it or the connection means: its kind, and whether to try again.

AbstractCore's errors are known by the names of their classes, so that nothing needs to be imported to read one. A
status of the server says most; where there is none, the connection broke.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from ...core.classify import is_retryable, retry_after
from ...core.clock import SYSTEM_CLOCK
from .protocols import LLMError

#: what the caller did wrong: the same the next time
_OURS = {
    "InvalidRequestError", "UnsupportedFeatureError", "ConfigurationError", "FileProcessingError", "CapabilityError",
}  # fmt: skip
_NOT_FOUND = {"ModelNotFoundError", "UnknownProviderError", "ModelArtifactMismatchError"}
_TRANSIENT = (408, 409, 425, 429)


def as_llm_error(error: BaseException) -> LLMError:
    """The failure as ours, with what the server said about another attempt."""
    if isinstance(error, LLMError):
        return error
    chain = list(_chain(error))
    status = next((found for found in map(_status, chain) if found is not None), None)
    kind, again = _by_status(status) if status is not None else _by_type(error, chain)
    text = str(error) or type(error).__name__
    return LLMError(text, kind=kind, retryable=again, retry_after=_retry_after(chain) if again else None, status=status)


def _by_status(status: int) -> tuple[str, bool]:
    if status in (401, 403):
        return "auth", False
    if status == 404:
        return "not_found", False
    if status in _TRANSIENT:
        return "rate_limit" if status == 429 else "timeout" if status == 408 else "server", True
    return ("server", True) if status >= 500 else ("invalid_request", False)


def _by_type(error: BaseException, chain: list[BaseException]) -> tuple[str, bool]:
    names = {kind.__name__ for kind in type(error).__mro__}
    if "GenerationCancelledError" in names:
        return "cancelled", False
    if "EmptyCompletionError" in names:
        return "empty", True
    if names & _NOT_FOUND:
        return "not_found", False
    if "AuthenticationError" in names:
        return "auth", False
    if "RateLimitError" in names:
        return "rate_limit", True
    if names & _OURS or isinstance(error, ImportError):
        return "configuration", False
    below = {kind.__name__ for cause in chain for kind in type(cause).__mro__}
    if any(isinstance(cause, json.JSONDecodeError) for cause in chain):
        return "malformed", True
    if below & {"TimeoutException", "TimeoutError", "APITimeoutError"}:
        return "timeout", True
    if "ProviderError" in names or below & {"TransportError", "ConnectionError", "APIConnectionError"}:
        return "connection", True
    return "error", is_retryable(error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _status(error: BaseException) -> int | None:
    found = getattr(error, "status_code", None)
    if found is None:
        found = getattr(getattr(error, "response", None), "status_code", None)
    return found if type(found) is int and 400 <= found < 600 else None


def _retry_after(chain: list[BaseException]) -> float | None:
    for error in chain:
        own = getattr(error, "retry_after_s", None)
        found = float(own) if isinstance(own, int | float) else retry_after(error, SYSTEM_CLOCK.now())
        if found is not None:
            return found
    return None
