"""A process that drives one run with a remote model to its end, for a test that kills it.

`python -m tests.remote_worker DB SERVER UPSTREAM` starts the run, or goes on with what it finds half done, and prints
its output.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from abstractruntime import (
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    Effect,
    EffectType,
    RunState,
    SqliteDatabase,
    StepPlan,
    WorkflowSpec,
)
from abstractruntime.integrations.abstractcore import create_async_remote_runtime

from .core_server import TOKEN

RUN = "remote-run"


def ask(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("ask", Effect(EffectType.LLM_CALL, run.vars["call"], "said"), "end")


def end(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("end", complete_output={"said": run.vars["said"]["content"]})


WORKFLOW: WorkflowSpec[Any] = WorkflowSpec("remote", "ask", {"ask": ask, "end": end})


async def main(database: str, server: str, upstream: str) -> None:
    db = SqliteDatabase(database)
    async with create_async_remote_runtime(
        server_base_url=server,
        model="openai-compatible/qwen3-4b",
        headers={"Authorization": f"Bearer {TOKEN}"},
        run_store=AsyncSqliteRunStore(db),
        ledger_store=AsyncSqliteLedgerStore(db),
    ) as runtime:
        call = {"prompt": "Are you there?", "params": {"base_url": upstream}}
        await runtime.start(workflow=WORKFLOW, run_id=RUN, vars={"call": call})
        run = await runtime.tick(workflow=WORKFLOW, run_id=RUN)
    print(json.dumps(run.output), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
