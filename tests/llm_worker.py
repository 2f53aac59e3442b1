"""A process that runs one LLM_CALL on a SQLite file, for a test that kills it: `python -m tests.llm_worker DB URL`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from abstractruntime import AsyncSqliteLedgerStore, AsyncSqliteRunStore, RunState, SqliteDatabase
from abstractruntime.integrations.abstractcore import create_async_local_runtime

from .bridge_fixtures import asking

RUN_ID = "killed"
WORKFLOW = asking({"prompt": "say it", "max_output_tokens": 50})


async def main(path: str, url: str) -> RunState:
    async with SqliteDatabase(path) as db:
        runtime = create_async_local_runtime(
            provider="openai-compatible",
            model="qwen3-4b",
            llm_kwargs={"base_url": url},
            run_store=AsyncSqliteRunStore(db),
            ledger_store=AsyncSqliteLedgerStore(db),
        )
        async with runtime as rt:
            run_id: Any = await rt.start(workflow=WORKFLOW, run_id=RUN_ID)
            return await rt.tick(workflow=WORKFLOW, run_id=run_id)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
