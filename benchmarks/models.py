"""LLM calls: many under way at once, and what one costs here beside AbstractCore's own client.

The model is the scripted server of the tests, in a process of its own. Without AbstractCore there are no rows.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from abstractruntime import Effect, RunState, StepPlan, WorkflowSpec
from abstractruntime.integrations.abstractcore import create_async_local_runtime
from abstractruntime.integrations.abstractcore.extra import needed

from .table import Row, row
from .workload import Stopwatch

_CALLS = 200
_LATENCY = 0.2
_MODEL = "qwen3-4b"
_MESSAGES = [{"role": "user", "content": "hello"}]

#: seconds for all calls at once; microseconds of processor time for one; of the client the second twice, for a call
#: that can be cancelled, as ours can, and for one that cannot
Costs = tuple[float, ...]


def installed() -> str:
    """AbstractCore's version, or that it is not there."""
    try:
        return version("abstractcore")
    except PackageNotFoundError:
        return "not installed: no rows of LLM calls"


def rows(*, rounds: int, scale: float) -> Iterator[Row]:
    """The rows of LLM calls."""
    if installed().startswith("not"):
        return
    calls = max(10, round(_CALLS * scale))
    with TemporaryDirectory() as home:
        os.environ["ABSTRACTCORE_CONFIG_DIR"] = home
        with _server(_LATENCY) as slow, _server(0.0) as quick:
            found = [
                (asyncio.run(_through_the_runtime(slow, quick, calls)), _with_the_client(slow, quick, calls))
                for _ in range(rounds)
            ]
    at_once = [(ours[0], bare[0]) for ours, bare in found]
    what = f"{calls} LLM_CALLs at once, {_LATENCY * 1000:g} ms each"
    yield row(what, "s", at_once, "the client in threads", most=1.5)
    for place, how in ((1, "the client, cancellable"), (2, "the client, not cancellable")):
        yield row(f"one LLM_CALL, CPU, beside {how}", "us", [(ours[1], bare[place]) for ours, bare in found], how)


def _ask(run: RunState, ctx: object) -> StepPlan:
    return StepPlan("ask", Effect("llm_call", {"messages": _MESSAGES}, "answer"))


_WORKFLOW: WorkflowSpec[Any] = WorkflowSpec("benchmark-llm", "ask", {"ask": _ask})


async def _through_the_runtime(slow: str, quick: str, calls: int) -> Costs:
    async with _runtime(slow) as rt:
        await rt.run(_WORKFLOW)
        with Stopwatch() as together:
            await asyncio.gather(*(rt.run(_WORKFLOW) for _ in range(calls)))
    async with _runtime(quick) as rt:
        await rt.run(_WORKFLOW)
        with Stopwatch() as alone:
            for _ in range(calls):
                await rt.run(_WORKFLOW)
    return together.seconds, alone.cpu_seconds / calls * 1e6


def _runtime(url: str) -> Any:
    kwargs = {"base_url": url}
    return create_async_local_runtime(provider="openai-compatible", model=_MODEL, llm_kwargs=kwargs)


def _with_the_client(slow: str, quick: str, calls: int) -> Costs:
    create_llm = needed("abstractcore").create_llm
    client = create_llm("openai-compatible", model=_MODEL, base_url=slow)
    with ThreadPoolExecutor(calls) as threads, Stopwatch() as together:
        list(threads.map(lambda _: client.generate("", messages=_MESSAGES), range(calls)))
    client.client.close()
    client = create_llm("openai-compatible", model=_MODEL, base_url=quick)
    costs = []
    for options in ({"cancel_event": threading.Event()}, {}):
        with Stopwatch() as alone:
            for _ in range(calls):
                client.generate("", messages=_MESSAGES, **options)
        costs.append(alone.cpu_seconds / calls * 1e6)
    client.client.close()
    return together.seconds, *costs


@contextmanager
def _server(latency: float) -> Iterator[str]:
    command = [sys.executable, "-m", "tests.scripted_servers", str(latency)]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.stdin.close()  # which ends it
