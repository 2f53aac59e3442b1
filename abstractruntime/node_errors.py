"""What becomes of a run whose node raises: the caller gets the error, or the run fails, or it is set apart."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from .core import portal
from .core.models import RunState

log = logging.getLogger("abstractruntime")

Decision: TypeAlias = Literal["raise", "fail"]

#: what a host gives as `on_node_error=`: one decision for all, or `decide(run, error)`
OnNodeError: TypeAlias = Decision | Callable[[RunState, Exception], Decision]

_DECISIONS = ("raise", "fail")


class NodeErrors:
    """The host's rules. Raises `ValueError` for rules that are none."""

    def __init__(self, on_node_error: OnNodeError, quarantine_after: int | None) -> None:
        if not callable(on_node_error) and on_node_error not in _DECISIONS:
            raise ValueError(f"on_node_error must be 'raise', 'fail' or a function, found {on_node_error!r}.")
        if quarantine_after is not None and (type(quarantine_after) is not int or quarantine_after < 1):
            raise ValueError(f"quarantine_after must be a whole number of at least 1, found {quarantine_after!r}.")
        self._rule: Any = on_node_error
        self.quarantine_after = quarantine_after

    async def decide(self, run: RunState, error: Exception) -> Decision:
        """What the host says of this error; `raise` where its function cannot say."""
        if not callable(self._rule):
            decision: Decision = self._rule
            return decision
        try:
            decision = await portal.here(self._rule, run, error)
        except Exception:  # a boundary: the error of the node is what must be told
            log.exception("on_node_error raised; the node's own error goes to the caller")
            return "raise"
        if decision not in _DECISIONS:
            log.error("on_node_error said %r; expected 'raise' or 'fail'", decision)
            return "raise"
        return decision

    def reason_to_quarantine(self, run: RunState, node_id: str) -> str | None:
        """Why a run is set apart whose node raised once more, if it is."""
        if self.quarantine_after is None or run.node_errors + 1 < self.quarantine_after:
            return None
        return f"node {node_id!r} raised {run.node_errors + 1} times in a row"

    def reason_to_refuse(self, run: RunState) -> str | None:
        """Why a failed run is not retried once more, if it is not."""
        if self.quarantine_after is None or run.retries + 1 < self.quarantine_after:
            return None
        return f"it failed again after {run.retries} retries"
