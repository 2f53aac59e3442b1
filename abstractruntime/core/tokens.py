"""What a model says that it used, read from the result of an LLM_CALL. Anybody may write it, so nothing is believed."""

from __future__ import annotations

from typing import Any

#: where a counter of tokens stops: what a double still counts exactly, far below what databases take
MOST_TOKENS = 2**53


def tokens_of(result: Any) -> int:
    """Tokens in and out: `usage.total_tokens`, else the two added up; 0 where `usage` does not say.

    >>> tokens_of({"usage": {"input_tokens": 20, "output_tokens": 5}})
    25
    """
    usage = result.get("usage") if isinstance(result, dict) else None
    if not isinstance(usage, dict):
        return 0
    if "total_tokens" in usage:
        return _number(usage["total_tokens"])
    sent = usage.get("input_tokens", usage.get("prompt_tokens"))
    received = usage.get("output_tokens", usage.get("completion_tokens"))
    return added(_number(sent), _number(received))


def window_used(result: Any) -> int | None:
    """What `_limits.estimated_tokens_used` is after this call: the tokens of its input, or None if it does not say."""
    usage = result.get("usage") if isinstance(result, dict) else None
    if not isinstance(usage, dict):
        return None
    names = ("input_tokens", "prompt_tokens", "total_tokens")
    return next((usage[name] for name in names if type(usage.get(name)) is int), None)


def added(*counts: int) -> int:
    """The sum, which goes no further than `MOST_TOKENS`."""
    return min(sum(counts), MOST_TOKENS)


def _number(value: Any) -> int:
    return min(value, MOST_TOKENS) if type(value) is int and value > 0 else 0
