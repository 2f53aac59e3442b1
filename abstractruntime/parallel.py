"""A step with several effects under way: each is performed in a task of its own and lands by itself.

The run in memory knows every landing at once, so the step goes on without reading it again. It ends with one commit
when all parts have ended, or when one has failed for good and the others are not waited for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from datetime import timedelta
from typing import Any

from msgspec.structs import replace

from .attempts import Attempts, nowhere, too_large
from .core import kernel
from .core.clock import Clock, iso, parse_instant
from .core.codec import copy_of_run
from .core.errors import RevisionConflict, StoreError, StoreTooLarge, UnknownRun
from .core.journal import Journal
from .core.leases import Flight
from .core.models import Commit, Effect, Elsewhere, Intent, Request, RunState
from .core.outcomes import CancelSignal, EffectOutcome
from .landings import Landing, Landings
from .others import commits_elsewhere

log = logging.getLogger("abstractruntime")


class _Gone(Exception):
    """The claim on the step is gone: withdrawn by a cancel, or taken over."""


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
        stamp: Callable[[], kernel.Stamp],
        answer: Callable[[RunState, tuple[Request, ...], kernel.Stamp], Awaitable[Commit]],
        max_inline_backoff: float,
        too_late: Callable[[RunState, Intent, EffectOutcome], Awaitable[RunState]],
        kept: dict[str, EffectOutcome],
        still_holds: Callable[[Flight], Awaitable[bool]],
        spoke: Callable[[Effect, EffectOutcome], Awaitable[None]],
        run: RunState,
        flight: Flight,
        raws: list[dict[str, Any]] | None,
        nodes: Collection[str],
    ) -> None:
        self._journal, self._attempts, self._clock, self._stamp = journal, attempts, clock, stamp
        self._max_inline_backoff, self._too_late, self._kept = max_inline_backoff, too_late, kept
        self._still_holds, self._answer, self._spoke = still_holds, answer, spoke
        self._run, self._flight, self._raws, self._nodes = run, flight, raws, nodes
        self._landings = Landings(self._land)
        self._parked: list[str] = []
        #: what the store could not take; the effects under way end all the same, and their outcomes are kept
        self._trouble: StoreError | None = None

    async def perform(self) -> RunState:
        """Perform what has not ended, and end the step. Returns the run as it is then, whoever moved it."""
        try:
            outcome = await self._flight.attend(self._all())
        finally:
            await self._landings.close()
        if outcome.status == "cancelled":  # withdrawn, or taken over behind our back
            return (await self._journal.load(self._run.run_id)).run
        if self._trouble is not None:
            raise self._trouble
        try:
            if self._parked and kernel.failure_of(self._intent) is None:
                due = max(self._parked)
                return await self._committed(lambda run, stamp: kernel.park(run, due, stamp))
            return await self._committed(kernel.settle_all)
        except StoreTooLarge as error:
            why = f"The results together cannot be stored: {error}"
            return await self._committed(lambda run, stamp: kernel.settle_all(run, stamp, failure=why))
        except _Gone:
            return self._run

    @property
    def _intent(self) -> Intent:
        intent = self._run.intent
        if intent is None or intent.token != self._flight.token:
            raise _Gone
        return intent

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
        except* _Gone:
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
                landing = self._landings.add(self._ended(part, outcome, due))
                if pause is None:
                    break  # the next in line begins in the commit that this landing is part of
                if not await self._landed(landing, part, outcome):
                    return
            else:
                return
        landed = await self._landed(landing, part, outcome)
        if landed:
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
            raise _Gone
        try:
            outcome = await self._attempts.perform(copy_of_run(self._run), part, raw, signal, self._nodes)
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
        self, landing: asyncio.Future[None], part: Intent | None = None, outcome: EffectOutcome | None = None
    ) -> bool:
        """Whether it is durable. An outcome that the store cannot take is kept, one that comes too late journaled."""
        try:
            await landing
            return True
        except UnknownRun as error:
            assert part is not None
            return await self._landed(self._landings.add(self._ended(part, nowhere(error), None)), part)
        except StoreError as error:
            if part is not None and outcome is not None:
                if isinstance(error, StoreTooLarge) and outcome.status != "failed":
                    return await self._landed(self._landings.add(self._ended(part, too_large(error), None)), part)
                self._kept[part.step_id] = outcome
            self._trouble = error
            return False
        except _Gone:
            if part is not None and outcome is not None:
                await self._too_late(self._run, part, outcome)
            raise

    def _begun(self, part: Intent) -> asyncio.Future[None]:
        return self._landings.add(Landing(lambda run, stamp: kernel.begun_record(run, part, stamp)))

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

    async def _land(self, landings: list[Landing]) -> None:
        requests = tuple(request for landing in landings for request in landing.requests)
        messages = tuple(message for landing in landings for message in landing.messages)
        lookup_key = landings[0].lookup_key

        def commit(run: RunState, stamp: kernel.Stamp) -> Commit:
            records = tuple(landing.record(run, stamp) for landing in landings)
            made = kernel.landing(run, records, requests, stamp, lookup_key=lookup_key)
            return replace(made, messages=messages) if messages else made

        await self._committed(commit, tuple(other for landing in landings for other in landing.elsewhere))

    async def _committed(
        self, make: Callable[[RunState, kernel.Stamp], Commit], elsewhere: tuple[Elsewhere, ...] = ()
    ) -> RunState:
        """Make the commit from the run as it is, again after each conflict while the claim is still ours."""
        while True:
            try:
                _ = self._intent  # or it is gone
                stamp = self._stamp()
                commit = make(self._run, stamp)
                if elsewhere:
                    commit = replace(commit, also=await commits_elsewhere(self._journal, elsewhere, stamp))
                self._run = await self._journal.commit(commit)
                return self._run
            except RevisionConflict:
                await self._reload()

    async def _reload(self) -> None:
        loaded = await self._journal.load(self._run.run_id)
        self._run = loaded.run
        _ = self._intent  # or it is gone
        if loaded.requests:
            try:
                self._run = await self._journal.commit(await self._answer(self._run, loaded.requests, self._stamp()))
            except RevisionConflict:
                await self._reload()
