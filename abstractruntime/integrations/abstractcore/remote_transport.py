"""How a remote call reaches the server: a pool of connections per event loop, or the sender that a test gives.

A cancelled task closes its socket, which the server hears and passes on to the provider. Nothing here tries again.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from ...core.codec import encode
from ...core.threads import WorkerThreads
from .extra import needed
from .protocols import LLMError
from .remote_failures import too_slow, unreachable
from .remote_pools import Pools

#: bytes of an answer that are read
LARGEST = 256 * 2**20


class Answer(NamedTuple):
    """An answer of the server, whatever its status."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class Transport(Protocol):
    """Sends one request."""

    async def send(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str],
        body: Any,
        timeout_s: float | None,
        binary: bool = False,
    ) -> Answer:
        """The whole answer. Raises `LLMError` where there is none."""

    async def aclose(self) -> None:
        """Close what is open."""


class HttpTransport:
    """HTTP through httpx."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._httpx = needed("httpx")
        self._pools = Pools(root)

    async def send(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str],
        body: Any,
        timeout_s: float | None,
        binary: bool = False,
    ) -> Answer:
        """The whole answer, of any status. Raises `LLMError`: `connection` or `timeout`."""
        return await self._exchange(method, path, headers, body, timeout_s, _Sink())

    async def stream(
        self, path: str, *, headers: dict[str, str], body: Any, timeout_s: float | None, on_line: Callable[[str], bool]
    ) -> Answer:
        """Give each line of a success to `on_line` until that returns True; of a failure the whole answer."""
        return await self._exchange("POST", path, headers, body, timeout_s, _Lines(on_line))

    async def _exchange(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: Any,
        timeout_s: float | None,
        sink: _Sink,
    ) -> Answer:
        content = None if body is None else encode(body)
        sent = headers if body is None else {**headers, "Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._pools.client() as client,
                client.stream(method, self._root + path, headers=sent, content=content) as response,
            ):
                async for chunk in response.aiter_bytes():
                    if sink.take(chunk, response.status_code):
                        break
                return Answer(response.status_code, response.headers, bytes(sink.data))
        except TimeoutError as error:
            raise too_slow(self._root, timeout_s or 0.0) from error
        except self._httpx.HTTPError as error:
            raise unreachable(error, self._root) from error

    async def aclose(self) -> None:
        """Close the connections. New calls open new ones."""
        await self._pools.aclose()


class SenderTransport:
    """What a `request_sender` of the user sends.

    It has `get` and `post(url, *, headers, json, timeout)`, sync (run in a thread) or async, and for sounds
    `post_bytes`. They return the body as a dict, or something with `body` (or `json()`, `content`) and perhaps
    `headers` and `status_code`: an `httpx.AsyncClient` will do.
    """

    def __init__(self, root: str, sender: Any) -> None:
        self._root, self._sender = root, sender
        self._threads = WorkerThreads(64)

    async def send(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str],
        body: Any,
        timeout_s: float | None,
        binary: bool = False,
    ) -> Answer:
        """What the sender returns. Raises what it raises, and `LLMError` for what is no answer."""
        given: dict[str, Any] = {"headers": headers, "timeout": timeout_s}
        if method == "GET":
            call = self._sender.get
        else:
            call = getattr(self._sender, "post_bytes", self._sender.post) if binary else self._sender.post
            given["json"] = body
        try:
            if inspect.iscoroutinefunction(call):
                async with asyncio.timeout(timeout_s):
                    reply = await call(self._root + path, **given)
            else:
                reply = await self._threads.run(lambda: call(self._root + path, **given))
        except TimeoutError as error:
            raise too_slow(self._root, timeout_s or 0.0) from error
        return _answer(reply)

    async def aclose(self) -> None:
        """Nothing: the sender is its owner's to close."""


class _Sink:
    """Takes an answer as it comes, and keeps it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._size = 0

    def take(self, chunk: bytes, status: int) -> bool:
        """Take the next bytes; whether no more are wanted."""
        self._size += len(chunk)
        if self._size > LARGEST:
            raise LLMError(f"The answer is larger than {LARGEST} bytes.", kind="malformed", retryable=False)
        self.data += chunk
        return False


class _Lines(_Sink):
    """Hands an answer on line by line, and keeps what is not a line yet; a failure it keeps whole."""

    def __init__(self, on_line: Callable[[str], bool]) -> None:
        super().__init__()
        self._on_line = on_line

    def take(self, chunk: bytes, status: int) -> bool:
        super().take(chunk, status)
        if status >= 400 or b"\n" not in chunk:
            return False
        whole, _, rest = bytes(self.data).rpartition(b"\n")
        self.data = bytearray(rest)
        return any(self._on_line(line.rstrip("\r")) for line in whole.decode("utf-8", "replace").split("\n"))


def _answer(reply: Any) -> Answer:
    headers = getattr(reply, "headers", None) or {}
    status = getattr(reply, "status_code", 200)
    if isinstance(reply, bytes | bytearray):
        return Answer(200, {}, bytes(reply))
    if isinstance(reply, dict | list):
        return Answer(200, {}, encode(reply))
    for name in ("body", "content"):
        content = getattr(reply, name, None)
        if content is not None:
            return Answer(status, headers, content if isinstance(content, bytes) else encode(content))
    if callable(getattr(reply, "json", None)):
        return Answer(status, headers, encode(reply.json()))
    raise TypeError(f"request_sender must return a dict, or an object with body and headers, found {type(reply)!r}.")
