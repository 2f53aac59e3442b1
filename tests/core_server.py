"""The real AbstractCore Server, as a process of its own on a free port, for tests of the remote mode."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any

import httpx

from abstractruntime.integrations.abstractcore.remote_client import RemoteAbstractCoreLLMClient

TOKEN = "server-token-12345"

#: seconds within which a server is up, on a slow machine too
BOUND = 60.0


class CoreServer:
    """A server while the `with` lasts. Its home is an empty folder, so nothing that this machine configures is read."""

    def __enter__(self) -> CoreServer:
        self._home = tempfile.TemporaryDirectory()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        command = [sys.executable, "-m", "abstractcore.server.app", "--host", "127.0.0.1"]
        given = {name: value for name, value in os.environ.items() if "_API_KEY" not in name}
        given |= {name: self._home.name for name in ("HOME", "ABSTRACTCORE_CONFIG_DIR")}
        self.process = subprocess.Popen(
            [*command, "--port", self.url.rpartition(":")[2]],
            env={**given, "ABSTRACTCORE_AUTH_TOKEN": TOKEN},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        transport = httpx.HTTPTransport(retries=12)  # half a second, then twice as long each time
        with httpx.Client(transport=transport, timeout=BOUND) as client:
            client.get(f"{self.url}/health").raise_for_status()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        self._home.cleanup()

    @property
    def address(self) -> dict[str, Any]:
        """How a host reaches it: the arguments of a client or a runtime."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return {"server_base_url": self.url, "model": "openai-compatible/qwen3-4b", "headers": headers}

    def client(self, **given: Any) -> RemoteAbstractCoreLLMClient:
        """A client of it."""
        return RemoteAbstractCoreLLMClient(**{**self.address, **given})
