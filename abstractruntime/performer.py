"""Effects from promise to settlement: the straight lines below `tick` that touch the world outside.

An inside effect is one commit. An outside effect is promised (the intent is durable and claimed), performed, and
settled. An outcome is never dropped: a conflict at the settle reloads the run and settles again while the run still
holds this very claim.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

from msgspec.structs import replace

from .core import kernel, portal
from .core.clock import Clock, iso
from .core.codec import copy_of_run
from .core.errors import RevisionConflict, SecretUnavailable
from .core.ids import check_text
from .core.journal import Journal
from .core.leases import Flight, Leases
from .core.models import Effect, Intent, RunState, RunStatus, StepPlan, StepRecord, StepStatus
from .core.outcomes import CancelSignal, EffectCall, EffectOutcome
from .core.policy import EffectPolicy, has_default_keys, unknown_rule
from .core.secrets import Secrets, reveal
from .core.shielding import finish
from .effects.handlers import Handler, checked_outcome

log = logging.getLogger("abstractruntime")

#: seconds between two attempts at most: ten years
_LONGEST_PAUSE = 10 * 365 * 86400.0

#: seconds that a cancelled tick may take to hand its effect back
_HAND_BACK_WITHIN = 10.0


class Performer:
    """Performs the effects of one runtime's runs."""

    def __init__(
        self,
        *,
        journal: Journal,
        leases: Leases,
        clock: Clock,
        handlers: Mapping[str, Handler],
        policy: EffectPolicy,
        secrets: Secrets | None,
    ) -> None:
        self._journal, self._leases, self._clock = journal, leases, clock
        self._handlers, self._secrets = handlers, secrets
        self.set_policy(policy)
        #: payloads with their secrets, by run and number, of effects that wait for another attempt of ours
        self._raw: dict[tuple[str, int], dict[str, Any]] = {}
        self._atomic = journal.backend.atomic

    def set_policy(self, policy: EffectPolicy) -> None:
        """Ask this policy from the next effect on."""
        self.policy = policy
        self._default_keys = has_default_keys(policy)

    def stamp(self) -> kernel.Stamp:
        """The present instant and a fresh commit id."""
        return kernel.Stamp(iso(self._clock.now()), self._leases.next_id())

    async def start(
        self, run: RunState, plan: StepPlan, raw: dict[str, Any], stamp: kernel.Stamp, nodes: Collection[str]
    ) -> RunState:
        """Do what a node asked for; `raw` is the payload with its secrets.

        `run.vars` hold the node's changes, admitted; they land with the first commit.
        """
        assert plan.effect is not None
        effect = plan.effect
        if self._default_keys:
            key, reusable = self.policy.idempotency_key(run=run, node_id=plan.node_id, effect=effect), not self._atomic
        else:
            key, reusable = await self._users_key(run, plan, effect), True
        intent = kernel.intent_of(run, plan, effect, key, stamp)
        if reusable:
            found = await self._settled_before(run.run_id, key)
            if found is not None:
                return await self._journal.commit(kernel.reused(run, intent, found, stamp))
        handler = self._handlers.get(effect.type)
        if handler is not None and not handler.inside:
            await self._leases.ensure()
            with self._leases.flight(run.run_id, stamp.id) as flight:
                return await self._perform(
                    kernel.promise(run, intent, self._leases.owner, stamp), handler, flight, raw, nodes, reusable
                )
        if handler is None:
            outcome = EffectOutcome.failed(f"No effect handler registered for {effect.type}", retryable=False)
        else:
            call = self._call(run, intent, raw, CancelSignal(), stamp.at)
            outcome = await self._outcome(handler, call, nodes, [])
        lookup_key = key if reusable and outcome.status == "completed" else None
        return await self._journal.commit(kernel.inside(run, intent, outcome, stamp, lookup_key=lookup_key))

    async def recover(self, run: RunState, *, lost: bool, nodes: Collection[str]) -> RunState:
        """Perform a promised effect that nobody performs: a due retry, one handed back, one whose performer died."""
        assert run.intent is not None
        effect = run.intent.effect
        if not self._atomic:  # the end may be in the ledger although the state never heard of it
            found = await self._settled_before(run.run_id, run.intent.key)
            if found is not None:
                return await self._journal.commit(kernel.reused(run, run.intent, found, self.stamp()))
        if lost:
            rule = await portal.here(unknown_rule, self.policy, effect)
            log.warning("Run %s: the performer of %s died; rule: %s", run.run_id, run.intent.step_id, rule)
            if rule == "fail":
                return await self._journal.commit(kernel.lost(run, self.stamp()))
            if rule == "ask":
                return await self._journal.commit(kernel.ask_unknown(run, self.stamp()))
        handler = self._handlers.get(effect.type)
        if handler is None:
            outcome = EffectOutcome.failed(f"No effect handler registered for {effect.type}", retryable=False)
            return await self._journal.commit(kernel.settle(run, outcome, self.stamp()))
        await self._leases.ensure()
        stamp = self.stamp()
        with self._leases.flight(run.run_id, stamp.id) as flight:
            claim = kernel.claim(run, self._leases.owner, stamp)
            reusable = not (self._atomic and self._default_keys)
            raw = self._raw.get((run.run_id, run.intent.seq))
            return await self._perform(claim, handler, flight, raw, nodes, reusable)

    async def _perform(
        self,
        claim: Any,
        handler: Handler,
        flight: Flight,
        raw: dict[str, Any] | None,
        nodes: Collection[str],
        reusable: bool,
    ) -> RunState:
        try:
            run = await self._journal.commit(claim)
            flight.claimed = True
            intent = run.intent
            assert intent is not None
            outcome = await self._outcome_in_flight(run, intent, handler, flight, raw, nodes)
            run = await self._settle(run, intent, outcome, reusable)
            again = run.intent is not None and run.intent.seq == intent.seq
            if again and raw is not None and raw != intent.effect.payload:
                self._raw[run.run_id, intent.seq] = raw
            else:
                self._raw.pop((run.run_id, intent.seq), None)
            return run
        except asyncio.CancelledError:
            flight.signal.set()
            await finish(self._hand_back(flight), within=_HAND_BACK_WITHIN)
            raise

    async def _outcome_in_flight(
        self,
        run: RunState,
        intent: Intent,
        handler: Handler,
        flight: Flight,
        raw: dict[str, Any] | None,
        nodes: Collection[str],
    ) -> EffectOutcome:
        try:
            payload, hidden = reveal(intent.effect.payload, raw, self._secrets)
        except SecretUnavailable as error:
            return EffectOutcome.failed(str(error), retryable=False)
        except Exception as error:  # a boundary: the host's own secrets= raised, and its text may hold one
            return EffectOutcome.failed(f"secrets= raised a {type(error).__name__}", retryable=False)
        if flight.signal.is_set():
            return EffectOutcome.cancelled()
        call = self._call(copy_of_run(run), intent, payload, flight.signal, intent.started_at)
        return await flight.attend(self._outcome(handler, call, nodes, hidden))

    async def _outcome(
        self, handler: Handler, call: EffectCall, nodes: Collection[str], hidden: list[str]
    ) -> EffectOutcome:
        try:
            value = handler.run(call) if handler.direct else await handler.run(call)
        except Exception as error:  # a boundary: what a handler raises is the effect's failure
            log.info("The handler of %s raised", call.effect.type, exc_info=error if not hidden else None)
            text = str(error) or type(error).__name__
            value = EffectOutcome.failed(f"Effect handler raised exception: {text}")
        outcome = checked_outcome(value, nodes, hidden)
        if outcome.requests and not self._atomic:
            return EffectOutcome.failed("Requests to other runs need stores that commit together", retryable=False)
        return outcome

    async def _settle(self, run: RunState, intent: Intent, outcome: EffectOutcome, reusable: bool) -> RunState:
        lookup_key = intent.key if reusable and outcome.status == "completed" else None
        pause = await self._retry_pause(intent, outcome)
        while True:
            stamp = self.stamp()
            try:
                if pause is None:
                    return await self._journal.commit(kernel.settle(run, outcome, stamp, lookup_key=lookup_key))
                due = iso(self._clock.now() + timedelta(seconds=pause))
                return await self._journal.commit(kernel.retry(run, outcome, due, stamp))
            except RevisionConflict:
                loaded = await self._journal.load(run.run_id)
                run = loaded.run
                if run.intent is None or run.intent.token != intent.token:
                    return await self._too_late(run, intent, outcome)
                if loaded.requests:
                    run = await self._answered(run, loaded.requests) or run
                    if run.intent is None:
                        return await self._too_late(run, intent, outcome)

    async def _answered(self, run: RunState, requests: Any) -> RunState | None:
        try:
            return await self._journal.commit(kernel.answer(run, requests, self.stamp()))
        except RevisionConflict:
            return None  # the settle finds out the same and reloads

    async def _too_late(self, run: RunState, intent: Intent, outcome: EffectOutcome) -> RunState:
        """The claim is gone. Withdrawn: journal what came late. Held by another: it is theirs to end."""
        withdrawn = run.status is RunStatus.CANCELLED and await self._was_cancelled(intent, run.run_id)
        while withdrawn and outcome.status != "cancelled":
            try:
                return await self._journal.commit(kernel.late(run, intent, outcome, self.stamp()))
            except RevisionConflict:
                run = (await self._journal.load(run.run_id)).run
        if not withdrawn:
            log.warning("Run %s: step %s was taken over; its outcome is dropped", run.run_id, intent.step_id)
        return run

    async def _was_cancelled(self, intent: Intent, run_id: str) -> bool:
        """Whether this very attempt was closed by a cancel, and not by whoever took it over before."""
        ends = (r.status for r in await self._journal.backend.records(run_id) if r.step_id == intent.step_id)
        return StepStatus.CANCELLED in ends

    async def _hand_back(self, flight: Flight) -> None:
        while True:
            run = (await self._journal.load(flight.run_id)).run
            if run.intent is None or run.intent.token != flight.token:
                return
            try:
                await self._journal.commit(kernel.hand_back(run, self.stamp()))
                return
            except RevisionConflict:
                continue

    async def _users_key(self, run: RunState, plan: StepPlan, effect: Effect) -> str:
        policy = self.policy
        key = await portal.here(lambda: policy.idempotency_key(run=run, node_id=plan.node_id, effect=effect))
        return check_text(key, f"idempotency_key of {type(policy).__name__}")

    async def _settled_before(self, run_id: str, key: str) -> StepRecord | None:
        found = await self._journal.backend.find(run_id, key)
        matching = [r for r in found if r.idempotency_key == key and r.status is StepStatus.COMPLETED and r.effect]
        return matching[0] if matching else None

    async def _retry_pause(self, intent: Intent, outcome: EffectOutcome) -> float | None:
        """Seconds until the next attempt, or None when there is none."""
        if outcome.status != "failed" or not outcome.retryable:
            return None
        try:
            return await portal.here(self._pause_of_policy, intent)
        except Exception:  # a boundary: the effect was performed, and its outcome must land whatever a policy raises
            log.exception("%s could not say whether to try again; the effect fails", type(self.policy).__name__)
            return None

    def _pause_of_policy(self, intent: Intent) -> float | None:
        failures = intent.failures + 1
        if failures >= self.policy.max_attempts(intent.effect):
            return None
        pause = float(self.policy.backoff_seconds(effect=intent.effect, attempt=failures))
        return min(pause, _LONGEST_PAUSE) if pause > 0 else 0.0  # NaN is not

    def _call(
        self, run: RunState, intent: Intent, payload: dict[str, Any], signal: CancelSignal, now: str
    ) -> EffectCall:
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
        )
