"""Tools that run in processes of their own: they can only be imported by name."""

from __future__ import annotations

import os
import time
from pathlib import Path

from abstractruntime.integrations.abstractcore.tool_executor import tool_options


@tool_options(isolated=True)
def double(n: int, runtime_call_id: str) -> dict[str, object]:
    """Twice the number."""
    print("this is no answer")
    return {"double": 2 * n, "key": runtime_call_id, "pid": os.getpid()}


@tool_options(isolated=True)
async def later(n: int) -> int:
    """Async ones too."""
    return n


@tool_options(isolated=True, timeout_s=1.5)
def hangs(file: str) -> None:
    """Writes its process id and never ends."""
    Path(file).write_text(str(os.getpid()))
    while True:
        time.sleep(0.01)  # it hangs on purpose, and burns no processor


@tool_options(isolated=True)
def crashes() -> None:
    """Takes its process with it."""
    os._exit(7)


@tool_options(isolated=True)
def raises() -> None:
    """Raises."""
    raise KeyError("k")
