"""The one place that imports what the extra brings, AbstractCore among it, when something needs it and not before."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

_IMPORTING = threading.RLock()


def needed(module: str, extra: str = "abstractcore") -> Any:
    """The module, imported. Raises ImportError naming the extra where it is not installed.

    >>> core = needed("abstractcore")  # doctest: +SKIP
    """
    try:
        with _IMPORTING, _logging_kept():
            return import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f'{module} is needed here and {error.name} is not installed: pip install "abstractruntime[{extra}]"',
            name=error.name,
        ) from error


@contextmanager
def _logging_kept() -> Iterator[None]:
    """Keep the host's logging: importing AbstractCore takes the handlers off the root logger and raises its level.

    What AbstractCore puts there stays where the host has nothing of its own.
    """
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        yield
    finally:
        root.setLevel(level)
        if handlers and root.handlers != handlers:
            root.handlers[:] = handlers
