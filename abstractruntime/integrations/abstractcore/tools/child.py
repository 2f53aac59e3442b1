"""What runs in the process of an isolated tool."""

from __future__ import annotations

import asyncio
import os
import sys

from msgspec.structs import replace

from ....core.codec import decode, encode
from .batches import MOST_THREADS
from .calls import ToolCall
from .isolated import found
from .mapping import tool_of
from .outputs import error_text


def main() -> None:
    """Perform the call that stands on standard input, and write its result to standard output."""
    request = decode(sys.stdin.buffer.read())
    answer = os.dup(1)
    os.dup2(2, 1)  # what the tool prints is no answer
    call = ToolCall(**request["call"])
    try:
        tool = tool_of(found(*request["address"]), call.name)
    except Exception as error:  # a boundary: whatever the import of the tool's module raises
        result = call.failed(error_text(error))
    else:
        tool = replace(tool, options=replace(tool.options, isolated=False, timeout_s=0.0))
        result = asyncio.run(tool.perform(call, None, asyncio.Semaphore(MOST_THREADS)))
    with open(answer, "wb") as output:
        output.write(encode(result))
