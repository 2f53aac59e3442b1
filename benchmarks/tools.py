"""A batch of tool calls in flight together, beside the same functions under a bare `asyncio.gather`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from abstractruntime.integrations.abstractcore.tool_executor import MappingToolExecutor, tool_options

from .table import Row, row
from .workload import Stopwatch

_CALLS = 200

#: how long each call of the second batch waits
_WAIT = 0.02


@tool_options(parallel_safe=True)
async def at_once(number: int, text: str = "") -> dict[str, Any]:
    """Answer at once."""
    return {"number": number, "text": text}


@tool_options(parallel_safe=True)
async def later(number: int, text: str = "") -> dict[str, Any]:
    """Answer after a wait, as a call over a network does."""
    await asyncio.sleep(_WAIT)
    return {"number": number, "text": text}


def rows(*, rounds: int) -> Iterator[Row]:
    """Milliseconds per batch."""
    quick = [asyncio.run(_measured(at_once)) for _ in range(rounds)]
    slow = [asyncio.run(_measured(later)) for _ in range(rounds)]
    yield row(f"batch of {_CALLS} async tool calls, no wait", "ms", quick, "bare asyncio.gather")
    what = f"batch of {_CALLS} async tool calls, {_WAIT * 1000:g} ms each"
    yield row(what, "ms", slow, "bare asyncio.gather", most_ratio=2.0)


async def _measured(tool: Any) -> tuple[float, float]:
    executor = MappingToolExecutor.from_tools([tool])
    calls = [
        {"name": tool.__name__, "arguments": {"number": n, "text": "some text"}, "call_id": f"c{n}"}
        for n in range(_CALLS)
    ]
    await executor.aexecute(tool_calls=calls[:2])
    with Stopwatch() as ours:
        answer = await executor.aexecute(tool_calls=calls)
    assert [result["output"]["number"] for result in answer["results"]] == list(range(_CALLS))
    with Stopwatch() as bare:
        await asyncio.gather(*(tool(n, "some text") for n in range(_CALLS)))
    return ours.seconds * 1000, bare.seconds * 1000
