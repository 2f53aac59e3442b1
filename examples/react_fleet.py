"""The agent of react_agent.py, two hundred times on one loop: their model calls are in flight together.

    python examples/react_fleet.py 200 ollama qwen3:4b

A driver moves them; this program is the person who approves and answers, from the inbox of all of them. Stop it at any
time, and start it again: they go on.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from contextlib import AsyncExitStack

from react_agent import AGENT, ASKING

from abstractruntime import (
    AsyncFileArtifactStore,
    AsyncRuntime,
    AsyncScheduler,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    RunStatus,
    SqliteDatabase,
    WaitReason,
    WorkflowRegistry,
)
from abstractruntime.integrations.abstractcore import create_async_local_runtime

SHOWN = ("llm_call", "tool_calls", "memory_note", "memory_query", "resume")


async def work_off(rt: AsyncRuntime) -> int:
    """Approve what asks for it and answer every question; how many there were."""
    approvals = (await rt.list_approvals(limit=500)).items
    for one in approvals:
        await rt.approve(one["run_id"], one["wait_key"], digest=one["digest"], actor_id="fleet", max_steps=0)
    waits = (await rt.find_waits(reason=WaitReason.USER, limit=500)).items
    questions = [
        one for one in waits if "tool_calls" not in (one["details"] or {})
    ]  # approvals may have come meanwhile
    for one in questions:
        answer = {"text": f"the answer for {one['run_id']}"}
        await rt.resume(workflow=AGENT, run_id=one["run_id"], wait_key=one["wait_id"], payload=answer, max_steps=0)
    return len(approvals) + len(questions)


async def main(count: str = "200", provider: str = "ollama", model: str = "qwen3:4b", base_url: str = "") -> int:
    registry = WorkflowRegistry()
    registry.register(AGENT)
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(SqliteDatabase("fleet.db"))
        runtime = create_async_local_runtime(
            provider=provider,
            model=model,
            llm_kwargs={"base_url": base_url} if base_url else None,
            run_store=AsyncSqliteRunStore(db),
            ledger_store=AsyncSqliteLedgerStore(db),
            artifact_store=AsyncFileArtifactStore("fleet.artifacts"),
            workflow_registry=registry,
            tool_executor=ASKING,
        )
        rt = await stack.enter_async_context(runtime)
        driver = await stack.enter_async_context(AsyncScheduler(rt, concurrency=int(count)))
        ids = [f"agent-{number}" for number in range(int(count))]
        for run_id in ids:
            await rt.start(workflow=AGENT, vars={"task": f"Write down what we know, {run_id}"}, run_id=run_id)
        while True:
            decided = await work_off(rt)
            states = [await rt.get_state(run_id) for run_id in ids]
            standing = Counter(state.status.value for state in states)
            print(dict(standing), f"decided {decided}", f"failed ticks {driver.stats.runs_failed}", flush=True)
            if not standing[RunStatus.RUNNING] and not standing[RunStatus.WAITING]:
                break
            await asyncio.sleep(0.2)
        calls: Counter[str] = Counter()
        for state in states:
            for record in await rt.get_ledger(state.run_id):
                if record["status"] == "completed" and (record["effect"] or {}).get("type") in SHOWN:
                    calls[record["effect"]["type"]] += 1
        print(", ".join(f"{number} {kind}" for kind, number in sorted(calls.items())))
        return 0 if standing[RunStatus.COMPLETED] == len(ids) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
