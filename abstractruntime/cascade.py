"""What is done to a run and to all that it has started, as far down as it goes: a loop over the tree, no recursion."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable

from .children import NOT_WAITED_FOR, PARENT_CANCELLED, Children
from .core import kernel
from .core.errors import UnknownRun
from .core.leases import Leases
from .core.models import Commit, RunState, RunStatus

#: what an outside action makes of the run as it is now; None leaves it as it is
Action = Callable[[RunState, kernel.Stamp], Awaitable[Commit | None] | Commit | None]


class Cascade:
    """Does something to runs and all below them. `change` is the engine's: it does something to a run from outside."""

    def __init__(
        self, *, change: Callable[[str, Action], Awaitable[RunState]], children: Children, leases: Leases
    ) -> None:
        self._change, self._children, self._leases = change, children, leases

    async def cancel(self, run_id: str, reason: str | None, by: str) -> RunState:
        """Cancel a run, and ask the same of all below it in the commits that cancel what is above; then do it.

        What a crash leaves undone stands as requests at the children. A repetition of the call does the rest, too.
        """
        state, below = await self._one(run_id, reason, by)
        await self._down(below, PARENT_CANCELLED, run_id)
        return state

    async def spare(self, run_ids: Iterable[str], parent: str) -> None:
        """Cancel children that their parent does not wait for any more, and all below them."""
        await self._down(run_ids, NOT_WAITED_FOR, parent)

    async def each(self, run_id: str, action: Action, *, subtree: bool) -> RunState:
        """Do something to a run, and with `subtree` to all below it that has not ended, from above to below."""
        state = await self._change(run_id, action)
        queue, known = deque([state] if subtree else []), {run_id}
        while queue:
            for child_id in await self._children.below(queue.popleft()):
                if child_id not in known:
                    known.add(child_id)
                    try:
                        queue.append(await self._change(child_id, action))
                    except UnknownRun:  # deleted
                        continue
        return state

    async def _down(self, run_ids: Iterable[str], reason: str, by: str) -> None:
        queue, known = deque((run_id, reason, by) for run_id in run_ids), set[str]()
        while queue:
            run_id, reason, by = queue.popleft()
            if run_id in known:
                continue
            known.add(run_id)
            try:
                _, below = await self._one(run_id, reason, by)
            except UnknownRun:  # deleted
                continue
            queue.extend((child, PARENT_CANCELLED, run_id) for child in below)

    async def _one(self, run_id: str, reason: str | None, by: str) -> tuple[RunState, list[str]]:
        """Cancel one run; as it is then, and what is below it that has not ended."""
        below: set[str] = set()

        async def act(run: RunState, stamp: kernel.Stamp) -> Commit | None:
            commit = kernel.cancel(run, reason, by, stamp)
            below.update(await self._children.below(run))
            return None if commit is None else await self._children.passed_on(run, commit, stamp)

        state = await self._change(run_id, act)
        if state.status is not RunStatus.CANCELLED:
            return state, []
        self._leases.cancel_flight(run_id)
        return state, sorted(below)
