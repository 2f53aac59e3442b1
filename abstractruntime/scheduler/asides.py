"""Runs that a driver leaves alone for a while: they failed, did not move, or somebody else may be at them."""

from __future__ import annotations

from math import inf

from ..core.backend import Due
from ..core.models import RunState
from .quarantine import Quarantined, given_up

#: seconds before a run that did not move is looked at again, and the most of them; each time twice as long
_FIRST, _MOST = 0.5, 60.0

#: seconds before it is asked again whether a workflow is known by now, or whether others have moved what was given up
_UNKNOWN, _GIVEN_UP = 30.0, 60.0


class Aside:
    """Why and how long one run is left alone."""

    __slots__ = ("errors", "forgiven", "given_up", "looks", "place", "revision", "told", "until")

    def __init__(self) -> None:
        self.until = 0.0
        #: the revision at which it did not move; None where no revision would help
        self.revision: int | None = None
        #: errors in a row, and looks that found it where it was
        self.errors = self.looks = 0
        #: of the errors that the run itself counts, those before it was requeued
        self.forgiven = 0
        #: why it is moved no more, and where it stood then
        self.given_up: Quarantined | None = None
        self.place = 0
        #: whether its host was told that nobody knows its workflow
        self.told = False


class Asides:
    """The runs that are left alone, by id. Times are those of the monotonic clock, in seconds."""

    def __init__(self, *, pause: float, give_up_after: int) -> None:
        self._pause, self._give_up_after = pause, give_up_after
        self._asides: dict[str, Aside] = {}

    def __len__(self) -> int:
        return len(self._asides)

    def resting(self, now: float) -> list[str]:
        """Runs that are not to be looked at now."""
        return [run_id for run_id, one in self._asides.items() if one.until > now and not _is_watched(one)]

    def watched(self, now: float) -> list[str]:
        """Runs that are not to be looked at now either, unless whoever may be at them has died."""
        return [run_id for run_id, one in self._asides.items() if one.until > now and _is_watched(one)]

    def given_up(self) -> list[Quarantined]:
        """Those that are moved no more, the last first."""
        found = [one.given_up for one in self._asides.values() if one.given_up is not None]
        return sorted(found, key=lambda one: one.since, reverse=True)

    def next_end(self, now: float) -> float:
        """When the first of them is to be looked at again."""
        return min((aside.until for aside in self._asides.values() if aside.until > now), default=inf)

    def admits(self, row: Due, now: float, *, wary: bool) -> bool:
        """Whether to move it now.

        With `wary`, a run that may be between two commits of somebody else is moved only when it stands where it
        stood a pause before.
        """
        aside = self._asides.get(row.run_id)
        if aside is not None and aside.given_up is not None:
            stands = aside.revision == row.revision
            aside.until = now + _GIVEN_UP * stands
            return not stands  # see `stands`
        if aside is not None and aside.revision is not None:
            died = aside.until > now and not row.between  # else it would not have come before its time
            if died or aside.revision != row.revision:
                del self._asides[row.run_id]
                aside = None
        if aside is None and wary and row.between:
            self._at(row.run_id, until=now + self._pause).revision = row.revision
            return False
        return aside is None or aside.until <= now

    def forget(self, run_id: str) -> None:
        """It moved, or somebody did something to it."""
        self._asides.pop(run_id, None)

    def unmoved(self, run_id: str, revision: int, now: float) -> None:
        """A tick left it where it was."""
        aside = self._at(run_id)
        aside.until = now + min(_MOST, _FIRST * 2 ** min(aside.looks, 10))
        aside.revision, aside.looks = revision, aside.looks + 1

    def failed(self, run_id: str, now: float) -> None:
        """A tick raised, through no fault of the run's own."""
        aside = self._at(run_id)
        self._put_off(aside, now)
        aside.looks += 1

    def raised(self, run: RunState, error: Exception, now: float, at: str) -> bool:
        """A tick of this run raised, which stands so now; False where it is moved no more.

        The run itself knows how often in a row its node raised, so what was given up in an earlier life of this
        process, or by another, gets one more try.
        """
        aside = self._at(run.run_id)
        aside.errors = max(aside.errors + 1, run.node_errors - aside.forgiven)
        if aside.errors < self._give_up_after:
            self._put_off(aside, now)
            return True
        aside.until, aside.revision, aside.place = now + _GIVEN_UP, run.revision, _place(run)
        aside.given_up = given_up(run, aside.errors, error, at)
        return False

    def is_given_up(self, run_id: str) -> bool:
        """Whether it was moved no more, and is to be looked at: others may have moved it."""
        aside = self._asides.get(run_id)
        return aside is not None and aside.given_up is not None

    def stands(self, run: RunState, now: float) -> bool:
        """Whether a run that is moved no more stands where it stood, however often others have tried it since."""
        aside = self._asides[run.run_id]
        if aside.place != _place(run):
            del self._asides[run.run_id]
            return False
        aside.until, aside.revision = now + _GIVEN_UP, run.revision
        return True

    def requeue(self, run: RunState, now: float) -> None:
        """Let it be moved again, as often as if it had never raised."""
        aside = self._asides[run.run_id] = Aside()
        aside.forgiven, aside.until = run.node_errors, now

    def _put_off(self, aside: Aside, now: float) -> None:
        aside.until = now + min(_MOST, _FIRST * 2 ** min(aside.errors + aside.looks, 10))
        aside.revision = None

    def unknown(self, run_id: str, now: float) -> bool:
        """Nobody knows its workflow; whether this is new."""
        aside = self._at(run_id, until=now + _UNKNOWN)
        news, aside.told, aside.revision = not aside.told, True, None
        return news

    def sweep(self, now: float) -> None:
        """Forget those that have moved without being seen, long ago."""
        gone = [run_id for run_id, aside in self._asides.items() if aside.until < now - 2 * _MOST]
        for run_id in gone:
            del self._asides[run_id]

    def _at(self, run_id: str, until: float = 0.0) -> Aside:
        aside = self._asides.setdefault(run_id, Aside())
        aside.until = until
        return aside


def _is_watched(aside: Aside) -> bool:
    return aside.revision is not None and aside.given_up is None


def _place(run: RunState) -> int:
    """What changes with each commit of a run, but for those that say that its node has raised."""
    return run.revision - run.node_errors
