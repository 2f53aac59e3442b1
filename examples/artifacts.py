"""A large report beside the run: the node stores it as an artifact, vars hold a ref, another process reads it.

    python examples/artifacts.py

The checkpoint stays small however large the report is. A second process finds the ref in the run, asks the store what
it is, and reads it in pieces; none of them sees the whole of it in memory.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from abstractruntime import (
    FileArtifactStore,
    RunState,
    Runtime,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    StepPlan,
    WorkflowSpec,
    artifact_ref,
    get_artifact_id,
)

LINES = 200_000


def lines() -> Iterator[bytes]:
    """The report, piece by piece."""
    for number in range(LINES):
        yield b"line %06d of the report\n" % number


def write(run: RunState, ctx: Any) -> StepPlan:
    # Stored again after a crash it is the same artifact: the id is computed from the content and the run.
    report = run._runtime_artifact_store.store_stream(  # type: ignore[attr-defined]
        lines(), content_type="text/plain", run_id=run.run_id, tags={"kind": "report"}
    )
    run.vars["report"] = artifact_ref(report.artifact_id)
    return StepPlan("write", next_node="done")


def done(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("done", complete_output={"report": run.vars["report"]})


WORKFLOW: WorkflowSpec[Any] = WorkflowSpec("report", "write", {"write": write, "done": done})


def first_process(folder: Path) -> None:
    with SqliteDatabase(folder / "runs.db") as database:
        stores: dict[str, Any] = {"run_store": SqliteRunStore(database), "ledger_store": SqliteLedgerStore(database)}
        with Runtime(**stores, artifact_store=FileArtifactStore(folder)) as rt:
            state = rt.run(WORKFLOW, run_id="run-1")
            print(f"{state.status}: the run holds a ref of {len(str(state.output))} characters")


def second_process(folder: Path) -> None:
    with SqliteDatabase(folder / "runs.db") as database:
        state = SqliteRunStore(database).load("run-1")
    assert state is not None
    artifacts, report = FileArtifactStore(folder), get_artifact_id(state.vars["report"])
    known = artifacts.get_metadata(report)
    assert known is not None
    print(f"found: a {known.descriptor.semantic_kind} of {known.size_bytes} bytes, {known.content_type}")
    count = sum(chunk.count(b"\n") for chunk in artifacts.iter_content(report))
    print(f"read: {count} lines")
    print(f"deleted: {artifacts.delete_by_run('run-1')} artifact of the run")
    collected = artifacts.gc(dry_run=False, grace_s=0)
    print(f"collected: {collected['bytes_reclaimed']} bytes")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        second_process(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            first_process(Path(place))
            sys.stdout.flush()
            subprocess.run([sys.executable, __file__, place], check=True)
