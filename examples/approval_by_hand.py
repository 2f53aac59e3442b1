"""A person approves: only the offered choices count as an answer, and silence counts as a no after two days."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from abstractruntime import (
    Effect,
    EffectType,
    InMemoryLedgerStore,
    InMemoryRunStore,
    InvalidAnswer,
    RunState,
    Runtime,
    StepPlan,
    WorkflowSpec,
)
from abstractruntime.core.clock import SystemClock

TWO_DAYS = timedelta(days=2)


def ask(run: RunState, ctx: Any) -> StepPlan:
    payload = {
        "prompt": f"Pay {run.vars['amount']} EUR?",
        "choices": ["approve", "reject"],
        "allow_free_text": False,
        "timeout_s": TWO_DAYS.total_seconds(),
    }
    return StepPlan("ask", Effect(EffectType.ASK_USER, payload, result_key="decision"), next_node="decide")


def decide(run: RunState, ctx: Any) -> StepPlan:
    decision = run.vars["decision"]
    text = "reject" if decision.get("timed_out") else decision["choice"]
    return StepPlan("decide", complete_output={"decision": text, "by_silence": bool(decision.get("timed_out"))})


WORKFLOW: WorkflowSpec[Any] = WorkflowSpec("approval", "ask", {"ask": ask, "decide": decide})


class LaterClock(SystemClock):
    """The machine's clock, two days on: nobody wants to wait for an example."""

    def now(self) -> datetime:
        return super().now() + TWO_DAYS


def main() -> None:
    runs, ledger = InMemoryRunStore(), InMemoryLedgerStore()
    with Runtime(run_store=runs, ledger_store=ledger) as rt:
        state = rt.run(WORKFLOW, vars={"amount": 100}, run_id="answered")
        assert state.waiting is not None
        print(f"{state.waiting.prompt} {state.waiting.choices}")
        key = state.waiting.wait_key
        try:
            rt.resume(workflow=WORKFLOW, run_id="answered", wait_key=key, payload={"choice": "maybe"})
        except InvalidAnswer as error:
            print(f"refused: {error}")
        state = rt.resume(workflow=WORKFLOW, run_id="answered", wait_key=key, payload={"choice": "approve"})
        print(f"{state.status.value}: {state.output}")
        rt.run(WORKFLOW, vars={"amount": 200}, run_id="unanswered")
    with Runtime(run_store=runs, ledger_store=ledger, clock=LaterClock()) as rt:
        state = rt.tick(workflow=WORKFLOW, run_id="unanswered")
        print(f"{state.status.value}: {state.output}")


if __name__ == "__main__":
    main()
