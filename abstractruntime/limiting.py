"""Limits of runs and what they have used, beside `AsyncRuntime`."""

from __future__ import annotations

from typing import Any

from .core import kernel
from .core.config import LimitWarning, apply_limit_updates, limit_status, limit_warnings
from .core.journal import Journal
from .core.models import RunState
from .core.secrets import admit
from .engine import Engine


class LimitsRuns:
    """What limits add to `AsyncRuntime`."""

    _journal: Journal
    _engine: Engine

    async def get_limit_status(self, run_id: str) -> dict[str, Any]:
        """Iterations, tokens and history beside their limits. Raises `UnknownRun`."""
        return limit_status((await self._journal.load(run_id)).run.vars.get("_limits"))

    async def get_token_usage(self, run_id: str) -> dict[str, int]:
        """Tokens in and out of all LLM calls so far: `run` of this run, `tree` of the whole tree that it belongs to.

        The tree is that of the run at its top: of all that it started, and that those started, as far as they are
        stored. Tokens of calls in parallel count for the run when their step has ended. Raises `UnknownRun`,
        and StoreCorrupt where a run of a folder cannot be read.

        >>> (await rt.get_token_usage(run_id))["tree"]  # doctest: +SKIP
        1250
        """
        run = (await self._journal.load(run_id)).run
        return {"run": run.tokens, "tree": await self._journal.stored.tree_tokens(run.root)}

    def check_limits(self, run_state: RunState) -> list[LimitWarning]:
        """The limits that this state has come near to or exceeded."""
        return limit_warnings(run_state.vars.get("_limits"))

    async def update_limits(self, run_id: str, updates: dict[str, Any]) -> None:
        """Write the documented limits among `updates`; others are ignored. Raises `UnknownRun`, `UnsafeValue`.

        A run that waits at a limit which is not reached any more runs again: tick it.
        """
        clean = admit(updates, "updates")
        await self._engine.change(
            run_id,
            lambda run, stamp: kernel.set_limits(run, apply_limit_updates(run.vars.get("_limits"), clean), stamp),
        )
