"""What an error says about another attempt: whether it can help, and how long to wait before it.

Nothing here knows a client library. Errors are asked for what such libraries commonly put on them: `retryable`,
`retry_after`, a `status_code`, or a `response` with status and headers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

#: a defect of the program stays what it is, however often it is run
_DEFECTS = (TypeError, AttributeError, NameError, ImportError, SyntaxError, NotImplementedError, AssertionError)

#: of the 4xx: request timeout, too early, too many requests. RFC 9110 and RFC 6585
_TRANSIENT = (408, 425, 429)

#: the one format that is to be sent (RFC 9110, section 5.6.7); email.utils reads it too, at the cost of its import
_HTTP_DATE = re.compile(
    r"\w{3}, (?P<day>\d\d) (?P<month>\w{3}) (?P<year>\d{4}) (?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d) GMT"
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def is_retryable(error: BaseException) -> bool:
    """Whether another attempt can help.

    What the error itself says (`error.retryable`) counts first, then an HTTP status: 408, 425, 429 and 5xx are
    transient, other 4xx are not. Defects of the program (TypeError, AttributeError, ...) are not; anything else is.

    >>> is_retryable(TimeoutError()), is_retryable(TypeError("no such argument"))
    (True, False)
    """
    own = getattr(error, "retryable", None)
    if isinstance(own, bool):
        return own
    status = _status(error)
    if status is not None and 400 <= status < 500:
        return status in _TRANSIENT
    return not isinstance(error, _DEFECTS)


def retry_after(error: BaseException, now: datetime) -> float | None:
    """Seconds that the error asks to wait: `error.retry_after`, or the Retry-After header of its response.

    The header holds seconds or an HTTP date (RFC 9110, section 10.2.3); what is neither counts as absent.
    """
    own = getattr(error, "retry_after", None)
    if isinstance(own, int | float) and not isinstance(own, bool) and math.isfinite(own):
        return max(0.0, float(own))
    headers = getattr(getattr(error, "response", None), "headers", None)
    return _seconds(_header(headers), now)


def _status(error: BaseException) -> int | None:
    found = getattr(error, "status_code", None)
    if found is None:
        found = getattr(getattr(error, "response", None), "status_code", None)
    return found if type(found) is int else None


def _header(headers: Any) -> Any:
    if not isinstance(headers, Mapping):
        return None
    return next((value for name, value in headers.items() if str(name).lower() == "retry-after"), None)


def _seconds(text: Any, now: datetime) -> float | None:
    if not isinstance(text, str):
        return None
    if text.strip().isdecimal():
        return float(text)
    found = _HTTP_DATE.fullmatch(text.strip())
    if found is None or found["month"] not in _MONTHS:
        return None
    try:
        day, year, hour, minute, second = map(int, found.group("day", "year", "hour", "minute", "second"))
        at = datetime(year, _MONTHS.index(found["month"]) + 1, day, hour, minute, second, tzinfo=UTC)
    except ValueError:  # no such day
        return None
    return max(0.0, (at - now).total_seconds())
