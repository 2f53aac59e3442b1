"""Cancelling a request to a model: the event that AbstractCore polls, and the guard that cuts the connection at once.

AbstractCore runs a call that carries a `cancel_event` under a guard of its own: a connection for this request, and a
thread that watches the event and shuts the socket down. Two things about it cost more than the rest of the call, so
this guard, put in its place where there is one, does them otherwise: the TLS context, which takes tens of
milliseconds to make, is made once per process; and the event itself shuts the socket down, so no thread watches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

from .extra import needed


class CancelEvent(threading.Event):
    """An event that calls whoever asked for it when it is set, in the thread that sets it."""

    def __init__(self) -> None:
        super().__init__()
        self._hooks: list[Callable[[], Any]] = []
        self._guard = threading.Lock()

    def set(self) -> None:
        """Set it; what is hooked to it is called once."""
        with self._guard:
            super().set()
            hooks, self._hooks = self._hooks, []
        for hook in hooks:
            hook()

    def hook(self, function: Callable[[], Any]) -> None:
        """Call `function` when the event is set, which may be now."""
        with self._guard:
            if not self.is_set():
                self._hooks.append(function)
                return
        function()

    def unhook(self, function: Callable[[], Any]) -> None:
        """Call it no more."""
        with self._guard:
            if function in self._hooks:
                self._hooks.remove(function)


def quicken(provider: Any) -> None:
    """Let a provider of AbstractCore use our guard, where this release of it has one to take the place of."""
    guard = _guard()
    if guard is None or not callable(getattr(provider, "_cancel_guard", None)):
        return

    def make(event: Any, url: str) -> Any:
        return guard(event, provider=getattr(provider, "provider", None), model=provider.model, url=url)

    provider._cancel_guard = make


def can_cancel(provider: Any) -> bool:
    """Whether the provider stops a call under way. What does not is let go: its answer is dropped when it comes."""
    asked = getattr(provider, "supports_generation_cancel", None)
    return bool(callable(asked) and asked())


@cache
def _guard() -> Any:
    try:
        base: Any = needed("abstractcore.providers.generation_cancel").HttpCancelGuard
    except (ImportError, AttributeError):  # a release without it
        return None
    if not (hasattr(base, "_sever") and hasattr(base, "client")):
        return None
    httpx = needed("httpx")

    class Guard(base):  # type: ignore[misc]  # of a package that is looked up while the program runs
        """AbstractCore's guard, with a shared TLS context and without a thread."""

        def client(self, *, timeout: Any = None) -> Any:
            """A client for this one request."""
            return httpx.Client(timeout=timeout, verify=_tls())

        def __enter__(self) -> Any:
            if not isinstance(self.event, CancelEvent):
                return super().__enter__()
            self.event.hook(self._sever)
            return self

        def __exit__(self, *error: Any) -> None:
            if isinstance(self.event, CancelEvent):
                self.event.unhook(self._sever)
            super().__exit__(*error)

    return Guard


@cache
def _tls() -> Any:
    return needed("httpx").create_ssl_context()
