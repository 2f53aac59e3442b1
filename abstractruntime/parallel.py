"""A step with several effects under way: each is performed in a task of its own and lands by itself.

The run in memory knows every landing at once, so the step goes on without reading it again. It ends with one commit
when all parts have ended, or when one has failed for good and the others are not waited for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from datetime import timedelta
from functools import partial
from typing import Any

from .attempts import Attempts, nowhere, too_large
from .claims import Claim, ClaimGone
from .core import kernel
from .core.clock import Clock, iso, parse_instant
from .core.codec import copy_of_run
from .core.errors import StoreError, StoreTooLarge, UnknownRun
from .core.journal import Journal
from .core.leases import Flight
from .core.models import Effect, Intent, RunState
from .core.outcomes import CancelSignal, EffectOutcome
from .landings import Landing

log = logging.getLogger("abstractruntime")


class _StepFailed(Exception):
    """One effect failed for good, and the step with it."""


class ParallelStep:
    """One claim on a step with several effects, from its first commit to its last."""

    def __init__(
        self,
        *,
        journal: Journal,
        attempts: Attempts,
        clock: Clock,
        claim: Claim,
        max_inline_backoff: float,
        too_late: Callable[[RunState, Intent, EffectOutcome], Awaitable[RunState]],
        kept: dict[str, EffectOutcome],
        still_holds: Callable[[Flight], Awaitable[bool]],
        spoke: Callable[[Effect, EffectOutcome], Awaitable[None]],
        flight: Flight,
        raws: list[dict[str, Any]] | None,
        nodes: Collection[str],
    ) -> None:
        self._journal, self._attempts, self._clock, self._claim = journal, attempts, clock, claim
        self._max_inline_backoff, self._too_late, self._kept = max_inline_backoff, too_late, kept
        self._still_holds, self._spoke = still_holds, spoke
        self._flight, self._raws, self._nodes = flight, raws, nodes
        self._parked: list[str] = []
        #: what the store could not take; the effects under way end all the same, and their outcomes are kept
        self._trouble: StoreError | None = None

    async def perform(self) -> RunState:
        """Perform what has not ended, and end the step. Returns the run as it is then, whoever moved it."""
        try:
            outcome = await self._flight.attend(self._all())
        finally:
            await self._claim.close()
        if outcome.status == "cancelled":  # withdrawn, or taken over behind our back
            return (await self._journal.load(self._claim.run.run_id)).run
        if self._trouble is not None:
            raise self._trouble
        try:
            if self._parked and kernel.failure_of(self._intent) is None:
                due = max(self._parked)
                return await self._claim.committed(lambda run, stamp: kernel.park(run, due, stamp))
            return await self._claim.committed(kernel.settle_all)
        except StoreTooLarge as error:
            why = f"The results together cannot be stored: {error}"
            return await self._claim.committed(lambda run, stamp: kernel.settle_all(run, stamp, failure=why))
        except ClaimGone:
            return self._claim.run

    @property
    def _intent(self) -> Intent:
        return self._claim.intent

    async def _all(self) -> EffectOutcome:
        signals: list[CancelSignal] = []
        gone = False
        width = asyncio.Semaphore(self._intent.width)
        try:
            if kernel.failure_of(self._intent) is None:
                async with asyncio.TaskGroup() as group:
                    for part in self._intent.parts:
                        if part.ended is None:
                            signals.append(CancelSignal())
                            group.create_task(self._part(part.seq, signals[-1], width))
        except* _StepFailed:
            pass
        except* ClaimGone:
            gone = True
        finally:
            for signal in signals:  # a thread that nobody can stop is told at least
                signal.set()
        return EffectOutcome.cancelled() if gone else EffectOutcome.completed()

    async def _part(self, seq: int, signal: CancelSignal, width: asyncio.Semaphore) -> None:
        """Try one effect until it has ended, or its next attempt is far away."""
        async with width:
            while self._trouble is None and await self._is_due(seq):
                async with self._attempts.capacity.place(self._part_now(seq).effect):
                    if not self._part_now(seq).begun and not await self._landed(self._begun(self._part_now(seq))):
                        return
                    part = self._part_now(seq)
                    try:
                        outcome = self._kept.pop(part.step_id, None) or await self._attempt(part, signal)
                    except StoreError as error:  # a built-in effect could not look at the store
                        self._trouble = error
                        return
                pause = await self._attempts.pause(part, outcome)
                due = None if pause is None else iso(self._clock.now() + timedelta(seconds=pause))
                landing = self._claim.add(self._ended(part, outcome, due))
                if pause is None:
                    break  # the next in line begins in the commit that this landing is part of
                if not await self._landed(landing, part, outcome):
                    return
            else:
                return
        landed = await self._landed(landing, part, outcome)
        if landed and outcome.messages:
            await self._spoke(part.effect, outcome)
        if landed and outcome.status != "completed" and not self._intent.collect:
            raise _StepFailed

    async def _is_due(self, seq: int) -> bool:
        """Whether the part's attempt may begin: at once, or when its pause is over. Not when that is far away."""
        due = self._part_now(seq).due
        if due is not None:
            pause = (parse_instant(due) - self._clock.now()).total_seconds()
            if pause > self._max_inline_backoff:
                self._parked.append(due)
                return False
            await self._clock.sleep(max(0.0, pause))
        return True

    async def _attempt(self, part: Intent, signal: CancelSignal) -> EffectOutcome:
        raw = self._raws[part.seq - self._intent.seq] if self._raws else None
        if not await self._still_holds(self._flight):  # this process was stopped meanwhile, and another performs
            raise ClaimGone
        land = partial(self._claim.land, part)
        try:
            outcome = await self._attempts.perform(copy_of_run(self._claim.run), part, raw, signal, self._nodes, land)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return EffectOutcome.failed(f"Effect handler raised exception: {type(error).__name__} {error}")
        if outcome.status == "waiting":
            return EffectOutcome.failed(
                f"{part.effect.type} would wait, and an effect of several may not. Ask for it in a step of its own.",
                retryable=False,
            )
        return outcome

    async def _landed(
        self, landing: Awaitable[None], part: Intent | None = None, outcome: EffectOutcome | None = None
    ) -> bool:
        """Whether it is durable. An outcome that the store cannot take is kept, one that comes too late journaled."""
        try:
            await landing
            return True
        except UnknownRun as error:
            assert part is not None
            return await self._landed(self._claim.add(self._ended(part, nowhere(error), None)), part)
        except StoreError as error:
            if part is not None and outcome is not None:
                if isinstance(error, StoreTooLarge) and outcome.status != "failed":
                    return await self._landed(self._claim.add(self._ended(part, too_large(error), None)), part)
                self._kept[part.step_id] = outcome
            self._trouble = error
            return False
        except ClaimGone:
            if part is not None and outcome is not None:
                await self._too_late(self._claim.run, part, outcome)
            raise

    def _begun(self, part: Intent) -> Awaitable[None]:
        return self._claim.add(Landing(lambda run, stamp: kernel.begun_record(run, part, stamp)))

    def _ended(self, part: Intent, outcome: EffectOutcome, retry_at: str | None) -> Landing:
        completed = outcome.status == "completed"
        return Landing(
            lambda run, stamp: kernel.ended_record(run, part, outcome, stamp, retry_at=retry_at),
            outcome.requests if completed else (),
            part.key if completed and self._attempts.may_repeat else None,
            outcome.elsewhere if completed else (),
            outcome.messages if completed else (),
        )

    def _part_now(self, seq: int) -> Intent:
        return self._intent.parts[seq - self._intent.seq]
