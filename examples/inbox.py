"""An inbox: an application lists what waits for a person, page by page, answers two and follows what comes of one."""

from __future__ import annotations

import asyncio
from typing import Any

from abstractruntime import (
    AsyncInMemoryLedgerStore,
    AsyncInMemoryRunStore,
    AsyncRuntime,
    Effect,
    EffectType,
    LedgerEntry,
    RunState,
    RunStatus,
    StepPlan,
    WaitReason,
    WorkflowSpec,
)


def ask(run: RunState, ctx: Any) -> StepPlan:
    payload = {"prompt": f"Pay {run.vars['amount']} EUR?", "choices": ["yes", "no"], "allow_free_text": False}
    return StepPlan("ask", Effect(EffectType.ASK_USER, payload, result_key="answer"), next_node="decide")


def decide(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("decide", complete_output={"paid": run.vars["answer"]["choice"] == "yes"})


WORKFLOW: WorkflowSpec[Any] = WorkflowSpec("payments", "ask", {"ask": ask, "decide": decide})


async def inbox(rt: AsyncRuntime) -> list[dict[str, Any]]:
    """All questions to Ann, two at a time as a screen would show them."""
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = await rt.find_waits(reason=WaitReason.USER, actor_id="ann", limit=2, cursor=cursor)
        print("page:", [f"{row['run_id']}: {row['prompt']}" for row in page.items])
        found += page.items
        cursor = page.cursor
        if cursor is None:
            return found


async def follow(rt: AsyncRuntime, run_id: str) -> list[LedgerEntry]:
    """What the ledger of a run holds and what comes, until the run has ended."""
    return [entry async for entry in rt.follow_ledger(run_id)]


async def main() -> None:
    async with AsyncRuntime(run_store=AsyncInMemoryRunStore(), ledger_store=AsyncInMemoryLedgerStore()) as rt:
        for number in range(1, 4):
            await rt.run(WORKFLOW, vars={"amount": 100 * number}, run_id=f"payment-{number}", actor_id="ann")
        await rt.run(WORKFLOW, vars={"amount": 5}, run_id="payment-4", actor_id="bob")

        following = asyncio.create_task(follow(rt, "payment-3"))
        for row, choice in zip(await inbox(rt), ("yes", "no"), strict=False):
            answer = {"choice": choice}
            state = await rt.resume(workflow=WORKFLOW, run_id=row["run_id"], wait_key=row["wait_id"], payload=answer)
            print(f"{state.run_id}: {state.output}")
        await inbox(rt)

        for entry in await following:
            record = entry.record
            print(
                f"  {entry.offset} {record['node_id']:<6} {record['status']:<9} {(record['effect'] or {}).get('type')}"
            )
        ended = await rt.find_runs(status=RunStatus.COMPLETED)
        print("ended:", [row["run_id"] for row in ended.items])


if __name__ == "__main__":
    asyncio.run(main())
