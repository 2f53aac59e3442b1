"""An MCP server that does what a test says, over stdio (`python -m tests.scripted_mcp`) or HTTP (`HttpMcp`).

Tools: `add(a, b)`, `echo(text)`, `die()` ends the process in the middle of the call, `sleep(seconds)`, `junk()`
answers with what is no JSON, `fail()` reports a failure, `boom()` is an error of the protocol, `pid()` says which
process answers, `calls()` how many `add`s it has performed. They are listed on two pages.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMAND = [sys.executable, os.path.abspath(__file__)]

_NUMBER = {"type": "integer"}
_TOOLS = [
    {
        "name": "add",
        "description": "Add two numbers.",
        "inputSchema": {"type": "object", "properties": {"a": _NUMBER, "b": _NUMBER}, "required": ["a"]},
    },
    {
        "name": "echo",
        "description": "Say it again.",
        "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}},
    },
    *(
        {"name": name, "description": f"To {name}.", "inputSchema": {"type": "object"}}
        for name in ("die", "sleep", "junk", "fail", "boom", "pid", "calls")
    ),
]


class Script:
    """What the server knows; one per process or HTTP server."""

    def __init__(self) -> None:
        self.adds = 0
        self.greeted = False
        self.methods: list[str] = []

    def answer(self, message: dict[str, Any]) -> str | None:
        """The answer as text; None for a notification."""
        method = message.get("method", "")
        self.methods.append(method)
        if "id" not in message:
            self.greeted = self.greeted or method == "notifications/initialized"
            return None
        reply = {"jsonrpc": "2.0", "id": message["id"]}
        try:
            result = self._result(method, message.get("params") or {})
        except LookupError as error:
            return json.dumps({**reply, "error": {"code": -32601, "message": str(error)}})
        return result if isinstance(result, str) else json.dumps({**reply, "result": result})

    def _result(self, method: str, params: dict[str, Any]) -> dict[str, Any] | str:
        if method == "initialize":
            return {
                "protocolVersion": params["protocolVersion"],
                "capabilities": {},
                "serverInfo": {"name": "scripted"},
            }
        if method == "ping":
            return {}
        if method == "tools/list":
            return {"tools": _TOOLS[2:]} if params.get("cursor") else {"tools": _TOOLS[:2], "nextCursor": "2"}
        if method == "tools/call" and self.greeted:
            return self._call(params["name"], params.get("arguments") or {})
        raise LookupError(f"Method not found: {method}, or not greeted")

    def _call(self, name: str, arguments: dict[str, Any]) -> dict[str, Any] | str:
        if name == "add":
            self.adds += 1
            total = arguments["a"] + arguments.get("b", 0)
            return {"content": [{"type": "text", "text": str(total)}], "structuredContent": {"sum": total}}
        if name == "die":
            os._exit(3)
        if name == "sleep":
            time.sleep(arguments["seconds"])  # a slow tool is what this one plays
        if name == "junk":
            return "this is no JSON"
        if name == "fail":
            return {"content": [{"type": "text", "text": "no such row"}], "isError": True}
        if name == "boom":
            raise LookupError("boom")
        texts = {"pid": str(os.getpid()), "calls": str(self.adds), "echo": arguments.get("text", "")}
        return {"content": [{"type": "text", "text": texts.get(name, "")}]}


class HttpMcp:
    """The same over Streamable HTTP. With sessions: a request of an unknown session gets a 404, as after a restart."""

    def __init__(self, *, port: int = 0) -> None:
        self.script = Script()
        self.sessions: set[str] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.handle(self, message)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/mcp"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def handle(self, request: BaseHTTPRequestHandler, message: dict[str, Any]) -> None:
        session = request.headers.get("MCP-Session-Id")
        if message.get("method") == "initialize":
            session = f"s{len(self.sessions)}-{os.urandom(4).hex()}"
            self.sessions.add(session)
        elif session not in self.sessions:
            return self._send(request, 404, b"no such session", None)
        answer = self.script.answer(message)
        self._send(request, 202 if answer is None else 200, (answer or "").encode(), session)

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, session: str | None) -> None:
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        if session:
            request.send_header("MCP-Session-Id", session)
        request.end_headers()
        request.wfile.write(body)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def http_mcp() -> Iterator[HttpMcp]:
    """A running HTTP server."""
    server = HttpMcp()
    try:
        yield server
    finally:
        server.close()


def main() -> None:
    """Serve stdio until its end."""
    script = Script()
    for line in sys.stdin:
        answer = script.answer(json.loads(line))
        if answer is not None:
            print(answer, flush=True)


if __name__ == "__main__":
    main()
