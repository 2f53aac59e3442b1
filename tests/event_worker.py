"""A process that sends numbered events: `python -m tests.event_worker DB COUNT FIRST`.

It sends `host` events from number FIRST on, each with an id of its own, and between them drives a run that sends as
many `run` events. Each number is told when its event is acknowledged: `host 3`, `run 3`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from abstractruntime import (
    AsyncRuntime,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    Effect,
    RunState,
    RunStatus,
    SqliteDatabase,
    StepPlan,
    WorkflowSpec,
)

EVERYWHERE: dict[str, Any] = {"scope": "global"}


def send(run: RunState, ctx: Any) -> StepPlan:
    number = run.vars.get("number", 0)
    run.vars["number"] = number + 1
    if number == run.vars["count"]:
        return StepPlan("send", complete_output={})
    payload = {"name": "run", "payload": {"n": number}, **EVERYWHERE}
    return StepPlan("send", Effect("emit_event", payload, "told"), "send")


def keep(run: RunState, ctx: Any) -> StepPlan:
    """Keep what was heard, and listen on until nothing is to come."""
    heard = run.vars.setdefault("heard", [])
    got = run.vars.pop("got", None)
    if got is not None:
        heard.append([got["name"], got["payload"]["n"]])
    if len(heard) == 2 * run.vars["count"]:
        return StepPlan("keep", complete_output={"heard": heard})
    return StepPlan("keep", Effect("wait_event", {"name": "*", **EVERYWHERE}, "got"), "keep")


SENDER: WorkflowSpec[Any] = WorkflowSpec("sender", "send", {"send": send})
LISTENER: WorkflowSpec[Any] = WorkflowSpec("listener", "keep", {"keep": keep})
REGISTRY = {"sender": SENDER, "listener": LISTENER}


async def main(database: Path, count: int, first: int) -> None:
    async with SqliteDatabase(database, synchronous="NORMAL") as db:
        stores: dict[str, Any] = {"run_store": AsyncSqliteRunStore(db), "ledger_store": AsyncSqliteLedgerStore(db)}
        async with AsyncRuntime(**stores, workflow_registry=REGISTRY) as rt:
            for number in range(first, count):
                await rt.emit_event(name="host", payload={"n": number}, event_id=f"e{number}", **EVERYWHERE)
                print("host", number, flush=True)
                state = await rt.tick(workflow=SENDER, run_id="sender", max_steps=1)
                print("run", state.vars["number"] - 1, flush=True)
            while state_runs(await rt.tick(workflow=SENDER, run_id="sender", max_steps=1)):
                pass


def state_runs(state: RunState) -> bool:
    return state.status is RunStatus.RUNNING


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
