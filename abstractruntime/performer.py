"""Effects from promise to settlement: the straight lines below `tick` that touch the world outside.

An inside effect is one commit. An outside effect is promised (the intent is durable and claimed), performed, and
settled. An outcome is never dropped: a conflict at the settle reloads the run and settles again while the run still
holds this very claim, and what a failing store could not take is kept for the next tick of this process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

from msgspec.structs import replace

from .attempts import Attempts, call_of, no_handler, nowhere, too_large
from .children import Children
from .claims import Claim
from .core import kernel
from .core.clock import Clock, iso
from .core.codec import copy_of_run
from .core.errors import RevisionConflict, StoreError, StoreTooLarge, UnknownRun
from .core.journal import Journal
from .core.leases import Flight, Leases
from .core.models import (
    Commit,
    Effect,
    EffectType,
    Intent,
    Message,
    RunState,
    RunStatus,
    StepPlan,
    StepRecord,
    StepStatus,
)
from .core.outcomes import CancelSignal, EffectOutcome
from .core.shielding import finish
from .effects.events import steps_of
from .others import commits_elsewhere
from .parallel import ParallelStep
from .plans import Raws

log = logging.getLogger("abstractruntime")

#: seconds that a cancelled tick may take to hand its effect back
_HAND_BACK_WITHIN = 10.0

#: outcomes that are kept for a store that could not take them, and payloads with raw secrets
_MOST_KEPT = 1_000


class Performer:
    """Performs the effects of one runtime's runs."""

    def __init__(
        self,
        *,
        journal: Journal,
        leases: Leases,
        clock: Clock,
        attempts: Attempts,
        children: Children,
        max_inline_backoff: float,
        sent: Callable[[tuple[Message, ...], int], Awaitable[None]],
    ) -> None:
        #: told the messages of a step that has landed, and how far their listeners are to be driven
        self._sent = sent
        self._journal, self._leases, self._clock, self._attempts = journal, leases, clock, attempts
        self._children = children
        self._max_inline_backoff = max_inline_backoff
        #: payloads with their secrets, by run and number, of effects that wait for another attempt of ours
        self._raw: dict[tuple[str, int], Raws] = {}
        #: outcomes that the store could not take, by step id
        self._kept: dict[str, EffectOutcome] = {}

    def stamp(self) -> kernel.Stamp:
        """The present instant and a fresh commit id."""
        return kernel.Stamp(iso(self._clock.now()), self._leases.next_id())

    async def start(
        self, run: RunState, plan: StepPlan, raws: Raws, stamp: kernel.Stamp, nodes: Collection[str]
    ) -> RunState:
        """Do what a node asked for; `raws` are the payloads with their secrets.

        `run.vars` hold the node's changes, admitted; they land with the first commit.
        """
        effect = plan.effect
        if effect is None:
            return await self._start_all(run, plan, raws, stamp, nodes)
        attempts = self._attempts
        key = attempts.default_key(run, plan.node_id, effect) or await attempts.key(run, plan.node_id, effect)
        reusable = attempts.may_repeat
        intent = kernel.intent_of(run, plan, effect, key, stamp)
        if reusable:
            found = await self._journal.settled(run.run_id, key)
            if found is not None:
                return await self._journal.commit(kernel.reused(run, intent, found, stamp))
        handler = attempts.handler(effect.type)
        if handler is None and effect.type is EffectType.START_SUBWORKFLOW:
            return await self._children.start(run, intent, stamp, nodes, key if reusable else None)
        if handler is None:
            outcome = no_handler(effect)
        elif handler.inside:
            call = call_of(run, intent, raws[0], CancelSignal(), stamp.at)
            outcome = await attempts.outcome(handler, call, nodes, [])
        else:
            async with attempts.capacity.place(effect):
                if attempts.capacity.may_wait(effect):
                    stamp = self.stamp()  # it may have waited for long
                return await self._claimed(
                    stamp, lambda: kernel.promise(run, intent, self._leases.owner, stamp), run, raws, nodes
                )
        lookup_key = key if reusable and outcome.status == "completed" else None
        try:
            made = kernel.inside(run, intent, outcome, stamp, lookup_key=lookup_key)
            if outcome.elsewhere:
                made = await self._with_others(made, outcome, stamp)
            run = await self._journal.commit(made)
        except UnknownRun as error:
            return await self._journal.commit(kernel.inside(run, intent, nowhere(error), stamp))
        except StoreTooLarge as error:
            return await self._journal.commit(kernel.inside(run, intent, too_large(error), stamp))
        if outcome.messages:
            await self._spoke(effect, outcome)
        return run

    async def recover(self, run: RunState, *, lost: bool, nodes: Collection[str]) -> RunState:
        """Perform a promised effect that nobody performs: a due retry, one handed back, one whose performer died."""
        intent = run.intent
        assert intent is not None
        raws = self._raw.get((run.run_id, intent.seq))
        give_up: set[str] = set()
        if not intent.parts:
            if self._attempts.may_repeat:  # the end may be in the ledger although the state never heard of it
                found = await self._journal.settled(run.run_id, intent.key)
                if found is not None:
                    return await self._journal.commit(kernel.reused(run, intent, found, self.stamp()))
            kept = self._kept.pop(intent.step_id, None)
            if kept is not None:
                return await self._settle(run, intent, kept)
        if lost:
            attempts = [part for part in kernel.in_flight(intent) if part.step_id not in self._kept]
            rules = {part.step_id: await self._attempts.rule(part.effect) for part in attempts}
            log.warning("Run %s: the performer of %s died; rules: %s", run.run_id, intent.step_id, rules)
            if "ask" in rules.values():
                return await self._journal.commit(kernel.ask_unknown(run, self.stamp()))
            give_up = {step_id for step_id, rule in rules.items() if rule == "fail"}
            if give_up and not intent.parts:
                return await self._journal.commit(kernel.lost(run, self.stamp()))
        if not intent.parts and self._attempts.handler(intent.effect.type) is None:
            return await self._journal.commit(kernel.settle(run, no_handler(intent.effect), self.stamp()))
        async with self._attempts.capacity.place(intent.effect):
            stamp = self.stamp()
            return await self._claimed(
                stamp,
                lambda: kernel.claim(
                    run,
                    self._leases.owner,
                    stamp,
                    give_up=give_up,
                    kept=self._kept,
                    later=self._attempts.capacity.may_wait,
                ),
                run,
                raws,
                nodes,
            )

    async def _start_all(
        self, run: RunState, plan: StepPlan, raws: Raws, stamp: kernel.Stamp, nodes: Collection[str]
    ) -> RunState:
        keys = []
        for place, effect in enumerate(plan.effects):
            keys.append(await self._attempts.key(kernel.at_seq(run, place), plan.node_id, effect))
        intent = kernel.intents_of(run, plan, keys, stamp)
        records: tuple[StepRecord, ...] = ()
        if self._attempts.may_repeat:
            intent, records = await self._reused(run, intent, stamp)
        return await self._claimed(
            stamp,
            lambda: kernel.promise(
                run, intent, self._leases.owner, stamp, records=records, later=self._attempts.capacity.may_wait
            ),
            run,
            raws,
            nodes,
        )

    async def _reused(
        self, run: RunState, intent: Intent, stamp: kernel.Stamp
    ) -> tuple[Intent, tuple[StepRecord, ...]]:
        records: list[StepRecord] = []
        for part in intent.parts:
            found = await self._journal.settled(run.run_id, part.key)
            if found is not None:
                intent, record = kernel.reuse(run, intent, part.seq, found, stamp)
                records.append(record)
        return intent, tuple(records)

    async def _claimed(
        self, stamp: kernel.Stamp, claim: Any, run: RunState, raws: Raws | None, nodes: Collection[str]
    ) -> RunState:
        """Commit the claim, perform what it claims, and settle; `stamp.id` is its token."""
        await self._leases.ensure()
        with self._leases.flight(run.run_id, stamp.id) as flight:
            try:
                run = await self._journal.commit(claim())
                flight.claimed = True
                return await self._perform(run, flight, raws, nodes)
            except asyncio.CancelledError:
                flight.signal.set()
                await finish(self._hand_back(flight), within=_HAND_BACK_WITHIN)
                raise

    async def _perform(self, run: RunState, flight: Flight, raws: Raws | None, nodes: Collection[str]) -> RunState:
        intent = run.intent
        assert intent is not None
        claim = Claim(journal=self._journal, stamp=self.stamp, answer=self._children.answer, run=run, flight=flight)
        if intent.parts:
            step = ParallelStep(
                journal=self._journal,
                attempts=self._attempts,
                clock=self._clock,
                claim=claim,
                max_inline_backoff=self._max_inline_backoff,
                too_late=self._too_late,
                kept=self._kept,
                still_holds=self._leases.still_holds,
                spoke=self._spoke,
                flight=flight,
                raws=raws,
                nodes=nodes,
            )
            run = await step.perform()
        else:
            raw = raws[0] if raws else None
            if await self._leases.still_holds(flight):
                land = partial(claim.land, intent)
                work = self._attempts.perform(copy_of_run(run), intent, raw, flight.signal, nodes, land)
                try:
                    outcome = await flight.attend(work)
                finally:
                    await claim.close()
                run = claim.run
            else:  # this process was stopped meanwhile, and another performs it
                outcome = EffectOutcome.cancelled()
            run = await self._settle(run, intent, outcome)
        self._remember(run, intent, raws)
        return run

    def _remember(self, run: RunState, intent: Intent, raws: Raws | None) -> None:
        """Keep the payloads with their secrets for another attempt of ours, if there is one and they have any."""
        again = run.intent is not None and run.intent.seq == intent.seq
        if again and raws is not None and raws != [part.effect.payload for part in intent.parts or (intent,)]:
            self._raw[run.run_id, intent.seq] = raws
            while len(self._raw) > _MOST_KEPT:  # runs may wait for days; their secrets are asked for again then
                del self._raw[next(iter(self._raw))]
        elif self._raw:
            self._raw.pop((run.run_id, intent.seq), None)

    async def _settle(self, run: RunState, intent: Intent, outcome: EffectOutcome) -> RunState:
        lookup_key = intent.key if self._attempts.may_repeat and outcome.status == "completed" else None
        pause = await self._attempts.pause(intent, outcome)
        try:
            while True:
                if run.intent is None or run.intent.token != intent.token:
                    return await self._too_late(run, intent, outcome)
                stamp = self.stamp()
                try:
                    if pause is None:
                        settled = kernel.settle(run, outcome, stamp, lookup_key=lookup_key)
                        if outcome.elsewhere:
                            settled = await self._with_others(settled, outcome, stamp)
                        run = await self._journal.commit(settled)
                        break
                    due = iso(self._clock.now() + timedelta(seconds=pause))
                    return await self._journal.commit(kernel.retry(run, outcome, due, stamp))
                except RevisionConflict:
                    loaded = await self._journal.load(run.run_id)
                    run = loaded.run
                    if loaded.requests and run.intent is not None and run.intent.token == intent.token:
                        run = await self._answered(run, loaded.requests) or run
        except UnknownRun as error:
            return await self._settle(run, intent, nowhere(error))
        except StoreTooLarge as error:
            if outcome.status == "failed":
                raise
            return await self._settle(run, intent, too_large(error))
        except StoreError:
            keep(self._kept, intent.step_id, outcome)
            raise
        if outcome.messages:
            await self._spoke(intent.effect, outcome)
        return run

    async def _spoke(self, effect: Effect, outcome: EffectOutcome) -> None:
        """Move whoever waits for the messages of an outcome that has landed."""
        steps = 0
        if effect.type is EffectType.EMIT_EVENT:
            with suppress(ValueError):  # of a host's own handler, which may understand it otherwise
                steps = steps_of(effect.payload)
        await self._sent(outcome.messages, steps)

    async def _with_others(self, commit: Commit, outcome: EffectOutcome, stamp: kernel.Stamp) -> Commit:
        """The commit with the other runs of `outcome.elsewhere`, as they are now."""
        return replace(commit, also=await commits_elsewhere(self._journal, outcome.elsewhere, stamp))

    async def _answered(self, run: RunState, requests: Any) -> RunState | None:
        try:
            return await self._journal.commit(await self._children.answer(run, requests, self.stamp()))
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


def keep(kept: dict[str, EffectOutcome], step_id: str, outcome: EffectOutcome) -> None:
    """Keep an outcome that the store could not take; the oldest goes when there are too many."""
    kept[step_id] = outcome
    while len(kept) > _MOST_KEPT:
        del kept[next(iter(kept))]
