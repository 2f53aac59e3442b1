"""One MCP server and the client that speaks with it: made when first needed, thrown away when it broke, made anew.

Everything here blocks and is called from one thread at a time.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ....core.errors import AbstractRuntimeError
from ..extra import needed

log = logging.getLogger("abstractruntime.tools")

_PROTOCOL = "2025-06-18"
_HELLO = {
    "protocolVersion": _PROTOCOL,
    "capabilities": {},
    "clientInfo": {"name": "abstractruntime", "version": "1"},
}


class McpServerError(AbstractRuntimeError):
    """An MCP server could not be reached, broke off or said what cannot be read.

    `outcome` is `not_started` when it certainly did nothing, else `unknown`.
    """

    def __init__(self, message: str, *, outcome: str) -> None:
        super().__init__(message)
        self.outcome = outcome


class McpServer:
    """A server, by `url` (Streamable HTTP) or by `command` (stdio); or `client`, which is used as it is and kept."""

    def __init__(
        self,
        server_id: str,
        *,
        url: str | None,
        command: Sequence[str] | None,
        headers: Mapping[str, str] | None,
        cwd: str | None,
        env: Mapping[str, str] | None,
        timeout_s: float | None,
        client: Any,
    ) -> None:
        self.server_id = server_id
        self.timeout_s = timeout_s
        self._url, self._command, self._headers = url, list(command or ()), dict(headers or {})
        self._cwd, self._env = cwd, dict(env) if env is not None else None
        self._given = client
        self._client: Any = None
        self._http: Any = None
        self._lasts: float | None = None

    def call(self, tool: str, arguments: dict[str, Any], *, again: bool = False) -> dict[str, Any]:
        """Call a tool. Raises `McpServerError`, after which the next call begins with a new client.

        A server that answers with an error raises AbstractCore's `McpRpcError`: it is alive.
        """
        client = self._alive()
        try:
            return dict(client.call_tool(name=tool, arguments=arguments))
        except needed("abstractcore.mcp.client").McpRpcError:
            raise
        except needed("abstractcore.mcp.client").McpError as error:
            self.close()
            if not (again or self._given) and str(error).startswith("MCP HTTP 404"):  # the session of a server before
                return self.call(tool, arguments, again=True)
            raise self._broken(error) from error

    def tool_specs(self) -> list[dict[str, Any]]:
        """The tools that the server offers, all pages of them."""
        mcp = needed("abstractcore.mcp")
        client = self._alive()
        try:
            specs = mcp.McpToolSource(server_id=self.server_id, client=_AllPages(client)).list_tool_specs()
        except mcp.client.McpError as error:
            self.close()
            raise self._broken(error) from error
        return list(specs)

    def close(self) -> None:
        """Leave the server; a stdio server ends. The next call begins anew."""
        client, self._client = self._client, None
        http, self._http = self._http, None
        if client is not None:
            _end(client)
        if http is not None:
            http.close()

    def _alive(self) -> Any:
        """A client whose server answered just now, or a new one."""
        if self._given is not None:
            return self._given
        if self._client is not None and self._lasts != self.timeout_s:
            self.close()
        if self._client is not None and self._command and not self._answers():
            log.info("MCP server %r no longer answers; it is started again", self.server_id)
            self.close()
        if self._client is None:
            try:
                self._connect()
            except (OSError, needed("abstractcore.mcp.client").McpError) as error:
                self.close()
                raise McpServerError(
                    f"MCP server {self.server_id!r} cannot be reached: {error}", outcome="not_started"
                ) from error
        return self._client

    def _answers(self) -> bool:
        errors = needed("abstractcore.mcp.client")
        try:
            self._client.request(method="ping")
        except errors.McpRpcError:
            return True  # it knows no ping, and says so
        except errors.McpError:
            return False
        return True

    def _connect(self) -> None:
        mcp = needed("abstractcore.mcp")
        self._lasts = self.timeout_s
        if self._command:
            self._client = mcp.McpStdioClient(
                command=self._command, cwd=self._cwd, env=self._env, timeout_s=self.timeout_s
            )
            with suppress(mcp.client.McpRpcError):  # a server without ping
                self._client.request(method="ping")  # greets the server first
            self._client.notify(method="notifications/initialized")
            return
        self._http = needed("httpx").Client(headers=self._headers, timeout=self.timeout_s)
        self._client = mcp.McpClient(url=self._url, client=self._http, protocol_version=_PROTOCOL)
        try:
            self._client.request(method="initialize", params=_HELLO)
        except mcp.client.McpRpcError:
            return  # a server without sessions
        except mcp.client.McpHttpError as error:
            if str(error).startswith("MCP HTTP 4"):
                return  # the same; or it refuses us, and says so again when it is asked for something
            raise
        self._greet()

    def _greet(self) -> None:
        """Tell an HTTP server that the session begins; AbstractCore's client has no notifications."""
        httpx = needed("httpx")
        try:
            self._http.post(self._url, json={"jsonrpc": "2.0", "method": "notifications/initialized"})
        except httpx.HTTPError as error:
            raise needed("abstractcore.mcp.client").McpError(str(error)) from error

    def _broken(self, error: Exception) -> McpServerError:
        server = f"MCP server {self.server_id!r}"
        if str(error).startswith("MCP HTTP 4"):
            return McpServerError(f"{server} refused: {error}", outcome="not_started")
        if isinstance(error.__cause__, needed("httpx").ConnectError):
            return McpServerError(f"{server} cannot be reached: {error}", outcome="not_started")
        return McpServerError(f"{server} broke off: {error}; outcome unknown", outcome="unknown")


class _AllPages:
    """A client whose `list_tools` follows the cursors that AbstractCore's own leaves aside."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.url = getattr(client, "url", None)

    def list_tools(self, *, cursor: str | None = None) -> list[dict[str, Any]]:
        if not callable(getattr(self._client, "request", None)):
            return list(self._client.list_tools())
        tools: list[dict[str, Any]] = []
        seen: set[str] = set()
        while True:
            page = self._client.request(method="tools/list", params={"cursor": cursor} if cursor else None)
            listed = page.get("tools")
            if not isinstance(listed, list):
                raise needed("abstractcore.mcp.client").McpProtocolError("tools/list gave no list of tools")
            tools += [tool for tool in listed if isinstance(tool, dict)]
            cursor = page.get("nextCursor")
            if not isinstance(cursor, str) or cursor in seen:
                return tools
            seen.add(cursor)


def _end(client: Any) -> None:
    """Close a client, and of a stdio one the process first: AbstractCore waits for a server that hangs for ever."""
    process = getattr(client, "_proc", None)
    if isinstance(process, subprocess.Popen):
        process.kill()
        process.wait()
    client.close()
    if isinstance(process, subprocess.Popen):
        for name in ("_stdout_thread", "_stderr_thread"):
            if (thread := getattr(client, name, None)) is not None:
                thread.join(1.0)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with suppress(OSError, ValueError):
                    stream.close()
