"""Several effects of one step: offers of three shops are fetched together; a crash repeats only what had not landed.

The first process dies while the slowest shop still thinks. The second asks that shop again, with the same key, and no
other: the offers of the others had landed.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from abstractruntime import (
    AsyncRuntime,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    Effect,
    EffectCall,
    EffectOutcome,
    RunState,
    SqliteDatabase,
    StepPlan,
    WorkflowSpec,
)

SHOPS = {"north": 41, "south": 39, "west": 40}


def ask_shops(run: RunState, ctx: Any) -> StepPlan:
    effects = [Effect("offer", {"shop": shop}, f"offers.{shop}") for shop in SHOPS]
    return StepPlan("ask_shops", effects=effects, next_node="choose")


def choose(run: RunState, ctx: Any) -> StepPlan:
    offers = run.vars["offers"]
    best = min(offers, key=offers.__getitem__)
    return StepPlan("choose", complete_output={"shop": best, "price": offers[best]})


WORKFLOW: WorkflowSpec[Any] = WorkflowSpec("buy", "ask_shops", {"ask_shops": ask_shops, "choose": choose})


async def work(file: Path) -> None:
    """Drive the run as far as it goes; the first process gets no further than to the slow shop."""

    async def offer(call: EffectCall) -> EffectOutcome:
        shop = call.payload["shop"]
        if shop == "west" and call.attempt == 1:
            async for entry in rt.follow_ledger("order"):  # three promises, and the ends of two
                if entry.offset == 5:
                    break
            print("the others have landed, west still thinks", flush=True)
            await asyncio.Event().wait()
        print(f"{shop}: attempt {call.attempt}, key {call.key[:8]}", flush=True)
        return EffectOutcome.completed(SHOPS[shop])

    async with SqliteDatabase(file) as database:
        stores: dict[str, Any] = {
            "run_store": AsyncSqliteRunStore(database),
            "ledger_store": AsyncSqliteLedgerStore(database),
        }
        async with AsyncRuntime(**stores, effect_handlers={"offer": offer}) as rt:
            state = await rt.run(WORKFLOW, run_id="order")
            print(f"{state.status}: {state.output}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-u", __file__, str(Path(folder, "runs.db"))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
            for line in first.stdout or ():
                print(f"process 1 | {line.rstrip()}")
                if line.startswith("the others"):
                    first.kill()
        print("process 1 > killed with SIGKILL")
        second = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        for line in second.stdout.splitlines():
            print(f"process 2 | {line}")


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]))) if sys.argv[1:] else main()
