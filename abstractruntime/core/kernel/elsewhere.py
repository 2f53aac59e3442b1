"""What one run's step writes to other runs, in its own commit: they are created, or only their vars change."""

from __future__ import annotations

from msgspec.structs import replace

from ..changes import changed
from ..errors import UnknownRun
from ..models import Commit, Elsewhere, RunState
from .state import Stamp, next_state


def elsewhere(found: RunState | None, wanted: Elsewhere, stamp: Stamp, *, standing: int = 0) -> Commit:
    """The commit of another run, to land with one of the run that wants it.

    `found` is that run as it is now, with so many requests `standing` at it. Raises `UnknownRun` where there is none
    and none is to be created.
    """
    if found is not None:
        new = next_state(found, stamp, changed(found.vars, wanted.changes))
        return Commit(run=new, before=found, standing=standing)
    if wanted.create is None:
        raise UnknownRun(wanted.run_id)
    made = wanted.create
    vars = changed(made.vars, wanted.changes)
    return Commit(
        run=replace(made, vars=vars, revision=1, commit_id=stamp.id, created_at=stamp.at, updated_at=stamp.at)
    )
