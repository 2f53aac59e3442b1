"""A process whose disk is full for a while: `python -m tests.full_disk_worker WAY FACADE FOLDER WORLD RUNS`.

It moves a fleet of runs, and in the middle of it there is no room any more. When no run can be moved it makes room
and goes on with the same runtime until all have ended. It prints what it saw as JSON. The way: `disk` fills the disk
that FOLDER is on, `limit` lowers the size that a file may have in this process, which needs no small disk.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from abstractruntime import (
    AsyncRuntime,
    Effect,
    EffectCall,
    EffectOutcome,
    RunState,
    RunStatus,
    Runtime,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    StepPlan,
    StoreError,
    WorkflowSpec,
)

from .outside import perform

#: outside effects of one run
EFFECTS = 3

#: what a run's state grows by per step, so that there is something to be written
PADDING = "x" * 2_000

#: bytes that a file may have when it may not have what it has; the file of what was performed has fewer
SMALL = 20_000


def act(run: RunState, ctx: Any) -> StepPlan:
    count = run.vars["count"] = run.vars.get("count", 0) + 1
    run.vars[f"padding{count}"] = PADDING
    return StepPlan("act", Effect("act", {}, f"acts.{count}"), "act" if count < EFFECTS else "end")


def end(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("end", complete_output={"acts": run.vars["acts"]})


WORKFLOW: WorkflowSpec[Any] = WorkflowSpec("full", "act", {"act": act, "end": end})


class Disk:
    """Where the database is, and how it gets full."""

    def __init__(self, way: str, folder: Path) -> None:
        self._way, self._folder = way, folder
        self._filler = folder / "filler"
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        if self._way == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, self._limits[1]))
            return
        with self._filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4_096))
            except OSError:
                return

    def make_room(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)
        self._filler.unlink(missing_ok=True)


async def main(way: str, facade: str, folder: Path, world: Path, runs: int) -> dict[str, Any]:
    disk, performed = Disk(way, folder), 0

    def handler(call: EffectCall) -> EffectOutcome:
        nonlocal performed
        perform(world, call)
        performed += 1
        if performed == runs:
            disk.fill()
        return EffectOutcome.completed({"attempt": call.attempt})

    async def one_loop(call: EffectCall) -> EffectOutcome:
        return handler(call)

    errors: Counter[str] = Counter()
    with SqliteDatabase(folder / "runs.db") as database:
        stores: dict[str, Any] = {"run_store": SqliteRunStore(database), "ledger_store": SqliteLedgerStore(database)}
        rt: Any = (AsyncRuntime if facade == "async" else Runtime)(**stores, effect_handlers={"act": one_loop})

        async def call(name: str, **arguments: Any) -> Any:
            method: Callable[..., Any] = getattr(rt, name)
            return await (method(**arguments) if facade == "async" else asyncio.to_thread(method, **arguments))

        async def move(run_id: str) -> str:
            try:
                state = await call("tick", workflow=WORKFLOW, run_id=run_id)
            except StoreError as error:
                errors[f"{type(error).__name__}: {'nothing was written' in str(error)}"] += 1
                state = await call("get_state", run_id=run_id)
            return str(state.status)

        async def move_all() -> Counter[str]:
            return Counter(await asyncio.gather(*(move(run_id) for run_id in run_ids)))

        run_ids = [await call("start", workflow=WORKFLOW, run_id=f"run-{number}") for number in range(runs)]
        while_full = await move_all()
        disk.make_room()
        after = Counter[str]()
        for _ in range(10):
            after = await move_all()
            if after[RunStatus.RUNNING] == 0:
                break
        ledgers = {run_id: await call("get_ledger", run_id=run_id) for run_id in run_ids}
        records = {run_id: (await call("get_state", run_id=run_id)).records for run_id in run_ids}
        await close(rt, facade)
    return {
        "errors": errors,
        "while_full": while_full,
        "after": after,
        "miscounted": [run_id for run_id in run_ids if len(ledgers[run_id]) != records[run_id]],
    }


def close(rt: Any, facade: str) -> Awaitable[None]:
    closing: Awaitable[None] = rt.aclose() if facade == "async" else asyncio.to_thread(rt.close)
    return closing


if __name__ == "__main__":
    way, facade, folder, world, runs = sys.argv[1:]
    print(json.dumps(asyncio.run(main(way, facade, Path(folder), Path(world), int(runs)))))
