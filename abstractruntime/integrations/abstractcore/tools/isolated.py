"""Runs one tool in a process of its own, which is killed when it takes too long: the only way to stop any code.

The child imports the function by its name, reads the call as JSON and answers with the result as JSON. What the tool
prints goes to the standard error of the parent.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

from msgspec.structs import asdict

from ....core.codec import decode, encode, json_safe
from ....core.errors import UnsafeValue
from .calls import Result, ToolCall
from .outputs import error_text

_CHILD = "from abstractruntime.integrations.abstractcore.tools.child import main; main()"


def address_of(function: Any) -> tuple[str, str]:
    """Module and name by which another process finds the function. Raises ValueError when it cannot."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not module or not name or module == "__main__" or "<" in name:
        raise ValueError(
            f"{function!r:.80} cannot run isolated: its process could not import it. Put it into a module, at its top"
        )
    return module, name


def found(module: str, name: str) -> Any:
    """The function of an address."""
    target: Any = import_module(module)
    for part in name.split("."):
        target = getattr(target, part)
    return target


async def perform_isolated(address: tuple[str, str], call: ToolCall, limit: float | None) -> Result:
    """The result of the call, performed in a process of its own that lives for at most `limit` seconds."""
    try:
        request = encode({"address": address, "call": json_safe(asdict(call), "call")})
    except UnsafeValue as error:
        return call.failed(f"Invalid arguments of tool '{call.name}': {error}")
    try:
        process = await _started()
    except OSError as error:  # no room for another process
        return call.failed(error_text(error), outcome="not_started")
    try:
        async with asyncio.timeout(limit):
            answer, _ = await process.communicate(request)
    except TimeoutError:
        return call.failed(
            f"Tool execution timed out after {limit:g}s and its process was killed; what it had done stays",
            outcome="killed",
        )
    finally:
        await _end(process)
    if process.returncode != 0 or not answer:
        return call.failed(f"The tool's process ended with exit code {process.returncode}", outcome="unknown")
    result: Result = decode(answer)
    return result


async def _started() -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _CHILD,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        start_new_session=True,
    )


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the process and those it started, unless it ended by itself, and wait for it."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
    await process.wait()
