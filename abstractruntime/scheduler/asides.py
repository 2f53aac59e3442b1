"""Runs that a driver leaves alone for a while: they failed, did not move, or somebody else may be at them."""

from __future__ import annotations

from math import inf

from ..core.backend import Due

#: seconds before a run that did not move is looked at again, and the most of them; each time twice as long
_FIRST, _MOST = 0.5, 60.0

#: seconds before it is asked again whether a workflow is known by now
_UNKNOWN = 30.0


class Aside:
    """Why and how long one run is left alone."""

    __slots__ = ("errors", "looks", "revision", "told", "until")

    def __init__(self) -> None:
        self.until = 0.0
        #: the revision at which it did not move; None where no revision would help
        self.revision: int | None = None
        #: errors in a row, and looks that found it where it was
        self.errors = self.looks = 0
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
        return [run_id for run_id, one in self._asides.items() if one.until > now and one.revision is None]

    def watched(self, now: float) -> list[str]:
        """Runs that are not to be looked at now either, unless whoever may be at them has died."""
        return [run_id for run_id, one in self._asides.items() if one.until > now and one.revision is not None]

    def next_end(self, now: float) -> float:
        """When the first of them is to be looked at again."""
        return min((aside.until for aside in self._asides.values() if aside.until > now), default=inf)

    def admits(self, row: Due, now: float, *, wary: bool) -> bool:
        """Whether to move it now.

        With `wary`, a run that may be between two commits of somebody else is moved only when it stands where it
        stood a pause before.
        """
        aside = self._asides.get(row.run_id)
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

    def failed(self, run_id: str, now: float, *, counts: bool) -> bool:
        """A tick raised; False where the run is left alone from now on. `counts` where it is the run's own doing."""
        aside = self._at(run_id)
        aside.errors += counts
        given_up = aside.errors >= self._give_up_after
        aside.until = inf if given_up else now + min(_MOST, _FIRST * 2 ** min(aside.errors + aside.looks, 10))
        aside.looks += not counts
        aside.revision = None
        return not given_up

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
