"""A backup while runs are driven: the copy opens as a database, and the runs in it go on.

    python examples/backup.py

Ten runs are in the middle of their work when the copy is taken. The database then goes on, and so does the copy, as
after the loss of the disk: each run comes to its end from where it stood.
"""

from __future__ import annotations

import asyncio
import logging
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

RUNS = [f"run-{number}" for number in range(10)]


def ask(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("ask", Effect("call", {}, "answer"), "done")


def done(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("done", complete_output={"answer": run.vars["answer"]})


WORKFLOW: WorkflowSpec[Any] = WorkflowSpec("backup", "ask", {"ask": ask, "done": done})


async def work(database: SqliteDatabase, called: asyncio.Event, go_on: asyncio.Event) -> list[str]:
    """Drive all runs on this database to their ends; `called` is set when all are in the middle of their effect."""
    calls: list[int] = []

    async def call(effect: EffectCall) -> EffectOutcome:
        calls.append(effect.attempt)
        if len(calls) == len(RUNS):
            called.set()
        await go_on.wait()
        return EffectOutcome.completed(f"attempt {effect.attempt}")

    stores: dict[str, Any] = {
        "run_store": AsyncSqliteRunStore(database),
        "ledger_store": AsyncSqliteLedgerStore(database),
    }
    async with AsyncRuntime(**stores, effect_handlers={"call": call}) as rt:
        ends = await asyncio.gather(*(rt.run(WORKFLOW, run_id=run_id) for run_id in RUNS))
        return sorted({f"{end.status}, {(end.output or {})['answer']}" for end in ends})


async def main(folder: Path) -> None:
    called, go_on = asyncio.Event(), asyncio.Event()
    async with SqliteDatabase(folder / "runs.db") as database:
        working = asyncio.create_task(work(database, called, go_on))
        await called.wait()
        copy = await database.abackup(folder / "backups" / "runs.db")
        print(f"copied: {copy.name}, while {len(RUNS)} effects are in flight")
        go_on.set()
        print(f"the database: {len(RUNS)} runs {(await working)[0]}")
        await database.acheck(full=True)
    async with SqliteDatabase(copy) as database:
        await database.acheck(full=True)
        print(f"the copy: {len(RUNS)} runs {(await work(database, called, go_on))[0]}")


if __name__ == "__main__":
    # The log warns of each effect whose performer is not to be found in the copy; here that is what is to be shown.
    logging.getLogger("abstractruntime").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(main(Path(place)))
