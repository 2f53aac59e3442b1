"""Going back: bookmark a run before an answer, answer, restore it and answer otherwise; then fork it and compare.

    python examples/snapshots.py

The draft is written once. A restore puts the run itself back, with a record of who did it and why; a fork is a new run
that goes on from the bookmark, while the first one stays as it is.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from abstractruntime import (
    Effect,
    EffectCall,
    EffectOutcome,
    RunState,
    Runtime,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    SqliteSnapshotStore,
    StaleResumeError,
    StepPlan,
    WorkflowSpec,
    diff_snapshots,
)

ESSAY = "essay"
DRAFTS: list[str] = []


def write(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("write", Effect("write_draft", {}, "draft"), "ask")


def ask(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("ask", Effect("ask_user", {"prompt": "Publish?"}, "answer"), "done")


def done(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("done", complete_output={"draft": run.vars["draft"], "published": run.vars["answer"] == "yes"})


def write_draft(call: EffectCall) -> EffectOutcome:
    DRAFTS.append(f"draft {len(DRAFTS) + 1}")
    return EffectOutcome.completed(DRAFTS[-1])


WORKFLOW: WorkflowSpec[Any] = WorkflowSpec("publish", "write", {"write": write, "ask": ask, "done": done})


def answer(rt: Runtime, run_id: str, text: str) -> str:
    state = rt.tick(workflow=WORKFLOW, run_id=run_id)
    assert state.waiting is not None
    question = state.waiting.prompt
    state = rt.resume(workflow=WORKFLOW, run_id=run_id, wait_key=state.waiting.wait_key, payload=text)
    return f"{question} -> {text}: {state.status} {state.output}"


def main(rt: Runtime) -> None:
    rt.start(workflow=WORKFLOW, run_id=ESSAY)
    asked = rt.tick(workflow=WORKFLOW, run_id=ESSAY).waiting
    assert asked is not None
    bookmark = rt.snapshot_run(ESSAY, name="before the answer", tags=["essay"])
    print(answer(rt, ESSAY, "no"))

    back = rt.restore(ESSAY, bookmark, reason="not meant", actor_id="ann")
    assert back.waiting is not None
    print(f"restored to {bookmark.name!r}: {back.status}, {back.waiting.prompt}")
    try:
        rt.resume(workflow=WORKFLOW, run_id=ESSAY, wait_key=asked.wait_key, payload="no")
    except StaleResumeError as error:
        print(f"the old question is void: {error}")
    print(answer(rt, ESSAY, "yes"))
    published = rt.snapshot_run(ESSAY, name="published")

    fork = rt.fork(ESSAY, at=bookmark.snapshot_id, vars={"draft": "another draft"}, reason="what if")
    print(f"fork: {answer(rt, fork, 'yes')}")
    print(f"drafts written: {len(DRAFTS)}")
    for change in diff_snapshots(published, rt.snapshot_run(fork, name="the fork")):
        if change["path"].startswith(("/output", "/vars/draft")):
            print(f"  {change['op']} {change['path']}: {change['before']!r} -> {change['after']!r}")
    first = rt.get_ledger(fork)[0]["effect"]
    print(f"  1 {first['type']} of {first['payload']['run_id']} at record {first['payload']['position']}")

    gone = rt.delete_run(ESSAY)
    print(f"deleted: {gone.run:d} run with {gone.records} records and {gone.snapshots} snapshots")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, SqliteDatabase(Path(folder) / "runs.db") as db:
        stores: dict[str, Any] = {
            "run_store": SqliteRunStore(db),
            "ledger_store": SqliteLedgerStore(db),
            "snapshot_store": SqliteSnapshotStore(db),
        }
        with Runtime(**stores, effect_handlers={"write_draft": write_draft}) as runtime:
            main(runtime)
