"""The one place that imports AbstractCore and httpx, when something needs them and not before."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def needed(module: str, extra: str = "abstractcore") -> Any:
    """The module, imported. Raises ImportError naming the extra where it is not installed.

    >>> core = needed("abstractcore")  # doctest: +SKIP
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f'{module} is needed here and {error.name} is not installed: pip install "abstractruntime[{extra}]"',
            name=error.name,
        ) from error
