"""One attempt at one effect: which handler, which key, which secrets, and whether there is another attempt.

It is where the host's handlers, policy and secrets meet; nothing here commits. What a handler does wrong becomes the
outcome of its effect.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, TypeAlias

from msgspec.structs import replace

from .core import portal
from .core.capacity import Capacity
from .core.classify import is_retryable, retry_after
from .core.clock import Clock
from .core.codec import DEEPEST_GIVEN
from .core.errors import SecretUnavailable, StoreError, StoreTooLarge, UnknownRun
from .core.ids import check_text
from .core.models import Effect, EffectType, Intent, RunState
from .core.outcomes import CancelSignal, EffectCall, EffectOutcome
from .core.policy import EffectPolicy, UnknownRule, has_default_keys, pause_before_retry, unknown_rule
from .core.secrets import Secrets, admit, reveal, scrub
from .effects.handlers import Handler, checked_outcome

log = logging.getLogger("abstractruntime")

#: makes a part of an effect durable
Land: TypeAlias = Callable[[str, Any], Awaitable[None]]


class Attempts:
    """Makes attempts at the effects of one runtime. `whole` says whether its stores commit together."""

    def __init__(
        self,
        *,
        clock: Clock,
        handlers: Mapping[str, Handler],
        policy: EffectPolicy,
        secrets: Secrets | None,
        capacity: Capacity,
        whole: bool,
    ) -> None:
        self._clock, self._handlers, self._secrets = clock, handlers, secrets
        self._whole = whole
        self.capacity = capacity
        self.set_policy(policy)

    def set_policy(self, policy: EffectPolicy) -> None:
        """Ask this policy from the next effect on."""
        self.policy = policy
        self._default_keys = has_default_keys(policy)
        #: whether a recorded result may have to be taken instead of performing: its key is looked up then
        self.may_repeat = not (self._default_keys and self._whole)

    def handler(self, kind: str) -> Handler | None:
        """The handler of effects of this type."""
        return self._handlers.get(kind)

    def default_key(self, run: RunState, node_id: str, effect: Effect) -> str | None:
        """The idempotency key, where the policy's keys are ours and nobody has to be waited for."""
        return self.policy.idempotency_key(run=run, node_id=node_id, effect=effect) if self._default_keys else None

    async def key(self, run: RunState, node_id: str, effect: Effect) -> str:
        """The idempotency key; a user's policy is asked in the caller's thread."""
        default = self.default_key(run, node_id, effect)
        if default is not None:
            return default
        policy = self.policy
        key = await portal.here(lambda: policy.idempotency_key(run=run, node_id=node_id, effect=effect))
        return check_text(key, f"idempotency_key of {type(policy).__name__}")

    async def rule(self, effect: Effect) -> UnknownRule:
        """What to do with an effect whose performer died."""
        return await portal.here(unknown_rule, self.policy, effect)

    async def perform(
        self,
        run: RunState,
        intent: Intent,
        raw: dict[str, Any] | None,
        signal: CancelSignal,
        nodes: Collection[str],
        land: Land | None = None,
    ) -> EffectOutcome:
        """Call the handler and return what may be persisted of its outcome. `run` is a copy that it may change.

        What the handler lands of the effect goes to `land`.
        """
        handler = self._handlers.get(intent.effect.type)
        if handler is None:
            return no_handler(intent.effect)
        try:
            payload, hidden = reveal(intent.effect.payload, raw, self._secrets)
        except SecretUnavailable as error:
            return EffectOutcome.failed(str(error), retryable=False)
        except Exception as error:  # a boundary: the host's own secrets= raised, and its text may hold one
            return EffectOutcome.failed(f"secrets= raised a {type(error).__name__}", retryable=False)
        if signal.is_set():
            return EffectOutcome.cancelled()
        troubles: list[StoreError] = []
        lands = None if land is None else _admitting(land, hidden, troubles)
        call = call_of(run, intent, payload, signal, intent.started_at, lands)
        return await self.outcome(handler, call, nodes, hidden, troubles)

    async def outcome(
        self,
        handler: Handler,
        call: EffectCall,
        nodes: Collection[str],
        hidden: list[str],
        troubles: Collection[StoreError] = (),
    ) -> EffectOutcome:
        """What the handler makes of the call, without the texts that must stay hidden.

        Of `troubles`, which are the runtime's own, none is a failure of the effect.
        """
        try:
            value = handler.run(call) if handler.direct else await handler.run(call)
        except StoreError as error:
            if (
                handler.inside or handler.ours or error in troubles
            ):  # the runtime's own use of its store: no failure of the effect
                raise
            value = await self._failure(call.effect, error)
        except Exception as error:  # a boundary: what a handler raises is the effect's failure
            log.info("The handler of %s raised", call.effect.type, exc_info=error if not hidden else None)
            value = await self._failure(call.effect, error)
        outcome = checked_outcome(value, nodes, hidden)
        # this run is none of the others
        if outcome.elsewhere and any(other.run_id == call.run.run_id for other in outcome.elsewhere):
            own = [change for other in outcome.elsewhere if other.run_id == call.run.run_id for change in other.changes]
            others = tuple(other for other in outcome.elsewhere if other.run_id != call.run.run_id)
            outcome = replace(outcome, changes=(*outcome.changes, *own), elsewhere=others)
        if outcome.requests and not self._whole:
            return EffectOutcome.failed("Requests to other runs need stores that commit together", retryable=False)
        if outcome.messages and not self._whole:
            return EffectOutcome.failed("Messages need stores that commit together", retryable=False)
        return outcome

    async def pause(self, intent: Intent, outcome: EffectOutcome) -> float | None:
        """Seconds until the next attempt, or None when there is none."""
        if outcome.status != "failed" or not outcome.retryable:
            return None
        try:
            return await portal.here(
                pause_before_retry,
                self.policy,
                effect=intent.effect,
                key=intent.key,
                failures=intent.failures + 1,
                retry_after=outcome.retry_after,
            )
        except Exception:  # a boundary: the effect was performed, and its outcome must land whatever a policy raises
            log.exception("%s could not say whether to try again; the effect fails", type(self.policy).__name__)
            return None

    async def _failure(self, effect: Effect, error: Exception) -> EffectOutcome:
        text = str(error) or type(error).__name__
        return EffectOutcome.failed(
            f"Effect handler raised exception: {text}",
            retryable=await self._is_retryable(effect, error),
            retry_after=retry_after(error, self._clock.now()),
        )

    async def _is_retryable(self, effect: Effect, error: Exception) -> bool:
        decide = getattr(self.policy, "is_retryable", None)
        if decide is not None:
            try:
                decided = await portal.here(decide, effect, error)
            except Exception:  # a boundary: the handler's own error is what must be told
                log.exception("%s could not classify an error", type(self.policy).__name__)
            else:
                if decided is not None:
                    return bool(decided)
        return is_retryable(error)


def no_handler(effect: Effect) -> EffectOutcome:
    """The outcome of an effect that nobody handles."""
    if effect.type is EffectType.START_SUBWORKFLOW:
        text = "start_subworkflow cannot be one of several effects. Start several by payload.children of a single one"
        return EffectOutcome.failed(text, retryable=False)
    return EffectOutcome.failed(f"No effect handler registered for {effect.type}", retryable=False)


def too_large(error: StoreTooLarge) -> EffectOutcome:
    """The outcome of an effect whose result the store cannot hold: the same next time, so it is not tried again."""
    return EffectOutcome.failed(f"The result cannot be stored: {error}", retryable=False)


def nowhere(error: UnknownRun) -> EffectOutcome:
    """The outcome of an effect that writes to a run which is not there."""
    return EffectOutcome.failed(f"The effect writes to another run: {error}", retryable=False)


def call_of(
    run: RunState,
    intent: Intent,
    payload: dict[str, Any],
    signal: CancelSignal,
    now: str,
    lands: Callable[[str, Any], Awaitable[Any]] | None = None,
) -> EffectCall:
    """One attempt as its handler sees it."""
    own = run.intent
    if own is not None and own.parts:
        own = next((part for part in own.parts if part.step_id == intent.step_id), None)
    return EffectCall(
        run=run,
        effect=intent.effect if payload is intent.effect.payload else replace(intent.effect, payload=payload),
        node_id=intent.node_id,
        next_node=intent.next_node,
        step_id=intent.step_id,
        key=intent.key,
        attempt=intent.attempt,
        now=now,
        cancelled=signal,
        answer=own.answer if own is not None else None,
        landed=own.landed if own is not None else {},
        lands=lands,
        loop=None if lands is None else asyncio.get_running_loop(),
    )


def _admitting(land: Land, hidden: list[str], troubles: list[StoreError]) -> Callable[[str, Any], Awaitable[Any]]:
    """Lands what may be persisted of a value, and gives it as it was landed; notes what the store could not do."""

    async def lands(part: str, value: Any) -> Any:
        check_text(part, "part")
        safe = admit(value, f"landed {part!r:.80}", deepest=DEEPEST_GIVEN)
        kept = admit(scrub(safe, hidden), f"landed {part!r:.80}")
        try:
            await land(part, kept)
        except StoreTooLarge:  # it would be too large the next time too
            raise
        except StoreError as error:
            troubles.append(error)
            raise
        return kept

    return lands
