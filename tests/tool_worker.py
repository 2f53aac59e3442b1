"""A process that drives a batch of tools and is killed: `python -m tests.tool_worker FOLDER MODE`.

Each tool notes in a file what it did, under its runtime_call_id. With `ask` the batch waits for an approval, with
`decide` it is approved and nothing more is done, with `stall` the tool "slow" never ends, with `go` it does.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from abstractruntime import AsyncRuntime, AsyncSqliteLedgerStore, AsyncSqliteRunStore, EffectType, SqliteDatabase
from abstractruntime.core.outcomes import CancelSignal
from abstractruntime.integrations.abstractcore.approvals import ApprovalToolExecutor
from abstractruntime.integrations.abstractcore.tool_calls import make_tool_calls_handler

from .tool_executors import call, calling

BATCH = calling(call("quick", "c1"), call("slow", "c2"), call("quick", "c3"))


class Noting:
    """Performs each call by a line in a file, one after the other."""

    def __init__(self, folder: Path, stall: bool) -> None:
        self._notes, self._stall = folder / "done", stall

    async def aexecute(
        self, *, tool_calls: list[dict[str, Any]], on_result: Any = None, cancelled: CancelSignal | None = None
    ) -> dict[str, Any]:
        async def one(place: int, one: dict[str, Any]) -> dict[str, Any]:
            if one["name"] == "slow":
                print("slow", flush=True)
                if self._stall:
                    await asyncio.Event().wait()
            note = os.open(self._notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.write(note, f"{one['runtime_call_id']} {os.getpid()}\n".encode())
            os.fsync(note)
            os.close(note)
            result = {"call_id": one["call_id"], "success": True, "output": one["name"]}
            await on_result(place, result)
            print(f"landed {one['call_id']}", flush=True)
            return result

        return {"mode": "executed", "results": await asyncio.gather(*map(one, range(len(tool_calls)), tool_calls))}


async def main(folder: Path, mode: str) -> None:
    async with SqliteDatabase(folder / "runs.db") as database:
        tools = ApprovalToolExecutor(delegate=Noting(folder, mode == "stall"))
        rt = AsyncRuntime(
            run_store=AsyncSqliteRunStore(database),
            ledger_store=AsyncSqliteLedgerStore(database),
            effect_handlers={EffectType.TOOL_CALLS: make_tool_calls_handler(tools=tools)},
        )
        await rt.start(workflow=BATCH, run_id="r")
        state = await rt.get_state("r")
        if mode in ("ask", "decide"):
            state = await rt.tick(workflow=BATCH, run_id="r")
        if mode == "decide":
            (item,) = (await rt.list_approvals()).items
            await rt.approve("r", item["wait_key"], digest=item["digest"], actor_id="ann")
            print("decided", flush=True)
            await asyncio.Event().wait()
        if mode in ("stall", "go"):
            state = await rt.tick(workflow=BATCH, run_id="r")
        print(state.status.value, flush=True)
        if mode == "ask":
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
