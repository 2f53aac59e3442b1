"""Bugs that users of other runtimes suffered, and defects of the documented package, about what is stored for long."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    Effect,
    EffectCall,
    EffectOutcome,
    FileArtifactStore,
    HashChainedLedgerStore,
    JsonFileRunStore,
    JsonlLedgerStore,
    OffloadingLedgerStore,
    OffloadingRunStore,
    RetryPolicy,
    RunState,
    RunStatus,
    Runtime,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    SqliteSnapshotStore,
    StepPlan,
    StoreCorrupt,
    UnknownRun,
    WorkflowRegistry,
)

from .worlds import ask, flow, one

LARGE = "large " * 300_000


def pairs(kind: str, folder: Path) -> tuple[Any, Any]:
    if kind == "json":
        return JsonFileRunStore(folder), JsonlLedgerStore(folder)
    db = SqliteDatabase(folder / "runs.db")
    return SqliteRunStore(db), SqliteLedgerStore(db)


@pytest.mark.parametrize("kind", ["sqlite", "json"])
def test_oversize_payload_is_offloaded_not_retried(kind, tmp_path):
    calls: Counter[str] = Counter()

    def fetch(call: EffectCall) -> EffectOutcome:
        calls[call.key] += 1
        return EffectOutcome.completed({"page": LARGE})

    runs, ledger = pairs(kind, tmp_path)
    artifacts = FileArtifactStore(tmp_path / "artifacts")
    with Runtime(
        run_store=OffloadingRunStore(runs, artifact_store=artifacts),
        ledger_store=OffloadingLedgerStore(ledger, artifact_store=artifacts),
        effect_handlers={"fetch": fetch},
        effect_policy=RetryPolicy(tool_max_attempts=5),
    ) as rt:
        state = rt.run(one("fetch", {"question": LARGE}), run_id="r")
        assert state.status is RunStatus.COMPLETED
        assert state.output["result"] == {"page": LARGE}
        assert list(calls.values()) == [1]
        stored = rt.get_ledger("r")
        assert len(str(stored)) < 10_000
        assert rt.get_ledger("r", resolve=True)[1]["result"] == {"page": LARGE}
        assert rt.get_ledger("r", resolve=True)[0]["effect"]["payload"] == {"question": LARGE}


def test_prune_keeps_reconstruction(tmp_path):
    """What is left after others were deleted and their artifacts collected can be loaded, verified and restored."""
    with SqliteDatabase(tmp_path / "runs.db") as db:
        artifacts = FileArtifactStore(tmp_path)
        options: dict[str, Any] = {"artifact_store": artifacts, "max_inline_bytes": 100}
        ledger = OffloadingLedgerStore(HashChainedLedgerStore(SqliteLedgerStore(db)), **options)
        with Runtime(
            run_store=OffloadingRunStore(SqliteRunStore(db), **options),
            ledger_store=ledger,
            artifact_store=artifacts,
            snapshot_store=SqliteSnapshotStore(db),
            effect_handlers={"fetch": lambda call: EffectOutcome.completed({"page": "the same page " * 50})},
        ) as rt:
            workflow = flow(
                "fetch",
                fetch=lambda run, ctx: StepPlan("fetch", Effect("fetch", {}, "_temp.page"), "ask"),
                ask=lambda run, ctx: StepPlan("ask", Effect("ask_user", {"prompt": "Keep?"}, "answer"), "end"),
            )
            for number in range(6):
                rt.run(workflow, run_id=f"run-{number}")
            bookmark = rt.snapshot_run("run-0", name="before the answer")
            for number in range(6):
                rt.resume(workflow=workflow, run_id=f"run-{number}", wait_key=None, payload="yes")
            kept = {f"run-{number}": rt.get_state(f"run-{number}", resolve=True) for number in (0, 2)}
            for number in (1, 3, 4, 5):
                assert rt.delete_run(f"run-{number}").run
            artifacts.gc(dry_run=False, grace_s=0)
            for run_id, state in kept.items():
                assert rt.get_state(run_id, resolve=True) == state
                assert rt.get_ledger(run_id, resolve=True)[1]["result"] == {"page": "the same page " * 50}
                assert rt.verify_ledger(run_id)["ok"]
            rt.restore("run-0", bookmark)
            assert rt.resume(workflow=workflow, run_id="run-0", wait_key=None, payload="no").output["answer"] == "no"
            assert rt.verify_ledger("run-0")["ok"]
            db.check(full=True)
            assert len(rt.find_runs().items) == 2


def test_a_torn_last_line_swallows_no_record_and_count_and_list_agree(tmp_path, caplog):
    """Known defect: the next record was appended to the torn line, and both were lost."""
    runs, ledger = pairs("json", tmp_path)
    workflow = one("ask_user", {"prompt": "Go on?"})
    rt = Runtime(run_store=runs, ledger_store=ledger)
    rt.run(workflow, run_id="r")
    before = ledger.list("r")
    del rt, runs, ledger
    path = tmp_path / "ledger_r.jsonl"
    path.write_bytes(path.read_bytes() + b'{"run_id": "r", "step_id": "torn')
    runs, ledger = pairs("json", tmp_path)
    assert ledger.list("r") == before
    with Runtime(run_store=runs, ledger_store=ledger) as again:
        state = again.resume(workflow=workflow, run_id="r", wait_key=None, payload="yes")
    assert state.status is RunStatus.COMPLETED
    assert ledger.list("r")[: len(before)] == before
    assert ledger.count("r") == len(ledger.list("r")) == state.records
    assert b"torn" not in path.read_bytes()


def test_a_run_document_that_cannot_be_read_is_no_unknown_run(tmp_path):
    """Known defect: a corrupt file loaded as None."""
    runs, ledger = pairs("json", tmp_path)
    runs.save(RunState("r", "w", RunStatus.RUNNING, "n"))
    (tmp_path / "run_r.json").write_text('{"run_id": "r", ')
    with Runtime(run_store=runs, ledger_store=ledger) as rt:
        with pytest.raises(StoreCorrupt, match=r"run_r\.json"):
            rt.get_state("r")
        with pytest.raises(UnknownRun):
            rt.get_state("s")


def test_fork_does_not_rerun_completed_children(tmp_path):
    """What a child did is in the parent's vars: a fork from then on starts no other."""
    calls: Counter[str] = Counter()

    def charge(call: EffectCall) -> EffectOutcome:
        calls[call.run.run_id] += 1
        return EffectOutcome.completed({"charged": True})

    child = flow("charge", workflow_id="child", charge=ask("charge", "charge", {}, "charged"))
    parent = flow(
        "start",
        workflow_id="parent",
        start=ask("start", "start_subworkflow", {"workflow_id": "child"}, "child", "wait"),
        wait=ask("wait", "ask_user", {"prompt": "Go on?"}, "answer"),
    )
    registry = WorkflowRegistry()
    for workflow in (child, parent):
        registry.register(workflow)
    runs, ledger = pairs("sqlite", tmp_path)
    with Runtime(
        run_store=runs, ledger_store=ledger, effect_handlers={"charge": charge}, workflow_registry=registry
    ) as rt:
        rt.run(parent, run_id="original")
        bookmark = rt.snapshot_run("original", name="asked")
        rt.resume(workflow=parent, run_id="original", wait_key=None, payload="yes")
        for at in (bookmark, bookmark):
            fork = rt.fork("original", at=at)
            rt.tick(workflow=parent, run_id=fork)
            state = rt.resume(workflow=parent, run_id=fork, wait_key=None, payload="no")
            assert state.output["child"]["output"] == {"charged": {"charged": True}}
        assert sum(calls.values()) == 1
        assert len(rt.find_runs(workflow_id="child").items) == 1
