"""Executors that perform nothing: the run waits, and somebody else brings the results."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any

from ....core.codec import encode
from ....core.outcomes import CancelSignal
from .calls import OnResult, tool_call


class PassthroughToolExecutor:
    """Hands every batch on: the run waits until the host resumes it with `{"mode": "executed", "results": [...]}`."""

    def __init__(self, *, mode: str = "passthrough") -> None:
        if not isinstance(mode, str) or not mode.strip() or mode == "executed":
            raise ValueError(f"mode must be a text other than 'executed', found {mode!r}")
        self._mode = mode

    def execute(self, *, tool_calls: list[dict[str, Any]]) -> dict[str, Any]:
        """`{"mode": ..., "tool_calls": [...]}`, the calls as they are."""
        return {"mode": self._mode, "tool_calls": list(tool_calls)}

    async def aexecute(
        self,
        *,
        tool_calls: list[dict[str, Any]],
        on_result: OnResult | None = None,
        cancelled: CancelSignal | None = None,
    ) -> dict[str, Any]:
        """The same, for the event loop; there are no results to tell of."""
        return self.execute(tool_calls=tool_calls)


class DelegatingMcpToolExecutor(PassthroughToolExecutor):
    """Lets a worker elsewhere call the tools of an MCP server: the run waits as for a job, with what the worker needs.

    The wait's key comes from `wait_key_factory`, else from server and calls (`mcp_job:<hex>`), so that it is the same
    in a replay.
    """

    def __init__(
        self,
        *,
        server_id: str,
        mcp_url: str,
        transport: str = "streamable_http",
        wait_key_factory: Callable[[], str] | None = None,
    ) -> None:
        super().__init__(mode="delegated")
        for name, value in (("server_id", server_id), ("mcp_url", mcp_url)):
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{name} must be a text, found {value!r}")
        self._details = {
            "protocol": "mcp",
            "transport": transport,
            "url": mcp_url.strip(),
            "server_id": server_id.strip(),
        }
        self._wait_key = wait_key_factory

    def execute(self, *, tool_calls: list[dict[str, Any]]) -> dict[str, Any]:
        """`mode` is `delegated`, `wait_reason` is `job`, `details` say which server is meant."""
        return {
            **super().execute(tool_calls=tool_calls),
            "wait_reason": "job",
            "wait_key": self._key_of(tool_calls) if self._wait_key is None else self._wait_key(),
            "details": dict(self._details),
        }

    def _key_of(self, tool_calls: list[dict[str, Any]]) -> str:
        ids = [tool_call(call).runtime_call_id for call in tool_calls]
        return f"mcp_job:{sha256(encode([self._details['server_id'], ids])).hexdigest()[:32]}"
