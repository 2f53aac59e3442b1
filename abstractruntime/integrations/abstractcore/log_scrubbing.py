"""Keeping keys out of what AbstractCore logs: a server that refuses a key may repeat it, and AbstractCore logs that."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ...core.secrets import scrub

#: the texts that must not be logged by this call
_HIDDEN: ContextVar[Sequence[str]] = ContextVar("hidden", default=())


class _Scrubbing(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        hidden = _HIDDEN.get()
        if hidden:
            record.msg, record.args = scrub(record.getMessage(), list(hidden)), None
        return True


_FILTER = _Scrubbing()


def watch_logs(provider: Any) -> None:
    """Scrub what this provider logs, and what AbstractCore logs about its attempts."""
    for name in (type(provider).__name__, "abstractcore.core.retry"):
        logging.getLogger(name).addFilter(_FILTER)  # once, however often


@contextmanager
def unlogged(hidden: list[str]) -> Iterator[None]:
    """Inside, these texts, and those added to the list meanwhile, are in no line of the watched loggers."""
    token = _HIDDEN.set(hidden)
    try:
        yield
    finally:
        _HIDDEN.reset(token)
