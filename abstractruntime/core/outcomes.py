"""What an effect handler gets and gives: facts in, data out.

A handler may be written four ways; which one is decided once, when the runtime is built:

* `handler(call)` or any handler with a parameter named `call` or annotated `EffectCall` gets an `EffectCall`;
* `handler(run, effect, default_next_node)` and `handler(run, effect)` are the documented forms.

Each may be `async def`. A sync handler runs in a worker thread. A handler gets copies and returns an `EffectOutcome`;
it never holds the runtime, and what it changes on its copy of the run is lost: `changes` are how it writes to vars.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

from msgspec import Struct

from .models import Change as Change  # an address that users import it from
from .models import Effect, Elsewhere, Message, Request, RunState, WaitState


class EffectOutcome(Struct, frozen=True, gc=False):
    """How an effect ended: `completed`, `waiting`, `failed` or `cancelled`.

    `retryable=False` tells the policy that another attempt cannot help; `retry_after` is how many seconds the next one
    must wait at least. `changes`, `requests`, `elsewhere` (changes to other runs) and `messages` are committed together
    with the result.

    >>> EffectOutcome.completed({"ok": True}).status
    'completed'
    """

    status: str
    result: Any = None
    wait: WaitState | None = None
    error: str | None = None
    retryable: bool = True
    changes: tuple[Change, ...] = ()
    requests: tuple[Request, ...] = ()
    elsewhere: tuple[Elsewhere, ...] = ()
    #: of a failure: seconds before which another attempt is no use
    retry_after: float | None = None
    messages: tuple[Message, ...] = ()

    @classmethod
    def completed(
        cls,
        result: Any = None,
        *,
        changes: tuple[Change, ...] = (),
        requests: tuple[Request, ...] = (),
        elsewhere: tuple[Elsewhere, ...] = (),
        messages: tuple[Message, ...] = (),
    ) -> EffectOutcome:
        """The effect is done; `result` (JSON) goes to `result_key`, unless it is None."""
        return cls("completed", result, changes=changes, requests=requests, elsewhere=elsewhere, messages=messages)

    @classmethod
    def waiting(cls, wait: WaitState) -> EffectOutcome:
        """The run waits; `resume()` delivers the result later."""
        return cls("waiting", wait=wait)

    @classmethod
    def failed(cls, error: str, *, retryable: bool = True, retry_after: float | None = None) -> EffectOutcome:
        """The effect failed with this text; the policy decides whether it is tried again, `retry_after` how soon."""
        return cls("failed", error=error, retryable=retryable, retry_after=retry_after)

    @classmethod
    def cancelled(cls, details: dict[str, Any] | None = None) -> EffectOutcome:
        """The handler gave up because it was told to; the run fails unless it was cancelled."""
        return cls("cancelled", {"cancelled": True, **(details or {})}, error="Effect cancelled", retryable=False)


class CancelSignal:
    """Tells a handler that its result is not wanted any more.

    An async handler is cancelled as well; a sync one, which no one can stop, may poll `is_set()` or `wait(seconds)`.
    """

    __slots__ = ("_event", "_set")

    def __init__(self) -> None:
        self._set = False
        self._event: threading.Event | None = None  # made by the first who waits: most never do

    def is_set(self) -> bool:
        """Whether the effect was cancelled."""
        return self._set

    def wait(self, seconds: float) -> bool:
        """Block this thread until the cancel or for `seconds`; returns whether it came."""
        if self._event is None:
            self._event = threading.Event()
        return self._set or self._event.wait(seconds)

    def set(self) -> None:
        """Cancel. Safe from any thread."""
        self._set = True
        if self._event is not None:
            self._event.set()


class EffectCall(Struct, frozen=True, kw_only=True):
    """One attempt at an effect, as its handler sees it.

    Pass `key` to the outside world: it is the same in every attempt at this effect, also after a crash, and never
    that of another effect. `step_id` differs per attempt. `run` is a copy, `effect` has its secrets resolved.
    """

    run: RunState
    effect: Effect
    node_id: str
    next_node: str | None
    step_id: str
    key: str
    attempt: int
    #: the instant of this attempt, UTC text
    now: str
    cancelled: CancelSignal

    @property
    def payload(self) -> dict[str, Any]:
        """The effect's payload."""
        return self.effect.payload


class EffectHandler(Protocol):
    """The shape of a handler that takes an `EffectCall`; it may be async. See the module for the documented forms."""

    def __call__(self, call: EffectCall, /) -> Any:
        """Do the work and return an `EffectOutcome`."""
