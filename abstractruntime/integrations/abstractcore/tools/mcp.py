"""Tools of an MCP server, called through AbstractCore's clients."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from ....core import portal
from ....core.threads import WorkerThreads
from ..extra import needed
from .arguments import unwrapped
from .batches import BatchExecutor, limit_of
from .calls import Result, ToolCall
from .coercion import ArgumentError
from .mcp_client import McpServer, McpServerError
from .outputs import error_text, plain


class McpToolExecutor(BatchExecutor):
    """Executes the tools of one MCP server, over Streamable HTTP (`mcp_url`) or stdio (`command`).

    The model knows them as `mcp::<server_id>::<tool>`. The server is started or greeted by the first call. A client has
    one request in flight, so calls of all runs wait for one another here, in a thread of its own. A server that died
    between two calls is started again; one that breaks off or stays silent for `timeout_s` during a call fails that
    call with `outcome unknown` and is started again by the next. `close()` ends it.

    Give `mcp_client` to use a client of your own, which is never closed here. Raises ValueError unless exactly one of
    the three is given.

    >>> tools = McpToolExecutor(server_id="files", command=["mcp-files", "/data"])
    >>> tools.tool_specs()  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        server_id: str,
        mcp_url: str | None = None,
        timeout_s: float | None = 30.0,
        mcp_client: Any = None,
        command: Sequence[str] | None = None,
        headers: Mapping[str, str] | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        if not isinstance(server_id, str) or not server_id.strip() or "::" in server_id:
            raise ValueError(f"server_id must be a text without '::', found {server_id!r}")
        given = [value for value in (mcp_url, command, mcp_client) if value]
        if len(given) != 1 or isinstance(command, str):
            raise ValueError("Give one of mcp_url, command (a list of texts) and mcp_client")
        self.server_id = server_id.strip()
        self._server = McpServer(
            self.server_id, url=mcp_url, command=command, headers=headers, cwd=cwd, env=env, timeout_s=None,
            client=mcp_client,
        )  # fmt: skip
        self._thread = WorkerThreads(1)
        super().__init__(timeout_s=timeout_s)

    def set_timeout_s(self, timeout_s: float | None) -> None:
        """Let every request take so many seconds; None or 0: without limit."""
        self._server.timeout_s = limit_of(timeout_s)

    def knows(self, name: str) -> bool:
        """Whether the name is one of this server's."""
        return name.startswith(f"mcp::{self.server_id}::")

    def tool_specs(self) -> list[dict[str, Any]]:
        """The server's tools as LLM_CALL takes them in `tools`; blocks. Raises `McpServerError`."""
        return portal.call(self.atool_specs)

    async def atool_specs(self) -> list[dict[str, Any]]:
        """The server's tools as LLM_CALL takes them in `tools`. Raises `McpServerError`."""
        specs: list[dict[str, Any]] = await self._thread.run(self._server.tool_specs)
        return specs

    def close(self) -> None:
        """End the connection, and a stdio server; the next call begins anew."""
        portal.call(self.aclose)

    async def aclose(self) -> None:
        """End the connection, and a stdio server, after the call that is in flight; the next call begins anew."""
        await self._thread.run(self._server.close)

    def _runs_beside_others(self, name: str) -> bool:
        return False  # one request at a time

    async def _perform(self, call: ToolCall, threads: asyncio.Semaphore) -> Result:
        own = f"mcp::{self.server_id}::"
        if call.name.startswith("mcp::") and not call.name.startswith(own):
            return call.failed(f"Tool '{call.name}' not found: this executor is for MCP server {self.server_id!r}")
        try:
            arguments = unwrapped(call.arguments, keep=("arguments",))
        except ArgumentError as error:
            return call.failed(f"Invalid arguments of tool '{call.name}': {error}")
        result: Result = await self._thread.run(self._call, call, call.name.removeprefix(own), arguments)
        return result

    def _call(self, call: ToolCall, tool: str, arguments: dict[str, Any]) -> Result:
        try:
            answer = self._server.call(tool, arguments)
        except McpServerError as error:
            return call.failed(str(error), outcome=error.outcome)
        except needed("abstractcore.mcp.client").McpRpcError as error:
            return call.failed(str(error))
        except Exception as error:  # a boundary: a client of the user's own may raise anything
            return call.failed(error_text(error), outcome="unknown")
        return _result_of(call, answer)


def _result_of(call: ToolCall, answer: dict[str, Any]) -> Result:
    """The server's answer: what is structured, else its texts as one, else its parts as they are."""
    content = answer.get("content")
    parts = content if isinstance(content, list) else []
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    text = "\n".join(texts) if len(texts) == len(parts) else None
    if answer.get("isError") is True:
        said = "\n".join(texts) or "The tool reported a failure"
        return call.failed(said, output=plain(answer.get("structuredContent")))
    structured = answer.get("structuredContent")
    if structured is None:
        structured = text if text is not None and isinstance(content, list) else answer
    return call.done(plain(structured))
