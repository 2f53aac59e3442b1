"""What an effect handler gets and gives: facts in, data out.

A handler may be written four ways; which one is decided once, when the runtime is built:

* `handler(call)` or any handler with a parameter named `call` or annotated `EffectCall` gets an `EffectCall`;
* `handler(run, effect, default_next_node)` and `handler(run, effect)` are the documented forms.

Each may be `async def`. A sync handler runs in a worker thread. A handler gets copies and returns an `EffectOutcome`;
it never holds the runtime, and what it changes on its copy of the run is lost: `changes` are how it writes to vars.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from msgspec import Struct

from .errors import EffectWithdrawn
from .models import Change as Change  # an address that users import it from
from .models import Effect, Elsewhere, Message, Request, RunState, WaitState
from .questions import Decision, Question

#: seconds between two looks of a thread at whether the loop it waits for is still there
_LOOK_AGAIN = 1.0
_LOOP_GONE = "The loop that performed this effect has ended; it cannot land any more."


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
    #: of a wait: the effect itself waits, and its handler is called again with the answer
    question: Question | None = None

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
    def asking(cls, wait: WaitState, question: Question | None = None) -> EffectOutcome:
        """The effect needs an answer first, one that the rule of `question` takes; by default any.

        The run waits and its effect with it, held by nobody. When `resume()` brings the answer, or the deadline of the
        wait passes (`wait.until`), the handler is called again with the same key, and finds it as `call.answer`. The
        wait is for a user, a job, or an event that somebody delivers by `resume()`; its `result_key` is the effect's.
        Only for an effect that is alone in its step.
        """
        return cls("waiting", wait=wait, question=question or Question())

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

    An effect of several parts can land each as soon as it is done, so that a crash repeats only the others:

    >>> async def send_all(call: EffectCall) -> EffectOutcome:
    ...     for name in call.payload["names"]:
    ...         if name not in call.landed:
    ...             await call.land(name, await send(name, key=f"{call.key}:{name}"))
    ...     return EffectOutcome.completed(call.landed)
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
    #: the answer to what an earlier attempt asked
    answer: Decision | None = None
    #: what was landed of this effect so far, by part, in earlier attempts and in this one
    landed: dict[str, Any] = {}
    #: how the runtime lands a part; a call that was built by hand has none
    lands: Callable[[str, Any], Awaitable[Any]] | None = None
    loop: asyncio.AbstractEventLoop | None = None

    @property
    def payload(self) -> dict[str, Any]:
        """The effect's payload."""
        return self.effect.payload

    async def land(self, part: str, value: Any) -> None:
        """Journal a part of the effect: durable when this returns, and in `landed` now and in every later attempt.

        Parts that come while a commit is on its way share the next one. A part that lands again replaces the earlier
        value. For async handlers; a sync one, in its thread, has `land_blocking`. Raises `UnsafeValue` for what JSON
        cannot carry, `EffectWithdrawn` when the effect was cancelled or taken over, and StoreError when the store could
        not take it; what the handler returns still lands then.
        """
        self.landed[part] = value if self.lands is None else await self.lands(part, value)

    def land_blocking(self, part: str, value: Any) -> None:
        """The same as `land`, for handlers that run in a thread; it blocks until the part is durable.

        Raises RuntimeError on the loop's own thread.
        """
        if self.lands is None or self.loop is None:
            self.landed[part] = value
            return
        self.landed[part] = _run_on(self.loop, self.lands, part, value)


def _run_on(loop: asyncio.AbstractEventLoop, lands: Callable[..., Awaitable[Any]], part: str, value: Any) -> Any:
    """Land on another thread's loop, and block this one until it is done."""
    try:
        blocked = asyncio.get_running_loop() is loop
    except RuntimeError:  # no loop runs in this thread, as it should be
        blocked = False
    if blocked:
        raise RuntimeError("An async handler must `await call.land(...)`; land_blocking() would block its own loop.")

    async def landed() -> Any:
        return await lands(part, value)

    work = landed()
    try:
        future = asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError as error:  # the loop is closed
        work.close()
        raise EffectWithdrawn(_LOOP_GONE) from error
    while True:
        try:
            return future.result(timeout=_LOOK_AGAIN)
        except TimeoutError:
            if future.done():
                raise
            if not loop.is_running():
                raise EffectWithdrawn(_LOOP_GONE) from None


class EffectHandler(Protocol):
    """The shape of a handler that takes an `EffectCall`; it may be async. See the module for the documented forms."""

    def __call__(self, call: EffectCall, /) -> Any:
        """Do the work and return an `EffectOutcome`."""
