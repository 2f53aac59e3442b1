"""A claim on the effects of a step, from its first commit to its last: the run as it is known here, and what lands.

The run in memory knows every landing at once, so nobody reads it again while the claim holds and nothing else happens
to the run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from msgspec.structs import replace

from .core import kernel
from .core.errors import EffectWithdrawn, RevisionConflict
from .core.journal import Journal
from .core.leases import Flight
from .core.models import Commit, Elsewhere, Intent, Request, RunState
from .landings import Landing, Landings
from .others import commits_elsewhere

#: makes the commit that answers requests
Answering: TypeAlias = Callable[[RunState, tuple[Request, ...], kernel.Stamp], Awaitable[Commit]]


class ClaimGone(Exception):
    """The claim on the step is gone: withdrawn by a cancel, or taken over."""


class Claim:
    """One claim; `run` is the run as it is known here."""

    def __init__(
        self, *, journal: Journal, stamp: Callable[[], kernel.Stamp], answer: Answering, run: RunState, flight: Flight
    ) -> None:
        self._journal, self._stamp, self._answer = journal, stamp, answer
        self.run, self.token = run, flight.token
        self._landings: Landings | None = None
        self._closed = False

    @property
    def intent(self) -> Intent:
        """The intent, while it is ours. Raises `ClaimGone`."""
        intent = self.run.intent
        if intent is None or intent.token != self.token:
            raise ClaimGone
        return intent

    def add(self, landing: Landing) -> Awaitable[None]:
        """Queue a landing; what is given is done when it is durable."""
        if self._landings is None:
            self._landings = Landings(self._land)
        return self._landings.add(landing)

    async def land(self, intent: Intent, part: str, value: Any) -> None:
        """Land a part of this effect, or of this one of several, for its handler."""
        if self._closed:
            raise _withdrawn(intent)
        try:
            await self.add(Landing(lambda run, stamp: kernel.landed_record(run, intent, part, value, stamp)))
        except ClaimGone:
            raise _withdrawn(intent) from None

    async def close(self) -> None:
        """Wait for what is on its way, deaf to cancellation; handlers land nothing any more."""
        self._closed = True
        if self._landings is not None:
            await self._landings.close()

    async def committed(
        self, make: Callable[[RunState, kernel.Stamp], Commit], elsewhere: tuple[Elsewhere, ...] = ()
    ) -> RunState:
        """Make the commit from the run as it is, again after each conflict while the claim is still ours."""
        while True:
            try:
                _ = self.intent  # or it is gone
                stamp = self._stamp()
                commit = make(self.run, stamp)
                if elsewhere:
                    commit = replace(commit, also=await commits_elsewhere(self._journal, elsewhere, stamp))
                self.run = await self._journal.commit(commit)
                return self.run
            except RevisionConflict:
                await self._reload()

    async def _land(self, landings: list[Landing]) -> None:
        requests = tuple(request for landing in landings for request in landing.requests)
        messages = tuple(message for landing in landings for message in landing.messages)
        lookup_key = landings[0].lookup_key

        def commit(run: RunState, stamp: kernel.Stamp) -> Commit:
            records = tuple(landing.record(run, stamp) for landing in landings)
            made = kernel.landing(run, records, requests, stamp, lookup_key=lookup_key)
            return replace(made, messages=messages) if messages else made

        await self.committed(commit, tuple(other for landing in landings for other in landing.elsewhere))

    async def _reload(self) -> None:
        loaded = await self._journal.load(self.run.run_id)
        self.run = loaded.run
        _ = self.intent  # or it is gone
        if loaded.requests:
            try:
                self.run = await self._journal.commit(await self._answer(self.run, loaded.requests, self._stamp()))
            except RevisionConflict:
                await self._reload()


def _withdrawn(intent: Intent) -> EffectWithdrawn:
    return EffectWithdrawn(
        f"Step {intent.step_id!r} is not performed here any more: it was cancelled, taken over, or has ended. "
        "Stop; what was done and not landed may be done again."
    )
