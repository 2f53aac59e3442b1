"""What a run needs next, as one of a few values: the only place where `tick` branches."""

from __future__ import annotations

from msgspec import Struct

from ..models import TERMINAL, Intent, Request, RunState, RunStatus
from ..streams import Unread, comes_in_time
from .attempts import waits_for_children

_WAITING = RunStatus.WAITING  # every step asks for it, and a member of an enum is looked up far slower


class Rest(Struct, frozen=True, gc=False):
    """Nothing to do: the run waits, is paused or has ended."""


class Later(Struct, frozen=True, gc=False):
    """Another attempt is due at this instant (UTC text)."""

    due: str


class Busy(Struct, frozen=True, gc=False):
    """Somebody alive performs the effect now."""


class Answer(Struct, frozen=True, gc=False):
    """Requests stand: commit the answer first."""

    requests: tuple[Request, ...]


class Wake(Struct, frozen=True, gc=False):
    """A timer or a deadline has passed."""


class Deliver(Struct, frozen=True, gc=False):
    """A message lies there that the run waits for."""

    found: Unread


class Perform(Struct, frozen=True, gc=False):
    """A promised effect that nobody performs. `lost` means that somebody did, and died."""

    intent: Intent
    lost: bool


class Ask(Struct, frozen=True, gc=False):
    """Nothing is in flight: ask the node."""


class Collect(Struct, frozen=True, gc=False):
    """It has runs of its own under way: see how they stand."""


Move = Rest | Later | Busy | Answer | Wake | Deliver | Perform | Ask | Collect


def next_move(
    run: RunState,
    *,
    now: str,
    requests: tuple[Request, ...] = (),
    held: bool = False,
    unread: Unread | None = None,
) -> Move:
    """What to do with this run now.

    `held` says whether the holder of its intent is alive and at it, `unread` is the next message that it waits for.
    """
    if run.status in TERMINAL:
        return Rest()
    if requests:
        return Answer(requests)
    if run.paused:
        return Rest()
    if run.status is _WAITING:
        if run.waiting is not None and unread is not None and comes_in_time(run.waiting, unread.message):
            return Deliver(unread)
        until = run.waiting.until if run.waiting else None
        if until is not None and until <= now:
            return Wake()
        return Collect() if waits_for_children(run) else Rest()
    intent = run.intent
    if intent is None:
        return Ask()
    if intent.children:
        return Collect()
    if intent.token is not None:
        return Busy() if held else Perform(intent, lost=True)
    if intent.due is not None and intent.due > now:
        return Later(intent.due)
    return Perform(intent, lost=False)
