"""Connections to the server, kept between calls: many small pools per event loop.

What one pool of httpx does for a call grows with the square of its connections, so that two hundred calls in flight
cost it seconds; a small one costs nothing that could be noticed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from .extra import needed

#: seconds to open a connection
CONNECT_S = 30.0
#: seconds that an idle connection is kept: less than the server keeps it, so that none is used as it closes
KEPT_S = 3.0
#: calls that share a pool
SHARED = 8


class _Pool:
    def __init__(self, client: Any) -> None:
        self.client = client
        self.calls = 0


class Pools:
    """The pools of one server, for any number of loops and threads: each loop touches only its own."""

    def __init__(self, root: str) -> None:
        self._httpx = needed("httpx")
        try:
            self._httpx.URL(root)
        except self._httpx.InvalidURL as error:
            raise ValueError(f"server_base_url is no address: {error}") from error
        self._ssl: Any = self._httpx.create_ssl_context() if root.startswith("https:") else False
        self._of_loop: dict[asyncio.AbstractEventLoop, list[_Pool]] = {}

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[Any, None]:
        """A client of httpx for one call. Pools of a busy time are closed when they have nothing more to do."""
        pools = self._pools()
        pool = next((known for known in pools if known.calls < SHARED), None)
        if pool is None:
            pool = self._new()
            pools.append(pool)
        pool.calls += 1
        try:
            yield pool.client
        finally:
            pool.calls -= 1
            if not pool.calls and pool in pools[1:]:
                pools.remove(pool)
                await pool.client.aclose()

    async def aclose(self) -> None:
        """Close the connections of every loop that still runs. New calls open new ones."""
        here = asyncio.get_running_loop()
        for loop in list(self._of_loop):
            for pool in self._of_loop.pop(loop):
                if loop is here:
                    await pool.client.aclose()
                elif loop.is_running():
                    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(pool.client.aclose(), loop))

    def _pools(self) -> list[_Pool]:
        loop = asyncio.get_running_loop()
        if loop not in self._of_loop:
            for gone in [known for known in list(self._of_loop) if known.is_closed()]:
                self._of_loop.pop(gone, None)
            self._of_loop[loop] = [self._new()]
        return self._of_loop[loop]

    def _new(self) -> _Pool:
        client = self._httpx.AsyncClient(
            limits=self._httpx.Limits(max_connections=None, keepalive_expiry=KEPT_S),
            timeout=self._httpx.Timeout(None, connect=CONNECT_S),
            verify=self._ssl,
        )
        return _Pool(client)
