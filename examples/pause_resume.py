"""The core loop on a SQLite file: start, tick, wait, and resume from a program that knows nothing but the run's id."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from abstractruntime import (
    Effect,
    EffectType,
    RunState,
    Runtime,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    StepPlan,
    WorkflowSpec,
)


def ask(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan(
        node_id="ask",
        effect=Effect(type=EffectType.ASK_USER, payload={"prompt": "Continue?"}, result_key="answer"),
        next_node="done",
    )


def done(run: RunState, ctx: Any) -> StepPlan:
    answer = run.vars.get("answer") or {}
    return StepPlan(node_id="done", complete_output={"answer": answer.get("text")})


WORKFLOW: WorkflowSpec[Any] = WorkflowSpec(workflow_id="demo", entry_node="ask", nodes={"ask": ask, "done": done})


def begin(path: Path) -> str:
    """One program: it starts the run, shows the question and ends."""
    with SqliteDatabase(path) as db, Runtime(run_store=SqliteRunStore(db), ledger_store=SqliteLedgerStore(db)) as rt:
        run_id = rt.start(workflow=WORKFLOW)
        state = rt.tick(workflow=WORKFLOW, run_id=run_id)
        assert state.waiting is not None
        print(f"{state.status.value}: {state.waiting.prompt}")
        return run_id


def answer(path: Path, run_id: str, text: str) -> None:
    """Another program, any time later: it delivers the answer, and the run goes on behind the question."""
    with SqliteDatabase(path) as db, Runtime(run_store=SqliteRunStore(db), ledger_store=SqliteLedgerStore(db)) as rt:
        waiting = rt.get_state(run_id).waiting
        assert waiting is not None
        state = rt.resume(workflow=WORKFLOW, run_id=run_id, wait_key=waiting.wait_key, payload={"text": text})
        print(f"{state.status.value}: {state.output}")
        for record in rt.get_ledger(run_id):
            print(f"  {record['node_id']:5} {record['status']:10} {(record['effect'] or {}).get('type', 'complete')}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "runs.db"
        answer(file, begin(file), "yes")
