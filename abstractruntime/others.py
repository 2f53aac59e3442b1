"""Other runs that a step writes to in its own commit: read as they are now, changed as the step's effect asked for."""

from __future__ import annotations

from collections.abc import Iterable

from .core import kernel
from .core.journal import Journal
from .core.models import Commit, Elsewhere


async def commits_elsewhere(journal: Journal, wanted: Iterable[Elsewhere], stamp: kernel.Stamp) -> tuple[Commit, ...]:
    """What a commit takes along for these. Raises `UnknownRun` for a run that is not there and not to be created."""
    commits = []
    for other in wanted:
        loaded = await journal.backend.load(other.run_id)
        run, standing = (None, 0) if loaded is None else (loaded.run, len(loaded.requests))
        commits.append(kernel.elsewhere(run, other, stamp, standing=standing))
    return tuple(commits)
